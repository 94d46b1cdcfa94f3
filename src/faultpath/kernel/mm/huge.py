"""Huge pages: mm/huge_memory.c, mm/khugepaged.c, Linux 6.18; anonymous memory, where MADV_HUGEPAGE asks for them.

``TRANSPARENT_HUGEPAGE`` is CONFIG_TRANSPARENT_HUGEPAGE=y, and enabled=madvise: what takes the place of the rest's
functions in a program that has huge pages. Replays have none, since a trace does not tell which faults were huge, nor
have checked scenarios, whose few pages stand for them: ``mm_collapse`` and ``mm_split_huge`` are theirs.

A huge page is a folio of 512 pages of one frame. PTEs can map its pages, too (its PMD was split), until the folio
itself is split: then each goes its own way, and those that nobody wrote to are the zero page from there on.
"""

from __future__ import annotations

from faultpath.kernel.errno import EINVAL
from faultpath.kernel.mm import fault, madvise, mremap, pages
from faultpath.kernel.mm import vma as vmas
from faultpath.kernel.mm.fault import ANON, BIRTH_SHIFT, EXCLUSIVE, NO_BIRTH, ZERO, new_anon_page
from faultpath.kernel.mm.files import next_mapping
from faultpath.kernel.mm.madvise import MADV_PAGEOUT, pageout_pages, total_swap_pages
from faultpath.kernel.mm.pages import (
    CLEAN,
    FOLIO_DIRTY,
    LARGE,
    LAZY,
    REDIRTIED,
    Pages,
    child_has_swap_entry,
    file_written,
    folio_number,
    is_all_zeroes,
    lazy_entry,
    small_page_is_shared,
    written,
)
from faultpath.kernel.mm.raising import CLEAR, RAISES_CALLS, raise_end, raise_start
from faultpath.kernel.mm.versions import LINUX_6_18
from faultpath.kernel.mm.vma import (
    HUGEPAGE,
    NOHUGEPAGE,
    PMD_SIZE,
    Vma,
    anon_vma_prepare,
    linear_page_index,
    vma_address,
    vma_at,
)
from faultpath.kernel.mmu_notifier import Mm
from faultpath.kernel.primitives.locks import down_read, down_write, up_read
from faultpath.kernel.primitives.pagetable import (
    DEVICE_BITS,
    FRAME_SHIFT,
    PAGE_SHIFT,
    PAGE_SIZE,
    VALID,
    WRITE,
    new_frame,
    pt_add_bits,
    pt_clear,
    pt_get,
    pt_move,
    pt_next,
    pt_set,
)
from faultpath.kernel.primitives.pmd import (
    FRAME_BITS,
    pt_batch,
    pt_count,
    pt_has_leaf,
    pt_is_huge,
    pt_next_huge,
    pt_reclaim,
    pt_rewrite,
    pt_set_huge,
    pt_split_huge,
)
from faultpath.protocol.language import protocol

DATA = 1 << 15  # of a large folio's page: it was written; of another: its folio is dirty (PG_dirty)
SAME_FOLIO = LARGE | FRAME_BITS
FOLIO_PAGES = 512


@protocol
def mm_collapse(mm: Mm, start: int, size: int) -> None:
    """collapse_huge_page(), by khugepaged or MADV_COLLAPSE: all is copied, under mmap_lock for writing (CLEAR)."""
    with down_write(mm.mmap_lock):
        end = start + size
        range = raise_start(mm, start, end, CLEAR, RAISES_CALLS)
        page = pt_next(mm.pt, start, end)
        while page < end:
            kept = pt_get(mm.pt, page) & ~(DEVICE_BITS & -(1 << FRAME_SHIFT))
            pt_set(mm.pt, page, kept | new_frame(page))
            page = pt_next(mm.pt, page + PAGE_SIZE, end)
        raise_end(range)


@protocol
def mm_split_huge(mm: Mm, start: int, size: int) -> None:
    """__split_huge_pmd(): the pages stay, the event (CLEAR) is over the huge one; no mmap_lock is needed."""
    raise_end(raise_start(mm, start, start + size, CLEAR, RAISES_CALLS))


# --- faults


@protocol
def new_huge_page(mm: Mm, vma: Vma, block: int) -> int:
    """The entry of a new huge page's pages (map_anon_folio_pmd()): writable if the VMA is."""
    entry = new_anon_page(mm, block) | LARGE
    index = linear_page_index(vma, block)
    known = Pages(mm.pages)
    pt_set(known.folios, folio_number(entry), VALID | (index & (FOLIO_PAGES - 1)) << FRAME_SHIFT)
    pt_set(known.given, folio_number(entry), 0)
    if vma.prot & vmas.PROT_WRITE:
        entry = entry | WRITE
    return entry


