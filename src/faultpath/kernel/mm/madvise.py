"""madvise(): mm/madvise.c, Linux 6.18."""

from __future__ import annotations

from faultpath.kernel.errno import EACCES, EINVAL, ENOMEM
from faultpath.kernel.mm.fault import ANON, EXCLUSIVE, ZERO, File, shared_with_a_child
from faultpath.kernel.mm.files import mm_truncate, next_mapping, punch_hole
from faultpath.kernel.mm.raising import CLEAR, RAISES_CALLS, raise_end, raise_start
from faultpath.kernel.mm.reclaim import mm_reclaim
from faultpath.kernel.mm.vma import (
    DONTCOPY,
    DONTDUMP,
    HUGEPAGE,
    MAP_SHARED,
    MERGEABLE,
    NOHUGEPAGE,
    UNKNOWN,
    WIPEONFORK,
    Vma,
    linear_page_index,
    next_vma,
    vma_address,
    vma_modify,
)
from faultpath.kernel.mmu_notifier import Mm
from faultpath.kernel.primitives.locks import down_read, down_write, up_read, up_write
from faultpath.kernel.primitives.pagetable import PAGE_SHIFT, PAGE_SIZE, VALID, pt_clear, pt_get, pt_next
from faultpath.protocol.language import protocol

MADV_DONTNEED = 4
MADV_FREE = 8
MADV_REMOVE = 9
MADV_DONTFORK = 10
MADV_DOFORK = 11
MADV_MERGEABLE = 12
MADV_UNMERGEABLE = 13
MADV_HUGEPAGE = 14
MADV_NOHUGEPAGE = 15
MADV_DONTDUMP = 16
MADV_DODUMP = 17
MADV_WIPEONFORK = 18
MADV_KEEPONFORK = 19
MADV_COLD = 20
MADV_PAGEOUT = 21
MADV_DONTNEED_LOCKED = 24
MADV_COLLAPSE = 25


@protocol
def mapped_in_i_mmap(mm: Mm, vma: Vma, page: int) -> int:
    """Whether a page of a known file is mapped at another place."""
    offset = linear_page_index(vma, page)
    other = next_mapping(mm, vma.file, 0, -1, 0)
    while other:
        at = vma_address(other, offset)
        if at >= other.start and at <= other.last and at != page:
            entry = pt_get(mm.pt, at)
            if entry & VALID and not entry & ANON:
                return 1
        other = next_mapping(mm, vma.file, 0, other.pgoff, other.linked)
    return 0


@protocol
def child_maps_file(mm: Mm, vma: Vma, page: int, pte: int) -> int:
    """Whether a child that lives maps a page of a file, as far as this place tells. pages.py's knows of others, too."""
    if pte & EXCLUSIVE:
        return 0
    return shared_with_a_child(mm, page, pte)


@protocol
def mapped_elsewhere(mm: Mm, vma: Vma, page: int, pte: int) -> int:
    """folio_maybe_mapped_shared(): whether a page of a file is mapped at another place, or by a child."""
    if child_maps_file(mm, vma, page, pte):
        return 1
    if vma.file & UNKNOWN:
        return 0
    return mapped_in_i_mmap(mm, vma, page)


@protocol
def tell_others(mm: Mm, vma: Vma, page: int) -> None:
    """rmap_walk_file(): on the way to the place that maps a file's page, CLEAR where it might be mapped as well."""
    if vma.file & UNKNOWN:
        return
    offset = linear_page_index(vma, page)
    other = next_mapping(mm, vma.file, 0, -1, 0)
    while other:
        at = vma_address(other, offset)
        if at >= other.start and at <= other.last:
            if at == page:
                return
            raise_end(raise_start(mm, at, at + PAGE_SIZE, CLEAR, RAISES_CALLS))
        other = next_mapping(mm, vma.file, 0, other.pgoff, other.linked)


@protocol
def total_swap_pages(mm: Mm) -> int:
    """Whether there is swap: where swap.py is linked in."""
    return 0


@protocol
def remove_mapping(mm: Mm, vma: Vma, page: int) -> None:
    """A page of a file that was reclaimed leaves the cache, if it can: only pages.py knows which can."""


@protocol
def pageout_anon_page(mm: Mm, vma: Vma, page: int, pte: int) -> None:
    """Without swap it stays, unless it was let go of, which lazyfree.py knows of."""


@protocol
def pageout_large_folio(mm: Mm, vma: Vma, page: int) -> int:
    """Whether a page of a file is of a large folio, with which it goes: shmem.py's can be."""
    return 0


@protocol
def pageout_page(mm: Mm, vma: Vma, page: int, pte: int) -> None:
    """shrink_folio_list(), Linux 6.18, without swap: a page of a file goes that nobody else maps."""
    if pte & ANON:
        pageout_anon_page(mm, vma, page, pte)
    elif not pte & ZERO and not pageout_large_folio(mm, vma, page) and not mapped_elsewhere(mm, vma, page, pte):
        tell_others(mm, vma, page)
        mm_reclaim(mm, page)
        remove_mapping(mm, vma, page)


@protocol
def pageout_pages(mm: Mm, vma: Vma, start: int, end: int) -> None:
    """madvise_cold_or_pageout_pte_range(), Linux 6.18, and what is reclaimed then, one by one."""
    page = pt_next(mm.pt, start, end)
    while page < end:
        pageout_page(mm, vma, page, pt_get(mm.pt, page))
        page = pt_next(mm.pt, page + PAGE_SIZE, end)


