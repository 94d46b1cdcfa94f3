"""A driver on drm_gpusvm: what the library leaves to it, one page table and when a range is used."""

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


class Svm(Gpusvm):
    """The address space on the device."""

    pt: PageTable


class Gpu(Device):
    """The driver's structure for one open file."""

    lock: Mutex  # one fault at a time
    svm: Member[Svm]


@protocol
def gpu_invalidate(gpusvm: Gpusvm, notifier: GpusvmNotifier, mmu_range: Range) -> None:
    r = drm_gpusvm_range_find(notifier, mmu_range.start, mmu_range.end)
    while r:
        device_zap(Svm(gpusvm).pt, r.start, r.last + 1)
        drm_gpusvm_range_unmap_pages(r)
        if mmu_range.event == MMU_NOTIFY_UNMAP:
            drm_gpusvm_range_set_unmapped(r)
        r = __drm_gpusvm_range_next(r, mmu_range.start, mmu_range.end)


gpusvm_ops = Ops("my_gpusvm_ops", gpusvm_invalidate=gpu_invalidate)


@protocol
def gpu_bind(svm: Svm, addr: int) -> int:
    found = drm_gpusvm_range_find_or_insert(svm, addr)
    if found < 0:
        return found
    r = GpusvmRange(found)
    if r.unmapped:
        drm_gpusvm_range_remove(svm, r)
        return -EAGAIN
    if err := drm_gpusvm_range_get_pages(svm, r):
        return err
    with down_read(svm.notifier_lock):
        if not drm_gpusvm_range_pages_valid(r):
            return -EAGAIN
        pt_copy(svm.pt, svm.dma_addr, r.start, r.last + 1)
    return 0


@protocol
def gpu_fault(gpu: Gpu, addr: int, write: int) -> int:
    with mutex_lock(gpu.lock):
        err = gpu_bind(gpu.svm, addr)
        while err == -EAGAIN and not timed_out():
            count("fault_retries")
            err = gpu_bind(gpu.svm, addr)
    return err


@protocol
def gpu_walk(gpu: Gpu, addr: int) -> int:
    return pt_get(gpu.svm.pt, addr)


@protocol
def gpu_open(mm: Mm) -> Gpu:
    gpu = kmalloc(Gpu, GFP_KERNEL)
    if not gpu:
        return NULL
    gpu.mm = mm
    svm = gpu.svm
    pt_init(svm.pt, 0, mm.task_size)
    drm_gpusvm_init(svm, mm, 16 << 10, gpusvm_ops, 8 << 10)
    return gpu


@protocol
def gpu_close(gpu: Gpu) -> None:
    svm = gpu.svm
    pt_clear(svm.pt, 0, gpu.mm.task_size)
    drm_gpusvm_fini(svm)
    pt_free(svm.pt)
    kfree(gpu)


design = Design(
    name="my-gpusvm",
    title="ranges of 8 KiB and 4 KiB on drm_gpusvm",
    source="my_gpu.c",
    open=gpu_open,
    fault=gpu_fault,
    walk=gpu_walk,
    close=gpu_close,
    ops=[drm_gpusvm_notifier_ops, gpusvm_ops],
    never={CLOSE_DURING_FAULT: "a fault is an ioctl, which keeps the file open"},
    disjoint=True,
)
