"""Large folios of files in memory: mm/shmem.c, mm/memory.c, mm/filemap.c and mm/khugepaged.c, Linux 6.18.

What takes the place of the rest's functions in a program of calls that has some. A fault makes a huge page where the
file system gives them (``File.huge``) and the mapping asks for it, MADV_COLLAPSE makes one wherever a page is cached. A
PMD maps it, or PTEs do, as the VMA lies. It is never split in place: its pages are unmapped, and faulted in again. What
loses a part of itself to a hole falls into folios of all sizes: ``File.folios`` says how large is what a page is of.

That a child maps pages of such a file is not modelled.
"""

from __future__ import annotations

from faultpath.kernel.errno import EINVAL
from faultpath.kernel.mm import fault, files, huge, madvise
from faultpath.kernel.mm.fault import ANON, BIRTH_SHIFT, EXCLUSIVE, File, map_file_page
from faultpath.kernel.mm.files import next_mapping
from faultpath.kernel.mm.huge import split_huge_pmds
from faultpath.kernel.mm.pages import DIRTY, file_written
from faultpath.kernel.mm.raising import CLEAR, RAISES_CALLS, raise_end, raise_start
from faultpath.kernel.mm.vma import (
    HUGEPAGE,
    MAP_SHARED,
    NOHUGEPAGE,
    PMD_SIZE,
    PROT_WRITE,
    Vma,
    linear_page_index,
    vma_address,
    vma_at,
)
from faultpath.kernel.mmu_notifier import Mm
from faultpath.kernel.primitives.locks import down_read, up_read
from faultpath.kernel.primitives.pagetable import (
    FRAME_SHIFT,
    PAGE_SHIFT,
    PAGE_SIZE,
    VALID,
    WRITE,
    new_frame,
    pt_clear,
    pt_get,
    pt_next,
    pt_set,
)
from faultpath.kernel.primitives.pmd import (
    pt_batch,
    pt_count,
    pt_has_leaf,
    pt_is_huge,
    pt_next_huge,
    pt_reclaim,
    pt_rewrite,
    pt_set_huge,
)
from faultpath.protocol.language import protocol

PMD_ORDER = 9
FOLIO_PAGES = 1 << PMD_ORDER
MOST_PAGES = 1 << 20  # of a file


# --- the page cache


@protocol
def folio_pages(file: File, index: int) -> int:
    """How many pages the folio has that a page of a file is of: its order is kept where a frame would be."""
    return 1 << (pt_get(file.folios, index << PAGE_SHIFT) >> FRAME_SHIFT)


@protocol
def set_order(file: File, index: int, order: int) -> None:
    """A page is of a folio of this order from now on."""
    pt_set(file.folios, index << PAGE_SHIFT, VALID | order << FRAME_SHIFT)


@protocol
def remove_folio(file: File, index: int, pages: int) -> None:
    """filemap_remove_folio()."""
    pt_clear(file.cache, index << PAGE_SHIFT, (index + pages) << PAGE_SHIFT)
    pt_clear(file.folios, index << PAGE_SHIFT, (index + pages) << PAGE_SHIFT)


@protocol
def add_huge_folio(file: File, index: int, bits: int) -> None:
    """All of an aligned 2 MiB of a file is one folio from now on."""
    end = index + FOLIO_PAGES
    while index < end:
        pt_set(file.cache, index << PAGE_SHIFT, VALID | bits)
        set_order(file, index, PMD_ORDER)
        index += 1


@protocol
def folio_dirty(file: File, index: int, pages: int) -> int:
    """Whether a folio was written to: each of its pages may say so."""
    return pt_count(file.cache, index << PAGE_SHIFT, (index + pages) << PAGE_SHIFT, DIRTY, DIRTY)


@protocol
def any_cached(file: File, index: int, pages: int) -> int:
    """Whether a page of a part of a file is in the cache."""
    end = (index + pages) << PAGE_SHIFT
    if pt_next(file.cache, index << PAGE_SHIFT, end) < end:
        return 1
    return 0


