"""Two plain notifiers on one mm: the page table's, and one that only counts events."""

from dataclasses import replace

import plain

from faultpath.driver import *


class Gpu2(plain.Gpu):
    second: Member[Notifier]
    events: Atomic


@protocol
def event_range_start(mn: Notifier, range: Range) -> int:
    atomic_inc(container_of(Gpu2, "second", mn).events)
    return 0


event_mn_ops = Ops("event_mn_ops", invalidate_range_start=event_range_start)


@protocol
def gpu2_open(mm: Mm) -> Gpu2:
    gpu = kmalloc(Gpu2, GFP_KERNEL)
    if not gpu:
        return NULL
    gpu.mm = mm
    pt_init(gpu.pt, 0, mm.task_size)
    gpu.notifier.ops = plain.gpu_mn_ops
    gpu.second.ops = event_mn_ops
    mmu_notifier_register(gpu.notifier, mm)
    mmu_notifier_register(gpu.second, mm)
    return gpu


@protocol
def gpu2_close(gpu: Gpu2) -> None:
    mmu_notifier_unregister(gpu.second, gpu.mm)
    plain.gpu_close(gpu)


design = replace(plain.design, name="gpu-two", open=gpu2_open, close=gpu2_close, ops=[plain.gpu_mn_ops, event_mn_ops])
