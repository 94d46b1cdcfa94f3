"""A notifier is registered in the middle of a page fault.

Registration takes every lock under which page tables change (mm_take_all_locks()), so that no invalidation is half way
through: one that began before, for nobody, must not end after. Faults under a per-VMA lock take none of those. One that
breaks copy-on-write has told range_start to nobody, the notifier comes, its device maps the page that is still there,
and the fault puts another in its place.

The fix locks every VMA for writing as well, for which such a fault has to end.

There is one VMA; its lock is the device's here, for it is there before the mirror is.
"""

from __future__ import annotations

import dataclasses

from faultpath.cases import mirror
from faultpath.cases.case import BUGGY, FINAL_FIX, HOLDS, Case, Variant, memory, write_protect
from faultpath.cases.kvm_vma import Kvm, kvm_init, kvm_mmu_notifier_ops, stage2_walk
from faultpath.driver import *
from faultpath.kernel.mm.fault import wp_page_copy
from faultpath.kernel.mm.raising import RAISES_CALLS
from faultpath.kernel.mmu_notifier import __mmu_notifier_register
from faultpath.scenario import DEVICE, MM, Call, Scenario, address


class KvmFile(Kvm):
    """``struct kvm``, and vma->vm_lock of the one VMA, which is not KVM's."""

    vm_lock: RwSem


@protocol
def kvm_dev_open(mm: Mm) -> KvmFile:
    """Before kvm_create_vm(): nothing is registered."""
    kvm = kmalloc(KvmFile, GFP_KERNEL)
    if not kvm:
        return NULL
    kvm_init(kvm, mm)
    return kvm


@protocol
def lock_vmas(kvm: KvmFile) -> None:
    """mm_take_all_locks() knows nothing of VMAs' locks, in the series that brought them."""
    return


@protocol
def unlock_vmas(kvm: KvmFile) -> None:
    """Nor does mmap_write_unlock()."""
    return


@protocol(replaces=lock_vmas)
def vma_start_write(kvm: KvmFile) -> None:
    """vma_start_write() of each VMA, in mm_take_all_locks() after eeff9a5d47f8."""
    down_write(kvm.vm_lock)


@protocol(replaces=unlock_vmas)
def vma_end_write_all(kvm: KvmFile) -> None:
    """vma_end_write_all(), with mmap_lock."""
    up_write(kvm.vm_lock)


@protocol
def kvm_create_vm(kvm: KvmFile) -> None:
    """kvm_init_mmu_notifier(): mmu_notifier_register() under all locks."""
    mm = kvm.mm
    with down_write(mm.mmap_lock):
        lock_vmas(kvm)
        __mmu_notifier_register(kvm.mmu_notifier, mm)
        unlock_vmas(kvm)


@protocol
def create_and_fault(kvm: KvmFile, addr: int) -> int:
    """A VM is created, and its guest reads a page."""
    mm = kvm.mm
    kvm_create_vm(kvm)
    while not timed_out():
        seq = kvm.mmu_invalidate_seq
        with down_read(mm.mmap_lock):
            pfn = get_user_pages(mm, addr, 0)
        with spin_lock(kvm.mmu_lock):
            if not kvm.mmu_invalidate_in_progress and kvm.mmu_invalidate_seq == seq:
                pt_set(kvm.pt, addr, pfn)
                return 0
        count("fault_retries")
    return -EBUSY


@protocol
def write_under_vma_lock(kvm: KvmFile, page: int) -> None:
    """do_user_addr_fault() with FAULT_FLAG_VMA_LOCK, of a write that breaks copy-on-write."""
    mm = kvm.mm
    with down_read(kvm.vm_lock):  # lock_vma_under_rcu()
        wp_page_copy(mm, vma_at(mm, page), page, pt_get(mm.pt, page), RAISES_CALLS)


BEFORE = dataclasses.replace(
    mirror.design,
    name="kvm",
    open=kvm_dev_open,
    walk=stage2_walk,
    ops=[kvm_mmu_notifier_ops],
    replaces=[],
)
AFTER = dataclasses.replace(BEFORE, replaces=[vma_start_write, vma_end_write_all])

SCENARIO = Scenario(
    "register-vs-cow",
    "A notifier is registered, and its device reads a page, while the process writes to it for the first time.",
    [*memory(1), Call("fork", write_protect, (MM, address(0), PAGE_SIZE))],
    [
        Call("create", create_and_fault, (DEVICE, address(0))),
        Call("write", write_under_vma_lock, (DEVICE, address(0))),
    ],
    pages=1,
)

case = Case(
    name="registration",
    title="mm/mmap: prevent pagefault handler from racing with mmu_notifier registration",
    cve="",
    property="coherence",
    source="mm/mmap.c:mm_take_all_locks()",
    variants=[
        Variant(BUGGY, BEFORE, SCENARIO, "coherence"),
        Variant(FINAL_FIX, AFTER, SCENARIO, HOLDS, "eeff9a5d47f8", "6.4-rc1"),
    ],
    doc=__doc__,
)