@protocol
def madvise_pageout(mm: Mm, vma: Vma, start: int, end: int) -> None:
    """madvise_pageout(), Linux 6.18. With huge pages, huge.py's takes its place, as with those below."""
    pageout_pages(mm, vma, start, end)


@protocol
def zap_pages(mm: Mm, start: int, end: int) -> None:
    """unmap_single_vma() inside its event."""
    pt_clear(mm.pt, start, end)


@protocol
def split_folios(mm: Mm, vma: Vma, start: int, end: int, advice: int) -> None:
    """What an advice for a part of a large folio does to it: there are none."""


@protocol
def let_go_of_pages(mm: Mm, vma: Vma, start: int, end: int) -> None:
    """madvise_free_pte_range(): nothing that is seen, unless MADV_PAGEOUT follows, which lazyfree.py knows of."""


@protocol
def madvise_collapse(mm: Mm, vma: Vma, start: int, end: int) -> int:
    """madvise_collapse() without CONFIG_TRANSPARENT_HUGEPAGE."""
    return -EINVAL


@protocol
def madvise_hugetlb(mm: Mm, vma: Vma, start: int, end: int, advice: int) -> int:
    """What hugetlb.py's does otherwise: its result, or 1 for nothing."""
    return 1


@protocol
def madvise_vma(mm: Mm, vma: Vma, start: int, end: int, advice: int) -> int:
    """madvise_vma_behavior(), Linux 6.18: what one advice does to a part of one VMA."""
    flags = vma.flags
    ret = madvise_hugetlb(mm, vma, start, end, advice)
    if ret <= 0:
        return ret
    if advice == MADV_DONTNEED or advice == MADV_DONTNEED_LOCKED or (advice == MADV_FREE and not vma.file):
        range = raise_start(mm, start, end, CLEAR, RAISES_CALLS)
        if advice == MADV_FREE:
            let_go_of_pages(mm, vma, start, end)
        else:
            zap_pages(mm, start, end)
        raise_end(range)
        return 0
    if advice == MADV_COLLAPSE:
        return madvise_collapse(mm, vma, start, end)
    if advice == MADV_COLD:
        split_folios(mm, vma, start, end, advice)
        return 0
    if advice == MADV_PAGEOUT:
        madvise_pageout(mm, vma, start, end)
        return 0
    if advice == MADV_FREE:
        return -EINVAL
    if advice == MADV_DONTFORK:
        flags = flags | DONTCOPY
    elif advice == MADV_DOFORK:
        flags = flags & ~DONTCOPY
    elif advice == MADV_WIPEONFORK:
        if vma.file:
            return -EINVAL
        flags = flags | WIPEONFORK
    elif advice == MADV_KEEPONFORK:
        flags = flags & ~WIPEONFORK
    elif advice == MADV_HUGEPAGE:
        flags = flags & ~NOHUGEPAGE | HUGEPAGE
    elif advice == MADV_NOHUGEPAGE:
        flags = flags & ~HUGEPAGE | NOHUGEPAGE
    elif advice == MADV_DONTDUMP:
        flags = flags | DONTDUMP
    elif advice == MADV_DODUMP:
        flags = flags & ~DONTDUMP
    elif advice == MADV_MERGEABLE and not flags & MAP_SHARED:
        flags = flags | MERGEABLE
    elif advice == MADV_UNMERGEABLE:
        flags = flags & ~MERGEABLE
    if flags != vma.flags and not vma_modify(mm, vma, start, end, vma.prot, flags):
        return -EINVAL
    return 0


@protocol
def remove_pages(mm: Mm, vma: Vma, first: int, end: int) -> None:
    """vfs_fallocate() of a file in memory; hugetlb.py's takes its place for its own."""
    punch_hole(mm, File(vma.file), first, end)


@protocol
def madvise_remove(mm: Mm, vma: Vma, start: int, end: int) -> int:
    """madvise_remove(), Linux 6.18: a hole in a shared file; mmap_lock is let go meanwhile."""
    if not vma.file:
        return -EINVAL
    if not vma.flags & MAP_SHARED:
        return -EACCES  # it need only be allowed to be writable since 6.7, and in 6.1.y by now
    pgoff = linear_page_index(vma, start)
    file = vma.file
    up_read(mm.mmap_lock)
    if file & UNKNOWN:
        mm_truncate(mm, start, end - start)
    else:
        remove_pages(mm, vma, pgoff, pgoff + ((end - start) >> PAGE_SHIFT))
    down_read(mm.mmap_lock)
    return 0


@protocol
def mm_madvise(mm: Mm, start: int, size: int, advice: int) -> int:
    """do_madvise() and madvise_walk_vmas(), Linux 6.18: VMA by VMA; holes are passed over (-ENOMEM in the end).

    mmap_lock is held for reading, or for writing where VMAs change.
    """
    end = start + size
    ret = 0
    writes = 0
    if advice >= MADV_DONTFORK and advice <= MADV_KEEPONFORK:
        writes = 1
    if writes:
        down_write(mm.mmap_lock)
    else:
        down_read(mm.mmap_lock)
    upto = start
    while upto < end:
        vma = next_vma(mm, upto)
        if not vma or vma.start >= end:
            ret = -ENOMEM
            break
        if vma.start > upto:
            ret = -ENOMEM
            upto = vma.start
        part = min(vma.last + 1, end)
        if advice == MADV_REMOVE:
            error = madvise_remove(mm, vma, upto, part)
        else:
            error = madvise_vma(mm, vma, upto, part, advice)
        if error:
            ret = error
            break
        upto = part
    if writes:
        up_write(mm.mmap_lock)
    else:
        up_read(mm.mmap_lock)
    return ret
