"""Wait queues. Who waits is known by the condition it waits for; what is left of a queue is that waking touches it."""

from __future__ import annotations

from faultpath.engine.world import Words
from faultpath.protocol.language import primitive
from faultpath.protocol.struct import Embedded


class WaitQueue(Embedded):
    """``wait_queue_head_t``: its lock."""


@primitive
def wake_up(w: Words, queue: WaitQueue) -> int:
    """wake_up(): the queue's lock is taken, so the object that holds it must still be there."""
    return w[queue]
