"""One interval over the whole address space: lib/test_hmm.c's dmirror.

There is nothing to look up, create, shrink or drop: the interval lives from open to release of the device file. In
exchange every invalidation in the process calls back, also far from anything the device has touched, and makes every
fault in flight retry.

A fault is an ioctl on the open file, which the file layer keeps until the last call on it is over: a fault is given the
mirror itself, and none is in flight when the file is released.
"""

from __future__ import annotations

from faultpath.driver import *


class Dmirror(Device):
    """``struct dmirror``; the bytes are its notifier's."""

    interval_bytes = 88
    notifier: Member[IntervalNotifier]
    mutex: Mutex
    pt: PageTable  # an xarray in C


@protocol
def dmirror_interval_invalidate(mni: IntervalNotifier, range: Range, cur_seq: int) -> int:
    """dmirror_interval_invalidate() and dmirror_do_update(): ``end >> PAGE_SHIFT`` is inclusive, one page too many."""
    dmirror = container_of(Dmirror, "notifier", mni)
    if range.blockable:
        mutex_lock(dmirror.mutex)
    elif not mutex_trylock(dmirror.mutex):
        return 0
    mmu_interval_set_seq(mni, cur_seq)
    device_zap(dmirror.pt, range.start, (range.end & -PAGE_SIZE) + PAGE_SIZE)
    mutex_unlock(dmirror.mutex)
    return 1


dmirror_min_ops = Ops("dmirror_min_ops", invalidate=dmirror_interval_invalidate)


@protocol
def dmirror_fops_open(mm: Mm) -> Dmirror:
    """dmirror_fops_open(): the interval is ``[0, ULONG_MAX & PAGE_MASK)``."""
    dmirror = kmalloc(Dmirror, GFP_KERNEL)
    if not dmirror:
        return NULL
    dmirror.mm = mm
    pt_init(dmirror.pt, 0, mm.task_size)
    mmu_interval_notifier_insert(dmirror.notifier, mm, 0, ULONG_MAX & -PAGE_SIZE, dmirror_min_ops)
    return dmirror


@protocol
def dmirror_range_fault(dmirror: Dmirror, addr: int, write: int) -> int:
    """dmirror_range_fault() and dmirror_do_fault() for one page."""
    mm = dmirror.mm
    mni = dmirror.notifier
    while not timed_out():
        seq = mmu_interval_read_begin(mni)
        with down_read(mm.mmap_lock):
            pfn = hmm_range_fault(mm, mni, seq, addr, write)
        if pfn == -EBUSY:
            count("fault_retries")
            continue
        if pfn < 0:
            return pfn
        with mutex_lock(dmirror.mutex):
            if not mmu_interval_read_retry(mni, seq):
                pt_set(dmirror.pt, addr, pfn)
                return 0
        count("fault_retries")
    return -EBUSY


@protocol
def dmirror_fault(dmirror: Dmirror, addr: int, write: int) -> int:
    """dmirror_fault() for one page."""
    mm = dmirror.mm
    if not mmget_not_zero(mm):
        return -EFAULT
    ret = dmirror_range_fault(dmirror, addr, write)
    mmput(mm)
    return ret


@protocol
def dmirror_walk(dmirror: Dmirror, addr: int) -> int:
    """dmirror_read() and dmirror_write() look the page up in the xarray."""
    return pt_get(dmirror.pt, addr)


@protocol
def dmirror_fops_release(dmirror: Dmirror) -> None:
    """dmirror_fops_release()."""
    mmu_interval_notifier_remove(dmirror.notifier)
    pt_free(dmirror.pt)
    kfree(dmirror)


design = Design(
    name="full-va",
    title="one interval over everything",
    source="lib/test_hmm.c (dmirror), Linux 6.1",
    open=dmirror_fops_open,
    fault=dmirror_fault,
    walk=dmirror_walk,
    close=dmirror_fops_release,
    ops=[dmirror_min_ops],
    never={CLOSE_DURING_FAULT: "a fault is an ioctl, which keeps the file open"},
    doc=__doc__,
)
