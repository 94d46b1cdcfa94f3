"""The core keeps the intervals, one for each VMA that the device uses: the third way that January 2020 left unwritten.

The kernel side is :mod:`faultpath.kernel.mmu_notifier_tracked`, and says there what is argued. This is what is left of
a driver: nouveau's, with everything gone that has to do with intervals. It asks for one on a fault and never makes,
finds, splits or frees any; nor has it to know an UNMAP from another event. A callback clears what the event and the
interval have in common, so no page is cleared twice.

Compared with nouveau-v6-fixed, which promises the same: no search in the core's tree under the spinlock of all
invalidations (the VMA is looked up instead, and once more by hmm_range_fault()), no waiting for the tree before the
lookup answers, no atomic allocation, and one interval for a VMA that grew in pieces. In exchange every mprotect() or
madvise() that splits a VMA in use makes intervals, every merge ends some, and every brk() that grows one updates the
tree: a JIT compiler that toggles protections (luajit.trace) makes ten times as many intervals as with v6, whose stay
until somebody unmaps.

The handler of a fault takes a reference on the mirror, under the device's mutex; closing takes the mirror away there
and waits. As many may run as like to. One device fault is one page.
"""

from __future__ import annotations

from faultpath.driver import *
from faultpath.kernel import mmu_notifier_tracked
from faultpath.kernel.mmu_notifier_tracked import (
    Mirror,
    TrackedInterval,
    follows_vmas,
    mmu_mirror_find,
    mmu_mirror_get,
    mmu_mirror_put,
    mmu_mirror_register,
    mmu_mirror_unregister,
    mmu_tracked_ops,
    mmu_tracked_put,
)


class GpuMirror(Mirror):
    """What the driver keeps of an mm: its device's page table, and the lock of that."""

    mutex: Mutex
    pt: PageTable


class Gpu(Device):
    """The device."""

    mutex: ParentMutex
    mirror: GpuMirror


@protocol
def gpu_invalidate(mirror: Mirror, sub: TrackedInterval, range: Range, cur_seq: int) -> int:
    """mmu_mirror_ops.invalidate."""
    gm = GpuMirror(mirror)
    if range.blockable:
        mutex_lock(gm.mutex)
    elif not mutex_trylock(gm.mutex):
        return 0
    mmu_interval_set_seq(sub, cur_seq)
    count("device_commands")
    device_zap(gm.pt, max(range.start, sub.start), min(range.end, sub.last + 1))
    mutex_unlock(gm.mutex)
    return 1


gpu_mirror_ops = Ops("gpu_mirror_ops", mirror_invalidate=gpu_invalidate)


@protocol
def gpu_open(mm: Mm) -> Gpu:
    """The device's file is opened."""
    gm = kmalloc(GpuMirror, GFP_KERNEL)
    if not gm:
        return NULL
    pt_init(gm.pt, 0, mm.task_size)
    mmu_mirror_register(gm, mm, gpu_mirror_ops)
    gpu = on_stack(Gpu)
    gpu.mm = mm
    gpu.mirror = gm
    return gpu


@protocol
def gpu_try(gm: GpuMirror, addr: int, write: int) -> int:
    """One round of a fault: 0, or -EBUSY if it has to be gone through again."""
    mm = gm.mm
    with down_read(mm.mmap_lock):
        found = mmu_mirror_find(gm, addr)
        if found < 0:
            return found
        sub = IntervalNotifier(found)
        seq = mmu_interval_read_begin(sub)
        pfn = hmm_range_fault(mm, sub, seq, addr, write)
    if pfn >= 0:
        with mutex_lock(gm.mutex):
            if mmu_interval_read_retry(sub, seq):
                pfn = -EBUSY
            else:
                count("device_commands")
                pt_set(gm.pt, addr, pfn)
    mmu_tracked_put(TrackedInterval(sub))
    return min(pfn, 0)


@protocol
def gpu_mirror_fault(gm: GpuMirror, addr: int, write: int) -> int:
    """A fault on a mirror that stays."""
    if not mmget_not_zero(gm.mm):
        return -EFAULT
    ret = -EBUSY
    while ret == -EBUSY and not timed_out():
        ret = gpu_try(gm, addr, write)
        if ret == -EBUSY:
            count("fault_retries")
    mmput(gm.mm)
    return ret


@protocol
def gpu_fault(gpu: Gpu, addr: int, write: int) -> int:
    """The handler of a fault."""
    with mutex_lock(gpu.mutex):
        gm = gpu.mirror
        if not gm:
            return -ENOENT
        mmu_mirror_get(gm)
    ret = gpu_mirror_fault(gm, addr, write)
    mmu_mirror_put(gm)
    return ret


@protocol
def gpu_walk(gpu: Gpu, addr: int) -> int:
    """What the device's MMU finds."""
    if not gpu.mirror:
        return 0
    return pt_get(gpu.mirror.pt, addr)


@protocol
def gpu_close(gpu: Gpu) -> None:
    """The device's file is closed: it translates no more, and the mirror goes."""
    with mutex_lock(gpu.mutex):
        gm = gpu.mirror
        gpu.mirror = NULL
    mmu_mirror_unregister(gm)
    pt_free(gm.pt)
    kfree(gm)


@protocol
def gpu_invariant(gpu: Gpu) -> int:
    """Intervals follow VMAs."""
    return follows_vmas(gpu.mm)


design = Design(
    name="core-tracked",
    title="the core's intervals follow VMAs",
    source="nobody's: what linux-mm floated in January 2020, as it would have to be",
    open=gpu_open,
    fault=gpu_fault,
    walk=gpu_walk,
    close=gpu_close,
    ops=[gpu_mirror_ops, mmu_tracked_ops],
    core=mmu_notifier_tracked,
    invariant=gpu_invariant,
    doc=__doc__,
)
