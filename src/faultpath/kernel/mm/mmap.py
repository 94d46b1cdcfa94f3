"""mmap() and munmap(): mm/mmap.c and mm/vma.c, Linux 6.18, each under mmap_lock."""

from __future__ import annotations

from faultpath.engine.world import SCRATCH
from faultpath.kernel.errno import EINVAL
from faultpath.kernel.mm.raising import RAISES_ALL, RELEASE, UNMAP, new_range, zap_range
from faultpath.kernel.mm.versions import LINUX_6_12
from faultpath.kernel.mm.vma import (
    ACCOUNT,
    MAP_ANONYMOUS,
    MAP_GROWSDOWN,
    MAP_KIND,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_STACK,
    NOHUGEPAGE,
    PROT_READ,
    PROT_WRITE,
    Vma,
    add_vma,
    cut_vmas,
    drop_vmas,
    may_split,
    merge_whole,
    next_vma,
    split_vma,
    vma_at,
    vmas_unmapped,
)
from faultpath.kernel.mmu_notifier import (
    ULONG_MAX,
    Mm,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
    mmu_notifier_release,
)
from faultpath.kernel.primitives.heap import off_stack
from faultpath.kernel.primitives.itree import itree_last
from faultpath.kernel.primitives.locks import down_read, down_write, downgrade_write, up_read, up_write
from faultpath.kernel.primitives.pagetable import PAGE_SHIFT, PAGE_SIZE, pt_clear, pt_free, pt_free_tables
from faultpath.protocol.language import NULL, protocol


@protocol
def kind_of(flags: int) -> int:
    """The flags that tell one kind of mapping from another. With hugetlb.py in place, MAP_HUGETLB is one."""
    return flags & MAP_KIND


@protocol
def misplaced(start: int, flags: int) -> int:
    """Whether no mapping of a kind can begin there. That one of MAP_HUGETLB cannot, hugetlb.py says, as below."""
    return 0


@protocol
def whole_size(size: int, flags: int) -> int:
    """The size of a mapping of a kind that was asked for with some size."""
    return size


@protocol
def map_vma(mm: Mm, start: int, end: int, prot: int, flags: int, file: int, pgoff: int) -> Vma:
    """The new VMA of a mapping call (mmap_region(), do_brk_flags()).

    In a checked scenario private memory has its anon_vma at once: who prepares it first is not examined.
    """
    further = 0
    if flags & MAP_STACK and mm.version >= LINUX_6_12:
        further = NOHUGEPAGE  # calc_vm_flag_bits(), Linux 6.7
    flags = kind_of(flags) | further
    if prot & PROT_WRITE and not flags & (MAP_SHARED | MAP_NORESERVE):
        flags = flags | ACCOUNT
    if not file:
        pgoff = start >> PAGE_SHIFT
    anon_vma = 0
    if mm.raises == RAISES_ALL and not flags & MAP_SHARED:
        anon_vma = 1
    vma = add_vma(mm, start, end, prot, flags, file, pgoff, anon_vma)
    return merge_whole(mm, vma, NULL, mm.version < LINUX_6_12)


@protocol
def mmap_unlock(mm: Mm, downgraded: int) -> None:
    """mmap_read_unlock() if the lock was downgraded, else mmap_write_unlock()."""
    if downgraded > 0:
        up_read(mm.mmap_lock)
    else:
        up_write(mm.mmap_lock)


@protocol
def free_pgtables(mm: Mm, start: int, end: int) -> None:
    """free_pgtables(): page tables around ``[start, end)`` that no VMA needs any more."""
    above = next_vma(mm, end)
    ceiling = ULONG_MAX
    if above:
        ceiling = above.start
    floor = 0
    below = Vma(itree_last(mm.vmas, start - 1, SCRATCH))
    if below:
        floor = below.last + 1
    pt_free_tables(mm.pt, start, end, floor, ceiling)


