"""Xe's structures, and how a range comes into a VM's page table and out of it: xe_vm.c and xe_pt.c, Linux 6.18."""

from __future__ import annotations

from faultpath.driver import *
from faultpath.kernel.drm_gpusvm import Gpusvm, GpusvmRange, drm_gpusvm_range_pages_valid


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


@protocol
def xe_vm_put(vm: Vm) -> None:
    """xe_vm_put(), xe_vm_free()."""
    if refcount_dec_and_test(vm.refcount):
        kfree(vm)


@protocol
def xe_vm_range_unbind(vm: Vm, r: XeRange) -> None:
    """xe_vm_range_unbind(): a page-table job and a TLB invalidation, whatever a callback has done already."""
    if not r.tile_present:
        return
    with down_read(vm.notifier_lock):
        count("device_commands")
        pt_clear(vm.pt, r.start, r.last + 1)
        count("tlb_inval_count")
        r.tile_present = 0


@protocol
def xe_vm_range_rebind(vm: Vm, r: XeRange) -> int:
    """xe_vm_range_rebind(): xe_pt_stage_bind(), xe_pt_svm_userptr_pre_commit(), the job, and op_commit()."""
    with down_read(vm.notifier_lock):
        valid = drm_gpusvm_range_pages_valid(r)
    if not valid:
        return -EAGAIN
    with down_read(vm.notifier_lock):
        if not drm_gpusvm_range_pages_valid(r):
            return -EAGAIN
        count("device_commands")
        pt_copy(vm.pt, vm.dma_addr, r.start, r.last + 1)
        r.tile_present = 1
        r.tile_invalidated = 0
    return 0
