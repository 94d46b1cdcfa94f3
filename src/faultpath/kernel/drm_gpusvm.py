"""Shared virtual memory for GPUs, without the driver: drivers/gpu/drm/drm_gpusvm.c, Linux 6.18.

Notifiers of one size, each made by the first fault in it, and ranges in them: what is got for the device and taken from
it at once. The driver is behind ``struct drm_gpusvm_ops``: ``gpusvm_invalidate`` (there: ``invalidate``) for an event,
and ``range_alloc`` with ``range_free`` if its ranges are larger than the library's. Its structure for an address space
begins with :class:`Gpusvm`, that for a range with :class:`GpusvmRange`; its tables are the library's
``drm_gpusvm_notifier_ops`` and its own.

There is no memory of the device's here, so no migration, and no look at which pages are there before a chunk is chosen
(check_pages_threshold). Pages are always got for writing (``ctx->read_only`` is 0). The lists beside the two trees are
not modelled; hmm_pfns and dma_addr are one table; a notifier is the library's own (``notifier_alloc`` is not asked).
"""

from __future__ import annotations

from faultpath.engine.world import LOOKUP_STEPS, SCRATCH
from faultpath.kernel.errno import EAGAIN, EBUSY, EFAULT, ENOENT, ENOMEM, EPERM
from faultpath.kernel.hmm import hmm_range_fault_pages
from faultpath.kernel.mm.fork import mmget_not_zero, mmput
from faultpath.kernel.mm.vma import PROT_WRITE, find_vma
from faultpath.kernel.mmu_notifier import (
    ULONG_MAX,
    IntervalNode,
    IntervalNotifier,
    Mm,
    Range,
    mmdrop,
    mmgrab,
    mmu_interval_notifier_insert,
    mmu_interval_notifier_remove,
    mmu_interval_read_begin,
    mmu_interval_read_retry,
    mmu_interval_set_seq,
)
from faultpath.kernel.primitives.heap import GFP_KERNEL, kfree, kmalloc, kvcalloc, kvfree
from faultpath.kernel.primitives.itree import itree_first, itree_insert, itree_next, itree_remove
from faultpath.kernel.primitives.locks import (
    down_read,
    down_write,
    refcount_dec_and_test,
    refcount_set,
)
from faultpath.kernel.primitives.pagetable import PAGE_SHIFT, PAGE_SIZE, pt_clear, pt_free, pt_init
from faultpath.kernel.primitives.time import timed_out
from faultpath.protocol.language import NULL, Ops, container_of, count, has_op, hook, protocol
from faultpath.protocol.struct import IntervalTree, PageTable, RangeTreeNode, RefCount, RwSem, Struct


class NotifierLock(RwSem):
    """``drm_gpusvm.notifier_lock``: the callback takes it for writing, who reads what callbacks change for reading."""

    role = "driver"


class Gpusvm(Struct):
    """``struct drm_gpusvm``."""

    mm: Mm
    notifier_size: int
    ops: int  # struct drm_gpusvm_ops
    chunk_sizes: int  # those above 4 KiB: powers of two, so one number holds them all
    notifier_lock: NotifierLock
    root: IntervalTree  # of GpusvmNotifiers
    dma_addr: PageTable  # of all ranges


class GpusvmNotifier(IntervalNotifier):
    """``struct drm_gpusvm_notifier``."""

    interval_bytes = 200
    gpusvm: Gpusvm
    itree: RangeTreeNode
    root: IntervalTree  # of GpusvmRanges
    removed: int


class GpusvmRange(IntervalNode):
    """``struct drm_gpusvm_range``; 16 bytes of dma_addr more for each page."""

    interval_bytes = 120
    gpusvm: Gpusvm
    notifier: GpusvmNotifier
    refcount: RefCount
    dma_addr: int  # whether the array is allocated
    has_dma_mapping: int
    unmapped: int


@hook("gpusvm_invalidate")
def ops_invalidate(ops: int, gpusvm: Gpusvm, notifier: GpusvmNotifier, mmu_range: Range) -> None:
    """drm_gpusvm_ops.invalidate, under notifier_lock for writing."""


