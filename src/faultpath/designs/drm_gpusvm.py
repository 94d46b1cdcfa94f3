"""Wide notifiers, and ranges of 2 MiB, 64 KiB or 4 KiB inside them: drm_gpusvm and its first user, Xe.

A fault finds the notifier of its 512 MiB, or makes one, and in it its range: the largest aligned chunk that fits the
VMA and the notifier and overlaps no other range. The whole range is got and bound at once: the pages of it that the
process has not touched yet are faulted in. An event zaps and invalidates every range that it touches, whole, and what
munmap touches is never used again: the callback hands it to the garbage collector, a work item that every fault runs
first, too. The last range of a notifier takes the notifier along.

It trades memory and precision for few faults and few intervals: one fault and one bind for 512 pages, and one event on
one of them takes all 512 from the device. Under a shared notifier the sequence number says nothing about one range, so
whether a bind may be committed is asked of the range: does it still have its pages.

Every fault gets its pages for writing, as in Xe (read_only is for GPU VMAs that are): reading memory that the process
itself may only read is refused. And a fault never ends in a range whose VMA has since been split, one part read-only:
ranges are not split, so every round finds the same range and the same -EPERM, and nothing bounds the rounds. ``check``
finds that livelock; a replay, where nobody else runs, refuses the access after one round.

The notifiers and ranges are drm_gpusvm's (:mod:`faultpath.kernel.drm_gpusvm`), the rest is Xe on an integrated GPU: no
memory of its own, so no migration. One tile, one GT, whose gtstats are counted; one GPU VMA over everything. Page-table
jobs and TLB invalidations are over at once, under ``vm->lock``: the VM's reservation object is not modelled. hmm_pfns,
dma_addr and the entries staged for a bind are one table. The VM is freed with the last reference, which in C queues a
work item for it.
"""

from __future__ import annotations

from functools import partial

from faultpath.driver import *
from faultpath.kernel.drm_gpusvm import (
    Gpusvm,
    GpusvmNotifier,
    GpusvmRange,
    __drm_gpusvm_range_next,
    drm_gpusvm_fini,
    drm_gpusvm_init,
    drm_gpusvm_notifier_ops,
    drm_gpusvm_range_find,
    drm_gpusvm_range_find_or_insert,
    drm_gpusvm_range_get_pages,
    drm_gpusvm_range_pages_valid,
    drm_gpusvm_range_remove,
    drm_gpusvm_range_set_unmapped,
    drm_gpusvm_range_unmap_pages,
)
from faultpath.kernel.workqueue import runs_work

SZ_4K = 4 << 10
SZ_64K = 64 << 10
SZ_2M = 2 << 20


class VmLock(RwSem):
    """``xe_vm.lock``, for writing here: it serialises faults, the garbage collector and close."""

    role = "driver_parent"


class Vm(Gpusvm):
    """``struct xe_vm``, around the ``struct drm_gpusvm`` in it."""

    refcount: RefCount
    lock: VmLock
    size: int  # 0 once it is closed
    pt: PageTable  # pt_root: what the GPU walks
    gc_lock: SpinLock  # svm.garbage_collector
    gc_range_list: ListHead  # of XeRanges
    gc_work: Work


class XeRange(GpusvmRange):
    """``struct xe_svm_range``; 16 bytes of dma_addr more for each page."""

    interval_bytes = 144
    tile_present: int
    tile_invalidated: int
    garbage_collector_link: ListHead


class XeDevice(Device):
    """``struct xe_device``."""

    usm_lock: RwSem
    vm: Vm  # usm.asid_to_vm, of the one address space


# --- references


@protocol
def xe_vm_put(vm: Vm) -> None:
    """xe_vm_put(), xe_vm_free()."""
    if refcount_dec_and_test(vm.refcount):
        kfree(vm)


