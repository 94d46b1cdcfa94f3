"""The callback queues work; closing must flush it. With flush=no it does not."""

from dataclasses import replace

import plain

from faultpath.driver import *


class WorkGpu(plain.Gpu):
    work: Work
    mutex: Mutex
    flush: int
    epoch: int


@protocol
def gpu_work(gpu: WorkGpu) -> None:
    """The work function: it gets what queue_work() was given."""
    with mutex_lock(gpu.mutex):
        gpu.epoch = gpu.epoch ^ 1


@protocol
def work_range_end(mn: Notifier, range: Range) -> int:
    gpu = container_of(WorkGpu, "notifier", mn)
    plain.gpu_range_end(mn, range)
    queue_work(gpu.work, gpu_work, gpu)
    return 0


work_mn_ops = Ops(
    "work_mn_ops",
    invalidate_range_start=plain.gpu_range_start,
    invalidate_range_end=work_range_end,
    mm_release=plain.gpu_release,
)


@protocol
def work_open(mm: Mm, flush: int) -> WorkGpu:
    gpu = kmalloc(WorkGpu, GFP_KERNEL)
    if not gpu:
        return NULL
    gpu.mm = mm
    gpu.flush = flush
    pt_init(gpu.pt, 0, mm.task_size)
    gpu.notifier.ops = work_mn_ops
    mmu_notifier_register(gpu.notifier, mm)
    return gpu


@protocol
def work_close(gpu: WorkGpu) -> None:
    mmu_notifier_unregister(gpu.notifier, gpu.mm)
    if gpu.flush:
        flush_work(gpu.work)
    pt_free(gpu.pt)
    kfree(gpu)


design = replace(
    plain.design,
    name="gpu-work",
    open=work_open,
    close=work_close,
    ops=[work_mn_ops],
    parameters=[Parameter("flush", "yes", "whether closing waits for the work", choices=("no", "yes"))],
)
