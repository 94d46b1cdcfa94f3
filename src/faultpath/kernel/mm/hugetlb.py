"""Memory of MAP_HUGETLB, in pages of 2 MiB: mm/hugetlb.c, Linux 6.18.

What takes the place of the rest's functions in a program that has such memory. A page of it is in the page table as a
huge one is, and never anything else. A private one is the process's own or a child's as a small one is.
"""

from __future__ import annotations

from faultpath.kernel.errno import EINVAL
from faultpath.kernel.mm import fault, madvise, mmap, mprotect, mremap
from faultpath.kernel.mm import vma as vmas
from faultpath.kernel.mm.fault import EXCLUSIVE, File, new_anon_page, shared_with_a_child
from faultpath.kernel.mm.files import punch_hole
from faultpath.kernel.mm.madvise import (
    MADV_COLD,
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_FREE,
    MADV_PAGEOUT,
)
from faultpath.kernel.mm.mremap import MREMAP_DONTUNMAP
from faultpath.kernel.mm.raising import CLEAR, PROTECTION_VMA, RAISES_CALLS, raise_end, raise_start
from faultpath.kernel.mm.vma import (
    MAP_HUGETLB,
    MAP_KIND,
    MAP_SHARED,
    PMD_SIZE,
    PROT_WRITE,
    PUD_SIZE,
    Vma,
    anon_vma_prepare,
)
from faultpath.kernel.mmu_notifier import Mm, Range
from faultpath.kernel.primitives.pagetable import (
    PAGE_SHIFT,
    VALID,
    WRITE,
    new_frame,
    pt_add_bits,
    pt_clear,
    pt_get,
    pt_write_protect,
)
from faultpath.kernel.primitives.pmd import pt_reclaim, pt_set_huge
from faultpath.protocol.language import protocol

HUGE_PAGES = PMD_SIZE >> PAGE_SHIFT


@protocol(replaces=mmap.kind_of)
def kind_of(flags: int) -> int:
    """MAP_HUGETLB tells a kind of mapping as well."""
    return flags & (MAP_KIND | MAP_HUGETLB)


@protocol(replaces=vmas.never_merges)
def never_merges(vma: Vma) -> int:
    """VM_SPECIAL: hugetlbfs_file_mmap() sets VM_DONTEXPAND."""
    return vma.flags & MAP_HUGETLB


@protocol(replaces=vmas.may_split)
def may_split(vma: Vma, addr: int) -> int:
    """hugetlb_vm_op_split(), Linux 6.18: not inside a page."""
    if vma.flags & MAP_HUGETLB and addr & (PMD_SIZE - 1):
        return 0
    return 1


@protocol(replaces=mmap.misplaced)
def misplaced(start: int, flags: int) -> int:
    """hugetlb_get_unmapped_area(), Linux 6.18: -EINVAL inside a page."""
    if flags & MAP_HUGETLB and start & (PMD_SIZE - 1):
        return 1
    return 0


@protocol(replaces=mmap.whole_size)
def whole_size(size: int, flags: int) -> int:
    """ksys_mmap_pgoff() and align_hugetlb(), Linux 6.18: pages are whole, the last one as well."""
    if flags & MAP_HUGETLB:
        return (size + PMD_SIZE - 1) & -PMD_SIZE
    return size


@protocol
def could_share_pmds(vma: Vma, start: int, end: int) -> int:
    """Whether other processes' page tables could be a shared mapping's, which are those of an aligned GiB in it."""
    low = (vma.start + PUD_SIZE - 1) & -PUD_SIZE
    high = (vma.last + 1) & -PUD_SIZE
    if vma.flags & MAP_SHARED and low < high and end > low and start < high:
        return 1
    return 0


@protocol(replaces=vmas.adjusted_start)
def adjusted_start(vma: Vma, start: int, end: int) -> int:
    """adjust_range_if_pmd_sharing_possible(), Linux 6.18: where the event begins."""
    if vma.flags & MAP_HUGETLB and could_share_pmds(vma, start, end) and start > (vma.start + PUD_SIZE - 1) & -PUD_SIZE:
        return start & -PUD_SIZE
    return start


@protocol(replaces=vmas.adjusted_end)
def adjusted_end(vma: Vma, start: int, end: int) -> int:
    """The same: where it ends."""
    if vma.flags & MAP_HUGETLB and could_share_pmds(vma, start, end) and end < (vma.last + 1) & -PUD_SIZE:
        return (end + PUD_SIZE - 1) & -PUD_SIZE
    return end


@protocol
def raise_adjusted(mm: Mm, vma: Vma, start: int, end: int, event: int) -> Range:
    """The range_start of what is done to a part of one mapping."""
    return raise_start(mm, adjusted_start(vma, start, end), adjusted_end(vma, start, end), event, RAISES_CALLS)


@protocol(replaces=vmas.hugetlb_split)
def hugetlb_split(mm: Mm, vma: Vma, addr: int) -> None:
    """hugetlb_split() and hugetlb_unshare_pmds(), Linux 6.18: CLEAR of the GiB around a boundary inside it."""
    floor = addr & -PUD_SIZE
    inside = addr != floor and floor >= vma.start and floor + PUD_SIZE - 1 <= vma.last
    if inside and vma.flags & MAP_HUGETLB and vma.flags & MAP_SHARED:
        raise_end(raise_start(mm, floor, floor + PUD_SIZE, CLEAR, RAISES_CALLS))


