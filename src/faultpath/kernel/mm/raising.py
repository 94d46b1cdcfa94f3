"""How the CPU side raises an invalidation, if it is its turn to."""

from __future__ import annotations

from faultpath.kernel.mmu_notifier import (
    Mm,
    Range,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from faultpath.kernel.primitives.heap import off_stack, on_stack
from faultpath.kernel.primitives.pagetable import pt_clear
from faultpath.protocol.language import NULL, count, protocol
from faultpath.trace.ops import Event

UNMAP = int(Event.UNMAP)
CLEAR = int(Event.CLEAR)
PROTECTION_VMA = int(Event.PROTECTION_VMA)
PROTECTION_PAGE = int(Event.PROTECTION_PAGE)
SOFT_DIRTY = int(Event.SOFT_DIRTY)
RELEASE = int(Event.RELEASE)

# Mm.raises. Each includes those before it.
RAISES_NOTHING = 0  # invalidations were recorded and are delivered
RAISES_CALLS = 1  # the process's calls and faults raise them, a device's faults break copy-on-write silently
RAISES_ALL = 2  # everybody raises them, as the kernel does


@protocol
def new_range(mm: Mm, start: int, end: int, event: int) -> Range:
    """mmu_notifier_range_init(); the caller's, on its stack."""
    range = on_stack(Range)
    range.mm = mm
    range.start = start
    range.end = end
    range.event = event
    return range


@protocol
def raise_start(mm: Mm, start: int, end: int, event: int, since: int) -> Range:
    """The range_start of one invalidation, counted, if ``mm.raises`` is at least ``since``; else NULL."""
    if mm.raises < since:
        return NULL
    count("invalidations")
    range = new_range(mm, start, end, event)
    mmu_notifier_invalidate_range_start(range)
    return range


@protocol
def raise_end(range: Range) -> None:
    """The range_end of what raise_start() raised, if anything."""
    if range:
        mmu_notifier_invalidate_range_end(range)
        off_stack(range)


@protocol
def zap_range(mm: Mm, start: int, end: int, event: int) -> None:
    """zap_page_range_single() (CLEAR) and unmap_vmas() (UNMAP), Linux 6.18, of one range."""
    range = raise_start(mm, start, end, event, RAISES_CALLS)
    pt_clear(mm.pt, start, end)
    raise_end(range)
