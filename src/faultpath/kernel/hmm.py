"""hmm_range_fault: mm/hmm.c, Linux 6.1, for one page and for many; and where it need not fault."""

from __future__ import annotations

from faultpath.engine.world import SCRATCH
from faultpath.kernel.errno import EBUSY, EFAULT, EPERM
from faultpath.kernel.mm.fault import handle_mm_fault
from faultpath.kernel.mm.raising import RAISES_ALL
from faultpath.kernel.mm.vma import PMD_SIZE, PROT_READ, PROT_WRITE, VMA_STEPS, Vma, find_vma
from faultpath.kernel.mmu_notifier import ULONG_MAX, IntervalNotifier, Mm
from faultpath.kernel.primitives.itree import itree_first
from faultpath.kernel.primitives.pagetable import (
    DEVICE_BITS,
    PAGE_SIZE,
    VALID,
    WRITE,
    pt_clear,
    pt_copy,
    pt_get,
    pt_set,
)
from faultpath.protocol.language import protocol
from faultpath.protocol.struct import PageTable


@protocol
def hmm_vma_handle_pte(mm: Mm, vma: Vma, addr: int, write: int) -> int:
    """hmm_vma_handle_pte(), and what hmm_vma_fault() asks first.

    :returns: the CPU PTE, 0 when a fault must be taken, or -EPERM to write where the VMA forbids it
    """
    pte = pt_get(mm.pt, addr)
    if pte & VALID and (pte & WRITE or not write):
        return pte & DEVICE_BITS
    if write and not vma.prot & PROT_WRITE:
        return -EPERM
    return 0


@protocol
def hmm_walk(mm: Mm, addr: int, write: int, steps: int) -> int:
    """walk_page_range() with hmm_walk_ops: hmm_vma_walk_test, then hmm_vma_handle_pte and hmm_vma_fault.

    :returns: the CPU PTE, or -EBUSY when a fault was taken instead; -EFAULT without a VMA that may be read (a hole
        with a fault asked for is one, too), -EPERM to write where the VMA forbids it
    """
    vma = Vma(itree_first(mm.vmas, addr, ULONG_MAX, steps))
    if not vma or addr < vma.start or not vma.prot & PROT_READ:
        return -EFAULT
    if pte := hmm_vma_handle_pte(mm, vma, addr, write):
        return pte
    if handle_mm_fault(mm, vma, addr, write, RAISES_ALL):
        return -EFAULT
    return -EBUSY


@protocol
def hmm_range_fault(mm: Mm, sub: IntervalNotifier, seq: int, addr: int, write: int) -> int:
    """hmm_range_fault() over one page, HMM_PFN_REQ_FAULT set, REQ_WRITE if ``write``; mmap_lock is held.

    Every fault it takes starts the walk again. Which of its walks reads how many VMA nodes is counted for the first.

    :returns: the CPU PTE (VALID, WRITE if the CPU may write, frame bits), or -EBUSY when an invalidation has begun
        since ``seq`` was read, -EFAULT without a readable VMA, -EPERM to write where the VMA forbids it
    """
    steps = VMA_STEPS
    ret = -EBUSY
    while ret == -EBUSY:
        if sub.invalidate_seq != seq:  # mmu_interval_check_retry()
            return -EBUSY
        ret = hmm_walk(mm, addr, write, steps)
        steps = SCRATCH
    return ret


@protocol
def hmm_walk_pages(mm: Mm, addr: int, end: int, write: int, pfns: PageTable, steps: int) -> int:
    """hmm_walk() over ``[addr, end)``. A page that lacks something is faulted with all that its VMA has after it.

    That stops at the page table's end, too (hmm_vma_walk_pmd, hmm_vma_walk_hole).

    :returns: ``end``, or from where to walk again when faults were taken (hmm_vma_walk.last), or -errno
    """
    while addr < end:
        vma = Vma(itree_first(mm.vmas, addr, ULONG_MAX, steps))
        if not vma or addr < vma.start or not vma.prot & PROT_READ:
            return -EFAULT
        stop = min(end, vma.last + 1)
        while addr < stop:
            pte = hmm_vma_handle_pte(mm, vma, addr, write)
            if pte < 0:
                return pte
            if not pte:
                last = addr
                stop = min(stop, (addr & -PMD_SIZE) + PMD_SIZE)
                while addr < stop:  # hmm_vma_fault()
                    if handle_mm_fault(mm, vma, addr, write, RAISES_ALL):
                        return -EFAULT
                    addr += PAGE_SIZE
                return last
            pt_set(pfns, addr, pte)
            addr += PAGE_SIZE
        steps = SCRATCH
    return end


@protocol
def hmm_range_fault_pages(
    mm: Mm, sub: IntervalNotifier, seq: int, start: int, end: int, write: int, pfns: PageTable
) -> int:
    """hmm_range_fault() over ``[start, end)``, otherwise as above: 0 with every page's CPU PTE in ``pfns``, or -errno.

    A walk begins again where the one before it stopped to take faults; what that one had found stays.
    """
    steps = VMA_STEPS
    while start < end:
        if sub.invalidate_seq != seq:  # mmu_interval_check_retry()
            return -EBUSY
        start = hmm_walk_pages(mm, start, end, write, pfns, steps)
        if start < 0:
            return start
        steps = SCRATCH
    return 0


@protocol
def hmm_range_snapshot(mm: Mm, sub: IntervalNotifier, seq: int, start: int, end: int, pfns: PageTable) -> int:
    """hmm_range_fault() over a range without HMM_PFN_REQ_FAULT: what is there, where it may be read; mmap_lock is held.

    :returns: 0 with the CPU PTEs in ``pfns``, or -EBUSY when an invalidation has begun since ``seq`` was read
    """
    if sub.invalidate_seq != seq:
        return -EBUSY
    pt_clear(pfns, start, end)
    vma = find_vma(mm, start)
    while vma and vma.start < end:
        if vma.prot & PROT_READ:
            pt_copy(pfns, mm.pt, max(start, vma.start), min(end, vma.last + 1))
        vma = find_vma(mm, vma.last + 1)
    return 0
