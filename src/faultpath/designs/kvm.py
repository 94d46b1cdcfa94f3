"""A plain notifier with one merged range: KVM's guest memory.

A VM is told of every event in the process by an ordinary mmu_notifier. It looks which memslots the range meets, in an
interval tree by address, and if there is one takes mmu_lock for writing: the SPTEs go, and until range_end the VM is
*in progress*. All invalidations in progress have one range, the least that contains them; it forgets nothing before the
last of them ends. A vCPU's fault reads the sequence number, gets the page, and under mmu_lock maps it unless the page
lies in that range or the number has moved since: then the guest goes on, and faults again.

It trades precision for a fault path whose only lock is mmu_lock, for reading: vCPUs fault in parallel. The range is
exact while one invalidation runs. Its end moves the number for everybody: a fault anywhere in the guest that began
before it is done again. An event that meets no memslot leaves mmu_lock alone, but calls back at its start and its end.

A guest's physical address is the process's virtual one here. User space sets memslots up as gVisor does, when a vCPU
exits with MMIO where there is none: the block of ``slot`` bytes around the address (faultBlockSize, 2 GiB). Slots stay
as long as the VM. What a fault of the guest finds present in the CPU's page table and writable costs no mmap_lock
(hva_to_pfn_fast).

The TDP MMU with A/D bits, pages of 4 KiB. walk_steps are nodes that the notifier reads among the memslots, lookup_steps
those that faults read. Not modelled: change_pte (range_start has zapped what it could change), access tracking, dirty
logging, asynchronous page faults (pages that must be read in), MMIO SPTEs and their generation, deletion of memslots,
the caches of the memslot found last, the yield inside a long zap, gfn_to_pfn_cache.

The VM, its memslots and its notifier are kvm_main.c's (:mod:`faultpath.kernel.kvm_main`), the vCPU is here.
"""

from __future__ import annotations

from faultpath.driver import *
from faultpath.kernel.kvm_main import (
    Kvm,
    hva_to_pfn,
    kvm_create_vm,
    kvm_destroy_vm,
    kvm_mmu_notifier_ops,
    kvm_vm_ioctl_set_memory_region,
    memslot_in,
    mmu_invalidate_retry_hva,
)

RET_PF_RETRY = 1
RET_PF_EMULATE = 2
RET_PF_FIXED = 3
RET_PF_SPURIOUS = 4


@protocol
def kvm_tdp_mmu_map(kvm: Kvm, addr: int, pte: int) -> int:
    """kvm_tdp_mmu_map() and tdp_mmu_map_handle_target_level(): other vCPUs' faults may map the same page meanwhile."""
    old = pt_get(kvm.pt, addr)
    if pte == old:
        return RET_PF_SPURIOUS
    if device_cmpxchg(kvm.pt, addr, old, pte) != old:
        return RET_PF_RETRY
    return RET_PF_FIXED


@protocol
def direct_page_fault(kvm: Kvm, addr: int, write: int, write_protected: int) -> int:
    """direct_page_fault(), fast_page_fault(), kvm_faultin_pfn(): RET_PF_*, or -EFAULT."""
    count("lookups")
    slot = memslot_in(kvm.memslots, addr, addr + 1, LOOKUP_STEPS)
    if write_protected and pt_get(kvm.pt, addr) & WRITE:
        count("pf_fast")
        return RET_PF_SPURIOUS
    mmu_seq = kvm.mmu_invalidate_seq
    if not slot:
        with read_lock(kvm.mmu_lock):
            count("pf_mmio_spte_created")
        return RET_PF_EMULATE
    pte = hva_to_pfn(kvm.mm, addr, write)
    if pte < 0:
        return pte
    with read_lock(kvm.mmu_lock):
        if mmu_invalidate_retry_hva(kvm, mmu_seq, addr):
            return RET_PF_RETRY
        return kvm_tdp_mmu_map(kvm, addr, pte)


@protocol
def kvm_mmu_do_page_fault(kvm: Kvm, addr: int, write: int) -> int:
    """kvm_mmu_do_page_fault(), under kvm->srcu as all of vcpu_run() outside the guest."""
    with srcu_read_lock(kvm.srcu):
        entry = pt_get(kvm.pt, addr)  # what the vCPU has found: a valid one was read-only, or has come since
        write_protected = 0
        if write:
            write_protected = entry & (VALID | WRITE) == VALID
        count("pf_taken")
        ret = direct_page_fault(kvm, addr, write, write_protected)
        if ret == RET_PF_FIXED:
            count("pf_fixed")
        elif ret == RET_PF_EMULATE:
            count("pf_emulate")
        elif ret == RET_PF_SPURIOUS:
            count("pf_spurious")
    return ret


@protocol
def vcpu_run(kvm: Kvm, addr: int, write: int) -> int:
    """vcpu_run(), and user space around it, until the page is mapped; a signal ends it."""
    while not timed_out():
        ret = kvm_mmu_do_page_fault(kvm, addr, write)
        if ret == RET_PF_EMULATE:
            start = addr & -kvm.slot
            kvm_vm_ioctl_set_memory_region(kvm, start, start + kvm.slot)
        elif ret == RET_PF_RETRY:
            count("fault_retries")
        elif ret < 0:
            return ret
        else:
            return 0
    return -EBUSY


@protocol
def kvm_vcpu_ioctl(kvm: Kvm, addr: int, write: int) -> int:
    """kvm_vcpu_ioctl(): the vCPU's thread is one of the process, and so keeps the mm."""
    if not mmget_not_zero(kvm.mm):
        return -EFAULT
    ret = vcpu_run(kvm, addr, write)
    mmput(kvm.mm)
    return ret


@protocol
def tdp_walk(kvm: Kvm, addr: int) -> int:
    """What a vCPU's MMU finds."""
    return pt_get(kvm.pt, addr)


design = Design(
    name="kvm",
    title="a plain notifier with one merged range",
    source="virt/kvm/kvm_main.c, arch/x86/kvm/mmu/mmu.c and tdp_mmu.c, Linux 6.1; memslots: gVisor's bluepill_fault.go",
    open=kvm_create_vm,
    fault=kvm_vcpu_ioctl,
    walk=tdp_walk,
    close=kvm_destroy_vm,
    ops=[kvm_mmu_notifier_ops],
    parameters=[
        Parameter(
            "slot",
            2 << 30,
            "size of the memslots that user space makes",
            unit="bytes",
            minimum=4096,
            power_of_two=True,
            small=16 << 10,
        ),
    ],
    counters=[
        "pf_taken",
        "pf_fixed",
        "pf_emulate",
        "pf_spurious",
        "pf_fast",
        "pf_mmio_spte_created",
        "remote_tlb_flush_requests",
    ],
    never={CLOSE_DURING_FAULT: "KVM_RUN is an ioctl on a vCPU, which keeps the VM"},
    doc=__doc__,
)
