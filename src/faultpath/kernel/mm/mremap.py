"""mremap(): mm/mremap.c, Linux 6.18."""

from __future__ import annotations

from faultpath.kernel.errno import EFAULT, EINVAL
from faultpath.kernel.mm.mmap import do_vmi_align_munmap, do_vmi_munmap, mmap_unlock, whole_size
from faultpath.kernel.mm.raising import RAISES_ALL, RAISES_CALLS, UNMAP, raise_end, raise_start
from faultpath.kernel.mm.versions import LINUX_6_12, LINUX_6_18
from faultpath.kernel.mm.vma import (
    PMD_SIZE,
    Vma,
    absorb,
    add_vma,
    adjusted_end,
    adjusted_start,
    alike,
    linear_page_index,
    merge_whole,
    next_vma,
    resize_vma,
    takes_in,
    vma_at,
)
from faultpath.kernel.mmu_notifier import Mm
from faultpath.kernel.primitives.locks import down_write
from faultpath.kernel.primitives.pagetable import PAGE_SHIFT, pt_move
from faultpath.protocol.language import NULL, protocol

MREMAP_FIXED = 2
MREMAP_DONTUNMAP = 4


@protocol
def realigned(mm: Mm, vma: Vma, old: int, new: int, size: int) -> int:
    """try_realign_addr(), Linux 6.7: how much further down a move of page tables may begin, to move a whole one.

    Both places lie alike in their 2 MiB, nothing is mapped between there and them, and a table's end is reached.
    """
    inside = old & (PMD_SIZE - 1)
    if mm.version < LINUX_6_12 or not inside or inside != new & (PMD_SIZE - 1) or size < PMD_SIZE - inside:
        return 0
    if vma.start != old:
        return 0
    below = next_vma(mm, old - inside)
    if below.start < old:
        return 0
    below = next_vma(mm, new - inside)
    if below and below.start < new:
        return 0
    return inside


@protocol
def move_page_tables(mm: Mm, old: int, new: int, size: int) -> None:
    """move_page_tables() between range_start and range_end. Where there are huge pages, huge.py's takes its place."""
    pt_move(mm.pt, old, new, size)


@protocol
def move_vma(mm: Mm, vma: Vma, old: int, old_size: int, new: int, new_size: int, flags: int) -> None:
    """move_vma(), Linux 6.18: UNMAP of the old place twice, in move_page_tables(), and in do_vmi_munmap().

    The new VMA comes first, and may merge with what remains of the old one (copy_vma()). Where the old one stays, an
    untouched one, it does not in the newest 6.12.y, nor in 6.1.y, where it does not merge with anything else either.
    """
    pgoff = linear_page_index(vma, old)
    if not vma.file and not vma.anon_vma:
        pgoff = new >> PAGE_SHIFT
    copy = add_vma(mm, new, new + new_size, vma.prot, vma.flags, vma.file, pgoff, vma.anon_vma)
    source = Vma(NULL)
    if flags & MREMAP_DONTUNMAP and not vma.file and not vma.anon_vma and mm.version < LINUX_6_18:
        source = vma
    if not source or mm.version >= LINUX_6_12 or (vma.last + 1 != new and new + new_size != vma.start):
        merge_whole(mm, copy, source, 0)
    if old_size:
        vma = vma_at(mm, old)
        more = realigned(mm, vma, old, new, old_size)
        first = adjusted_start(vma, old - more, old + old_size)
        range = raise_start(mm, first, adjusted_end(vma, old, old + old_size), UNMAP, RAISES_CALLS)
        move_page_tables(mm, old - more, new - more, old_size + more)
        raise_end(range)
        if not flags & MREMAP_DONTUNMAP:
            do_vmi_align_munmap(mm, old, old + old_size, 0)
        elif vma.start == old and vma.last + 1 == old + old_size and mm.raises != RAISES_ALL:
            vma.anon_vma = 0  # unlink_anon_vmas(): its pages are all gone


