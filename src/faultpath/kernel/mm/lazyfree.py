"""MADV_FREE, and what MADV_PAGEOUT makes of it: mm/madvise.c, mm/rmap.c, Linux 6.18. With swap, swap.py does the rest.

What was let go of lazily is discarded by the next reclaim, with a CLEAR, unless it has been written to since: then the
CLEAR was for nothing, and the page is as any other again. For programs of calls alone (mm/pages.py).
"""

from __future__ import annotations

from faultpath.kernel.mm import madvise
from faultpath.kernel.mm.fault import ANON
from faultpath.kernel.mm.files import next_mapping
from faultpath.kernel.mm.huge import DATA, FOLIO_PAGES, SAME_FOLIO, folio_index, maybe_mapped_shared, split_folio
from faultpath.kernel.mm.madvise import total_swap_pages
from faultpath.kernel.mm.pages import (
    CLEAN,
    FOLIO_DIRTY,
    LARGE,
    LAZY,
    REDIRTIED,
    Pages,
    child_has_swap_entry,
    folio_number,
    in_swap_cache,
    lazy_entry,
)
from faultpath.kernel.mm.raising import CLEAR, RAISES_CALLS, raise_end, raise_start
from faultpath.kernel.mm.vma import PMD_SIZE, Vma, linear_page_index, vma_address
from faultpath.kernel.mmu_notifier import Mm
from faultpath.kernel.primitives.pagetable import PAGE_SHIFT, PAGE_SIZE, VALID, pt_clear, pt_get, pt_next, pt_set
from faultpath.kernel.primitives.pmd import FRAME_BITS, pt_batch, pt_count, pt_is_huge, pt_split_huge
from faultpath.protocol.language import protocol

# --- MADV_FREE


@protocol
def let_go_of_page(mm: Mm, page: int, pte: int) -> None:
    """folio_mark_lazyfree() of a small page; not if it is dirty itself (PG_dirty) or in swap, and a child has it."""
    if pte & DATA or in_swap_cache(mm, page, pte):
        if maybe_mapped_shared(mm, page, pte) or child_has_swap_entry(mm, page, pte):
            return
        pt_set(mm.pt, page, pte & ~DATA)
        pt_set(Pages(mm.pages).swapped, page, pt_get(Pages(mm.pages).swapped, page) & ~VALID)
    pt_set(Pages(mm.pages).lazy, page, CLEAN | pte & FRAME_BITS)


@protocol
def let_go_of_folio(mm: Mm, page: int, pte: int) -> None:
    """The same of a large one that is mapped whole; by a huge PMD only if no child has it (madvise_free_huge_pmd())."""
    known = Pages(mm.pages)
    folio = pt_get(known.folios, folio_number(pte))
    if maybe_mapped_shared(mm, page, pte) and (folio & FOLIO_DIRTY or pt_is_huge(mm.pt, page)):
        return
    pt_set(known.folios, folio_number(pte), folio & ~FOLIO_DIRTY | LAZY)
    end = page + PMD_SIZE
    while page < end:
        pt_set(known.lazy, page, CLEAN | pte & FRAME_BITS)
        page += PAGE_SIZE


@protocol
def free_swap_entries(mm: Mm, start: int, end: int) -> None:
    """free_swap_and_cache_nr(): what was swapped out is gone."""
    swapped = Pages(mm.pages).swapped
    page = pt_next(swapped, start, end)
    while page < end:
        pte = pt_get(mm.pt, page)
        if pte and not pte & VALID:
            pt_set(mm.pt, page, 0)
        page = pt_next(swapped, page + PAGE_SIZE, end)