@protocol
def xe_svm_range_alloc(gpusvm: Gpusvm) -> GpusvmRange:
    """xe_svm_range_alloc(): a range keeps its VM."""
    r = kmalloc(XeRange, GFP_KERNEL)
    if r:
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
    spin_lock(vm.gc_lock)
    if list_empty(r.garbage_collector_link):
        list_add_tail(r.garbage_collector_link, vm.gc_range_list)
    spin_unlock(vm.gc_lock)
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


# --- ranges go


@protocol
def xe_vm_range_unbind(vm: Vm, r: XeRange) -> None:
    """xe_vm_range_unbind(): a page-table job and a TLB invalidation, whatever a callback has done already."""
    if not r.tile_present:
        return
    down_read(vm.notifier_lock)
    count("device_commands")
    pt_clear(vm.pt, r.start, r.last + 1)
    count("tlb_inval_count")
    r.tile_present = 0
    up_read(vm.notifier_lock)


@protocol
def xe_svm_garbage_collector(vm: Vm) -> int:
    """xe_svm_garbage_collector(), ``vm->lock`` held for writing: everything on the list, in its order."""
    if not vm.size:
        return -ENOENT
    spin_lock(vm.gc_lock)
    while True:
        link = list_first(vm.gc_range_list)
        if not link:
            break
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
    down_write(vm.lock)
    xe_svm_garbage_collector(vm)
    up_write(vm.lock)


# --- the fault


@protocol
def xe_vm_range_rebind(vm: Vm, r: XeRange) -> int:
    """xe_vm_range_rebind(): xe_pt_stage_bind(), xe_pt_svm_userptr_pre_commit(), the job, and op_commit()."""
    down_read(vm.notifier_lock)
    valid = drm_gpusvm_range_pages_valid(r)
    up_read(vm.notifier_lock)
    if not valid:
        return -EAGAIN
    down_read(vm.notifier_lock)
    if not drm_gpusvm_range_pages_valid(r):
        up_read(vm.notifier_lock)
        return -EAGAIN
    count("device_commands")
    pt_copy(vm.pt, vm.dma_addr, r.start, r.last + 1)
    r.tile_present = 1
    r.tile_invalidated = 0
    up_read(vm.notifier_lock)
    return 0


@protocol
def xe_svm_range_is_valid(r: XeRange) -> int:
    """xe_svm_range_is_valid(), xe_vm_has_valid_gpu_mapping(): read without a lock; whoever zaps it faults again."""
    if r.tile_present and not r.tile_invalidated:
        return 1
    return 0


@protocol
def range_stats_incr(size: int, valid: int) -> None:
    """xe_svm_range_fault_count_stats_incr(), in every round; xe_svm_range_valid_fault_count_stats_incr()."""
    if size == SZ_4K:
        count("svm_4K_pagefault_count")
        count("svm_4K_valid_pagefault_count", valid)
    elif size == SZ_64K:
        count("svm_64K_pagefault_count")
        count("svm_64K_valid_pagefault_count", valid)
    elif size == SZ_2M:
        count("svm_2M_pagefault_count")
        count("svm_2M_valid_pagefault_count", valid)


@protocol
def __xe_svm_handle_pagefault(vm: Vm, addr: int) -> int:
    """__xe_svm_handle_pagefault(): round after round, as long as what failed may have been a change of mappings."""
    count("svm_pagefault_count")
    while True:
        err = xe_svm_garbage_collector(vm)
        if err:
            return err
        found = drm_gpusvm_range_find_or_insert(vm, addr)
        if found < 0:
            return found
        r = XeRange(found)
        valid = xe_svm_range_is_valid(r)
        range_stats_incr(r.last + 1 - r.start, valid)
        if valid:
            return 0
        err = drm_gpusvm_range_get_pages(vm, r)
        if not err:
            err = xe_vm_range_rebind(vm, r)
        if err != -EFAULT and err != -EPERM and err != -EAGAIN:
            return err
        if runs_work():  # alone: mappings do not change, and the next round would be this one
            return err
        count("fault_retries")