@protocol
def mapped_pages(mm: Mm, file: int, index: int, pages: int) -> int:
    """folio_mapcount(): how often pages of a folio are mapped."""
    found = 0
    vma = next_mapping(mm, file, 0, -1, 0)
    while vma:
        low = max(index, vma.pgoff)
        high = min(index + pages, linear_page_index(vma, vma.last + 1))
        if low < high:
            at = vma_address(vma, low)
            found += pt_count(mm.pt, at, at + ((high - low) << PAGE_SHIFT), VALID, VALID | ANON)
        vma = next_mapping(mm, file, 0, vma.pgoff, vma.linked)
    return found


@protocol
def zap_file_ptes(mm: Mm, start: int, end: int) -> None:
    """What maps pages of a file goes: PTEs one by one, huge PMDs, all of them inside, with what was their table."""
    pt_rewrite(mm.pt, start, end, 0, ANON, 0, 0)
    block = pt_next_huge(mm.pt, start, end, 0)
    while block < end:
        if not pt_get(mm.pt, block) & VALID:
            pt_reclaim(mm.pt, block, block + PMD_SIZE)
        block = pt_next_huge(mm.pt, block + PMD_SIZE, end, 0)


@protocol
def unmap_folio(mm: Mm, file: int, index: int, pages: int) -> None:
    """try_to_unmap() and rmap_walk_file(): CLEAR from every VMA that might map a part, until none is mapped.

    The first is told even if none is. A huge PMD goes whole (TTU_SPLIT_HUGE_PMD).
    """
    with down_read(mm.i_mmap):
        vma = next_mapping(mm, file, 0, -1, 0)
        while vma:
            low = max(index, vma.pgoff)
            high = min(index + pages, linear_page_index(vma, vma.last + 1))
            if low < high:
                at = vma_address(vma, low)
                upto = at + ((high - low) << PAGE_SHIFT)
                range = raise_start(mm, at, upto, CLEAR, RAISES_CALLS)
                zap_file_ptes(mm, at, upto)
                raise_end(range)
                if not mapped_pages(mm, file, index, pages):
                    break
            vma = next_mapping(mm, file, 0, vma.pgoff, vma.linked)


# --- faults


@protocol
def maps_huge(vma: Vma, block: int) -> int:
    """thp_vma_suitable_order(): whether 2 MiB lie in a VMA, and in the file as at their address."""
    if block < vma.start or block + PMD_SIZE - 1 > vma.last:
        return 0
    return ((vma.start >> PAGE_SHIFT) - vma.pgoff) & (FOLIO_PAGES - 1) == 0


@protocol
def do_set_pmd(mm: Mm, vma: Vma, page: int, index: int) -> int:
    """do_set_pmd(), Linux 6.18: a huge PMD maps a huge folio, if it can; whether it does. Not where a table is."""
    block = page & -PMD_SIZE
    if vma.flags & NOHUGEPAGE or not maps_huge(vma, block) or pt_has_leaf(mm.pt, block):
        return 0
    if folio_pages(File(vma.file), index) != FOLIO_PAGES:
        return 0
    entry = new_frame(block) | VALID | EXCLUSIVE | mm.forks << BIRTH_SHIFT
    if vma.flags & MAP_SHARED and vma.prot & PROT_WRITE:
        entry = entry | WRITE
    pt_set_huge(mm.pt, block, entry, 0)
    return 1


@protocol(replaces=fault.filemap_map_pmd)
def filemap_map_pmd(mm: Mm, vma: Vma, start: int, end: int, file: File) -> int:
    """filemap_map_pmd(), Linux 6.18: a read maps a huge folio whole if the first that is cached around it is one."""
    while start < end:
        index = linear_page_index(vma, start)
        if index < file.size and pt_get(file.cache, index << PAGE_SHIFT):
            return do_set_pmd(mm, vma, start, index)
        start += PAGE_SIZE
    return 0


