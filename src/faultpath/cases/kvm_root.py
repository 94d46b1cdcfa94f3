"""KVM on x86: a fault fills page tables that are being thrown away; and the mending counts to two thousand million.

A memslot update marks the root obsolete and zaps it; the vCPU gets a new one when it next enters the guest. A fault
under way goes on with the old root, and puts a page table into a place that has been zapped. Nobody comes by again.

The first fix looks at the root once more, and at the notifier's sequence number in the same function, which is given
the number as an int. From the 31st bit on that is another number than the unsigned long it was read from, the fault is
stale for ever, and the vCPU hangs. Linux 6.3 mended it by accident; stable kernels got the type right.

There has been a long life: the sequence number begins at 2^31. The VM ends when both are through.
"""

from __future__ import annotations

import dataclasses

from faultpath.cases import mirror
from faultpath.cases.case import BUGGY, FINAL_FIX, FIRST_FIX, HOLDS, Case, Variant, memory
from faultpath.cases.kvm_vma import Kvm, kvm_init, kvm_mmu_notifier_ops, stage2_walk
from faultpath.driver import *
from faultpath.kernel.threads import closing
from faultpath.scenario import DEVICE, Call, Scenario, address

BIT_31 = 1 << 31
INT_BITS = (1 << 32) - 1


class Sp(Struct):
    """``struct kvm_mmu_page`` of a page table."""


class Root(Struct):
    """``struct kvm_mmu_page`` of a root, with one place below it."""

    refcount: RefCount
    invalid: int
    child: Sp


class KvmX86(Kvm):
    """``struct kvm`` and its one vCPU."""

    root: Root
    updated: int  # the memslot update is over


@protocol
def new_root() -> Root:
    """kvm_tdp_mmu_get_vcpu_root_hpa(): the vCPU's."""
    root = kmalloc(Root, GFP_KERNEL)
    refcount_set(root.refcount, 1)
    return root


@protocol
def kvm_create_vm(mm: Mm) -> KvmX86:
    """kvm_create_vm(), and the vCPU's kvm_mmu_load()."""
    kvm = kmalloc(KvmX86, GFP_KERNEL)
    if not kvm:
        return NULL
    kvm_init(kvm, mm)
    kvm.mmu_invalidate_seq = BIT_31
    kvm.root = new_root()
    mmu_notifier_register(kvm.mmu_notifier, mm)
    return kvm


@protocol
def put_root(root: Root) -> None:
    """kvm_tdp_mmu_put_root(): what was below an invalid one has been zapped by who made it invalid."""
    if refcount_dec_and_test(root.refcount):
        if not root.invalid and root.child:
            kfree(root.child)
        kfree(root)


@protocol
def mmu_invalidate_retry(kvm: KvmX86, seq: int) -> int:
    """mmu_invalidate_retry_hva(): under mmu_lock."""
    if kvm.mmu_invalidate_in_progress:
        return 1
    return kvm.mmu_invalidate_seq != seq


@protocol
def is_page_fault_stale(kvm: KvmX86, seq: int) -> int:
    """What direct_page_fault() asks under mmu_lock, until 5.15."""
    return mmu_invalidate_retry(kvm, seq)


@protocol(replaces=is_page_fault_stale)
def stale_by_root_and_int(kvm: KvmX86, seq: int) -> int:
    """is_page_fault_stale(vcpu, fault, int mmu_seq), after a955cad84cda."""
    if kvm.root.invalid:
        return 1
    return mmu_invalidate_retry(kvm, ((seq + BIT_31) & INT_BITS) - BIT_31)


@protocol(replaces=is_page_fault_stale)
def stale_by_root(kvm: KvmX86, seq: int) -> int:
    """is_page_fault_stale(vcpu, fault, unsigned long mmu_seq)."""
    if kvm.root.invalid:
        return 1
    return mmu_invalidate_retry(kvm, seq)