@protocol
def do_vmi_align_munmap(mm: Mm, start: int, end: int, downgrade: int) -> int:
    """do_vmi_align_munmap(), Linux 6.18: the VMAs go under mmap_lock for writing, then unmap_region() zaps (UNMAP).

    What sticks out is split off first. Until 6.7 a VMA above that may grow down under the read lock forbade the
    downgrade; it does here.

    :returns: whether mmap_lock is held for reading now, which only ``downgrade`` allows, or -EINVAL
    """
    vma = vma_at(mm, start)
    if vma and vma.start < start:
        if not may_split(vma, start):
            return -EINVAL
        split_vma(mm, vma, start)
    vma = vma_at(mm, end - 1)
    if vma and vma.last >= end:
        if not may_split(vma, end):
            return -EINVAL
        split_vma(mm, vma, end)
    drop_vmas(mm, start, end)
    if downgrade:
        above = next_vma(mm, end)
        if above and above.flags & MAP_GROWSDOWN:
            downgrade = 0
        else:
            downgrade_write(mm.mmap_lock)
    zap_range(mm, start, end, UNMAP)
    vmas_unmapped(mm)
    free_pgtables(mm, start, end)
    return downgrade


@protocol
def do_vmi_munmap(mm: Mm, start: int, end: int, downgrade: int) -> int:
    """do_vmi_munmap(), Linux 6.18: nothing is done where nothing is mapped; else as above."""
    vma = next_vma(mm, start)
    if not vma or vma.start >= end:
        return 0
    return do_vmi_align_munmap(mm, start, end, downgrade)


@protocol
def mm_mmap(mm: Mm, start: int, size: int, prot: int, flags: int, file: int, pgoff: int) -> int:
    """mmap_region(), Linux 6.18: whatever was at ``[start, start + size)`` (MAP_FIXED) goes first, under one lock.

    :param file: the File, or 0
    :returns: 0, or -EINVAL where a part of what was there cannot go
    """
    if misplaced(start, flags):
        return -EINVAL
    size = whole_size(size, flags)
    with down_write(mm.mmap_lock):
        ret = do_vmi_munmap(mm, start, start + size, 0)
        if not ret:
            map_vma(mm, start, start + size, prot, flags, file, pgoff)
    return ret


@protocol
def mm_munmap(mm: Mm, start: int, size: int) -> int:
    """munmap() and __vm_munmap(), Linux 6.18: the zap runs under mmap_lock for reading (since 4.20).

    :returns: 0, or -EINVAL where a part of a VMA cannot go
    """
    down_write(mm.mmap_lock)
    ret = do_vmi_munmap(mm, start, start + size, 1)
    mmap_unlock(mm, ret)
    return min(ret, 0)


@protocol
def mm_brk(mm: Mm, brk: int) -> None:
    """brk(), Linux 6.18: the heap VMA grows (do_brk_flags()), or shrinks with munmap()'s downgrade."""
    downgraded = 0
    down_write(mm.mmap_lock)
    old = (mm.brk + PAGE_SIZE - 1) & -PAGE_SIZE
    new = (brk + PAGE_SIZE - 1) & -PAGE_SIZE
    mm.brk = brk
    if new > old:
        map_vma(mm, old, new, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, 0, 0)
    if new < old:
        downgraded = do_vmi_align_munmap(mm, new, old, 1)
    mmap_unlock(mm, downgraded)


@protocol
def exit_mmap(mm: Mm) -> None:
    """exit_mmap(), Linux 6.18: RELEASE to every interval, then UNMAP; both over everything, whatever ``mm.raises``.

    The zap runs under mmap_lock for reading, page tables and VMAs go under it for writing. Neither event is counted.
    """
    range = new_range(mm, 0, ULONG_MAX, RELEASE)
    range.blockable = 1
    mmu_notifier_release(mm, range)
    off_stack(range)
    with down_read(mm.mmap_lock):
        range = new_range(mm, 0, ULONG_MAX, UNMAP)
        mmu_notifier_invalidate_range_start(range)
        pt_clear(mm.pt, 0, ULONG_MAX)
        mmu_notifier_invalidate_range_end(range)
        off_stack(range)
    mm.oom_skip = 1
    with down_write(mm.mmap_lock):
        pt_free(mm.pt)
        cut_vmas(mm, 0, ULONG_MAX)
