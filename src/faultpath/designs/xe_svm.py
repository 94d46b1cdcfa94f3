"""Xe's side of drm_gpusvm, its faults apart: ranges, the callback, the garbage collector; xe_svm.c, Linux 6.18.

What munmap touches is not freed in the callback: that puts it on a list, and a work item, or the next fault, takes it
from the page table and from drm_gpusvm.
"""

from __future__ import annotations

from faultpath.designs.xe_vm import Vm, XeRange, xe_vm_put, xe_vm_range_unbind
from faultpath.driver import *
from faultpath.kernel.drm_gpusvm import (
    Gpusvm,
    GpusvmNotifier,
    GpusvmRange,
    __drm_gpusvm_range_next,
    drm_gpusvm_range_find,
    drm_gpusvm_range_remove,
    drm_gpusvm_range_set_unmapped,
    drm_gpusvm_range_unmap_pages,
)

# --- ranges


@protocol
def xe_svm_range_alloc(gpusvm: Gpusvm) -> GpusvmRange:
    """xe_svm_range_alloc(): a range keeps its VM."""
    if r := kmalloc(XeRange, GFP_KERNEL):
        refcount_inc(Vm(gpusvm).refcount)
    return r


@protocol
def xe_svm_range_free(r: GpusvmRange) -> None:
    """xe_svm_range_free()."""
    vm = Vm(r.gpusvm)
    kfree(XeRange(r))
    xe_vm_put(vm)


# --- the callback


@protocol
def xe_svm_garbage_collector_add_range(vm: Vm, r: XeRange) -> None:
    """xe_svm_garbage_collector_add_range()."""
    drm_gpusvm_range_set_unmapped(r)
    with spin_lock(vm.gc_lock):
        if list_empty(r.garbage_collector_link):
            list_add_tail(r.garbage_collector_link, vm.gc_range_list)
    queue_work(vm.gc_work, xe_svm_garbage_collector_work_func, vm)


@protocol
def xe_svm_range_notifier_event_begin(vm: Vm, r: XeRange) -> int:
    """xe_svm_range_notifier_event_begin(), xe_pt_zap_ptes_range(): whether the TLB must hear of it."""
    if r.unmapped or not r.tile_present or r.tile_invalidated:
        return 0
    device_zap(vm.pt, r.start, r.last + 1)
    r.tile_invalidated = 1
    count("svm_tlb_inval_count")
    return 1


@protocol
def xe_svm_range_notifier_event_end(vm: Vm, r: XeRange, mmu_range: Range) -> None:
    """xe_svm_range_notifier_event_end()."""
    drm_gpusvm_range_unmap_pages(r)
    if vm.size and mmu_range.event == MMU_NOTIFY_UNMAP:
        xe_svm_garbage_collector_add_range(vm, r)


@protocol
def xe_svm_invalidate(gpusvm: Gpusvm, notifier: GpusvmNotifier, mmu_range: Range) -> None:
    """xe_svm_invalidate(): every range that the event touches, whole, and one TLB invalidation.

    C's loops go by bounds that it widens to those of the ranges meanwhile; ranges are disjoint, so they are the same.
    """
    vm = Vm(gpusvm)
    start = max(notifier.start, mmu_range.start)
    end = min(notifier.last + 1, mmu_range.end)
    first = drm_gpusvm_range_find(notifier, start, end)
    if not first:
        return
    if vm.size:
        zapped = 0
        r = first
        while r:
            zapped = zapped | xe_svm_range_notifier_event_begin(vm, XeRange(r))
            r = __drm_gpusvm_range_next(r, start, end)
        if zapped:
            count("device_commands")
            count("tlb_inval_count")  # xe_vm_range_tilemask_tlb_inval()
    r = first
    while r:
        xe_svm_range_notifier_event_end(vm, XeRange(r), mmu_range)
        r = __drm_gpusvm_range_next(r, start, end)


gpusvm_ops = Ops(
    "gpusvm_ops", gpusvm_invalidate=xe_svm_invalidate, range_alloc=xe_svm_range_alloc, range_free=xe_svm_range_free
)


# --- the garbage collector


@protocol
def xe_svm_garbage_collector(vm: Vm) -> int:
    """xe_svm_garbage_collector(), ``vm->lock`` held for writing: everything on the list, in its order."""
    if not vm.size:
        return -ENOENT
    spin_lock(vm.gc_lock)
    while link := list_first(vm.gc_range_list):
        r = container_of(XeRange, "garbage_collector_link", link)
        list_del(r.garbage_collector_link)
        spin_unlock(vm.gc_lock)
        xe_vm_range_unbind(vm, r)
        drm_gpusvm_range_remove(vm, r)
        spin_lock(vm.gc_lock)
    spin_unlock(vm.gc_lock)
    return 0


@protocol
def xe_svm_garbage_collector_work_func(vm: Vm) -> None:
    """xe_svm_garbage_collector_work_func()."""
    with down_write(vm.lock):
        xe_svm_garbage_collector(vm)
