"""The driver around a bug, where nothing about it matters: one interval over a buffer, a lock, a page table.

What lib/test_hmm.c's dmirror does, over the first pages of a scenario instead of everything. A case that is about the
callback, the open or the close has its own.
"""

from __future__ import annotations

from faultpath.cases.case import nothing_is_shared
from faultpath.driver import *
from faultpath.scenario import SPAN

PAGES = 2  # of the buffer


class Mirror(Device):
    """A driver's structure for a buffer of user memory."""

    notifier: Member[IntervalNotifier]
    notifier_lock: Mutex
    pt: PageTable  # the device's


@protocol
def mirror_invalidate(mni: IntervalNotifier, range: Range, cur_seq: int) -> int:
    """mmu_interval_notifier_ops.invalidate, as Documentation/mm/hmm.rst has it."""
    mirror = container_of(Mirror, "notifier", mni)
    with mutex_lock(mirror.notifier_lock):
        mmu_interval_set_seq(mni, cur_seq)
        device_zap(mirror.pt, range.start, range.end)
    return 1


mirror_ops = Ops("mirror_ops", invalidate=mirror_invalidate)


@protocol
def mirror_init(mirror: Mirror, mm: Mm, ops: int) -> None:
    """What every open does: tables, and the interval."""
    mirror.mm = mm
    pt_init(mirror.pt, 0, mm.task_size)
    mmu_interval_notifier_insert(mirror.notifier, mm, SPAN, PAGES * PAGE_SIZE, ops)


@protocol
def mirror_create(mm: Mm, ops: int) -> Mirror:
    """A mirror with callbacks of a case's own."""
    mirror = kmalloc(Mirror, GFP_KERNEL)
    if not mirror:
        return NULL
    mirror_init(mirror, mm, ops)
    return mirror


@protocol
def mirror_open(mm: Mm) -> Mirror:
    """The file is opened and the buffer registered."""
    return mirror_create(mm, mirror_ops)


@protocol
def mirror_walk(mirror: Mirror, addr: int) -> int:
    """What the device's MMU finds."""
    return pt_get(mirror.pt, addr)


@protocol
def mirror_close(mirror: Mirror) -> None:
    """The file is closed."""
    mmu_interval_notifier_remove(mirror.notifier)
    pt_free(mirror.pt)
    kfree(mirror)


@protocol
def mirror_fault(mirror: Mirror, addr: int, write: int) -> int:
    """The fault path of Documentation/mm/hmm.rst, for one page."""
    mm = mirror.mm
    mni = mirror.notifier
    while not timed_out():
        seq = mmu_interval_read_begin(mni)
        with down_read(mm.mmap_lock):
            pfn = hmm_range_fault(mm, mni, seq, addr, write)
        if pfn >= 0:
            with mutex_lock(mirror.notifier_lock):
                if not mmu_interval_read_retry(mni, seq):
                    pt_set(mirror.pt, addr, pfn)
                    return 0
        elif pfn != -EBUSY:
            return pfn
        count("fault_retries")
    return -EBUSY


design = Design(
    name="mirror",
    title="one interval over a buffer",
    source="Documentation/mm/hmm.rst",
    open=mirror_open,
    fault=mirror_fault,
    walk=mirror_walk,
    close=mirror_close,
    ops=[mirror_ops],
    replaces=[nothing_is_shared],
)