@protocol
def create_huge_pmd(mm: Mm, vma: Vma, page: int, write: int) -> int:
    """do_huge_pmd_anonymous_page(), Linux 6.18: a first touch maps 2 MiB, a read the huge zero page; whether it did."""
    block = page & -PMD_SIZE
    if vma.file or not vma.flags & HUGEPAGE or block < vma.start or block + PMD_SIZE - 1 > vma.last:
        return 0
    anon_vma_prepare(mm, vma)
    if write:
        pt_set_huge(mm.pt, block, new_huge_page(mm, vma, block), 0)
        pt_set(mm.pt, page, pt_get(mm.pt, page) | DATA)
    else:
        pt_set_huge(mm.pt, block, new_frame(block) | VALID | ZERO, 0)
    return 1


@protocol
def do_huge_pmd_wp_page(mm: Mm, vma: Vma, page: int, pte: int, since: int) -> int:
    """do_huge_pmd_wp_page(), Linux 6.18: the zero page gives way to a huge one (CLEAR), one's own becomes writable.

    Else the PMD is split, and the fault goes on with a PTE. So did a write to the zero page before Linux 6.13. One of a
    file is (wp_huge_pmd()).

    :returns: whether it is done
    """
    block = page & -PMD_SIZE
    if not pte & ANON:
        if pte & ZERO and mm.version >= LINUX_6_18:
            range = raise_start(mm, block, block + PMD_SIZE, CLEAR, since)
            pt_set_huge(mm.pt, block, new_huge_page(mm, vma, block), 0)
            pt_set(mm.pt, page, pt_get(mm.pt, page) | DATA)
            raise_end(range)
            return 1
    elif pte & EXCLUSIVE or not shared_with_a_child(mm, page, pte):
        pt_add_bits(mm.pt, block, block + PMD_SIZE, 0, WRITE | EXCLUSIVE)
        return 1
    split_huge_pmd(mm, block, since)
    return 0


@protocol(replaces=fault.huge_fault)
def huge_fault(mm: Mm, vma: Vma, page: int, write: int, since: int) -> int:
    """__handle_mm_fault()'s part for PMDs, Linux 6.18: whether nothing is left to do."""
    if write and vma.file:
        file_written(vma, page)
    if not pt_has_leaf(mm.pt, page):
        return create_huge_pmd(mm, vma, page, write)
    pte = pt_get(mm.pt, page)
    if write and pte & LARGE == LARGE:
        pte = pte | DATA
        pt_set(mm.pt, page, pte)
    if write and pte & ANON and (pte & EXCLUSIVE or not shared_with_a_child(mm, page, pte)):
        written(mm, page, pte)
    if write and not pte & WRITE and pt_is_huge(mm.pt, page):
        return do_huge_pmd_wp_page(mm, vma, page, pte, since)
    return 0


@protocol
def maybe_mapped_shared(mm: Mm, page: int, pte: int) -> int:
    """folio_maybe_mapped_shared(): whether a child that lives has an anonymous page, or another of its folio."""
    if pte & LARGE == LARGE:
        return pt_get(Pages(mm.pages).given, folio_number(pte)) & mm.children != 0
    if pte & EXCLUSIVE:
        return 0
    return small_page_is_shared(mm, page, pte)


@protocol(replaces=fault.shared_with_a_child)
def shared_with_a_child(mm: Mm, page: int, pte: int) -> int:
    """wp_can_reuse_anon_folio(): nor is the last page that is left of a large folio reused (Linux 6.15)."""
    if maybe_mapped_shared(mm, page, pte) or child_has_swap_entry(mm, page, pte):
        return 1
    if pte & LARGE == LARGE and pt_count(mm.pt, 0, mm.task_size, pte, SAME_FOLIO) == 1:
        return 1
    return 0


# --- what splits them


@protocol(replaces=vmas.split_huge_pmd)
def split_huge_pmd(mm: Mm, block: int, since: int) -> None:
    """__split_huge_pmd(), Linux 6.18: the event comes whether there is a huge page or not. One of a file goes."""
    range = raise_start(mm, block, block + PMD_SIZE, CLEAR, since)
    if pt_is_huge(mm.pt, block) and not pt_get(mm.pt, block) & LARGE:
        pt_reclaim(mm.pt, block, block + PMD_SIZE)
    pt_split_huge(mm.pt, block)
    raise_end(range)


