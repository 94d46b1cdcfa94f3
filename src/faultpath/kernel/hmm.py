"""hmm_range_fault: mm/hmm.c, Linux 6.1, for one page."""

from __future__ import annotations

from faultpath.kernel.errno import EBUSY, EFAULT, EPERM
from faultpath.kernel.mmu_notifier import IntervalNotifier, Mm
from faultpath.kernel.primitives.pagetable import VALID, WRITE, new_frame, pt_get, pt_set
from faultpath.kernel.vma import PROT_READ, PROT_WRITE, Vma, find_vma
from faultpath.protocol.language import protocol


@protocol
def handle_mm_fault(mm: Mm, vma: Vma, addr: int, write: int) -> None:
    """handle_mm_fault() on the device's behalf: afterwards the CPU PTE is present, and writable if ``write``.

    A copy-on-write break here raises no invalidation: what a recording holds is what the CPU side raised.
    """
    pte = pt_get(mm.pt, addr)
    if not pte & VALID or (write and not pte & WRITE):
        if write:
            pt_set(mm.pt, addr, new_frame(addr) | VALID | WRITE)
        else:
            pt_set(mm.pt, addr, new_frame(addr) | VALID)


@protocol
def hmm_range_fault(mm: Mm, sub: IntervalNotifier, seq: int, addr: int, write: int) -> int:
    """hmm_range_fault() over one page, HMM_PFN_REQ_FAULT set, REQ_WRITE if ``write``; mmap_lock is held.

    :returns: the CPU PTE (VALID, WRITE if the CPU may write, frame bits), or -EBUSY when an invalidation has begun
        since ``seq`` was read, -EFAULT without a readable VMA, -EPERM to write where the VMA forbids it
    """
    if sub.invalidate_seq != seq:  # mmu_interval_check_retry()
        return -EBUSY
    vma = find_vma(mm, addr)
    if not vma or addr < vma.start or not vma.prot & PROT_READ:
        return -EFAULT
    pte = pt_get(mm.pt, addr)
    if not pte & VALID or (write and not pte & WRITE):
        if write and not vma.prot & PROT_WRITE:
            return -EPERM
        handle_mm_fault(mm, vma, addr, write)
        pte = pt_get(mm.pt, addr)
    return pte