@hook("range_alloc")
def ops_range_alloc(ops: int, gpusvm: Gpusvm) -> GpusvmRange:
    """drm_gpusvm_ops.range_alloc: the driver's structure, or NULL."""


@hook("range_free")
def ops_range_free(ops: int, r: GpusvmRange) -> None:
    """drm_gpusvm_ops.range_free."""


# --- references and memory


@protocol
def drm_gpusvm_range_put(r: GpusvmRange) -> None:
    """drm_gpusvm_range_put(), drm_gpusvm_range_destroy()."""
    if refcount_dec_and_test(r.refcount):
        ops = r.gpusvm.ops
        if has_op(ops, "range_free"):
            ops_range_free(ops, r)
        else:
            kfree(r)


@protocol
def drm_gpusvm_range_alloc(gpusvm: Gpusvm, notifier: GpusvmNotifier, addr: int, size: int) -> GpusvmRange:
    """drm_gpusvm_range_alloc()."""
    if has_op(gpusvm.ops, "range_alloc"):
        r = ops_range_alloc(gpusvm.ops, gpusvm)
    else:
        r = kmalloc(GpusvmRange, GFP_KERNEL)
    if not r:
        return NULL
    refcount_set(r.refcount, 1)
    r.gpusvm = gpusvm
    r.notifier = notifier
    r.start = addr & -size
    r.last = r.start + size - 1
    return r


@protocol
def npages_in_range(r: GpusvmRange) -> int:
    """npages_in_range()."""
    return (r.last + 1 - r.start) >> PAGE_SHIFT


@protocol
def __drm_gpusvm_free_pages(gpusvm: Gpusvm, r: GpusvmRange) -> None:
    """__drm_gpusvm_free_pages()."""
    if r.dma_addr:
        kvfree(16 * npages_in_range(r))
        pt_clear(gpusvm.dma_addr, r.start, r.last + 1)
        r.dma_addr = 0


@protocol
def drm_gpusvm_notifier_alloc(gpusvm: Gpusvm, addr: int) -> GpusvmNotifier:
    """drm_gpusvm_notifier_alloc()."""
    notifier = kmalloc(GpusvmNotifier, GFP_KERNEL)
    if not notifier:
        return NULL
    notifier.gpusvm = gpusvm
    itree = IntervalNode(notifier.itree)
    itree.start = addr & -gpusvm.notifier_size
    itree.last = itree.start + gpusvm.notifier_size - 1
    return notifier


# --- lookups


@protocol
def drm_gpusvm_notifier_find(gpusvm: Gpusvm, addr: int) -> GpusvmNotifier:
    """drm_gpusvm_notifier_find()."""
    count("lookups")
    itree = itree_first(gpusvm.root, addr, addr, LOOKUP_STEPS)
    if not itree:
        return NULL
    return container_of(GpusvmNotifier, "itree", itree)


@protocol
def drm_gpusvm_range_find(notifier: GpusvmNotifier, start: int, end: int) -> GpusvmRange:
    """drm_gpusvm_range_find(): the first range that ``[start, end)`` touches, or NULL."""
    count("lookups")
    return GpusvmRange(itree_first(notifier.root, start, end - 1, LOOKUP_STEPS))


@protocol
def __drm_gpusvm_range_next(r: GpusvmRange, start: int, end: int) -> GpusvmRange:
    """__drm_gpusvm_range_next(): the next one of drm_gpusvm_for_each_range(), or NULL."""
    return GpusvmRange(itree_next(r, start, end - 1, SCRATCH))


# --- the callback


@protocol
def drm_gpusvm_range_unmap_pages(r: GpusvmRange) -> None:
    """drm_gpusvm_range_unmap_pages() in a callback, __drm_gpusvm_unmap_pages(): notifier_lock is held."""
    r.has_dma_mapping = 0


@protocol
def drm_gpusvm_range_set_unmapped(r: GpusvmRange) -> None:
    """drm_gpusvm_range_set_unmapped(): its pages are never got again. In a callback."""
    r.unmapped = 1


