"""Pages of equal content become one: mm/ksm.c, Linux 6.18."""

from __future__ import annotations

from faultpath.kernel.mm.fault import ANON
from faultpath.kernel.mm.raising import CLEAR, RAISES_CALLS, raise_end, raise_start
from faultpath.kernel.mm.vma import MERGEABLE, vma_at
from faultpath.kernel.mmu_notifier import Mm
from faultpath.kernel.primitives.locks import down_read
from faultpath.kernel.primitives.pagetable import (
    PAGE_SIZE,
    VALID,
    new_frame,
    pt_cmpxchg,
    pt_get,
    pt_write_protect,
)
from faultpath.protocol.language import protocol


@protocol
def mm_ksm_merge(mm: Mm, page: int) -> None:
    """try_to_merge_one_page() by ksmd, mmap_lock held for reading: write_protect_page(), replace_page(); CLEAR each.

    The page that takes its place is nobody's own: a write copies it.
    """
    with down_read(mm.mmap_lock):
        vma = vma_at(mm, page)
        pte = pt_get(mm.pt, page)
        if vma and vma.flags & MERGEABLE and pte & ANON:
            range = raise_start(mm, page, page + PAGE_SIZE, CLEAR, RAISES_CALLS)
            pt_write_protect(mm.pt, page, page + PAGE_SIZE)
            raise_end(range)
            seen = pt_get(mm.pt, page)
            entry = new_frame(page) | VALID
            range = raise_start(mm, page, page + PAGE_SIZE, CLEAR, RAISES_CALLS)
            if seen & ANON:
                pt_cmpxchg(mm.pt, page, seen, entry)
            raise_end(range)