@protocol
def xe_pagefault_service(xe: XeDevice, addr: int, write: int) -> int:
    """xe_pagefault_service(): ``write`` changes nothing."""
    down_read(xe.usm_lock)  # xe_pagefault_asid_to_vm()
    vm = xe.vm
    if vm:
        refcount_inc(vm.refcount)
    up_read(xe.usm_lock)
    if not vm:
        return -EINVAL
    err = -ENOENT
    down_write(vm.lock)
    if vm.size:
        err = __xe_svm_handle_pagefault(vm, addr)
    up_write(vm.lock)
    xe_vm_put(vm)
    return err


@protocol
def gpu_walk(xe: XeDevice, addr: int) -> int:
    """What the GPU's MMU finds."""
    vm = xe.vm
    if not vm:
        return 0
    return pt_get(vm.pt, addr)


# --- open and close


@protocol
def xe_vm_create(mm: Mm, notifier_size: int, chunk: int, middle: int) -> XeDevice:
    """xe_vm_create() in fault mode, xe_svm_init(); and the device."""
    xe = on_stack(XeDevice)
    xe.mm = mm
    vm = kmalloc(Vm, GFP_KERNEL)
    if not vm:
        off_stack(xe)
        return NULL
    drm_gpusvm_init(vm, mm, notifier_size, gpusvm_ops, chunk | min(middle, chunk))
    refcount_set(vm.refcount, 1)
    vm.size = mm.task_size
    pt_init(vm.pt, 0, mm.task_size)
    down_write(xe.usm_lock)
    xe.vm = vm
    up_write(xe.usm_lock)
    return xe


@protocol
def xe_vm_close(vm: Vm) -> None:
    """xe_vm_close(): from now on faults are refused, and callbacks and the garbage collector leave the tables alone."""
    down_write(vm.lock)
    down_read(vm.notifier_lock)
    vm.size = 0
    pt_clear(vm.pt, 0, vm.mm.task_size)  # xe_pt_clear() of the root
    count("device_commands")
    count("tlb_inval_count")  # xe_tlb_inval_vm()
    up_read(vm.notifier_lock)
    up_write(vm.lock)


@protocol
def xe_vm_close_and_put(xe: XeDevice) -> None:
    """xe_vm_close_and_put(), xe_svm_close(): the tables go before the notifiers; the ASID is the last to go."""
    vm = xe.vm
    xe_vm_close(vm)
    flush_work(vm.gc_work)
    down_write(vm.lock)
    pt_free(vm.pt)  # xe_vm_pt_destroy()
    drm_gpusvm_fini(vm)
    up_write(vm.lock)
    down_write(xe.usm_lock)
    xe.vm = Vm(NULL)
    up_write(xe.usm_lock)
    xe_vm_put(vm)


size_parameter = partial(Parameter, unit="bytes", minimum=PAGE_SIZE, power_of_two=True)

design = Design(
    name="drm-gpusvm",
    title="wide notifiers with ranges of 2M, 64K, 4K",
    source="drivers/gpu/drm/drm_gpusvm.c, drivers/gpu/drm/xe/xe_svm.c, Linux 6.18",
    open=xe_vm_create,
    fault=xe_pagefault_service,
    walk=gpu_walk,
    close=xe_vm_close_and_put,
    ops=[drm_gpusvm_notifier_ops, gpusvm_ops],
    parameters=[
        size_parameter("notifier_size", 512 << 20, "size of a notifier (xe.svm_notifier_size)", small=16 << 10),
        size_parameter("chunk", SZ_2M, "largest size of a range (fault_chunk_sizes)", small=8 << 10),
        size_parameter("middle", SZ_64K, "size of a range where that does not fit; the last is 4K", small=4 << 10),
    ],
    counters=[
        "svm_pagefault_count",
        "tlb_inval_count",
        "svm_tlb_inval_count",
        *(f"svm_{size}_{kind}_count" for kind in ("pagefault", "valid_pagefault") for size in ("4K", "64K", "2M")),
    ],
    disjoint=True,
    doc=__doc__,
)
