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
"""

from __future__ import annotations

from faultpath.driver import *
from faultpath.kernel.mmu_notifier import WALK_STEPS

RET_PF_RETRY = 1
RET_PF_EMULATE = 2
RET_PF_FIXED = 3
RET_PF_SPURIOUS = 4


class Memslots(Struct):
    """``struct kvm_memslots``, one of two copies. The tree by gfn would be the tree by hva: there is one."""

    hva_tree: IntervalTree
    other: int  # the other copy


class Kvm(Device):
    """``struct kvm``, and the page table of the TDP MMU."""

    notifier: Notifier
    mmu_lock: RwLock
    slots_lock: ParentMutex
    slots_arch_lock: ParentMutex
    memslots: Memslots  # the active copy
    slot: int  # what user space makes slots of, in bytes
    mmu_invalidate_seq: int
    mmu_invalidate_in_progress: int
    mmu_invalidate_range_start: int
    mmu_invalidate_range_end: int
    mn_invalidate_lock: SpinLock
    mn_active_invalidate_count: int
    mn_memslots_update_rcuwait: WaitQueue
    srcu: Srcu
    pt: PageTable


class KvmNotifier(Notifier):
    """``kvm->mmu_notifier``."""

    kvm: Kvm


class HvaNode(IntervalNode):
    """``struct kvm_memory_slot``'s ``hva_node[]`` in one of the copies; a slot is no more than its two nodes here."""

    twin: int  # its node in the other copy


@protocol
def memslot_in(slots: Memslots, start: int, end: int, steps: int) -> HvaNode:
    """The first memslot that meets ``[start, end)`` (kvm_for_each_memslot_in_hva_range, search_memslots), or NULL."""
    return HvaNode(itree_first(slots.hva_tree, start, end - 1, steps))


# --- the notifier


@protocol
def kvm_flush_remote_tlbs(kvm: Kvm) -> None:
    """kvm_flush_remote_tlbs(): every vCPU in guest mode is interrupted, and waited for."""
    count("remote_tlb_flush_requests")
    count("device_commands")


@protocol
def kvm_mmu_invalidate_begin(kvm: Kvm, start: int, end: int) -> None:
    """kvm_mmu_invalidate_begin(): one range for all that are in progress."""
    kvm.mmu_invalidate_in_progress += 1
    if kvm.mmu_invalidate_in_progress == 1:
        kvm.mmu_invalidate_range_start = start
        kvm.mmu_invalidate_range_end = end
    else:
        kvm.mmu_invalidate_range_start = min(kvm.mmu_invalidate_range_start, start)
        kvm.mmu_invalidate_range_end = max(kvm.mmu_invalidate_range_end, end)


@protocol
def kvm_unmap_hva_range(kvm: Kvm, range: Range) -> None:
    """__kvm_handle_hva_range() with kvm_unmap_gfn_range: mmu_lock is taken once, at the first memslot."""
    idx = srcu_read_lock(kvm.srcu)
    slot = memslot_in(kvm.memslots, range.start, range.end, WALK_STEPS)
    if slot:
        write_lock(kvm.mmu_lock)
        kvm_mmu_invalidate_begin(kvm, range.start, range.end)
        flush = 0
        while slot:
            flush += device_zap(kvm.pt, max(range.start, slot.start), min(range.end, slot.last + 1))
            slot = HvaNode(itree_next(slot, range.start, range.end - 1, WALK_STEPS))
        if flush:
            kvm_flush_remote_tlbs(kvm)
        write_unlock(kvm.mmu_lock)
    srcu_read_unlock(kvm.srcu, idx)


@protocol
def kvm_mmu_notifier_invalidate_range_start(mn: Notifier, range: Range) -> int:
    """kvm_mmu_notifier_invalidate_range_start(): memslots stay as they are until range_end."""
    kvm = KvmNotifier(mn).kvm
    spin_lock(kvm.mn_invalidate_lock)
    kvm.mn_active_invalidate_count += 1
    spin_unlock(kvm.mn_invalidate_lock)
    kvm_unmap_hva_range(kvm, range)
    return 0


