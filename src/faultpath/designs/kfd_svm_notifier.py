"""amdkfd's callback, and the work that it leaves: kfd_svm.c, Linux 6.1.

munmap splits ranges inside the callback, under the range's ``lock``. What that needs of the trees and of the core is
left to a work item, which takes mmap_lock for writing. It gives ranges the notifier whose callback this is: one is not
without the other.
"""

from __future__ import annotations

from faultpath.designs.kfd_priv import (
    SVM_OP_ADD_RANGE,
    SVM_OP_UNMAP_RANGE,
    SVM_OP_UPDATE_RANGE_NOTIFIER,
    KfdProcess,
    RangeNotifier,
    SvmRange,
)
from faultpath.designs.kfd_process import kfd_lookup_process, kfd_unref_process
from faultpath.designs.kfd_svm_map import svm_range_evict, svm_range_evict_queues, svm_range_unmap_part
from faultpath.designs.kfd_svm_range import (
    svm_range_add_child,
    svm_range_add_to_svms,
    svm_range_drain_retry_fault,
    svm_range_free,
    svm_range_remove_notifier,
    svm_range_split,
    svm_range_unlink,
)
from faultpath.driver import *


@protocol
def svm_range_unmap_split(parent: SvmRange, prange: SvmRange, start: int, last: int) -> None:
    """svm_range_unmap_split(): what is left of the hole stays the range; hole and rest are children."""
    if prange.op == SVM_OP_UNMAP_RANGE or start > prange.last or last < prange.start:
        return
    head = prange
    tail = prange
    if start > prange.start:
        tail = svm_range_split(prange, prange.start, start - 1)
    if last < tail.last:
        head = svm_range_split(tail, last + 1, tail.last)
    if head != prange and tail != prange:
        svm_range_add_child(parent, head, SVM_OP_UNMAP_RANGE)
        svm_range_add_child(parent, tail, SVM_OP_ADD_RANGE)
    elif tail != prange:
        svm_range_add_child(parent, tail, SVM_OP_UNMAP_RANGE)
    elif head != prange:
        svm_range_add_child(parent, head, SVM_OP_UNMAP_RANGE)
    elif parent != prange:
        prange.op = SVM_OP_UNMAP_RANGE


@protocol
def svm_range_add_list_work(svms: KfdProcess, prange: SvmRange, mm: Mm, op: int) -> None:
    """svm_range_add_list_work(): with a use of the mm, unless the process exits."""
    with spin_lock(svms.deferred_list_lock):
        if not list_empty(prange.deferred_list):
            if prange.op != SVM_OP_UNMAP_RANGE:
                prange.op = op
        elif mmget_not_zero(mm):
            prange.mm = mm
            prange.op = op
            list_add_tail(prange.deferred_list, svms.deferred_range_list)


@protocol
def schedule_deferred_list_work(svms: KfdProcess) -> None:
    """schedule_deferred_list_work()."""
    with spin_lock(svms.deferred_list_lock):
        if not list_empty(svms.deferred_range_list):
            queue_work(svms.deferred_list_work, svm_range_deferred_list_work, svms)


@protocol
def svm_range_unmap_from_cpu(mm: Mm, prange: SvmRange, start: int, last: int) -> None:
    """svm_range_unmap_from_cpu(): nothing once kfd_process_notifier_release() has run, as at exit."""
    svms = kfd_lookup_process(prange.svms.kfd)
    if not svms:
        return
    atomic_inc(svms.drain_pagefaults)
    op = SVM_OP_UPDATE_RANGE_NOTIFIER
    if start <= prange.start and last >= prange.last:
        op = SVM_OP_UNMAP_RANGE
    for pchild in list_for_each_entry(SvmRange, "child_list", prange.child_list):
        with mutex_lock_nested(pchild.lock):
            svm_range_unmap_part(pchild, start, last)
            svm_range_unmap_split(prange, pchild, start, last)
    svm_range_unmap_part(prange, start, last)
    svm_range_unmap_split(prange, prange, start, last)
    svm_range_add_list_work(svms, prange, mm, op)
    schedule_deferred_list_work(svms)
    kfd_unref_process(svms)


