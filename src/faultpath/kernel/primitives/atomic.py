"""atomic_t: counts that several threads change without a lock, each change one step. They may fall below zero."""

from __future__ import annotations

from faultpath.engine.world import Words
from faultpath.kernel.primitives.debug import set_count
from faultpath.protocol.language import helper, primitive
from faultpath.protocol.struct import Embedded

ANY = -(1 << 62)


class Atomic(Embedded):
    """``atomic_t``."""


@primitive
def atomic_read(w: Words, count: Atomic) -> int:
    """atomic_read()."""
    return w[count]


@helper(raw=True)
def add(w: Words, count: int, by: int) -> int:
    """Add to a count; nobody is told what it came to, so the order of such steps is all one."""
    return set_count(w, count, w[count] + by, ANY)


@primitive
def atomic_inc(w: Words, count: Atomic) -> int:
    """atomic_inc()."""
    return add(w, count, 1)


@primitive
def atomic_dec(w: Words, count: Atomic) -> int:
    """atomic_dec()."""
    return add(w, count, -1)


@helper(raw=True)
def fell_to_zero(w: Words, count: int) -> int:
    """One less; whether it came to zero. Above that the order of such steps is all one."""
    set_count(w, count, w[count] - 1, 0)
    return 1 if w[count] == 0 else 0


@primitive
def atomic_dec_and_test(w: Words, count: Atomic) -> int:
    """atomic_dec_and_test(): 1 if it came to zero."""
    return fell_to_zero(w, count)


@primitive
def atomic_inc_return(w: Words, count: Atomic) -> int:
    """atomic_inc_return(): what it came to."""
    w[count] += 1
    return w[count]


@primitive
def atomic_cmpxchg(w: Words, count: Atomic, old: int, new: int) -> int:
    """atomic_cmpxchg(): write ``new`` if it is still ``old``; what was there."""
    found = w[count]
    if found == old:
        w[count] = new
    return found
