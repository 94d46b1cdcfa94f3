"""What a run that stopped has to say: status words composed into text, outside jitted code."""

from __future__ import annotations

from faultpath.engine import arena, world
from faultpath.engine.world import Words
from faultpath.errors import FaultpathError

# status: (the property it breaks, what happened, as a kernel would put it)
VIOLATIONS: dict[int, tuple[str, str]] = {
    world.BAD_ADDRESS: ("structure", "a call through a function pointer that is not set"),
    world.DOUBLE_FREE: ("lifetime", "double free"),
    world.REFCOUNT: ("lifetime", "refcount_t: underflow, or raised from zero"),
    world.TREE: ("structure", "interval tree: a node that is in no tree is erased"),
    world.DIVISION: ("structure", "division by zero"),
    arena.USE_AFTER_FREE: ("lifetime", "use after free"),
    arena.NULL_POINTER: ("lifetime", "NULL pointer dereference"),
    arena.WILD_POINTER: ("lifetime", "access to what is no object"),
    arena.LOCK_ORDER: ("locks", "possible circular locking dependency"),
    arena.SELF_DEADLOCK: ("locks", "a lock is wanted by the thread that holds it"),
    arena.NOT_HELD: ("locks", "a lock is given up by a thread that does not hold it"),
    arena.SLEEP_IN_ATOMIC: ("locks", "sleeping function called under a spinlock"),
    arena.SLEEP_NON_BLOCK: ("locks", "sleeping function called in a non-blockable callback"),
    arena.MMAP_LOCK_IN_CALLBACK: ("locks", "mmap_lock taken in a notifier callback"),
    arena.HELD_AT_EXIT: ("locks", "a thread ends and holds a lock"),
    arena.LIST_ADD: ("structure", "list: double add"),
    arena.LIST_DEL: ("structure", "list: double delete"),
    arena.TREE_INSERT: ("structure", "interval tree: double insert"),
    arena.TREE_WALKED: ("structure", "interval tree changed while an invalidation goes over it without the lock"),
    arena.SPINS: ("progress", "a loop that goes on for ever by itself"),
    arena.STALE_PTE: ("coherence", "stale device PTE: it does not name what the CPU's does, or permits more"),
    arena.PTE_DURING_INVALIDATION: ("coherence", "device PTE valid between range_start's return and range_end"),
    arena.UNCOVERED_PTE: ("coverage", "device PTE valid where no interval would be called back"),
    arena.OVERLAP: ("structure", "intervals promised disjoint overlap"),
    arena.LEAK: ("lifetime", "memory left behind after teardown"),
    arena.DEADLOCK: ("progress", "deadlock: nobody can go on"),
    arena.LIVELOCK: ("progress", "livelock: threads can go round for ever and none of them gets anywhere"),
    arena.CUSTOM: ("structure", "the design's own invariant does not hold"),
}

_TEXT = {
    world.WOULD_BLOCK: ("a step waits for what nobody can do", "the design deadlocks by itself: check its locks"),
    world.OUT_OF_MEMORY: ("the modelled machine is out of memory", "replay a shorter trace"),
    world.BAD_ADDRESS: ("a NULL pointer, a lock that is not held, or an address outside its table was used", ""),
    world.DOUBLE_FREE: ("an object was freed twice", ""),
    world.REFCOUNT: ("a reference count fell below zero or rose from zero", ""),
    world.DIVISION: ("a division by zero, or one that overflows", ""),
    world.TREE: ("an interval that is in no tree was removed from one", ""),
    arena.ARENA_FULL: ("the scenario needs more memory than the checker's arena has", "a smaller scenario"),
}


def explain(w: Words, where: str) -> FaultpathError:
    """The error for a stopped run; ``where`` names what ran."""
    what, mend = _TEXT[int(w[world.STATUS])]
    return FaultpathError(f"{what} (word {int(w[world.STATUS_ARG])})", where, mend or "run it as Python to see where")
