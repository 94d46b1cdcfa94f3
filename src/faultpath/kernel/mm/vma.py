"""VMAs: where they are, and what mapping calls do to them (mm/vma.c, Linux 6.18; before 6.11 mm/mmap.c).

They are kept in an interval tree of their own, as before Linux 6.1 in a red-black tree: find_vma reads tree nodes.
Addresses are page aligned, ranges ``[start, end)``. Which neighbours merge is the kernel's: equal protection and flags,
the same file (or none) at consecutive offsets, and no two different anon_vmas.
"""

from __future__ import annotations

from faultpath.engine.world import INDEX, SCRATCH
from faultpath.kernel.mm.raising import CLEAR, RAISES_CALLS, raise_end, raise_start
from faultpath.kernel.mm.versions import LINUX_6_18
from faultpath.kernel.mmu_notifier import ULONG_MAX, IntervalNode, Mm
from faultpath.kernel.primitives.heap import off_stack, on_stack
from faultpath.kernel.primitives.itree import itree_first, itree_insert, itree_remove
from faultpath.kernel.primitives.pagetable import PAGE_SHIFT, pt_has_table
from faultpath.protocol.language import NULL, protocol
from faultpath.protocol.struct import HlistHead

VMA_STEPS = INDEX["vma_steps"]

PROT_READ = 1
PROT_WRITE = 2
PROT_EXEC = 4
MAP_SHARED = 0x01
MAP_PRIVATE = 0x02
MAP_ANONYMOUS = 0x20
MAP_GROWSDOWN = 0x0100
MAP_NORESERVE = 0x4000
MAP_STACK = 0x20000
MAP_HUGETLB = 0x40000
# Which MAP_* bits tell one kind of mapping from another; the rest is about how it was made.
MAP_KIND = MAP_SHARED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_NORESERVE

# Further flags of a VMA, above MAP_*: VM_DONTCOPY, VM_WIPEONFORK, VM_ACCOUNT ...
DONTCOPY = 1 << 24
WIPEONFORK = 1 << 25
ACCOUNT = 1 << 26
HUGEPAGE = 1 << 27
NOHUGEPAGE = 1 << 28
DONTDUMP = 1 << 29
MERGEABLE = 1 << 31

UNKNOWN = 1  # bit of Vma.file: only told from others, there is no File

PMD_SIZE = 1 << 21
PUD_SIZE = 1 << 30


class Vma(IntervalNode):
    """``struct vm_area_struct``: the range, PROT_* bits, MAP_* bits in MAP_KIND and further flags.

    ``file`` is a File or tells unknown ones apart (UNKNOWN), 0 for none; ``pgoff`` is the offset in it, or the address,
    in pages; ``anon_vma`` tells anon_vmas apart, 0 before the first anonymous page.
    """

    prot: int
    flags: int
    file: int
    pgoff: int
    anon_vma: int
    linked: int  # when it was last linked, which its file's i_mmap and its anon_vma go by
    tracked: HlistHead  # mmu_notifier_tracked.py's intervals


@protocol
def find_vma(mm: Mm, addr: int) -> Vma:
    """find_vma(): the first VMA that ends above ``addr``, or NULL; it need not contain it."""
    return Vma(itree_first(mm.vmas, addr, ULONG_MAX, VMA_STEPS))


@protocol
def next_vma(mm: Mm, addr: int) -> Vma:
    """find_vma() on the CPU side's own behalf: not counted."""
    return Vma(itree_first(mm.vmas, addr, ULONG_MAX, SCRATCH))


@protocol
def vma_at(mm: Mm, addr: int) -> Vma:
    """vma_lookup(): the VMA that contains ``addr``, or NULL."""
    vma = next_vma(mm, addr)
    if vma and vma.start <= addr:
        return vma
    return NULL


@protocol
def linear_page_index(vma: Vma, addr: int) -> int:
    """linear_page_index(): which page of its file an address of a VMA is."""
    return vma.pgoff + ((addr - vma.start) >> PAGE_SHIFT)


