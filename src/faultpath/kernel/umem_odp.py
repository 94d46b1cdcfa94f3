"""On-demand paging's core: drivers/infiniband/core/umem_odp.c, Linux 6.1. What mlx5 and rxe share.

A umem is an interval over a fixed range, with two tables that are allocated whole: 16 bytes for a page. The shadow
(dma_list) and the device's own translations are one table here, since both are written under umem_mutex.
"""

from __future__ import annotations

from faultpath.kernel.errno import EBUSY, EINVAL, ENOMEM
from faultpath.kernel.hmm import hmm_range_fault, hmm_range_snapshot
from faultpath.kernel.mm.fork import mmget_not_zero, mmput_async
from faultpath.kernel.mmu_notifier import (
    IntervalNotifier,
    Mm,
    mmu_interval_notifier_insert,
    mmu_interval_notifier_remove,
    mmu_interval_read_begin,
    mmu_interval_read_retry,
)
from faultpath.kernel.primitives.heap import GFP_KERNEL, kfree, kmalloc, kvcalloc, kvfree, off_stack, on_stack
from faultpath.kernel.primitives.locks import down_read, mutex_lock, mutex_unlock
from faultpath.kernel.primitives.mtt import dma_unmap
from faultpath.kernel.primitives.pagetable import (
    FRAME_SHIFT,
    PAGE_SHIFT,
    VALID,
    WRITE,
    pt_clear,
    pt_copy,
    pt_free,
    pt_get,
    pt_init,
    pt_set,
)
from faultpath.kernel.primitives.time import timed_out
from faultpath.protocol.language import count, protocol
from faultpath.protocol.struct import Mutex, PageTable, Struct

ODP_WRITE_ALLOWED = 1
INT_MAX = (1 << 31) - 1


class Umem(IntervalNotifier):
    """``struct ib_umem_odp``; 240 bytes in C, its two tables apart."""

    interval_bytes = 240
    umem_mutex: Mutex
    npages: int
    private: int  # the driver's MR, once there is one and until it is revoked
    pt: PageTable  # dma_list, and the device's translations


class Pfns(Struct):
    """``hmm_pfns`` of a range: what the walk has found."""

    pt: PageTable


@protocol
def ib_init_umem_odp(umem: Umem, mm: Mm, start: int, size: int, ops: int) -> int:
    """ib_init_umem_odp(): called back from now on, or -ENOMEM: kvcalloc() has nothing above 2 GiB, so for 1 TiB."""
    entries = size >> PAGE_SHIFT
    if 8 * entries > INT_MAX:
        return -ENOMEM
    kvcalloc(8 * entries)  # pfn_list
    kvcalloc(8 * entries)  # dma_list
    pt_init(umem.pt, start, start + size)
    mmu_interval_notifier_insert(umem, mm, start, size, ops)
    return 0


@protocol
def ib_umem_odp_get(mm: Mm, start: int, size: int, ops: int) -> int:
    """ib_umem_odp_get(): a umem, or -errno. Nothing need be mapped there."""
    umem = kmalloc(Umem, GFP_KERNEL)
    if not umem:
        return -ENOMEM
    if ret := ib_init_umem_odp(umem, mm, start, size, ops):
        kfree(umem)
        return ret
    return umem


@protocol
def ib_umem_odp_release(umem: Umem) -> None:
    """ib_umem_odp_release(): unmap, remove the interval, free."""
    with mutex_lock(umem.umem_mutex):
        pt_clear(umem.pt, umem.start, umem.last + 1)
        umem.npages = 0
    mmu_interval_notifier_remove(umem)
    entries = (umem.last + 1 - umem.start) >> PAGE_SHIFT
    pt_free(umem.pt)
    kvfree(8 * entries)
    kvfree(8 * entries)
    kfree(umem)


@protocol
def ib_umem_odp_map_dma_and_lock(umem: Umem, addr: int, access: int) -> int:
    """ib_umem_odp_map_dma_and_lock() for one page: 0 with umem_mutex held, or -errno."""
    mm = umem.mm
    if not mmget_not_zero(mm):
        return -EINVAL
    while True:
        seq = mmu_interval_read_begin(umem)
        with down_read(mm.mmap_lock):
            pfn = hmm_range_fault(mm, umem, seq, addr, access & ODP_WRITE_ALLOWED)
        if pfn == -EBUSY and not timed_out():
            count("fault_retries")
            continue
        if pfn < 0:
            mmput_async(mm)
            return pfn
        mutex_lock(umem.umem_mutex)
        if mmu_interval_read_retry(umem, seq):
            mutex_unlock(umem.umem_mutex)
            count("fault_retries")
            continue
        break
    # ib_umem_odp_map_dma_single_page(): what is mapped already keeps its address
    entry = pt_get(umem.pt, addr) & ~WRITE
    if not entry:
        umem.npages += 1
        entry = VALID | pfn >> FRAME_SHIFT << FRAME_SHIFT
    if access & ODP_WRITE_ALLOWED:
        entry = entry | WRITE
    pt_set(umem.pt, addr, entry)
    mmput_async(mm)
    return 0


@protocol
def ib_umem_odp_map_present_and_lock(umem: Umem) -> int:
    """ib_umem_odp_map_dma_and_lock() of the whole umem, without ``fault``: what the process has, as it may use it.

    :returns: 0 with umem_mutex held, or -errno
    """
    mm = umem.mm
    if not mmget_not_zero(mm):
        return -EINVAL
    pfns = on_stack(Pfns)
    pt_init(pfns.pt, umem.start, umem.last + 1)
    while True:
        seq = mmu_interval_read_begin(umem)
        with down_read(mm.mmap_lock):
            ret = hmm_range_snapshot(mm, umem, seq, umem.start, umem.last + 1, pfns.pt)
        if ret == -EBUSY and not timed_out():
            count("fault_retries")
            continue
        if ret < 0:
            break
        mutex_lock(umem.umem_mutex)
        if not mmu_interval_read_retry(umem, seq):
            umem.npages += pt_copy(umem.pt, pfns.pt, umem.start, umem.last + 1)
            break
        mutex_unlock(umem.umem_mutex)
        count("fault_retries")
    pt_free(pfns.pt)
    off_stack(pfns)
    mmput_async(mm)
    return ret


@protocol
def ib_umem_odp_unmap_dma_pages(umem: Umem, start: int, end: int) -> None:
    """ib_umem_odp_unmap_dma_pages(), in a callback: goes over every entry. Under umem_mutex."""
    umem.npages -= dma_unmap(umem.pt, max(start, umem.start), min(end, umem.last + 1))
