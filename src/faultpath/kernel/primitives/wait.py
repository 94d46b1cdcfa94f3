"""Wait queues and completions. ``wait_event()``, the other side of ``wake_up()``, is a word of the language."""

from __future__ import annotations

from faultpath.engine.world import Words
from faultpath.kernel.primitives.atomic import Atomic, fell_to_zero
from faultpath.kernel.primitives.debug import might_sleep, woken
from faultpath.kernel.primitives.locks import dec_and_test
from faultpath.protocol.language import helper, primitive
from faultpath.protocol.struct import Embedded, RefCount, WaitQueue


@helper
def wake(w: Words, queue: int) -> int:
    """Take the queue's lock, so the object that holds it must still be there, and let everybody look again."""
    w[queue] = 0
    return woken(w, queue)


@primitive
def wake_up(w: Words, queue: WaitQueue) -> int:
    """wake_up() and wake_up_all(), which differ for exclusive waiters only: there are none here."""
    return wake(w, queue)


@primitive
def dec_and_wake(w: Words, ref: RefCount, queue: WaitQueue) -> int:
    """complete() of the last one: the count falls and the queue is woken under the lock that the waiter takes, too."""
    return wake(w, queue) if dec_and_test(w, ref) else 0


@primitive
def atomic_dec_and_wake(w: Words, count: Atomic, queue: WaitQueue) -> int:
    """The same for an atomic_t, which may fall below zero."""
    return wake(w, queue) if fell_to_zero(w, count) else 0


ALL = (1 << 32) - 1  # UINT_MAX: for everybody, from now on


class Completion(Embedded):
    """``struct completion`` (kernel/sched/completion.c, Linux 6.1): ``done``. New ones are initialized: zero."""


@primitive
def complete(w: Words, x: Completion) -> int:
    """complete(): one waiter may go on. Counted and woken under x.wait's lock, which the waiter takes too: one step.

    So, unlike a wait queue whose condition lies outside it, a completion may be freed by the one who waited for it.
    """
    if w[x] != ALL:
        w[x] += 1
    return 0


@primitive
def complete_all(w: Words, x: Completion) -> int:
    """complete_all(): everybody may go on, until reinit_completion()."""
    w[x] = ALL
    return 0


@primitive
def reinit_completion(w: Words, x: Completion) -> int:
    """reinit_completion(): it can be waited for again."""
    w[x] = 0
    return 0


@helper
def take_done(w: Words, x: int) -> int:
    """Take what one complete() has given; 1 if there is nothing to take."""
    if w[x] == 0:
        return 1
    if w[x] != ALL:
        w[x] -= 1
    return 0


@primitive(blocks=True)
def wait_for_completion(w: Words, x: Completion) -> int:
    """wait_for_completion(): sleep until it is done, and take that."""
    might_sleep(w)
    return take_done(w, x)


@primitive
def try_wait_for_completion(w: Words, x: Completion) -> int:
    """try_wait_for_completion(): take it if it is done, without sleeping: 1 if taken."""
    return 1 - take_done(w, x)


@primitive
def completion_done(w: Words, x: Completion) -> int:
    """completion_done(): whether a waiter would go on at once."""
    return 1 if w[x] else 0
