"""KVM without the architecture: a VM, its memslots, its notifier; virt/kvm/kvm_main.c, Linux 6.1.

A guest's physical address is the process's virtual one, so the two trees of a copy of the memslots are one. The page
table that guests run on (``Kvm.pt``) is the architecture's: what kvm_unmap_gfn_range(), kvm_arch_flush_shadow_all() and
kvm_arch_destroy_vm() do to it stands where they are called. A fault of the architecture's finds its memslot
(:func:`memslot_in`), reads ``mmu_invalidate_seq``, gets the page (:func:`hva_to_pfn`), and under ``mmu_lock`` asks
:func:`mmu_invalidate_retry_hva` before it maps it.
"""

from __future__ import annotations

from faultpath.engine.world import SCRATCH
from faultpath.kernel.errno import EFAULT
from faultpath.kernel.gup import get_user_page_fast_only, get_user_pages
from faultpath.kernel.mirror import Device
from faultpath.kernel.mm.vma import find_vma
from faultpath.kernel.mmu_notifier import (
    ULONG_MAX,
    WALK_STEPS,
    IntervalNode,
    Mm,
    Notifier,
    Range,
    mmdrop,
    mmgrab,
    mmu_notifier_register,
    mmu_notifier_unregister,
)
from faultpath.kernel.primitives.heap import GFP_KERNEL, kfree, kmalloc
from faultpath.kernel.primitives.itree import itree_first, itree_insert, itree_next, itree_remove, rb_clear_node
from faultpath.kernel.primitives.locks import (
    down_read,
    mutex_lock,
    mutex_unlock,
    spin_lock,
    spin_unlock,
    write_lock,
)
from faultpath.kernel.primitives.pagetable import WRITE, device_zap, pt_free, pt_init
from faultpath.kernel.primitives.wait import wake_up
from faultpath.kernel.srcu import Srcu, srcu_read_lock, synchronize_srcu
from faultpath.protocol.language import NULL, Ops, container_of, count, protocol, wait_event
from faultpath.protocol.struct import IntervalTree, Member, PageTable, ParentMutex, RwLock, SpinLock, Struct, WaitQueue


class Memslots(Struct):
    """``struct kvm_memslots``, one of two copies. The tree by gfn would be the tree by hva: there is one."""

    hva_tree: IntervalTree
    other: int  # the other copy


class Kvm(Device):
    """``struct kvm``, and the page table of the TDP MMU."""

    mmu_notifier: Member[Notifier]
    mmu_lock: RwLock
    slots_lock: ParentMutex
    slots_arch_lock: ParentMutex
    memslots: Memslots  # the active copy
    memslots0: Member[Memslots]
    memslots1: Member[Memslots]
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


class HvaNode(IntervalNode):
    """``hva_node[]`` of a memslot, for one of the copies."""

    twin: int  # that for the other copy


class MemorySlot(HvaNode):
    """``struct kvm_memory_slot``, which is no more than its two nodes here."""

    second: Member[HvaNode]


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
    with srcu_read_lock(kvm.srcu):
        if slot := memslot_in(kvm.memslots, range.start, range.end, WALK_STEPS):
            with write_lock(kvm.mmu_lock):
                kvm_mmu_invalidate_begin(kvm, range.start, range.end)
                flush = 0
                while slot:
                    flush += device_zap(kvm.pt, max(range.start, slot.start), min(range.end, slot.last + 1))
                    slot = HvaNode(itree_next(slot, range.start, range.end - 1, WALK_STEPS))
                if flush:
                    kvm_flush_remote_tlbs(kvm)