@protocol
def kvm_mmu_invalidate_end(kvm: Kvm) -> None:
    """kvm_mmu_invalidate_end(): the number moves before the count falls."""
    kvm.mmu_invalidate_seq += 1
    kvm.mmu_invalidate_in_progress -= 1


@protocol
def kvm_mmu_notifier_invalidate_range_end(mn: Notifier, range: Range) -> int:
    """kvm_mmu_notifier_invalidate_range_end(), __kvm_handle_hva_range() without a handler."""
    kvm = KvmNotifier(mn).kvm
    idx = srcu_read_lock(kvm.srcu)
    if memslot_in(kvm.memslots, range.start, range.end, WALK_STEPS):
        write_lock(kvm.mmu_lock)
        kvm_mmu_invalidate_end(kvm)
        write_unlock(kvm.mmu_lock)
    srcu_read_unlock(kvm.srcu, idx)
    spin_lock(kvm.mn_invalidate_lock)
    kvm.mn_active_invalidate_count -= 1
    wake = kvm.mn_active_invalidate_count == 0
    spin_unlock(kvm.mn_invalidate_lock)
    if wake:
        wake_up(kvm.mn_memslots_update_rcuwait)
    return 0


@protocol
def kvm_mmu_notifier_release(mn: Notifier, mm: Mm) -> int:
    """kvm_mmu_notifier_release(), kvm_flush_shadow_all(), kvm_mmu_zap_all()."""
    kvm = KvmNotifier(mn).kvm
    idx = srcu_read_lock(kvm.srcu)
    write_lock(kvm.mmu_lock)
    device_zap(kvm.pt, 0, mm.task_size)
    write_unlock(kvm.mmu_lock)
    srcu_read_unlock(kvm.srcu, idx)
    return 0


kvm_mmu_notifier_ops = Ops(
    "kvm_mmu_notifier_ops",
    invalidate_range_start=kvm_mmu_notifier_invalidate_range_start,
    invalidate_range_end=kvm_mmu_notifier_invalidate_range_end,
    mm_release=kvm_mmu_notifier_release,
)


# --- memslots


@protocol
def kvm_swap_active_memslots(kvm: Kvm) -> None:
    """kvm_swap_active_memslots(): not during an invalidation, whose end must find the memslots of its start."""
    spin_lock(kvm.mn_invalidate_lock)
    while kvm.mn_active_invalidate_count:
        spin_unlock(kvm.mn_invalidate_lock)
        wait_event(kvm.mn_memslots_update_rcuwait, kvm.mn_active_invalidate_count == 0)
        spin_lock(kvm.mn_invalidate_lock)
    kvm.memslots = Memslots(kvm.memslots.other)
    spin_unlock(kvm.mn_invalidate_lock)
    mutex_unlock(kvm.slots_arch_lock)
    synchronize_srcu(kvm.srcu)


@protocol
def kvm_replace_memslot(kvm: Kvm, node: HvaNode, start: int, end: int) -> None:
    """kvm_replace_memslot(kvm, NULL, new): into the inactive copy."""
    node.start = start
    node.last = end - 1
    rb_clear_node(node)
    itree_insert(Memslots(kvm.memslots.other).hva_tree, node)


@protocol
def kvm_vm_ioctl_set_memory_region(kvm: Kvm, start: int, end: int) -> None:
    """KVM_SET_USER_MEMORY_REGION of a new slot (__kvm_set_memory_region); -EEXIST: another vCPU's thread was faster."""
    mutex_lock(kvm.slots_lock)
    if memslot_in(kvm.memslots, start, end, SCRATCH):
        mutex_unlock(kvm.slots_lock)
        return
    node = kmalloc(HvaNode, GFP_KERNEL)
    twin = embedded(HvaNode)
    node.twin = twin
    twin.twin = node
    mutex_lock(kvm.slots_arch_lock)
    kvm_replace_memslot(kvm, node, start, end)
    kvm_swap_active_memslots(kvm)
    kvm_replace_memslot(kvm, twin, start, end)
    mutex_unlock(kvm.slots_lock)