@protocol
def drm_gpusvm_notifier_invalidate(mni: IntervalNotifier, mmu_range: Range, cur_seq: int) -> int:
    """drm_gpusvm_notifier_invalidate()."""
    notifier = GpusvmNotifier(mni)
    gpusvm = notifier.gpusvm
    if not mmu_range.blockable:
        return 0
    with down_write(gpusvm.notifier_lock):
        mmu_interval_set_seq(mni, cur_seq)
        ops_invalidate(gpusvm.ops, gpusvm, notifier, mmu_range)
    return 1


@protocol
def drm_gpusvm_notifier_owner(mni: IntervalNotifier) -> int:
    """Whose it is: the checker asks, for notifiers of two address spaces on the device may overlap."""
    return GpusvmNotifier(mni).gpusvm


drm_gpusvm_notifier_ops = Ops(
    "drm_gpusvm_notifier_ops", invalidate=drm_gpusvm_notifier_invalidate, owner=drm_gpusvm_notifier_owner
)


# --- ranges come and go


@protocol
def drm_gpusvm_range_chunk_size(gpusvm: Gpusvm, notifier: GpusvmNotifier, start: int, last: int, addr: int) -> int:
    """drm_gpusvm_range_chunk_size() for a VMA ``[start, last]``: a larger one than the notifier never fits."""
    start = max(start, notifier.start)
    last = min(last, notifier.last)
    size = gpusvm.notifier_size
    while size > PAGE_SIZE:
        first = addr & -size
        fits = first >= start and first + size - 1 <= last and gpusvm.chunk_sizes & size != 0
        if fits and not drm_gpusvm_range_find(notifier, first, first + size):
            break
        size = size >> 1
    return size


@protocol
def find_or_insert_range(gpusvm: Gpusvm, notifier: GpusvmNotifier, addr: int) -> int:
    """The part of drm_gpusvm_range_find_or_insert() under mmap_lock: a range, or -errno."""
    vma = find_vma(gpusvm.mm, addr)
    if not vma or addr < vma.start:
        return -ENOENT
    if not vma.prot & PROT_WRITE:
        return -EPERM
    if r := drm_gpusvm_range_find(notifier, addr, addr + 1):
        return r
    size = drm_gpusvm_range_chunk_size(gpusvm, notifier, vma.start, vma.last, addr)
    r = drm_gpusvm_range_alloc(gpusvm, notifier, addr, size)
    if not r:
        return -ENOMEM
    with down_read(gpusvm.notifier_lock):  # drm_gpusvm_range_insert()
        itree_insert(notifier.root, r)
    return r


@protocol
def drm_gpusvm_range_find_or_insert(gpusvm: Gpusvm, addr: int) -> int:
    """drm_gpusvm_range_find_or_insert(): a range, or -errno."""
    mm = gpusvm.mm
    size = gpusvm.notifier_size
    if not mmget_not_zero(mm):
        return -EFAULT
    found = drm_gpusvm_notifier_find(gpusvm, addr)
    notifier = found
    if not found:
        notifier = drm_gpusvm_notifier_alloc(gpusvm, addr)
        if not notifier:
            mmput(mm)
            return -ENOMEM
        mmu_interval_notifier_insert(notifier, mm, addr & -size, size, drm_gpusvm_notifier_ops)
    with down_read(mm.mmap_lock):
        ret = find_or_insert_range(gpusvm, notifier, addr)
        if not found and ret >= 0:
            itree_insert(gpusvm.root, notifier.itree)  # drm_gpusvm_notifier_insert()
    if not found and ret < 0:
        mmu_interval_notifier_remove(notifier)
        kfree(notifier)
    mmput(mm)
    return ret


@protocol
def drm_gpusvm_range_remove(gpusvm: Gpusvm, r: GpusvmRange) -> None:
    """drm_gpusvm_range_remove(): the notifier's last range takes it along, waiting until no callback runs."""
    notifier = drm_gpusvm_notifier_find(gpusvm, r.start)
    with down_read(gpusvm.notifier_lock):
        drm_gpusvm_range_unmap_pages(r)
        __drm_gpusvm_free_pages(gpusvm, r)
        itree_remove(notifier.root, r)
    drm_gpusvm_range_put(r)
    if not itree_first(notifier.root, 0, ULONG_MAX, SCRATCH):
        if not notifier.removed:
            mmu_interval_notifier_remove(notifier)
        itree_remove(gpusvm.root, notifier.itree)
        kfree(notifier)


