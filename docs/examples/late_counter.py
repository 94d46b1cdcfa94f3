"""A driver with a plain mmu_notifier and a counter of its own, as KVM has. It reads the counter too late."""

from faultpath.driver import *


class Gpu(Device):
    """The driver's structure for one open file."""

    notifier: Member[Notifier]
    lock: SpinLock
    invalidate_seq: int
    in_progress: int
    pt: PageTable  # the device's page table


@protocol
def gpu_range_start(mn: Notifier, range: Range) -> int:
    gpu = container_of(Gpu, "notifier", mn)
    with spin_lock(gpu.lock):
        gpu.in_progress += 1
        device_zap(gpu.pt, range.start, range.end)
    return 0


@protocol
def gpu_range_end(mn: Notifier, range: Range) -> int:
    gpu = container_of(Gpu, "notifier", mn)
    with spin_lock(gpu.lock):
        gpu.invalidate_seq += 1
        gpu.in_progress -= 1
    return 0


@protocol
def gpu_release(mn: Notifier, mm: Mm) -> int:
    gpu = container_of(Gpu, "notifier", mn)
    with spin_lock(gpu.lock):
        device_zap(gpu.pt, 0, mm.task_size)
    return 0


gpu_mn_ops = Ops(
    "gpu_mn_ops", invalidate_range_start=gpu_range_start, invalidate_range_end=gpu_range_end, mm_release=gpu_release
)


@protocol
def gpu_open(mm: Mm) -> Gpu:
    gpu = kmalloc(Gpu, GFP_KERNEL)
    if not gpu:
        return NULL
    gpu.mm = mm
    pt_init(gpu.pt, 0, mm.task_size)
    gpu.notifier.ops = gpu_mn_ops
    mmu_notifier_register(gpu.notifier, mm)
    return gpu


@protocol
def gpu_map(gpu: Gpu, addr: int, write: int) -> int:
    mm = gpu.mm
    while not timed_out():
        with down_read(mm.mmap_lock):
            pte = get_user_pages(mm, addr, write)
        if pte < 0:
            return pte
        seq = gpu.invalidate_seq
        with spin_lock(gpu.lock):
            if not gpu.in_progress and gpu.invalidate_seq == seq:
                pt_set(gpu.pt, addr, pte)
                return 0
        count("fault_retries")
    return -EBUSY


@protocol
def gpu_fault(gpu: Gpu, addr: int, write: int) -> int:
    if not mmget_not_zero(gpu.mm):
        return -EFAULT
    ret = gpu_map(gpu, addr, write)
    mmput(gpu.mm)
    return ret


@protocol
def gpu_walk(gpu: Gpu, addr: int) -> int:
    return pt_get(gpu.pt, addr)


@protocol
def gpu_close(gpu: Gpu) -> None:
    mmu_notifier_unregister(gpu.notifier, gpu.mm)
    pt_free(gpu.pt)
    kfree(gpu)


design = Design(
    name="gpu",
    title="a plain notifier and a counter",
    source="my_gpu.c",
    open=gpu_open,
    fault=gpu_fault,
    walk=gpu_walk,
    close=gpu_close,
    ops=[gpu_mn_ops],
    never={CLOSE_DURING_FAULT: "a fault is an ioctl, which keeps the file open"},
)
