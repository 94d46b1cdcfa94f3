"""Page faults and zaps: what the kernel keeps in mm/memory.c, with the invalidations they raise, in its order.

A CPU page table changes between range_start and range_end, except where a fault only adds to it. What the kernel does
under the PTE lock is one step; whoever decided by an earlier look at an entry says what it saw, and does nothing if
that is gone (pte_same). A zap is one step over its whole range: the kernel drops the lock every 2 MiB.
"""

from __future__ import annotations

from faultpath.kernel.mmu_notifier import (
    Mm,
    Range,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from faultpath.kernel.primitives.heap import off_stack, on_stack
from faultpath.kernel.primitives.pagetable import PAGE_SIZE, VALID, WRITE, new_frame, pt_clear, pt_cmpxchg, pt_get
from faultpath.kernel.vma import MAP_PRIVATE, Vma
from faultpath.protocol.language import NULL, count, protocol
from faultpath.trace.ops import Event

UNMAP = int(Event.UNMAP)
CLEAR = int(Event.CLEAR)

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
    """zap_page_range_single() (CLEAR) and unmap_vmas() (UNMAP), Linux 6.1, of one range."""
    range = raise_start(mm, start, end, event, RAISES_CALLS)
    pt_clear(mm.pt, start, end)
    raise_end(range)


@protocol
def wp_page_copy(mm: Mm, page: int, pte: int, since: int) -> None:
    """wp_page_copy(), Linux 6.1: a copy takes the place of what ``pte`` maps, if that is still there after start."""
    frame = new_frame(page)
    range = raise_start(mm, page, page + PAGE_SIZE, CLEAR, since)
    pt_cmpxchg(mm.pt, page, pte, frame | VALID | WRITE)
    raise_end(range)


@protocol
def do_wp_page(mm: Mm, vma: Vma, page: int, pte: int, since: int) -> None:
    """do_wp_page(), Linux 6.1: a shared mapping's page is made writable as it is (wp_page_shared), without an event.

    A private page is always copied: whether it is the process's alone (PageAnonExclusive, reused in the kernel) does
    not show in its PTE. Below RAISES_ALL a shared one is copied, too.
    """
    if mm.raises == RAISES_ALL and not vma.flags & MAP_PRIVATE:
        pt_cmpxchg(mm.pt, page, pte, pte | WRITE)
    else:
        wp_page_copy(mm, page, pte, since)


@protocol
def handle_mm_fault(mm: Mm, vma: Vma, page: int, write: int, since: int) -> None:
    """handle_mm_fault() and handle_pte_fault(), Linux 6.1, where the VMA allows the access; mmap_lock is held.

    The first touch of a page raises nothing, and nothing is done where there is nothing to do. The caller looks at the
    PTE again: who changes it meanwhile wins.

    :param since: from which ``mm.raises`` on a broken copy-on-write raises its CLEAR
    """
    pte = pt_get(mm.pt, page)
    if not pte & VALID:
        entry = new_frame(page) | VALID
        if write:
            entry = entry | WRITE
        pt_cmpxchg(mm.pt, page, pte, entry)
    elif write and not pte & WRITE:
        do_wp_page(mm, vma, page, pte, since)
