"""What only the checker wants to know: no step of the protocol, and nothing at all in a replay."""

from __future__ import annotations

from faultpath.engine.world import Words
from faultpath.protocol.language import helper, primitive

STARTING, STARTED = 1, 2


@helper
def mark_range(w: Words, range_: int, start: int, end: int, phase: int) -> int:
    """An invalidation of ``[start, end)`` has come to a phase: 0 is none."""
    return 0


@helper
def mark_callback(w: Words, enters: int, blockable: int) -> int:
    """The running thread enters a driver's callback, or leaves it."""
    return 0


@helper
def mark_closed(w: Words, device: int) -> int:
    """A device's file is being closed."""
    return 0


@primitive
def device_stops(w: Words, device: int) -> int:
    """The hardware goes through this device's tables no more: its file is being closed."""
    return mark_closed(w, device)


@primitive
def range_starting(w: Words, range_: int, start: int, end: int) -> int:
    """mmu_notifier_invalidate_range_start() begins."""
    return mark_range(w, range_, start, end, STARTING)


@primitive
def range_started(w: Words, range_: int, start: int, end: int) -> int:
    """It has returned 0: until the end no device PTE in the range may be valid."""
    return mark_range(w, range_, start, end, STARTED)


@primitive
def range_over(w: Words, range_: int) -> int:
    """mmu_notifier_invalidate_range_end() begins, or the start failed."""
    return mark_range(w, range_, 0, 0, 0)


@primitive
def callback_begins(w: Words, blockable: int) -> int:
    """A driver is called back."""
    return mark_callback(w, 1, blockable)


@primitive
def callback_ends(w: Words, blockable: int) -> int:
    """It has returned."""
    return mark_callback(w, 0, blockable)