@protocol
def vma_address(vma: Vma, index: int) -> int:
    """vma_address(): where a VMA has a page of its file."""
    return vma.start + ((index - vma.pgoff) << PAGE_SHIFT)


# --- who follows VMAs: nobody in Linux. What mmu_notifier_tracked.py puts here runs under mmap_lock for writing.


@protocol
def vma_gains(mm: Mm, vma: Vma, start: int, last: int, donor: Vma) -> None:
    """A VMA is about to map ``[start, last]``, a part of which is another one's until then."""
    return


@protocol
def vma_resized(mm: Mm, vma: Vma) -> None:
    """A VMA has got other bounds."""
    return


@protocol
def vma_detached(mm: Mm, vma: Vma) -> None:
    """munmap() takes a VMA out and will tell (UNMAP) and zap."""
    return


@protocol
def vmas_unmapped(mm: Mm) -> None:
    """munmap() has told and zapped; mmap_lock may be held for reading by now."""
    return


@protocol
def vma_dropped(mm: Mm, vma: Vma) -> None:
    """A VMA goes."""
    return


@protocol
def link_vma(mm: Mm, vma: Vma) -> None:
    """vma_link(): among the VMAs, and among its file's or its anon_vma's."""
    mm.mappings += 1
    vma.linked = mm.mappings
    itree_insert(mm.vmas, vma)


@protocol
def new_vma(mm: Mm, start: int, end: int, like: Vma) -> Vma:
    """Link a VMA that overlaps none and is a part of what ``like`` maps, or next to it."""
    vma = on_stack(Vma)
    vma.start = start
    vma.last = end - 1
    vma.prot = like.prot
    vma.flags = like.flags
    vma.file = like.file
    vma.pgoff = linear_page_index(like, start)
    vma.anon_vma = like.anon_vma
    vma_gains(mm, vma, start, end - 1, like)
    link_vma(mm, vma)
    return vma


@protocol
def resize_vma(mm: Mm, vma: Vma, start: int, last: int) -> None:
    """Change a VMA's bounds."""
    itree_remove(mm.vmas, vma)
    vma.pgoff += (start - vma.start) >> PAGE_SHIFT
    vma.start = start
    vma.last = last
    link_vma(mm, vma)
    vma_resized(mm, vma)


@protocol
def drop_vma(mm: Mm, vma: Vma) -> None:
    """Unlink and free a VMA."""
    vma_dropped(mm, vma)
    itree_remove(mm.vmas, vma)
    off_stack(vma)


@protocol
def drop_vmas(mm: Mm, start: int, end: int) -> None:
    """Drop the VMAs of ``[start, end)``; what stuck out has been split off."""
    vma = next_vma(mm, start)
    while vma and vma.start < end:
        vma_detached(mm, vma)
        drop_vma(mm, vma)
        vma = next_vma(mm, start)


@protocol
def cut_vmas(mm: Mm, start: int, end: int) -> None:
    """Take ``[start, end)`` out of what is known of VMAs: some go, some shrink, one may be split. No call does this."""
    vma = next_vma(mm, start)
    while vma and vma.start < end:
        first = vma.start
        last = vma.last
        if first < start:
            if last >= end:
                new_vma(mm, end, last + 1, vma)
            resize_vma(mm, vma, first, start - 1)
        elif last >= end:
            resize_vma(mm, vma, end, last)
        else:
            drop_vma(mm, vma)
        vma = next_vma(mm, start)


# --- what hugetlb.py does otherwise


@protocol
def never_merges(vma: Vma) -> int:
    """Whether a VMA is one of VM_SPECIAL."""
    return 0


@protocol
def adjusted_start(vma: Vma, start: int, end: int) -> int:
    """Where the event begins of what is done to a part of a VMA."""
    return start


@protocol
def adjusted_end(vma: Vma, start: int, end: int) -> int:
    """Where it ends."""
    return end


@protocol
def hugetlb_split(mm: Mm, vma: Vma, addr: int) -> None:
    """A boundary will be inside a VMA: nothing more."""


