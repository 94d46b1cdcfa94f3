"""Wait queues. Who waits is known by the condition it waits for; what is left of a queue is that waking touches it."""

from __future__ import annotations

from faultpath.engine.world import Words
from faultpath.kernel.primitives.locks import dec_and_test
from faultpath.protocol.language import primitive
from faultpath.protocol.struct import Embedded, RefCount


class WaitQueue(Embedded):
    """``wait_queue_head_t``: its lock."""


@primitive
def wake_up(w: Words, queue: WaitQueue) -> int:
    """wake_up(): the queue's lock is taken, so the object that holds it must still be there."""
    return w[queue]


@primitive
def dec_and_wake(w: Words, ref: RefCount, queue: WaitQueue) -> int:
    """complete() of the last one: the count falls and the queue is woken under the lock that the waiter takes, too."""
    return w[queue] if dec_and_test(w, ref) else 0