@protocol
def folio_start(vma: Vma, page: int) -> int:
    """Where the folio begins, or would, that a page of a file is of."""
    index = linear_page_index(vma, page)
    return page - ((index & (folio_pages(File(vma.file), index) - 1)) << PAGE_SHIFT)


@protocol
def within_table(vma: Vma, start: int, end: int) -> int:
    """Whether a folio crosses the borders neither of a VMA nor of a table."""
    if start < vma.start or end - 1 > vma.last or (start ^ (end - 1)) & -PMD_SIZE:
        return 0
    return 1


@protocol
def map_file_pages(mm: Mm, vma: Vma, start: int, end: int) -> None:
    """set_pte_range() of pages of a folio, where nothing is."""
    while start < end:
        if not pt_get(mm.pt, start):
            map_file_page(mm, vma, start)
        start += PAGE_SIZE


@protocol(replaces=fault.map_cached_page)
def map_cached_page(mm: Mm, vma: Vma, page: int) -> None:
    """filemap_map_folio_range(), Linux 6.18: of a large folio all that is not mapped yet, if it fits."""
    start = folio_start(vma, page)
    index = linear_page_index(vma, page)
    end = start + (folio_pages(File(vma.file), index) << PAGE_SHIFT)
    if within_table(vma, start, end):
        map_file_pages(mm, vma, start, end)
    else:
        map_file_pages(mm, vma, page, page + PAGE_SIZE)


@protocol(replaces=fault.shmem_add_folio)
def shmem_add_folio(vma: Vma, page: int, index: int, file: File) -> None:
    """shmem_alloc_and_add_folio(), Linux 6.18: a huge one if none of its pages is cached, whatever the file's size."""
    first = index & -FOLIO_PAGES
    fits = maps_huge(vma, page & -PMD_SIZE)
    if fits and vma.flags & HUGEPAGE and file.huge and not any_cached(file, first, FOLIO_PAGES):
        add_huge_folio(file, first, 0)
    else:
        pt_set(file.cache, index << PAGE_SHIFT, VALID)


@protocol(replaces=fault.finish_fault)
def finish_fault(mm: Mm, vma: Vma, page: int, write: int) -> None:
    """finish_fault(), Linux 6.18: all of a large folio is mapped where it fits into VMA and table, and nothing is."""
    index = linear_page_index(vma, page)
    if write:
        file_written(vma, page)
    if do_set_pmd(mm, vma, page, index):
        return
    start = folio_start(vma, page)
    end = start + (folio_pages(File(vma.file), index) << PAGE_SHIFT)
    if within_table(vma, start, end) and pt_next(mm.pt, start, end) == end:
        map_file_pages(mm, vma, start, end)
    else:
        map_file_page(mm, vma, page)


# --- what is split


@protocol
def becomes_folio(file: File, page: int, order: int, index: int, dirty: int) -> None:
    """A page of a folio that began at ``index`` is of one of this order now; dropped if that begins beyond the end."""
    begins = page & -(1 << order)
    if begins >= file.size and begins != index:
        remove_folio(file, page, 1)
    else:
        set_order(file, page, order)
        if dirty:
            pt_set(file.cache, page << PAGE_SHIFT, pt_get(file.cache, page << PAGE_SHIFT) | DIRTY)


@protocol
def split_to(file: File, index: int, pages: int, at: int) -> None:
    """folio_split(), Linux 6.15: a page becomes a folio of its own, its buddies as large ones as can be."""
    dirty = folio_dirty(file, index, pages)
    page = index
    while page < index + pages:
        order = 0
        while (page ^ at) >> (order + 1):
            order += 1
        becomes_folio(file, page, order, index, dirty)
        page += 1