@protocol
def may_split(vma: Vma, addr: int) -> int:
    """vm_ops->may_split(): whether a boundary can be inside a VMA."""
    return 1


# --- boundaries that move


@protocol
def split_huge_pmd(mm: Mm, block: int, since: int) -> None:
    """__split_huge_pmd(): CLEAR of 2 MiB. Where there are huge pages, huge.py's takes its place."""
    raise_end(raise_start(mm, block, block + PMD_SIZE, CLEAR, since))


@protocol
def split_huge_pmd_if_needed(mm: Mm, vma: Vma, addr: int) -> None:
    """split_huge_pmd_if_needed(), Linux 6.18 (vma_adjust_trans_huge() since 2.6.38): a boundary will be inside a VMA.

    A huge page might lie across it, so the 2 MiB around it are told (CLEAR), whether there is one or not.
    """
    block = addr & -PMD_SIZE
    if addr != block and vma.start <= block and block + PMD_SIZE - 1 <= vma.last and pt_has_table(mm.pt, addr):
        split_huge_pmd(mm, block, RAISES_CALLS)


@protocol
def split_vma(mm: Mm, vma: Vma, addr: int) -> Vma:
    """__split_vma(): ``vma`` ends at ``addr`` from now on; the VMA that begins there."""
    split_huge_pmd_if_needed(mm, vma, addr)
    hugetlb_split(mm, vma, addr)
    above = new_vma(mm, addr, vma.last + 1, vma)
    resize_vma(mm, vma, vma.start, addr - 1)
    return above


# --- neighbours that merge


@protocol
def alike(left: Vma, right: Vma) -> int:
    """is_mergeable_vma(), and the offsets: whether the second goes on where the first ends, anon_vmas aside."""
    if not left or not right or left.last + 1 != right.start:
        return 0
    if left.prot != right.prot or left.flags != right.flags or left.file != right.file or never_merges(left):
        return 0
    return linear_page_index(left, right.start) == right.pgoff


@protocol
def share_anon_vma(left: Vma, right: Vma) -> int:
    """is_mergeable_anon_vma(): they have the same, or only one of them has one."""
    if left.anon_vma and right.anon_vma and left.anon_vma != right.anon_vma:
        return 0
    return 1


@protocol
def takes_in(mm: Mm, neighbour: Vma, vma: Vma) -> int:
    """is_mergeable_anon_vma() of a neighbour: until 6.15 one without an anon_vma did not take in what has one."""
    if mm.version < LINUX_6_18 and vma.anon_vma and not neighbour.anon_vma:
        return 0
    return share_anon_vma(neighbour, vma)


@protocol
def absorb(mm: Mm, vma: Vma, other: Vma) -> None:
    """One VMA takes a neighbour in (vma_expand(), dup_anon_vma())."""
    start = min(vma.start, other.start)
    last = max(vma.last, other.last)
    if not vma.anon_vma:
        vma.anon_vma = other.anon_vma
    vma_gains(mm, vma, start, last, other)
    drop_vma(mm, other)
    resize_vma(mm, vma, start, last)


@protocol
def merge_whole(mm: Mm, vma: Vma, source: Vma, right_first: int) -> Vma:
    """vma_merge_new_range() and its like for a whole VMA: the VMA that covers it afterwards.

    :param source: a neighbour that does not take it in, or NULL
    :param right_first: of two neighbours with different anon_vmas the right one takes it in, not the left one
    """
    left = next_vma(mm, vma.start - 1)
    right = next_vma(mm, vma.last + 1)
    merge_left = 0
    merge_right = 0
    if left and left.start < vma.start and left != source and alike(left, vma):
        merge_left = takes_in(mm, left, vma)
    if right != source and alike(vma, right) and takes_in(mm, right, vma):
        if right_first and merge_left:
            merge_left = takes_in(mm, left, right)
        if not merge_left or share_anon_vma(left, right):
            merge_right = 1
    if merge_right:
        absorb(mm, right, vma)
        vma = right
    if merge_left:
        absorb(mm, left, vma)
        vma = left
    return vma


