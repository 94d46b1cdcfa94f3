"""What of amdkfd's ranges is in the GPU's tables: mapped, lost, and mapped again; kfd_svm.c, Linux 6.1.

With xnack on, what is lost is unmapped, and the GPU faults for it. With xnack off, only munmap unmaps. What else is
lost stays in the tables: the queues are stopped, and a work item maps it again and starts them.
"""

from __future__ import annotations

from faultpath.designs.kfd_priv import HmmRange, KfdProcess, SvmRange
from faultpath.designs.kfd_process import kgd2kfd_quiesce_mm, kgd2kfd_resume_mm
from faultpath.driver import *


@protocol
def amdgpu_hmm_range_get_pages(
    mm: Mm, mni: IntervalNotifier, hmm_range: HmmRange, addr: int, end: int, write: int
) -> int:
    """amdgpu_hmm_range_get_pages(): mmap_lock is held while read_begin waits, too; each try reads it anew."""
    count("allocs")  # hmm_pfns
    pt_init(hmm_range.pfns, addr, end)
    while True:
        hmm_range.seq = mmu_interval_read_begin(mni)
        ret = hmm_range_fault_pages(mm, mni, hmm_range.seq, addr, end, write, hmm_range.pfns)
        if ret != -EBUSY or timed_out():
            return ret
        count("fault_retries")


@protocol
def svm_range_map_to_gpus(prange: SvmRange, hmm_range: HmmRange, addr: int, end: int) -> None:
    """svm_range_map_to_gpus()."""
    count("device_commands")
    pt_copy(prange.svms.kfd.pt, hmm_range.pfns, addr, end)


@protocol
def svm_range_map_vma(mm: Mm, prange: SvmRange, hmm_range: HmmRange, addr: int, end: int, write: int) -> int:
    """What svm_range_validate_and_map() does for the part of a range that lies in one VMA."""
    ret = amdgpu_hmm_range_get_pages(mm, prange.notifier, hmm_range, addr, end, write)
    if ret < 0:
        return ret
    if not prange.dma_pages:  # svm_range_dma_map_dev()
        prange.dma_pages = (prange.last + 1 - prange.start) >> PAGE_SHIFT
        kvcalloc(8 * prange.dma_pages)
    with mutex_lock(prange.lock):
        if mmu_interval_read_retry(prange.notifier, hmm_range.seq) or not list_empty(prange.child_list):
            return -EAGAIN
        svm_range_map_to_gpus(prange, hmm_range, addr, end)
    return 0


@protocol
def svm_range_validate_and_map(mm: Mm, prange: SvmRange) -> int:
    """svm_range_validate_and_map(): the whole range, VMA by VMA, each of which may be lost again meanwhile."""
    addr = prange.start
    end = prange.last + 1
    ret = 0
    while addr < end and not ret:
        vma = find_vma(mm, addr)
        if not vma or addr < vma.start:
            return -EFAULT
        until = min(vma.last + 1, end)
        hmm_range = kmalloc(HmmRange, GFP_KERNEL)
        ret = svm_range_map_vma(mm, prange, hmm_range, addr, until, vma.prot & PROT_WRITE)
        pt_free(hmm_range.pfns)
        kfree(hmm_range)
        if ret and ret != -EAGAIN:
            return ret
        addr = until
    if addr == end:
        prange.mapped_to_gpu = 1
    return ret


# --- lost


@protocol
def svm_range_unmap_from_gpus(prange: SvmRange, start: int, last: int) -> None:
    """svm_range_unmap_from_gpus(): update the page table, wait for it, flush the TLB. ``lock`` is held."""
    if not prange.mapped_to_gpu:
        return
    if prange.start == start and prange.last == last:
        prange.mapped_to_gpu = 0
    count("kfd_unmap_from_gpu")
    count("device_commands")
    device_zap(prange.svms.kfd.pt, start, last + 1)


@protocol
def svm_range_unmap_part(prange: SvmRange, start: int, last: int) -> None:
    """What evict and unmap_from_cpu do with a range and with each child: clip, and unmap if anything is left."""
    start = max(start, prange.start)
    last = min(last, prange.last)
    if last >= start:
        svm_range_unmap_from_gpus(prange, start, last)


@protocol
def svm_range_evict(prange: SvmRange, start: int, last: int) -> None:
    """svm_range_evict() with xnack on: the GPU loses the pages and will fault for them."""
    for pchild in list_for_each_entry(SvmRange, "child_list", prange.child_list):
        with mutex_lock_nested(pchild.lock):
            svm_range_unmap_part(pchild, start, last)
    svm_range_unmap_part(prange, start, last)


# --- lost and restored, with xnack off


@protocol
def svm_range_stop_queues(svms: KfdProcess) -> None:
    """svm_range_evict() with xnack off, its end: the first stops them; who comes second does not wait for that."""
    if atomic_inc_return(svms.evicted_ranges) != 1:
        return
    kgd2kfd_quiesce_mm(svms.kfd)
    queue_work(svms.restore_work, svm_range_restore_work, svms)


@protocol
def svm_range_evict_queues(prange: SvmRange, start: int, last: int) -> None:
    """svm_range_evict() with xnack off: say what is invalid, and stop the queues."""
    svms = prange.svms
    mapped = prange.mapped_to_gpu
    for pchild in list_for_each_entry(SvmRange, "child_list", prange.child_list):
        if pchild.mapped_to_gpu:
            mapped = 1
            with mutex_lock_nested(pchild.lock):
                if pchild.start <= last and pchild.last >= start:
                    atomic_inc(pchild.invalid)
    if not mapped:
        return
    if prange.start <= last and prange.last >= start:
        atomic_inc(prange.invalid)
    svm_range_stop_queues(svms)


@protocol
def svm_range_restore_ranges(mm: Mm, svms: KfdProcess) -> int:
    """The loop of svm_range_restore_work(): 0 once every range that was invalid is mapped, and stayed so."""
    for prange in list_for_each_entry(SvmRange, "list", svms.list):
        if invalid := atomic_read(prange.invalid):
            with mutex_lock(prange.migrate_mutex):
                ret = svm_range_validate_and_map(mm, prange)
            if ret:
                return ret
            if atomic_cmpxchg(prange.invalid, invalid, 0) != invalid:
                return -EAGAIN
    return 0


@protocol
def svm_range_restore_work(svms: KfdProcess) -> None:
    """svm_range_restore_work(): under mmap_lock for writing; queues start only if nothing was evicted meanwhile."""
    mm = svms.mm
    if not atomic_read(svms.evicted_ranges) or not mmget_not_zero(mm):
        return
    ret = -EAGAIN
    with down_write(mm.mmap_lock):
        if list_empty(svms.deferred_range_list):  # else this has to wait for that: there is one worker here
            with mutex_lock(svms.lock):
                evicted = atomic_read(svms.evicted_ranges)
                ret = svm_range_restore_ranges(mm, svms)
                if not ret and atomic_cmpxchg(svms.evicted_ranges, evicted, 0) != evicted:
                    ret = -EAGAIN
                if not ret:
                    kgd2kfd_resume_mm(svms.kfd)
    if ret == -EAGAIN:
        queue_work(svms.restore_work, svm_range_restore_work, svms)
    mmput_async(mm)  # mmput(), and the worker is here
