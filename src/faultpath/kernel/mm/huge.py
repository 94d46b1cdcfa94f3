"""Huge pages that are made and split: mm/khugepaged.c, mm/huge_memory.c, Linux 6.18.

What raises is modelled, for a range that stands for a huge page's 2 MiB; page tables here have small pages only.
"""

from __future__ import annotations

from faultpath.kernel.mm.raising import CLEAR, RAISES_CALLS, raise_end, raise_start
from faultpath.kernel.mmu_notifier import Mm
from faultpath.kernel.primitives.locks import down_write, up_write
from faultpath.kernel.primitives.pagetable import (
    DEVICE_BITS,
    FRAME_SHIFT,
    PAGE_SIZE,
    new_frame,
    pt_get,
    pt_next,
    pt_set,
)
from faultpath.protocol.language import protocol


@protocol
def mm_collapse(mm: Mm, start: int, size: int) -> None:
    """collapse_huge_page(), by khugepaged or MADV_COLLAPSE: all is copied, under mmap_lock for writing (CLEAR)."""
    down_write(mm.mmap_lock)
    end = start + size
    range = raise_start(mm, start, end, CLEAR, RAISES_CALLS)
    page = pt_next(mm.pt, start, end)
    while page < end:
        kept = pt_get(mm.pt, page) & ~(DEVICE_BITS & -(1 << FRAME_SHIFT))
        pt_set(mm.pt, page, kept | new_frame(page))
        page = pt_next(mm.pt, page + PAGE_SIZE, end)
    raise_end(range)
    up_write(mm.mmap_lock)


@protocol
def mm_split_huge(mm: Mm, start: int, size: int) -> None:
    """__split_huge_pmd(): the pages stay, the event (CLEAR) is over the huge one; no mmap_lock is needed."""
    raise_end(raise_start(mm, start, start + size, CLEAR, RAISES_CALLS))
