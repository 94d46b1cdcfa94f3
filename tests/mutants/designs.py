"""The correct designs that mutants are made of, and a design that faults two pages at a time."""

from __future__ import annotations

from faultpath.designs import full_va
from faultpath.designs.full_va import Dmirror
from faultpath.kernel.errno import EBUSY
from faultpath.kernel.hmm import hmm_range_fault
from faultpath.kernel.mmu_notifier import mmu_interval_read_begin, mmu_interval_read_retry
from faultpath.kernel.primitives.locks import down_read, mutex_lock, mutex_unlock, up_read
from faultpath.kernel.primitives.pagetable import PAGE_SIZE, pt_set
from faultpath.kernel.primitives.time import timed_out
from faultpath.protocol.language import protocol
from mutants.engine import Subject


@protocol(replaces=full_va.dmirror_range_fault)
def two_pages_fault(dmirror: Dmirror, addr: int, write: int) -> int:
    """dmirror_range_fault() for two pages, each walked by itself, as amdgpu_hmm_range_get_pages() walks its chunks."""
    mm = dmirror.mm
    mni = dmirror.notifier
    while not timed_out():
        seq = mmu_interval_read_begin(mni)
        down_read(mm.mmap_lock)
        first = hmm_range_fault(mm, mni, seq, addr, write)
        second = first
        if first >= 0:
            second = hmm_range_fault(mm, mni, seq, addr + PAGE_SIZE, write)
        up_read(mm.mmap_lock)
        if second == -EBUSY:
            continue
        if second < 0:
            return second
        mutex_lock(dmirror.mutex)
        if mmu_interval_read_retry(mni, seq):
            mutex_unlock(dmirror.mutex)
            continue
        pt_set(dmirror.pt, addr, first)
        pt_set(dmirror.pt, addr + PAGE_SIZE, second)
        mutex_unlock(dmirror.mutex)
        return 0
    return -EBUSY


FULL_VA = Subject("full-va", "full-va")
TWO_PAGES = Subject("two pages", "full-va", (two_pages_fault,))
REFCOUNT = Subject("odp refcount", "odp-implicit-fixed")
SRCU = Subject("odp srcu", "odp-implicit-fixed:protection=srcu")
KVM = Subject("kvm", "kvm")
GPUSVM = Subject("drm-gpusvm", "drm-gpusvm")
UVM = Subject("uvm", "uvm-hmm")
