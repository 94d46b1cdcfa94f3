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

Faults are here, opening and closing. ``xe_svm`` has the callback and the garbage collector, ``xe_vm`` the structures,
and what binds a range.
"""

from __future__ import annotations

from functools import partial

from faultpath.designs.xe_svm import gpusvm_ops, xe_svm_garbage_collector
from faultpath.designs.xe_vm import Vm, XeDevice, XeRange, xe_vm_put, xe_vm_range_rebind
from faultpath.driver import *
from faultpath.kernel.drm_gpusvm import (
    drm_gpusvm_fini,
    drm_gpusvm_init,
    drm_gpusvm_notifier_ops,
    drm_gpusvm_range_find_or_insert,
    drm_gpusvm_range_get_pages,
)
from faultpath.kernel.workqueue import runs_work

SZ_4K = 4 << 10
SZ_64K = 64 << 10
SZ_2M = 2 << 20


# --- the fault


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
        if err := xe_svm_garbage_collector(vm):
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
    with down_read(xe.usm_lock):  # xe_pagefault_asid_to_vm()
        vm = xe.vm
        if not vm:
            return -EINVAL
        refcount_inc(vm.refcount)
    err = -ENOENT
    with down_write(vm.lock):
        if vm.size:
            err = __xe_svm_handle_pagefault(vm, addr)
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
    with down_write(xe.usm_lock):
        xe.vm = vm
    return xe


@protocol
def xe_vm_close(vm: Vm) -> None:
    """xe_vm_close(): from now on faults are refused, and callbacks and the garbage collector leave the tables alone."""
    with down_write(vm.lock), down_read(vm.notifier_lock):
        vm.size = 0
        pt_clear(vm.pt, 0, vm.mm.task_size)  # xe_pt_clear() of the root
        count("device_commands")
        count("tlb_inval_count")  # xe_tlb_inval_vm()


@protocol
def xe_vm_close_and_put(xe: XeDevice) -> None:
    """xe_vm_close_and_put(), xe_svm_close(): the tables go before the notifiers; the ASID is the last to go."""
    vm = xe.vm
    xe_vm_close(vm)
    flush_work(vm.gc_work)
    with down_write(vm.lock):
        pt_free(vm.pt)  # xe_vm_pt_destroy()
        drm_gpusvm_fini(vm)
    with down_write(xe.usm_lock):
        xe.vm = Vm(NULL)
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
