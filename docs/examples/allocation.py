"""The callback wants memory and must not sleep: it gets none as often as a scenario's ``failures`` says."""

from dataclasses import replace

import plain

from faultpath.driver import *
from faultpath.scenario import Scenario, access, dontneed, map_memory


class Record(Struct):
    start: int
    end: int


@protocol
def careless_range_start(mn: Notifier, range: Range) -> int:
    record = kmalloc(Record, GFP_ATOMIC)
    if not record:
        return 0  # nothing cleared: the kernel has no way to hear of it
    kfree(record)
    return plain.gpu_range_start(mn, range)


careless_ops = Ops("careless_ops", invalidate_range_start=careless_range_start, mm_release=plain.gpu_release)


@protocol
def careless_open(mm: Mm) -> plain.Gpu:
    gpu = plain.gpu_open(mm)
    if gpu:
        gpu.notifier.ops = careless_ops
    return gpu


design = replace(plain.design, name="gpu-careless", open=careless_open, ops=[plain.gpu_mn_ops, careless_ops])

DROPPED = [map_memory(0, 2), access(0)]
scenarios = [
    Scenario("no-memory", "MADV_DONTNEED, and no memory.", DROPPED, [dontneed(0, 2)], pages=2, failures=1),
    Scenario("memory", "The same with memory.", DROPPED, [dontneed(0, 2)], pages=2),
]
