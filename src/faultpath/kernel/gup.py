"""get_user_pages: mm/gup.c, Linux 6.1, for one page. What the page's reference keeps alive is not modelled."""

from __future__ import annotations

from faultpath.engine.world import SCRATCH
from faultpath.kernel.errno import EBUSY, EFAULT
from faultpath.kernel.hmm import hmm_walk
from faultpath.kernel.mm.vma import VMA_STEPS
from faultpath.kernel.mmu_notifier import Mm
from faultpath.kernel.primitives.pagetable import DEVICE_BITS, VALID, WRITE, pt_get
from faultpath.protocol.language import protocol


@protocol
def get_user_pages(mm: Mm, addr: int, write: int) -> int:
    """__get_user_pages(): follow_page_mask(), faultin_page() and again, until the page is there; mmap_lock is held.

    No sequence number is looked at: what may have become of the page by the time it returns is the caller's business.

    :returns: the CPU PTE (VALID, WRITE if the CPU may write, frame bits), or -EFAULT where the VMA forbids it
    """
    steps = VMA_STEPS
    ret = -EBUSY
    while ret == -EBUSY:
        ret = hmm_walk(mm, addr, write, steps)
        steps = SCRATCH
    return ret if ret >= 0 else -EFAULT


@protocol
def get_user_page_fast_only(mm: Mm, addr: int, write: int) -> int:
    """get_user_page_fast_only(): what the CPU's page table has, without mmap_lock; 0 where it does not do."""
    pte = pt_get(mm.pt, addr)
    if pte & VALID and (pte & WRITE or not write):
        return pte & DEVICE_BITS
    return 0