@protocol
def split_folio(mm: Mm, file: File, index: int) -> None:
    """split_folio(): of a large folio of a file small ones are left, none of them mapped; none beyond its end."""
    pages = folio_pages(file, index)
    index = index & -pages
    end = index + pages
    unmap_folio(mm, file, index, pages)
    dirty = folio_dirty(file, index, pages)
    page = index
    while page < end:
        becomes_folio(file, page, 0, index, dirty)
        page += 1


@protocol
def truncate_partial_folio(mm: Mm, file: File, index: int, first: int, end: int) -> None:
    """truncate_inode_partial_folio(), Linux 6.18: a folio of which ``[first, end)`` goes is split at both ends of it.

    shmem_undo_range() has made it dirty.
    """
    pages = folio_pages(file, index)
    index = index & -pages
    at = max(first, index)
    upto = min(end, index + pages)
    pt_set(file.cache, index << PAGE_SHIFT, pt_get(file.cache, index << PAGE_SHIFT) | DIRTY)
    if pages == 1:
        return
    unmap_folio(mm, file, index, pages)
    split_to(file, index, pages, at)
    if upto < index + pages and pt_get(file.cache, upto << PAGE_SHIFT):
        pages = folio_pages(file, upto)
        if pages > 1:
            unmap_folio(mm, file, upto & -pages, pages)
            split_to(file, upto & -pages, pages, upto)


@protocol
def sticks_out(file: File, index: int, first: int, end: int) -> int:
    """Whether the folio of a page that is cached is not all in ``[first, end)``."""
    if not pt_get(file.cache, index << PAGE_SHIFT):
        return 0
    pages = folio_pages(file, index)
    if index & -pages < first or (index & -pages) + pages > end:
        return 1
    return 0


@protocol(replaces=files.shmem_truncate_range)
def shmem_truncate_range(mm: Mm, file: File, first: int, end: int) -> None:
    """shmem_undo_range(), Linux 6.18: what lies in ``[first, end)`` goes, a folio that sticks out is split before."""
    end = min(end, MOST_PAGES)
    if sticks_out(file, first, first, end):
        truncate_partial_folio(mm, file, first, first, end)
    if sticks_out(file, end - 1, first, end):
        truncate_partial_folio(mm, file, end - 1, first, end)
    remove_folio(file, first, end - first)


@protocol(replaces=files.zap_mapping)
def zap_mapping(mm: Mm, start: int, end: int, even_cows: int) -> None:
    """zap_pmd_range() inside its event: huge PMDs that stick out are split, the others go whole."""
    split_huge_pmds(mm, start, end, 1)
    zap_file_ptes(mm, start, end)
    if even_cows:
        pt_clear(mm.pt, start, end)


@protocol(replaces=huge.split_file_folios)
def split_file_folios(mm: Mm, vma: Vma, start: int, end: int) -> None:
    """madvise_cold_or_pageout_pte_range(), Linux 6.18 of files: large folios that are not mapped whole."""
    if not vma.file:
        return
    file = File(vma.file)
    page = pt_next(mm.pt, start, end)
    while page < end:
        upto = page + PAGE_SIZE
        pte = pt_get(mm.pt, page)
        index = linear_page_index(vma, page)
        pages = folio_pages(file, index)
        if not pte & ANON and pages > 1:
            last = min(end, page + (((index | (pages - 1)) + 1 - index) << PAGE_SHIFT))
            upto = min(last, pt_batch(mm.pt, page, last, VALID | ANON))
            if upto - page < pages << PAGE_SHIFT:
                split_folio(mm, file, index)
        page = pt_next(mm.pt, upto, end)


@protocol(replaces=madvise.pageout_large_folio)
def pageout_large_folio(mm: Mm, vma: Vma, page: int) -> int:
    """shrink_folio_list(), Linux 6.18: it is unmapped everywhere, and leaves the cache if it is clean.

    What PTEs map must be mapped nowhere else, what a PMD maps may be.
    """
    file = File(vma.file)
    index = linear_page_index(vma, page)
    pages = folio_pages(file, index)
    if pages == 1:
        return 0
    index = index & -pages
    if pt_is_huge(mm.pt, page) or mapped_pages(mm, vma.file, index, pages) == pages:
        unmap_folio(mm, vma.file, index, pages)
        if not folio_dirty(file, index, pages):
            remove_folio(file, index, pages)
    return 1


