"""Where a kernel built for debugging looks in on the primitives. As here, nothing is compiled in.

:mod:`faultpath.kernel.debug` is what the checker links in their place.
"""

from __future__ import annotations

from faultpath.engine.world import Words
from faultpath.protocol.language import helper

READ, WRITE = 0, 1
SLEEPS, SPINS = 0, 1


@helper(raw=True)
def set_lock(w: Words, lock: int, value: int) -> int:
    """Change a lock's word."""
    w[lock] = value
    return 0


@helper
def lock_wanted(w: Words, lock: int, role: int, spins: int) -> int:
    """The running thread is about to take a lock, and will wait for it (lockdep; might_sleep)."""
    return 0


@helper
def lock_tried(w: Words, lock: int) -> int:
    """The running thread is about to take a lock if nobody holds it."""
    return 0


@helper
def lock_taken(w: Words, lock: int, role: int, write: int, spins: int) -> int:
    """It has it."""
    return 0


@helper
def lock_dropped(w: Words, lock: int, write: int, spins: int) -> int:
    """It is about to give it up."""
    return 0


@helper
def lock_downgraded(w: Words, lock: int) -> int:
    """From now on it holds it for reading only."""
    return 0


@helper
def might_sleep(w: Words) -> int:
    """The running thread may sleep now."""
    return 0


@helper
def woken(w: Words, queue: int) -> int:
    """Whoever sleeps on a queue is woken. In a replay nobody does."""
    return 0


@helper
def worker_is_caller(w: Words) -> int:
    """Whether the running thread runs the work items itself: nobody else is there."""
    return 1


@helper(raw=True)
def set_count(w: Words, count: int, value: int, floor: int) -> int:
    """Change a count by one. ``floor``: the value at or below which steps can be told apart."""
    w[count] = value
    return 0


@helper
def may_fail(w: Words, gfp: int) -> int:
    """Whether an allocation fails."""
    return 0


@helper
def list_add_valid(w: Words, node: int) -> int:
    """A node is about to be put into a list (CONFIG_DEBUG_LIST)."""
    return 0


@helper
def list_del_valid(w: Words, node: int) -> int:
    """A node is about to be taken out of a list."""
    return 0


@helper
def tree_changes(w: Words, root: int) -> int:
    """A tree is about to be changed."""
    return 0


@helper
def tree_insert_valid(w: Words, node: int) -> int:
    """A node is about to be put into a tree."""
    return 0


@helper
def table_alive(w: Words, root: int) -> int:
    """A table is looked into whose root must be in a living object: the device may do that by itself."""
    return 0


@helper
def table_changes(w: Words, root: int) -> int:
    """A table changes that the device may look into."""
    return 0
