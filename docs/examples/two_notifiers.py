"""Two plain notifiers on one mm: the page table's, and one that only counts events."""

from dataclasses import replace

import plain

from faultpath.driver import *


class Gpu2(plain.Gpu):
    second: Notifier
    events: Atomic


class EventNotifier(Notifier):
    gpu: Gpu2


@protocol
def event_range_start(mn: Notifier, range: Range) -> int:
    atomic_inc(EventNotifier(mn).gpu.events)
    return 0


event_mn_ops = Ops("event_mn_ops", invalidate_range_start=event_range_start)


@protocol
def gpu2_open(mm: Mm) -> Gpu2:
    gpu = kmalloc(Gpu2, GFP_KERNEL)
    if not gpu:
        return NULL
    gpu.mm = mm
    pt_init(gpu.pt, 0, mm.task_size)
    mn = embedded(plain.GpuNotifier)
    mn.gpu = gpu
    mn.ops = plain.gpu_mn_ops
    gpu.notifier = mn
    event = embedded(EventNotifier)
    event.gpu = gpu
    event.ops = event_mn_ops
    gpu.second = event
    mmu_notifier_register(mn, mm)
    mmu_notifier_register(event, mm)
    return gpu


@protocol
def gpu2_close(gpu: Gpu2) -> None:
    mmu_notifier_unregister(gpu.second, gpu.mm)
    off_stack(EventNotifier(gpu.second))
    plain.gpu_close(gpu)


design = replace(plain.design, name="gpu-two", open=gpu2_open, close=gpu2_close, ops=[plain.gpu_mn_ops, event_mn_ops])
