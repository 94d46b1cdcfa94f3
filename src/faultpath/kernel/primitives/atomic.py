"""atomic_t: counts that several threads change without a lock, each change one step. They may fall below zero."""

from __future__ import annotations

from faultpath.engine.world import Words
from faultpath.protocol.language import primitive
from faultpath.protocol.struct import Embedded


class Atomic(Embedded):
    """``atomic_t``."""


@primitive
def atomic_read(w: Words, count: Atomic) -> int:
    """atomic_read()."""
    return w[count]


@primitive
def atomic_inc(w: Words, count: Atomic) -> int:
    """atomic_inc()."""
    w[count] += 1
    return 0


@primitive
def atomic_dec(w: Words, count: Atomic) -> int:
    """atomic_dec()."""
    w[count] -= 1
    return 0