@protocol
def add_vma(mm: Mm, start: int, end: int, prot: int, flags: int, file: int, pgoff: int, anon_vma: int) -> Vma:
    """Map ``[start, end)``, where nothing is; it is not merged yet."""
    vma = on_stack(Vma)
    vma.start = start
    vma.last = end - 1
    vma.prot = prot
    vma.flags = flags
    vma.file = file
    vma.pgoff = pgoff
    vma.anon_vma = anon_vma
    link_vma(mm, vma)
    return vma


@protocol
def vma_modify(mm: Mm, vma: Vma, start: int, end: int, prot: int, flags: int) -> Vma:
    """vma_modify(): ``[start, end)`` of a VMA gets other protection and flags; the VMA that covers it afterwards.

    First vma_merge_existing_range(): the part goes to a neighbour that is alike. Else what sticks out is split off.
    Where it cannot be there is none (-EINVAL), and what was split off before remains so.
    """
    if start == vma.start and end == vma.last + 1:
        vma.prot = prot
        vma.flags = flags
        return merge_whole(mm, vma, NULL, 0)
    if start == vma.start:
        left = next_vma(mm, start - 1)
        if left and left.start < start and goes_to(mm, left, vma, prot, flags):
            split_huge_pmd_if_needed(mm, vma, end)
            vma_gains(mm, left, left.start, end - 1, vma)
            resize_vma(mm, vma, end, vma.last)
            if not left.anon_vma:
                left.anon_vma = vma.anon_vma
            resize_vma(mm, left, left.start, end - 1)
            return left
    if end == vma.last + 1:
        right = next_vma(mm, end)
        if right and right.start == end and goes_to(mm, right, vma, prot, flags):
            split_huge_pmd_if_needed(mm, vma, start)
            vma_gains(mm, right, start, right.last, vma)
            resize_vma(mm, vma, vma.start, start - 1)
            if not right.anon_vma:
                right.anon_vma = vma.anon_vma
            resize_vma(mm, right, start, right.last)
            return right
    if start > vma.start:
        if not may_split(vma, start):
            return NULL
        vma = split_vma(mm, vma, start)
    if end <= vma.last:
        if not may_split(vma, end):
            return NULL
        split_vma(mm, vma, end)
    vma.prot = prot
    vma.flags = flags
    return vma


@protocol
def goes_to(mm: Mm, neighbour: Vma, vma: Vma, prot: int, flags: int) -> int:
    """Whether a part of a VMA, once it has other protection and flags, can be its neighbour's."""
    if neighbour.prot != prot or neighbour.flags != flags or neighbour.file != vma.file or never_merges(vma):
        return 0
    if vma.pgoff - neighbour.pgoff != (vma.start - neighbour.start) >> PAGE_SHIFT:
        return 0
    return takes_in(mm, neighbour, vma)


@protocol
def anon_vma_prepare(mm: Mm, vma: Vma) -> None:
    """__anon_vma_prepare(): before its first anonymous page, a VMA is linked among those of an anon_vma."""
    if vma.anon_vma:
        return
    vma.anon_vma = find_mergeable_anon_vma(mm, vma)
    if not vma.anon_vma:
        mm.anon_vmas += 1
        vma.anon_vma = mm.anon_vmas
    if not vma.file:
        mm.mappings += 1
        vma.linked = mm.mappings


@protocol
def find_mergeable_anon_vma(mm: Mm, vma: Vma) -> int:
    """find_mergeable_anon_vma(): a neighbour's, or 0."""
    right = next_vma(mm, vma.last + 1)
    if anon_alike(vma, right) and right.anon_vma:
        return right.anon_vma
    left = next_vma(mm, vma.start - 1)
    if left and left.start < vma.start and anon_alike(left, vma):
        return left.anon_vma
    return 0


@protocol
def anon_alike(left: Vma, right: Vma) -> int:
    """anon_vma_compatible(): as alike(), whatever the protection."""
    if not left or not right or left.last + 1 != right.start or left.flags != right.flags or left.file != right.file:
        return 0
    return linear_page_index(left, right.start) == right.pgoff