# --- MADV_COLLAPSE


@protocol
def retract_page_tables(mm: Mm, file: int, index: int) -> None:
    """retract_page_tables(), Linux 6.18: the tables go that could be huge PMDs now, each with a CLEAR of its 2 MiB.

    Not those of what is or was written to privately.
    """
    with down_read(mm.i_mmap):
        vma = next_mapping(mm, file, 0, -1, 0)
        while vma:
            block = vma_address(vma, index)
            if not vma.anon_vma and block & (PMD_SIZE - 1) == 0 and maps_huge(vma, block) and pt_has_leaf(mm.pt, block):
                range = raise_start(mm, block, block + PMD_SIZE, CLEAR, RAISES_CALLS)
                pt_reclaim(mm.pt, block, block + PMD_SIZE)
                raise_end(range)
            vma = next_mapping(mm, file, 0, vma.pgoff, vma.linked)


@protocol
def collapse_file(mm: Mm, file: File, first: int) -> None:
    """collapse_file(), Linux 6.18: what is cached is unmapped, folio by folio, copied, and one folio that is dirty."""
    index = first
    while index < first + FOLIO_PAGES:
        pages = folio_pages(file, index)
        if mapped_pages(mm, file, index, pages):
            unmap_folio(mm, file, index, pages)
        index += pages
    add_huge_folio(file, first, DIRTY)
    retract_page_tables(mm, file, first)


@protocol
def collapse_pte_mapped_thp(mm: Mm, block: int) -> int:
    """collapse_pte_mapped_thp(), Linux 6.18: a huge PMD takes the place of a table (CLEAR), unless that has copies."""
    vma = vma_at(mm, block)
    if pt_is_huge(mm.pt, block):
        return 0
    if pt_has_leaf(mm.pt, block):
        if pt_count(mm.pt, block, block + PMD_SIZE, ANON, ANON):
            return -EINVAL
        range = raise_start(mm, block, block + PMD_SIZE, CLEAR, RAISES_CALLS)
        pt_reclaim(mm.pt, block, block + PMD_SIZE)
        raise_end(range)
    do_set_pmd(mm, vma, block, linear_page_index(vma, block))
    return 0


@protocol(replaces=huge.madvise_collapse_file)
def madvise_collapse_file(mm: Mm, vma: Vma, start: int, end: int) -> int:
    """madvise_collapse(), Linux 6.18, of a file: every 2 MiB up to one of which nothing is cached (-EINVAL).

    mmap_lock is let go of for each, and then held again.
    """
    file = File(vma.file)
    if vma.flags & NOHUGEPAGE or not maps_huge(vma, (vma.last + 1 - PMD_SIZE) & -PMD_SIZE):
        return -EINVAL
    block = (start + PMD_SIZE - 1) & -PMD_SIZE
    end = end & -PMD_SIZE
    ret = 0
    if block > end:
        ret = -EINVAL
    while block < end and not ret:
        index = linear_page_index(vma, block)
        up_read(mm.mmap_lock)
        if not any_cached(file, index, FOLIO_PAGES):
            ret = -EINVAL
        elif folio_pages(file, index) != FOLIO_PAGES:
            collapse_file(mm, file, index)
        down_read(mm.mmap_lock)
        if not ret:
            ret = collapse_pte_mapped_thp(mm, block)
        block += PMD_SIZE
    return ret


SHMEM = [
    filemap_map_pmd, map_cached_page, shmem_add_folio, finish_fault, shmem_truncate_range, zap_mapping,
    split_file_folios, pageout_large_folio, madvise_collapse_file,
]  # fmt: skip
