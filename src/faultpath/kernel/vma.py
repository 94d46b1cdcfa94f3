"""VMAs: where they are, and what mapping calls do to them (mm/mmap.c).

They are kept in an interval tree of their own, as before Linux 6.1 in a red-black tree: find_vma reads tree nodes.
Addresses are page aligned, ranges ``[start, end)``.
"""

from __future__ import annotations

from faultpath.engine.world import INDEX, SCRATCH
from faultpath.kernel.mmu_notifier import ULONG_MAX, IntervalNode, Mm
from faultpath.kernel.primitives.heap import off_stack, on_stack
from faultpath.kernel.primitives.itree import itree_first, itree_insert, itree_remove
from faultpath.protocol.language import protocol

VMA_STEPS = INDEX["vma_steps"]

PROT_READ = 1
PROT_WRITE = 2
MAP_PRIVATE = 0x02
MAP_FIXED = 0x10
MAP_ANONYMOUS = 0x20
MAP_GROWSDOWN = 0x0100
# Which MAP_* bits tell one kind of mapping from another; the rest is about how it was made.
MAP_KIND = 0x01 | MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN

# Flags of a mapping that only its faults tell of: such pages merge with each other and with nothing else.
MAP_INFERRED = MAP_PRIVATE | MAP_ANONYMOUS | 1 << 30

STACK_LIMIT = 8 << 20  # RLIMIT_STACK's usual soft limit: how far a stack VMA may grow


class Vma(IntervalNode):
    """``struct vm_area_struct``: the range, PROT_* bits and the MAP_* bits in MAP_KIND."""

    prot: int
    flags: int


@protocol
def find_vma(mm: Mm, addr: int) -> Vma:
    """find_vma(): the first VMA that ends above ``addr``, or NULL; it need not contain it."""
    return Vma(itree_first(mm.vmas, addr, ULONG_MAX, VMA_STEPS))


@protocol
def next_vma(mm: Mm, addr: int) -> Vma:
    """find_vma() on the CPU side's own behalf: not counted."""
    return Vma(itree_first(mm.vmas, addr, ULONG_MAX, SCRATCH))


@protocol
def new_vma(mm: Mm, start: int, end: int, prot: int, flags: int) -> None:
    """Link a VMA that overlaps none."""
    vma = on_stack(Vma)
    vma.start = start
    vma.last = end - 1
    vma.prot = prot
    vma.flags = flags
    itree_insert(mm.vmas, vma)


@protocol
def resize_vma(mm: Mm, vma: Vma, start: int, last: int) -> None:
    """Change a VMA's bounds."""
    itree_remove(mm.vmas, vma)
    vma.start = start
    vma.last = last
    itree_insert(mm.vmas, vma)


@protocol
def drop_vma(mm: Mm, vma: Vma) -> None:
    """Unlink and free a VMA."""
    itree_remove(mm.vmas, vma)
    off_stack(vma)


@protocol
def cut_vmas(mm: Mm, start: int, end: int) -> None:
    """Take ``[start, end)`` out of every VMA (do_vmi_align_munmap): some go, some shrink, one may be split."""
    vma = next_vma(mm, start)
    while vma and vma.start < end:
        first = vma.start
        last = vma.last
        if first < start:
            resize_vma(mm, vma, first, start - 1)
            if last >= end:
                new_vma(mm, end, last + 1, vma.prot, vma.flags)
        elif last >= end:
            resize_vma(mm, vma, end, last)
        else:
            drop_vma(mm, vma)
        vma = next_vma(mm, start)


@protocol
def add_vma(mm: Mm, start: int, end: int, prot: int, flags: int) -> None:
    """Map ``[start, end)``, merging with equal anonymous neighbours (vma_merge).

    File mappings are not merged: the trace does not know the file.
    """
    if flags & MAP_ANONYMOUS:
        left = next_vma(mm, start - 1)
        if left and left.last == start - 1 and left.prot == prot and left.flags == flags:
            start = left.start
            drop_vma(mm, left)
        right = next_vma(mm, end)
        if right and right.start == end and right.prot == prot and right.flags == flags:
            end = right.last + 1
            drop_vma(mm, right)
    new_vma(mm, start, end, prot, flags)


@protocol
def grow_vma(mm: Mm, start: int, end: int, prot: int, flags: int) -> None:
    """The mapping that ends at ``start`` grows in place to ``end`` (vma_merge): it stays one VMA, of a file too."""
    cut_vmas(mm, start, end)
    vma = next_vma(mm, start - 1)
    if vma and vma.last == start - 1 and not flags & MAP_ANONYMOUS:
        resize_vma(mm, vma, vma.start, end - 1)
    else:
        add_vma(mm, start, end, prot, flags)


@protocol
def protect_vmas(mm: Mm, start: int, end: int, prot: int) -> None:
    """Give ``[start, end)`` new protection (mprotect_fixup): VMAs are split at its ends and merged again."""
    upto = start
    while upto < end:
        vma = next_vma(mm, upto)
        if not vma or vma.start >= end:
            break
        first = max(vma.start, start)
        upto = min(vma.last + 1, end)
        flags = vma.flags
        if flags == MAP_INFERRED:
            flags = MAP_PRIVATE | MAP_ANONYMOUS  # known from now on
        if vma.prot != prot or vma.flags != flags:
            cut_vmas(mm, first, upto)
            add_vma(mm, first, upto, prot, flags)