@protocol
def expand_vma(mm: Mm, vma: Vma, end: int) -> None:
    """expand_vma_in_place(), Linux 6.18 (vma_merge_extend()): a VMA grows, and may meet one that is alike."""
    resize_vma(mm, vma, vma.start, end - 1)
    right = next_vma(mm, end)
    if alike(vma, right) and takes_in(mm, right, vma):
        absorb(mm, vma, right)


@protocol
def make_way(mm: Mm, old: int, old_size: int, new: int, new_size: int, flags: int) -> int:
    """mremap_to() and mremap_at(): what is at a given place goes, then the tail; as do_vmi_munmap() returns."""
    downgraded = 0
    if new != old and flags & MREMAP_FIXED:
        downgraded = do_vmi_munmap(mm, new, new + new_size, 0)
    if new_size < old_size and downgraded >= 0:
        downgraded = do_vmi_munmap(mm, old + new_size, old + old_size, new == old)
    return downgraded


@protocol
def remap(mm: Mm, old: int, old_size: int, new: int, new_size: int, flags: int) -> int:
    """mremap_to() and mremap_at(), Linux 6.18, of a part of one VMA; whether mmap_lock is held for reading now.

    Before a move to a given place whatever is there goes, then the tail if it shrinks. To shrink in place is a munmap()
    with its downgrade. An old size of 0 duplicates a shared mapping. Where what is there cannot go it is -EINVAL.
    """
    downgraded = make_way(mm, old, old_size, new, new_size, flags)
    if downgraded < 0:
        return downgraded
    old_size = min(old_size, new_size)
    vma = vma_at(mm, old)
    if new != old:
        move_vma(mm, vma, old, old_size, new, new_size, flags)
    elif new_size > old_size:
        expand_vma(mm, vma, old + new_size)
    return downgraded


@protocol
def may_not_move(vma: Vma, old: int, size: int, new: int, new_size: int, flags: int) -> int:
    """check_prep_vma(): whether a VMA may neither grow nor leave anything; that hugetlb may not, hugetlb.py says."""
    return 0


@protocol
def mm_mremap(mm: Mm, old: int, old_size: int, new: int, new_size: int, flags: int) -> int:
    """mremap(), Linux 6.18: shrink, grow or move, under mmap_lock for writing.

    What only moves, to a given place, goes VMA by VMA since 6.17, gaps included (remap_move()).

    :param new: where it is afterwards
    :returns: 0, or -EFAULT where nothing is mapped, or the part of more than one VMA is not just moved; -EINVAL
    """
    ret = 0
    downgraded = 0
    vma_by_vma = 0
    if mm.version >= LINUX_6_18 and flags & MREMAP_FIXED and new != old and new_size == old_size:
        vma_by_vma = 1
    at = old
    end = old + max(old_size, 1)
    down_write(mm.mmap_lock)
    vma = vma_at(mm, old)
    if vma and not vma_by_vma:
        old_size = whole_size(old_size, vma.flags)
        new_size = whole_size(new_size, vma.flags)
    if not vma or (not vma_by_vma and old + min(old_size, new_size) > vma.last + 1):
        ret = -EFAULT
        at = end
        if vma and may_not_move(vma, old, old_size, new, new_size, flags):
            ret = -EINVAL
        elif vma and mm.version < LINUX_6_18 and flags & (MREMAP_FIXED | MREMAP_DONTUNMAP):
            downgraded = make_way(mm, old, old_size, new, new_size, flags)  # until 6.16 it is looked at after that
    while at < end and vma and vma.start < end:
        at = max(at, vma.start)
        part = old_size
        to_size = new_size
        if vma_by_vma:
            part = whole_size(min(vma.last + 1, end) - at, vma.flags)
            to_size = part
        if may_not_move(vma, at, part, new + (at - old), to_size, flags):
            ret = -EINVAL
            break
        downgraded = remap(mm, at, part, new + (at - old), to_size, flags)
        if downgraded < 0:
            ret = downgraded
            break
        at += max(part, 1)
        vma = next_vma(mm, at)
    mmap_unlock(mm, downgraded)
    return ret