@protocol
def split_huge_pmds(mm: Mm, start: int, end: int, partial: int) -> None:
    """Split the huge PMDs that meet ``[start, end)``, or only those that stick out."""
    block = pt_next_huge(mm.pt, start, end, partial)
    while block < end:
        split_huge_pmd(mm, block, RAISES_CALLS)
        block = pt_next_huge(mm.pt, start, end, partial)


@protocol(replaces=madvise.zap_pages)
def zap_pages(mm: Mm, start: int, end: int) -> None:
    """zap_pmd_range(), Linux 6.18: inside the outer event huge pages that stick out are split.

    What goes whole leaves no table, so that a huge page may come next (CONFIG_PT_RECLAIM, Linux 6.14).
    """
    split_huge_pmds(mm, start, end, 1)
    pt_clear(mm.pt, start, end)
    pt_reclaim(mm.pt, start, end)


@protocol(replaces=mremap.move_page_tables)
def move_page_tables(mm: Mm, old: int, new: int, size: int) -> None:
    """move_page_tables(), Linux 6.18: huge PMDs move whole, or are split if they cannot, inside the event."""
    alike = 1
    if (old ^ new) & (PMD_SIZE - 1):
        alike = 0
    split_huge_pmds(mm, old, old + size, alike)
    pt_move(mm.pt, old, new, size)
    known = Pages(mm.pages)
    pt_move(known.kept, old, new, size)
    pt_move(known.lazy, old, new, size)
    pt_move(known.swapped, old, new, size)


@protocol
def folio_index(mm: Mm, vma: Vma, page: int, pte: int) -> int:
    """The index of a large folio's first page: not at a multiple of 2 MiB if its VMA had been moved when it came."""
    index = linear_page_index(vma, page)
    begins = pt_get(Pages(mm.pages).folios, folio_number(pte)) >> FRAME_SHIFT
    return index - ((index - begins) & (FOLIO_PAGES - 1))


@protocol
def folio_is_dirty(mm: Mm, folio: int, pte: int) -> int:
    """Whether a large folio is, or one of the entries that map it: one that was let go of need not be."""
    if not folio & LAZY or folio & FOLIO_DIRTY:
        return 1
    page = pt_next(mm.pt, 0, mm.task_size)
    while page < mm.task_size:
        entry = pt_get(mm.pt, page)
        if (entry ^ pte) & SAME_FOLIO == 0 and not lazy_entry(mm, page, entry):
            return 1
        page = pt_next(mm.pt, page + PAGE_SIZE, mm.task_size)
    return 0


@protocol
def remains_let_go(mm: Mm, start: int, end: int, pte: int) -> None:
    """The pages of a folio that was let go of lazily are small ones that were, and may have been written since."""
    page = pt_next(mm.pt, start, end)
    while page < end:
        entry = pt_get(mm.pt, page)
        if (entry ^ pte) & SAME_FOLIO == 0 and not lazy_entry(mm, page, entry):
            pt_set(Pages(mm.pages).lazy, page, CLEAN | pte & FRAME_BITS | REDIRTIED)
        page = pt_next(mm.pt, page + PAGE_SIZE, end)


@protocol
def split_folio(mm: Mm, vma: Vma, page: int) -> None:
    """split_folio() and unmap_folio(), Linux 6.18: CLEAR from every VMA that may map a part of it, while one does.

    Pages that are all zeroes are the zero page afterwards (try_to_map_unused_to_zeropage(), Linux 6.12). The others are
    dirty as it was, and no child has any.
    """
    pte = pt_get(mm.pt, page)
    index = folio_index(mm, vma, page, pte)
    folio = pt_get(Pages(mm.pages).folios, folio_number(pte))
    anon_vma = vma.anon_vma
    zero = new_frame(page) | VALID | ZERO
    now = ANON | mm.forks << BIRTH_SHIFT
    if folio_is_dirty(mm, folio, pte):
        now = now | DATA
    vma = next_mapping(mm, 0, anon_vma, -1, 0)
    while vma and pt_count(mm.pt, 0, mm.task_size, pte, SAME_FOLIO):
        low = max(index, vma.pgoff)
        high = min(index + FOLIO_PAGES, linear_page_index(vma, vma.last + 1))
        if low < high:
            start = vma_address(vma, low)
            end = start + ((high - low) << PAGE_SHIFT)
            range = raise_start(mm, start, end, CLEAR, RAISES_CALLS)
            if (pt_get(mm.pt, start) ^ pte) & SAME_FOLIO == 0:
                pt_split_huge(mm.pt, start)
            pt_rewrite(mm.pt, start, end, pte & ~DATA, SAME_FOLIO | DATA, zero, 0)
            if folio & LAZY:
                remains_let_go(mm, start, end, pte)
            pt_rewrite(mm.pt, start, end, pte, SAME_FOLIO, now, ~(LARGE | DATA | NO_BIRTH << BIRTH_SHIFT))
            raise_end(range)
        vma = next_mapping(mm, 0, anon_vma, vma.pgoff, vma.linked)


