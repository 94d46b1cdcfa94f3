"""Sleepable RCU: kernel/rcu/srcutiny.c, Linux 6.1; the tree version differs in having its counters per CPU.

``srcu_idx`` counts twice per grace period and is odd while one runs. A reader is counted in one of two counters. When
a grace period begins, new readers go to the other one; it ends when the old one is at zero. So who waits for it waits
for the readers that were inside when it began, and for no later one.

The kernel runs grace periods in a work item; here those who wait take them forward together. A reader's choice of its
counter and the counting are one step: the tree version's first scan, for readers between the two, is not needed.
"""

from __future__ import annotations

from faultpath.engine.world import BAD_ADDRESS, STATUS, STATUS_ARG, Stop, Words
from faultpath.kernel.primitives.debug import READ, might_sleep
from faultpath.kernel.primitives.locks import count_lock
from faultpath.protocol.language import primitive, protocol
from faultpath.protocol.struct import Embedded


class Srcu(Embedded):
    """``struct srcu_struct``: srcu_idx, and the two counters of srcu_lock_nesting."""

    words = 3
    role = "srcu"


@primitive
def srcu_read_unlock(w: Words, srcu: Srcu, idx: int) -> int:
    """srcu_read_unlock()."""
    if w[srcu + 1 + idx] <= 0:
        w[STATUS] = BAD_ADDRESS
        w[STATUS_ARG] = srcu
        raise Stop
    w[srcu + 1 + idx] -= 1
    return 0


@primitive(role=True, undone_by=srcu_read_unlock)
def srcu_read_lock(w: Words, srcu: Srcu, role: int) -> int:
    """srcu_read_lock(): enter a read-side section; the index to leave it with."""
    idx = (w[srcu] + 1 & 2) >> 1
    w[srcu + 1 + idx] += 1
    count_lock(w, role, READ)
    return idx


@primitive
def get_state_synchronize_srcu(w: Words, srcu: Srcu) -> int:
    """get_state_synchronize_srcu(): what srcu_idx will be when a full grace period from now on is over."""
    return w[srcu] + 3 & ~1


@primitive
def poll_state_synchronize_srcu(w: Words, srcu: Srcu, cookie: int) -> int:
    """poll_state_synchronize_srcu(): whether that grace period is over."""
    return 1 if w[srcu] >= cookie else 0


@primitive
def srcu_gp_start(w: Words, srcu: Srcu) -> int:
    """srcu_drive_gp(), up to its wait: new readers go to the other counter; which grace period it is that runs now."""
    if w[srcu] & 1 == 0:
        w[srcu] += 1
    return w[srcu]


@primitive(blocks=True)
def srcu_gp_end(w: Words, srcu: Srcu, gp: int) -> int:
    """srcu_drive_gp(), from its wait on: the readers from before are gone. Somebody else may have seen to it."""
    might_sleep(w)
    if w[srcu] == gp:
        if w[srcu + 1 + ((gp & 2) >> 1)]:
            return 1
        w[srcu] += 1
    return 0


@protocol
def wait_srcu_gp(srcu: Srcu, cookie: int) -> None:
    """Wait until the grace period that a cookie stands for is over."""
    while not poll_state_synchronize_srcu(srcu, cookie):
        srcu_gp_end(srcu, srcu_gp_start(srcu))


@protocol
def synchronize_srcu(srcu: Srcu) -> None:
    """synchronize_srcu(): wait for every reader that was inside when it was called."""
    wait_srcu_gp(srcu, get_state_synchronize_srcu(srcu))