# --- pages


@protocol
def drm_gpusvm_range_pages_valid(r: GpusvmRange) -> int:
    """drm_gpusvm_range_pages_valid(): whether a range still has its pages, as long as notifier_lock is held."""
    return r.has_dma_mapping


@protocol
def drm_gpusvm_pages_valid_unlocked(gpusvm: Gpusvm, r: GpusvmRange) -> int:
    """drm_gpusvm_pages_valid_unlocked(): pages that are not valid any more are freed."""
    if not r.dma_addr:
        return 0
    with down_read(gpusvm.notifier_lock):
        valid = drm_gpusvm_range_pages_valid(r)
        if not valid:
            __drm_gpusvm_free_pages(gpusvm, r)
    return valid


@protocol
def map_pages(gpusvm: Gpusvm, r: GpusvmRange, seq: int) -> int:
    """drm_gpusvm_get_pages() from its label map_pages on: 0, or -EAGAIN to begin again, or -EFAULT."""
    while True:
        with down_read(gpusvm.notifier_lock):
            if r.unmapped:
                return -EFAULT
            if mmu_interval_read_retry(r.notifier, seq):
                return -EAGAIN
            if r.dma_addr:
                r.has_dma_mapping = 1
                return 0
        kvcalloc(16 * npages_in_range(r))
        r.dma_addr = 1


@protocol
def drm_gpusvm_range_get_pages(gpusvm: Gpusvm, r: GpusvmRange) -> int:
    """drm_gpusvm_range_get_pages(), drm_gpusvm_get_pages()."""
    mm = gpusvm.mm
    notifier = r.notifier
    while not timed_out():
        seq = mmu_interval_read_begin(notifier)
        if drm_gpusvm_pages_valid_unlocked(gpusvm, r):
            return 0
        kvcalloc(8 * npages_in_range(r))  # pfns
        err = -EFAULT
        if mmget_not_zero(mm):
            err = -EBUSY
            while err == -EBUSY:
                with down_read(mm.mmap_lock):
                    err = hmm_range_fault_pages(mm, notifier, seq, r.start, r.last + 1, 1, gpusvm.dma_addr)
                if err == -EBUSY:
                    if timed_out():
                        break
                    count("fault_retries")
                    seq = mmu_interval_read_begin(notifier)
            mmput(mm)
        if not err:
            err = map_pages(gpusvm, r, seq)
        kvfree(8 * npages_in_range(r))
        if err:
            pt_clear(gpusvm.dma_addr, r.start, r.last + 1)
        if err != -EAGAIN:
            return err
        count("fault_retries")
    return -EBUSY


# --- beginning and end


@protocol
def drm_gpusvm_init(gpusvm: Gpusvm, mm: Mm, notifier_size: int, ops: int, chunk_sizes: int) -> None:
    """drm_gpusvm_init() for all of the mm."""
    mmgrab(mm)
    gpusvm.mm = mm
    gpusvm.notifier_size = notifier_size
    gpusvm.ops = ops
    gpusvm.chunk_sizes = chunk_sizes
    pt_init(gpusvm.dma_addr, 0, mm.task_size)


@protocol
def drm_gpusvm_fini(gpusvm: Gpusvm) -> None:
    """drm_gpusvm_fini(): each notifier first, so that no callback runs, then its ranges, the last of which frees it."""
    itree = itree_first(gpusvm.root, 0, ULONG_MAX, SCRATCH)
    while itree:
        notifier = container_of(GpusvmNotifier, "itree", itree)
        itree = itree_next(itree, 0, ULONG_MAX, SCRATCH)
        mmu_interval_notifier_remove(notifier)
        notifier.removed = 1
        r = GpusvmRange(itree_first(notifier.root, 0, ULONG_MAX, SCRATCH))
        while r:
            following = __drm_gpusvm_range_next(r, 0, ULONG_MAX)
            drm_gpusvm_range_remove(gpusvm, r)
            r = following
    mmdrop(gpusvm.mm)
    pt_free(gpusvm.dma_addr)