@protocol
def stays_whole(mm: Mm, pte: int, advice: int) -> int:
    """What is mapped whole: without swap MADV_PAGEOUT splits it, unless it was let go of."""
    if advice != MADV_PAGEOUT or total_swap_pages(mm):
        return 1
    return pt_get(Pages(mm.pages).folios, folio_number(pte)) & LAZY


@protocol
def split_file_folios(mm: Mm, vma: Vma, start: int, end: int) -> None:
    """What becomes of large folios of files: shmem.py knows some."""


@protocol(replaces=madvise.split_folios)
def split_folios(mm: Mm, vma: Vma, start: int, end: int, advice: int) -> None:
    """madvise_cold_or_pageout_pte_range(), Linux 6.18: a large folio is split that is not mapped whole in the range.

    Unless a child has it.
    """
    page = pt_next(mm.pt, start, end)
    while page < end:
        pte = pt_get(mm.pt, page)
        upto = page + PAGE_SIZE
        if pte & LARGE == LARGE:
            upto = pt_batch(mm.pt, page, end, SAME_FOLIO)
            if not maybe_mapped_shared(mm, page, pte) and (upto - page < PMD_SIZE or not stays_whole(mm, pte, advice)):
                split_folio(mm, vma, page)
        page = pt_next(mm.pt, upto, end)
    split_file_folios(mm, vma, start, end)


@protocol(replaces=madvise.madvise_pageout)
def madvise_pageout(mm: Mm, vma: Vma, start: int, end: int) -> None:
    """madvise_pageout(), Linux 6.18: folios are split, and pages reclaimed, 2 MiB by 2 MiB."""
    while start < end:
        upto = min(end, (start & -PMD_SIZE) + PMD_SIZE)
        split_folios(mm, vma, start, upto, MADV_PAGEOUT)
        pageout_pages(mm, vma, start, upto)
        start = upto


# --- MADV_COLLAPSE


@protocol
def collapse_huge_page(mm: Mm, block: int) -> None:
    """collapse_huge_page(), Linux 6.18, of the caller's own 2 MiB, mmap_lock not held: all is copied (CLEAR)."""
    with down_write(mm.mmap_lock):
        vma = vma_at(mm, block)
        range = raise_start(mm, block, block + PMD_SIZE, CLEAR, RAISES_CALLS)
        page = block
        while page < block + PMD_SIZE:
            pte = pt_get(mm.pt, page)
            if pte & LARGE == ANON:
                pt_set(mm.pt, page, LARGE if is_all_zeroes(mm, page, pte) else LARGE | DATA)
            page += PAGE_SIZE
        pt_set_huge(mm.pt, block, new_huge_page(mm, vma, block), DATA)
        raise_end(range)


@protocol
def madvise_collapse_file(mm: Mm, vma: Vma, start: int, end: int) -> int:
    """madvise_collapse() of a file: shmem.py's takes its place."""
    return -EINVAL


@protocol(replaces=madvise.madvise_collapse)
def madvise_collapse(mm: Mm, vma: Vma, start: int, end: int) -> int:
    """madvise_collapse(), Linux 6.18, of anonymous memory: every 2 MiB up to one that has no table (-EINVAL).

    mmap_lock is let go of for each.
    """
    if vma.file:
        return madvise_collapse_file(mm, vma, start, end)
    fits = (vma.last + 1 - PMD_SIZE) & -PMD_SIZE
    if vma.flags & NOHUGEPAGE or not vma.anon_vma or fits < vma.start:
        return -EINVAL
    block = (start + PMD_SIZE - 1) & -PMD_SIZE
    end = end & -PMD_SIZE
    ret = 0
    if block > end:
        ret = -EINVAL
    while block < end and not ret:
        if not pt_has_leaf(mm.pt, block):
            ret = -EINVAL
        elif not pt_is_huge(mm.pt, block):
            up_read(mm.mmap_lock)
            collapse_huge_page(mm, block)
            down_read(mm.mmap_lock)
        block += PMD_SIZE
    return ret


TRANSPARENT_HUGEPAGE = [
    huge_fault, shared_with_a_child, split_huge_pmd, zap_pages, move_page_tables, split_folios, madvise_pageout,
    madvise_collapse, *pages.KNOWN,
]  # fmt: skip
