"""What only the checker wants to know: no step of the protocol, and nothing at all in a replay."""

from __future__ import annotations

from faultpath.engine.world import Words
from faultpath.protocol.language import helper, primitive

OVER = 0
STARTING = 1
STARTED = 2


@helper
def range_stands(w: Words, range: int, where: int) -> int:
    """An invalidation has come to one of the three places."""
    return 0


@helper
def callback_stands(w: Words, inside: int, blockable: int) -> int:
    """The running thread has entered a driver's callback, or left it."""
    return 0


@helper
def walk_stands(w: Words, inside: int) -> int:
    """The running thread goes over the interval tree without its lock from now on, or no more."""
    return 0


@helper
def device_closed(w: Words, device: int) -> int:
    """A device's file is being closed."""
    return 0


@primitive
def range_starting(w: Words, range: int) -> int:
    """range_start was called: nobody has been told yet."""
    return range_stands(w, range, STARTING)


@primitive
def range_started(w: Words, range: int) -> int:
    """Everybody has been told, and page tables may change from now on: no device PTE in the range may be valid."""
    return range_stands(w, range, STARTED)


@primitive
def range_over(w: Words, range: int) -> int:
    """range_end was called, or a non-blocking range_start was refused."""
    return range_stands(w, range, OVER)


@primitive
def walk_begins(w: Words) -> int:
    """An interval was found: from it the others are reached without the lock, so nobody may change the tree."""
    return walk_stands(w, 1)


@primitive
def walk_ends(w: Words) -> int:
    """The last one has been called back."""
    return walk_stands(w, 0)


@primitive
def callback_begins(w: Words, blockable: int) -> int:
    """A driver is called back."""
    return callback_stands(w, 1, blockable)


@primitive
def callback_ends(w: Words, blockable: int) -> int:
    """It has returned."""
    return callback_stands(w, 0, blockable)


@primitive
def device_stops(w: Words, device: int) -> int:
    """The hardware goes through this device's tables no more: its file is being closed."""
    return device_closed(w, device)