@protocol
def svm_range_invalidate(mni: IntervalNotifier, range: Range, cur_seq: int) -> int:
    """svm_range_cpu_invalidate_pagetables(), clipped to the interval."""
    prange = RangeNotifier(mni).prange
    start = max(mni.start, range.start)
    last = min(mni.last, range.end - 1)
    with mutex_lock(prange.lock):
        mmu_interval_set_seq(mni, cur_seq)
        if range.event == MMU_NOTIFY_UNMAP:
            svm_range_unmap_from_cpu(mni.mm, prange, start, last)
        elif prange.svms.xnack_enabled:
            svm_range_evict(prange, start, last)
        else:
            svm_range_evict_queues(prange, start, last)
    return 1


@protocol
def svm_range_cpu_invalidate_pagetables(mni: IntervalNotifier, range: Range, cur_seq: int) -> int:
    """svm_range_cpu_invalidate_pagetables(): whether it may sleep, it does not ask."""
    if range.event == MMU_NOTIFY_RELEASE:
        return 1
    return svm_range_invalidate(mni, range, cur_seq)


@protocol
def svm_range_owner(mni: IntervalNotifier) -> int:
    """Whose it is, for the checker: ranges of two processes may overlap."""
    return RangeNotifier(mni).prange.svms


svm_range_mn_ops = Ops("svm_range_mn_ops", invalidate=svm_range_cpu_invalidate_pagetables, owner=svm_range_owner)


@protocol
def svm_range_add_notifier_locked(mm: Mm, prange: SvmRange) -> None:
    """svm_range_add_notifier_locked(): mmap_lock is held for writing."""
    mmu_interval_notifier_insert(prange.notifier, mm, prange.start, prange.last + 1 - prange.start, svm_range_mn_ops)


# --- deferred work


@protocol
def svm_range_update_notifier_and_interval_tree(mm: Mm, prange: SvmRange) -> None:
    """svm_range_update_notifier_and_interval_tree(): between remove and insert the range has no notifier."""
    if prange.start == prange.notifier.start and prange.last == prange.notifier.last:
        return
    itree_remove(prange.svms.objects, prange.it_node)
    mmu_interval_notifier_remove(prange.notifier)
    prange.it_node.start = prange.start
    prange.it_node.last = prange.last
    itree_insert(prange.svms.objects, prange.it_node)
    svm_range_add_notifier_locked(mm, prange)


@protocol
def svm_range_handle_list_op(prange: SvmRange, mm: Mm) -> None:
    """svm_range_handle_list_op()."""
    if prange.op == SVM_OP_UNMAP_RANGE:
        svm_range_unlink(prange)
        svm_range_remove_notifier(prange)
        svm_range_free(prange)
    elif prange.op == SVM_OP_UPDATE_RANGE_NOTIFIER:
        svm_range_update_notifier_and_interval_tree(mm, prange)
    elif prange.op == SVM_OP_ADD_RANGE:
        svm_range_add_to_svms(prange)
        svm_range_add_notifier_locked(mm, prange)


@protocol
def svm_range_take_child(prange: SvmRange, pchild: SvmRange) -> None:
    """svm_range_deferred_list_work(): off the list, without ``lock``, under which the callback goes over it."""
    list_del_init(pchild.child_list)


@protocol
def svm_range_handle_deferred(prange: SvmRange, mm: Mm) -> None:
    """svm_range_deferred_list_work(): the children, then the range."""
    with mutex_lock(prange.migrate_mutex):
        while node := list_first(prange.child_list):
            pchild = container_of(SvmRange, "child_list", node)
            svm_range_take_child(prange, pchild)
            svm_range_handle_list_op(pchild, mm)
    svm_range_handle_list_op(prange, mm)


@protocol
def svm_range_deferred_list_work(svms: KfdProcess) -> None:
    """svm_range_deferred_list_work(): one range after the other; faults from before are drained first."""
    spin_lock(svms.deferred_list_lock)
    while node := list_first(svms.deferred_range_list):
        spin_unlock(svms.deferred_list_lock)
        prange = container_of(SvmRange, "deferred_list", node)
        mm = prange.mm
        down_write(mm.mmap_lock)
        while atomic_read(svms.drain_pagefaults):
            up_write(mm.mmap_lock)
            svm_range_drain_retry_fault(svms)
            down_write(mm.mmap_lock)
        with spin_lock(svms.deferred_list_lock):
            list_del_init(prange.deferred_list)
        with mutex_lock(svms.lock):
            svm_range_handle_deferred(prange, mm)
        up_write(mm.mmap_lock)
        mmput_async(mm)
        spin_lock(svms.deferred_list_lock)
    spin_unlock(svms.deferred_list_lock)