@protocol(replaces=madvise.let_go_of_pages)
def let_go_of_pages(mm: Mm, vma: Vma, start: int, end: int) -> None:
    """madvise_free_pte_range(): a large folio that is not mapped whole in the range is split, unless a child has it."""
    free_swap_entries(mm, start, end)
    page = pt_next(mm.pt, start, end)
    while page < end:
        pte = pt_get(mm.pt, page)
        upto = page + PAGE_SIZE
        if pte & LARGE == LARGE:
            upto = pt_batch(mm.pt, page, end, SAME_FOLIO)
            if upto - page == PMD_SIZE:
                let_go_of_folio(mm, page, pte)
            elif not maybe_mapped_shared(mm, page, pte):
                split_folio(mm, vma, page)
        while page < upto:
            pte = pt_get(mm.pt, page)
            if pte & LARGE == ANON:
                let_go_of_page(mm, page, pte)
            page += PAGE_SIZE
        page = pt_next(mm.pt, upto, end)


# --- MADV_PAGEOUT


@protocol
def swap_out(mm: Mm, page: int, pte: int) -> None:
    """What takes the place of a page that goes to swap: swap.py's does."""


@protocol
def try_to_unmap_page(mm: Mm, page: int, pte: int) -> None:
    """try_to_unmap_one() of a small page, inside its event: it goes, or is dirty."""
    lazy = lazy_entry(mm, page, pte)
    if not lazy:
        swap_out(mm, page, pte)
    elif lazy & REDIRTIED or pte & DATA:
        pt_set(Pages(mm.pages).lazy, page, 0)
        pt_set(mm.pt, page, pte | DATA)
    else:
        pt_set(mm.pt, page, 0)


@protocol
def try_to_unmap_folio(mm: Mm, page: int, pte: int) -> None:
    """The same of a large one that is mapped whole; its huge PMD is split first, as Linux 6.18 is seen to do."""
    known = Pages(mm.pages)
    number = folio_number(pte)
    end = page + PMD_SIZE
    pt_split_huge(mm.pt, page)
    if not pt_get(known.folios, number) & LAZY:
        while page < end:
            swap_out(mm, page, pt_get(mm.pt, page))
            page += PAGE_SIZE
    elif pt_count(known.lazy, page, end, CLEAN | pte & FRAME_BITS, CLEAN | FRAME_BITS) < FOLIO_PAGES:
        pt_set(known.folios, number, pt_get(known.folios, number) & ~LAZY | FOLIO_DIRTY)
    else:
        pt_clear(mm.pt, page, end)


@protocol
def try_to_unmap(mm: Mm, vma: Vma, page: int, pte: int) -> None:
    """try_to_unmap() and rmap_walk_anon(): CLEAR from every VMA that might map a part, up to the one that does."""
    index = linear_page_index(vma, page)
    pages = 1
    if pte & LARGE == LARGE:
        index = folio_index(mm, vma, page, pte)
        pages = FOLIO_PAGES
    other = next_mapping(mm, 0, vma.anon_vma, -1, 0)
    while other:
        low = max(index, other.pgoff)
        high = min(index + pages, linear_page_index(other, other.last + 1))
        if low < high:
            start = vma_address(other, low)
            range = raise_start(mm, start, start + ((high - low) << PAGE_SHIFT), CLEAR, RAISES_CALLS)
            if other == vma and pages == 1:
                try_to_unmap_page(mm, page, pte)
            elif other == vma:
                try_to_unmap_folio(mm, page, pte)
            raise_end(range)
            if other == vma:
                return
        other = next_mapping(mm, 0, vma.anon_vma, other.pgoff, other.linked)


@protocol(replaces=madvise.pageout_anon_page)
def pageout_anon_page(mm: Mm, vma: Vma, page: int, pte: int) -> None:
    """shrink_folio_list() of anonymous memory: without swap only what was let go of lazily goes."""
    swap = total_swap_pages(mm)
    if maybe_mapped_shared(mm, page, pte):
        return
    if pte & LARGE == LARGE:
        whole = page & (PMD_SIZE - 1) == 0  # once: by its first page
        if whole and (swap or pt_get(Pages(mm.pages).folios, folio_number(pte)) & LAZY):
            try_to_unmap(mm, vma, page, pte)
    elif swap or lazy_entry(mm, page, pte):
        try_to_unmap(mm, vma, page, pte)


LAZYFREE = [let_go_of_pages, pageout_anon_page]
