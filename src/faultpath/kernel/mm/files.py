"""Files in memory that shrink or get holes, and who maps them: mm/shmem.c, mm/memory.c, Linux 6.18."""

from __future__ import annotations

from faultpath.kernel.mm.fault import ANON, File
from faultpath.kernel.mm.raising import CLEAR, RAISES_CALLS, raise_end, raise_start, zap_range
from faultpath.kernel.mm.vma import Vma, adjusted_end, adjusted_start, linear_page_index, next_vma, vma_address
from faultpath.kernel.mmu_notifier import ULONG_MAX, Mm
from faultpath.kernel.primitives.locks import down_read
from faultpath.kernel.primitives.pagetable import PAGE_SHIFT, pt_clear
from faultpath.kernel.primitives.pmd import pt_rewrite
from faultpath.protocol.language import NULL, protocol


@protocol
def next_mapping(mm: Mm, file: int, anon_vma: int, pgoff: int, linked: int) -> Vma:
    """vma_interval_tree_foreach() of a file's i_mmap, or without a file anon_vma_interval_tree_foreach(): what follows.

    The order is by offset, then by when a VMA was linked.
    """
    found = Vma(NULL)
    vma = next_vma(mm, 0)
    while vma:
        after = vma.pgoff > pgoff or (vma.pgoff == pgoff and vma.linked > linked)
        before = not found or vma.pgoff < found.pgoff or (vma.pgoff == found.pgoff and vma.linked < found.linked)
        belongs = vma.anon_vma == anon_vma
        if file:
            belongs = vma.file == file
        if belongs and after and before:
            found = vma
        vma = next_vma(mm, vma.last + 1)
    return found


@protocol
def zap_mapping(mm: Mm, start: int, end: int, even_cows: int) -> None:
    """zap_page_range_single() inside its event. With huge pages of files, shmem.py's takes its place, as below."""
    pt_rewrite(mm.pt, start, end, 0, 0 if even_cows else ANON, 0, 0)


@protocol
def shmem_truncate_range(mm: Mm, file: File, first: int, end: int) -> None:
    """shmem_truncate_range(): pages ``[first, end)`` leave the cache."""
    pt_clear(file.cache, first << PAGE_SHIFT, end << PAGE_SHIFT)


@protocol
def unmap_mapping_range(mm: Mm, file: int, first: int, end: int, even_cows: int) -> None:
    """unmap_mapping_range(), Linux 6.18: every VMA that maps pages ``[first, end)`` of a file, CLEAR of its part.

    :param even_cows: the process's own copies of them, too
    """
    with down_read(mm.i_mmap):
        vma = next_mapping(mm, file, 0, -1, 0)
        while vma:
            low = max(first, vma.pgoff)
            high = min(end, linear_page_index(vma, vma.last + 1))
            if low < high:
                at = vma_address(vma, low)
                upto = at + ((high - low) << PAGE_SHIFT)
                range = raise_start(mm, adjusted_start(vma, at, upto), adjusted_end(vma, at, upto), CLEAR, RAISES_CALLS)
                zap_mapping(mm, at, upto, even_cows)
                raise_end(range)
            vma = next_mapping(mm, file, 0, vma.pgoff, vma.linked)


@protocol
def mm_truncate(mm: Mm, start: int, size: int) -> None:
    """unmap_mapping_range() of an unknown file, of which only is known that it is mapped at ``[start, start + size)``.

    It takes no mmap_lock, so it does not look at VMAs: in the kernel they are found in the file's i_mmap.
    """
    with down_read(mm.i_mmap):
        zap_range(mm, start, start + size, CLEAR)


@protocol
def punch_hole(mm: Mm, file: File, first: int, end: int) -> int:
    """shmem_fallocate(FALLOC_FL_PUNCH_HOLE), Linux 6.18."""
    unmap_mapping_range(mm, file, first, end, 0)
    shmem_truncate_range(mm, file, first, end)
    return 0


@protocol
def mm_ftruncate(mm: Mm, file: File, size: int) -> int:
    """shmem_setattr(), Linux 6.18: a file that shrinks is unmapped beyond its new end, twice: before and after.

    One that stays as it is loses what is cached beyond its end.
    """
    before = file.size
    file.size = size
    if size < before:
        unmap_mapping_range(mm, file, size, ULONG_MAX >> PAGE_SHIFT, 1)
    if size <= before:
        shmem_truncate_range(mm, file, size, ULONG_MAX >> PAGE_SHIFT)
    if size < before:
        unmap_mapping_range(mm, file, size, ULONG_MAX >> PAGE_SHIFT, 1)
    return 0