@protocol
def kvm_free_memslots(kvm: Kvm) -> None:
    """kvm_free_memslots() of both copies."""
    slots = kvm.memslots
    other = Memslots(slots.other)
    while True:
        node = HvaNode(itree_first(slots.hva_tree, 0, ULONG_MAX, SCRATCH))
        if not node:
            break
        twin = HvaNode(node.twin)
        itree_remove(slots.hva_tree, node)
        itree_remove(other.hva_tree, twin)
        kfree(node)
        off_stack(twin)
    off_stack(slots)
    off_stack(other)


# --- the VM


@protocol
def kvm_create_vm(mm: Mm, slot: int) -> Kvm:
    """kvm_create_vm(): no guest memory yet."""
    kvm = kmalloc(Kvm, GFP_KERNEL)
    if not kvm:
        return NULL
    mmgrab(mm)
    kvm.mm = mm
    kvm.slot = slot
    slots = embedded(Memslots)
    other = embedded(Memslots)
    slots.other = other
    other.other = slots
    kvm.memslots = slots
    pt_init(kvm.pt, 0, mm.task_size)
    mn = embedded(KvmNotifier)
    mn.kvm = kvm
    mn.ops = kvm_mmu_notifier_ops
    kvm.notifier = mn
    mmu_notifier_register(mn, mm)
    return kvm


@protocol
def kvm_destroy_vm(kvm: Kvm) -> None:
    """kvm_destroy_vm(): unregistering calls release, unless the process has exited."""
    mm = kvm.mm
    mmu_notifier_unregister(kvm.notifier, mm)
    kvm.mn_active_invalidate_count = 0
    pt_free(kvm.pt)  # kvm_arch_destroy_vm()
    kvm_free_memslots(kvm)
    off_stack(KvmNotifier(kvm.notifier))
    kfree(kvm)
    mmdrop(mm)


# --- a vCPU


@protocol
def hva_to_pfn(mm: Mm, addr: int, write: int) -> int:
    """hva_to_pfn(), _fast and _slow: the CPU's PTE, with WRITE only if it may be mapped so; or -EFAULT."""
    pte = get_user_page_fast_only(mm, addr, 1)
    if pte:
        return pte
    down_read(mm.mmap_lock)
    pte = get_user_pages(mm, addr, write)
    up_read(mm.mmap_lock)
    if pte < 0:
        down_read(mm.mmap_lock)
        find_vma(mm, addr)  # one of VM_IO would be looked at further
        up_read(mm.mmap_lock)
        return -EFAULT
    if write:
        return pte
    wpage = get_user_page_fast_only(mm, addr, 1)
    if wpage:
        return wpage
    return pte & ~WRITE


@protocol
def mmu_invalidate_retry_hva(kvm: Kvm, mmu_seq: int, hva: int) -> int:
    """mmu_invalidate_retry_hva(), under mmu_lock."""
    in_progress = kvm.mmu_invalidate_in_progress
    if in_progress and hva >= kvm.mmu_invalidate_range_start and hva < kvm.mmu_invalidate_range_end:
        return 1
    return kvm.mmu_invalidate_seq != mmu_seq


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
        read_lock(kvm.mmu_lock)
        count("pf_mmio_spte_created")
        read_unlock(kvm.mmu_lock)
        return RET_PF_EMULATE
    pte = hva_to_pfn(kvm.mm, addr, write)
    if pte < 0:
        return pte
    ret = RET_PF_RETRY
    read_lock(kvm.mmu_lock)
    if not mmu_invalidate_retry_hva(kvm, mmu_seq, addr):
        ret = kvm_tdp_mmu_map(kvm, addr, pte)
    read_unlock(kvm.mmu_lock)
    return ret


@protocol
def kvm_mmu_do_page_fault(kvm: Kvm, addr: int, write: int) -> int:
    """kvm_mmu_do_page_fault(), under kvm->srcu as all of vcpu_run() outside the guest."""
    idx = srcu_read_lock(kvm.srcu)
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
    srcu_read_unlock(kvm.srcu, idx)
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
