"""What a run that stopped has to say: status words composed into one line, outside jitted code."""

from __future__ import annotations

from faultpath.engine import world
from faultpath.engine.world import Words
from faultpath.errors import FaultpathError

_TEXT = {
    world.WOULD_BLOCK: ("a step waits for what nobody can do", "the design deadlocks by itself: check its locks"),
    world.OUT_OF_MEMORY: ("the modelled machine is out of memory", "replay a shorter trace"),
    world.BAD_ADDRESS: ("a NULL pointer, a lock that is not held, or an address outside its table was used", ""),
    world.DOUBLE_FREE: ("an object was freed twice", ""),
    world.REFCOUNT: ("a reference count fell below zero or rose from zero", ""),
    world.DIVISION: ("a division by zero, or one that overflows", ""),
    world.TREE: ("an interval that is in no tree was removed from one", ""),
}


def explain(w: Words, where: str) -> FaultpathError:
    """The error for a stopped run; ``where`` names what ran."""
    what, mend = _TEXT[int(w[world.STATUS])]
    return FaultpathError(f"{what} (word {int(w[world.STATUS_ARG])})", where, mend or "run it as Python to see where")