@protocol
def kvm_mmu_reload(kvm: KvmX86) -> None:
    """kvm_mmu_reload(), before the guest is entered: KVM_REQ_MMU_RELOAD."""
    with spin_lock(kvm.mmu_lock):
        obsolete = kvm.root.invalid
    if obsolete:
        put_root(kvm.root)
        kvm.root = new_root()


@protocol
def direct_page_fault(kvm: KvmX86, addr: int) -> int:
    """direct_page_fault(), until the guest has its page or does without."""
    mm = kvm.mm
    while not timed_out():
        seq = kvm.mmu_invalidate_seq
        with down_read(mm.mmap_lock):
            pfn = get_user_pages(mm, addr, 1)  # kvm_faultin_pfn()
        if pfn < 0:
            return pfn
        with spin_lock(kvm.mmu_lock):
            if not is_page_fault_stale(kvm, seq):
                if not kvm.root.child:
                    kvm.root.child = kmalloc_from_cache()
                pt_set(kvm.pt, addr, pfn)  # kvm_tdp_mmu_map()
                return 0
        count("fault_retries")
        kvm_mmu_reload(kvm)
    return -EBUSY


@protocol
def kmalloc_from_cache() -> Sp:
    """kvm_mmu_memory_cache_alloc(): filled before the lock was taken, it never fails."""
    return kmalloc(Sp, GFP_ATOMIC)


@protocol
def kvm_set_memslot(kvm: KvmX86) -> None:
    """kvm_mmu_zap_all_fast() and kvm_tdp_mmu_zap_invalidated_roots()."""
    with spin_lock(kvm.mmu_lock):
        root = kvm.root
        root.invalid = 1
        refcount_inc(root.refcount)
    with spin_lock(kvm.mmu_lock):
        if root.child:
            kfree(root.child)
            root.child = Sp(NULL)
            device_zap(kvm.pt, 0, kvm.mm.task_size)
    put_root(root)
    kvm.updated = 1


@protocol
def kvm_destroy_vm(kvm: KvmX86) -> None:
    """kvm_destroy_vm()."""
    mmu_notifier_unregister(kvm.mmu_notifier, kvm.mm)
    put_root(kvm.root)
    pt_free(kvm.pt)
    kfree(kvm)


@protocol
def vcpu_run(kvm: KvmX86, addr: int) -> None:
    """A vCPU faults; then the VM ends."""
    direct_page_fault(kvm, addr)
    wait_until(kvm.updated == 1)
    closing(kvm)


BEFORE = dataclasses.replace(
    mirror.design,
    name="kvm",
    open=kvm_create_vm,
    walk=stage2_walk,
    close=kvm_destroy_vm,
    ops=[kvm_mmu_notifier_ops],
)
FIRST = dataclasses.replace(BEFORE, replaces=[*BEFORE.replaces, stale_by_root_and_int])
FINAL = dataclasses.replace(BEFORE, replaces=[*BEFORE.replaces, stale_by_root])

SCENARIO = Scenario(
    "fault-vs-memslot",
    "A vCPU faults while a memslot is changed.",
    memory(1),
    [Call("vcpu", vcpu_run, (DEVICE, address(0))), Call("memslot", kvm_set_memslot, (DEVICE,))],
    pages=1,
)

case = Case(
    name="kvm-root",
    title="KVM: x86/mmu: Retry page fault if root is invalidated by memslot update",
    cve="",
    property="lifetime",
    source="arch/x86/kvm/mmu/mmu.c:direct_page_fault(), is_page_fault_stale()",
    variants=[
        Variant(BUGGY, BEFORE, SCENARIO, "lifetime"),
        Variant(FIRST_FIX, FIRST, SCENARIO, "progress", "a955cad84cda", "5.16"),
        Variant(FINAL_FIX, FINAL, SCENARIO, HOLDS, "82d811ff5665", "6.1.50"),
    ],
    doc=__doc__,
)
