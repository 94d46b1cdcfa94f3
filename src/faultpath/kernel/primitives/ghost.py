"""Marks for a checker: where an invalidation stands. Here they do nothing; a checker replaces them."""

from __future__ import annotations

from faultpath.engine.world import Words
from faultpath.protocol.language import helper, primitive

STARTING = 0
STARTED = 1
OVER = 2


@helper
def range_stands(w: Words, range: int, where: int) -> int:
    """An invalidation has come to one of the three places."""
    return 0


@primitive
def range_starting(w: Words, range: int) -> int:
    """range_start was called: nobody has been told yet."""
    return range_stands(w, range, STARTING)


@primitive
def range_started(w: Words, range: int) -> int:
    """Everybody has been told, and page tables may change from now on."""
    return range_stands(w, range, STARTED)


@primitive
def range_over(w: Words, range: int) -> int:
    """range_end was called, or a non-blocking range_start was refused."""
    return range_stands(w, range, OVER)