@protocol
def kvm_mmu_notifier_invalidate_range_start(mn: Notifier, range: Range) -> int:
    """kvm_mmu_notifier_invalidate_range_start(): memslots stay as they are until range_end."""
    kvm = container_of(Kvm, "mmu_notifier", mn)
    with spin_lock(kvm.mn_invalidate_lock):
        kvm.mn_active_invalidate_count += 1
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
    kvm = container_of(Kvm, "mmu_notifier", mn)
    with srcu_read_lock(kvm.srcu):
        if memslot_in(kvm.memslots, range.start, range.end, WALK_STEPS):
            with write_lock(kvm.mmu_lock):
                kvm_mmu_invalidate_end(kvm)
    with spin_lock(kvm.mn_invalidate_lock):
        kvm.mn_active_invalidate_count -= 1
        wake = kvm.mn_active_invalidate_count == 0
    if wake:
        wake_up(kvm.mn_memslots_update_rcuwait)
    return 0


@protocol
def kvm_mmu_notifier_release(mn: Notifier, mm: Mm) -> int:
    """kvm_mmu_notifier_release(), kvm_flush_shadow_all(), kvm_mmu_zap_all()."""
    kvm = container_of(Kvm, "mmu_notifier", mn)
    with srcu_read_lock(kvm.srcu), write_lock(kvm.mmu_lock):
        device_zap(kvm.pt, 0, mm.task_size)
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
    with mutex_lock(kvm.slots_lock):
        if memslot_in(kvm.memslots, start, end, SCRATCH):
            return
        node = kmalloc(MemorySlot, GFP_KERNEL)
        twin = node.second
        node.twin = twin
        twin.twin = node
        mutex_lock(kvm.slots_arch_lock)
        kvm_replace_memslot(kvm, node, start, end)
        kvm_swap_active_memslots(kvm)
        kvm_replace_memslot(kvm, twin, start, end)


@protocol
def kvm_free_memslots(kvm: Kvm) -> None:
    """kvm_free_memslots() of both copies."""
    slots = kvm.memslots
    other = Memslots(slots.other)
    while node := HvaNode(itree_first(slots.hva_tree, 0, ULONG_MAX, SCRATCH)):
        twin = HvaNode(node.twin)
        itree_remove(slots.hva_tree, node)
        itree_remove(other.hva_tree, twin)
        kfree(MemorySlot(min(node, twin)))  # its first node is where it begins


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
    kvm.memslots0.other = kvm.memslots1
    kvm.memslots1.other = kvm.memslots0
    kvm.memslots = kvm.memslots0
    pt_init(kvm.pt, 0, mm.task_size)
    kvm.mmu_notifier.ops = kvm_mmu_notifier_ops
    mmu_notifier_register(kvm.mmu_notifier, mm)
    return kvm


@protocol
def kvm_destroy_vm(kvm: Kvm) -> None:
    """kvm_destroy_vm(): unregistering calls release, unless the process has exited."""
    mm = kvm.mm
    mmu_notifier_unregister(kvm.mmu_notifier, mm)
    kvm.mn_active_invalidate_count = 0
    pt_free(kvm.pt)  # kvm_arch_destroy_vm()
    kvm_free_memslots(kvm)
    kfree(kvm)
    mmdrop(mm)


# --- a fault


@protocol
def hva_to_pfn(mm: Mm, addr: int, write: int) -> int:
    """hva_to_pfn(), _fast and _slow: the CPU's PTE, with WRITE only if it may be mapped so; or -EFAULT."""
    if pte := get_user_page_fast_only(mm, addr, 1):
        return pte
    with down_read(mm.mmap_lock):
        pte = get_user_pages(mm, addr, write)
    if pte < 0:
        with down_read(mm.mmap_lock):
            find_vma(mm, addr)  # one of VM_IO would be looked at further
        return -EFAULT
    if write:
        return pte
    if wpage := get_user_page_fast_only(mm, addr, 1):
        return wpage
    return pte & ~WRITE


@protocol
def mmu_invalidate_retry_hva(kvm: Kvm, mmu_seq: int, hva: int) -> int:
    """mmu_invalidate_retry_hva(), under mmu_lock."""
    in_progress = kvm.mmu_invalidate_in_progress
    if in_progress and hva >= kvm.mmu_invalidate_range_start and hva < kvm.mmu_invalidate_range_end:
        return 1
    return kvm.mmu_invalidate_seq != mmu_seq