# --- faults


@protocol
def hugetlb_no_page(mm: Mm, vma: Vma, block: int, write: int) -> None:
    """hugetlb_no_page(), Linux 6.18: a private mapping gets a page of its own by a read, too, without WRITE."""
    if vma.flags & MAP_SHARED:
        entry = new_frame(block) | VALID | EXCLUSIVE
        if vma.prot & PROT_WRITE:
            entry = entry | WRITE
    else:
        anon_vma_prepare(mm, vma)
        entry = new_anon_page(mm, block)
        if write:
            entry = entry | WRITE
    pt_set_huge(mm.pt, block, entry, 0)


@protocol
def hugetlb_wp(mm: Mm, vma: Vma, block: int, pte: int, since: int) -> None:
    """hugetlb_wp(), Linux 6.18: what a child has is copied (CLEAR of it), another page becomes writable."""
    if vma.flags & MAP_SHARED or pte & EXCLUSIVE or not shared_with_a_child(mm, block, pte):
        pt_add_bits(mm.pt, block, block + PMD_SIZE, 0, WRITE | EXCLUSIVE)
        return
    entry = new_anon_page(mm, block)
    range = raise_start(mm, block, block + PMD_SIZE, CLEAR, since)
    pt_set_huge(mm.pt, block, entry | WRITE, 0)
    raise_end(range)


@protocol(replaces=fault.hugetlb_fault)
def hugetlb_fault(mm: Mm, vma: Vma, page: int, write: int, since: int) -> int:
    """hugetlb_fault(), Linux 6.18: whether it was one."""
    if not vma.flags & MAP_HUGETLB:
        return 0
    block = page & -PMD_SIZE
    pte = pt_get(mm.pt, block)
    if not pte & VALID:
        hugetlb_no_page(mm, vma, block, write)
    elif write and not pte & WRITE:
        hugetlb_wp(mm, vma, block, pte, since)
    return 1


# --- calls


@protocol(replaces=mprotect.hugetlb_change_protection)
def hugetlb_change_protection(mm: Mm, vma: Vma, start: int, end: int) -> int:
    """hugetlb_change_protection(), Linux 6.18: one event, whether a page is there or not; whether it is its turn."""
    if not vma.flags & MAP_HUGETLB:
        return 0
    range = raise_adjusted(mm, vma, start, end, PROTECTION_VMA)
    if vma.prot & PROT_WRITE and vma.flags & MAP_SHARED:
        pt_add_bits(mm.pt, start, end, 0, WRITE)
    else:
        pt_write_protect(mm.pt, start, end)
    raise_end(range)
    return 1


@protocol(replaces=madvise.madvise_hugetlb)
def madvise_hugetlb(mm: Mm, vma: Vma, start: int, end: int, advice: int) -> int:
    """What madvise_vma_behavior(), Linux 6.18, does for hugetlb otherwise: its result, or 1 if nothing.

    madvise_dontneed_free_valid_vma(): a part of a last page stays.
    """
    if not vma.flags & MAP_HUGETLB:
        return 1
    if advice == MADV_DONTNEED or advice == MADV_DONTNEED_LOCKED:
        if start & (PMD_SIZE - 1):
            return -EINVAL
        end = end & -PMD_SIZE
        if start == end:
            return 0
        range = raise_adjusted(mm, vma, start, end, CLEAR)
        pt_clear(mm.pt, start, end)
        pt_reclaim(mm.pt, start, end)
        raise_end(range)
        return 0
    if advice == MADV_FREE or advice == MADV_COLD or advice == MADV_PAGEOUT or advice == MADV_COLLAPSE:
        return -EINVAL
    return 1


@protocol(replaces=madvise.remove_pages)
def remove_pages(mm: Mm, vma: Vma, first: int, end: int) -> None:
    """hugetlbfs_punch_hole(), Linux 6.18: parts of pages are zeroed, whole ones go."""
    if vma.flags & MAP_HUGETLB:
        first = (first + HUGE_PAGES - 1) & -HUGE_PAGES
        end = end & -HUGE_PAGES
    if first < end:
        punch_hole(mm, File(vma.file), first, end)


@protocol(replaces=mremap.may_not_move)
def may_not_move(vma: Vma, old: int, size: int, new: int, new_size: int, flags: int) -> int:
    """check_prep_vma() and align_hugetlb(), Linux 6.18: VM_DONTEXPAND, and pages are whole."""
    if vma.flags & MAP_HUGETLB and (new_size > size or flags & MREMAP_DONTUNMAP or (old | new) & (PMD_SIZE - 1)):
        return 1
    return 0


HUGETLB = [
    kind_of, never_merges, may_split, misplaced, whole_size, adjusted_start, adjusted_end, hugetlb_split, hugetlb_fault,
    hugetlb_change_protection, madvise_hugetlb, remove_pages, may_not_move,
]  # fmt: skip
