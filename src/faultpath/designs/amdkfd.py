"""Ranges that keep themselves: amdkfd's shared virtual memory, kfd_svm.c of Linux 6.1 (6.1.192).

A range is an interval of its own. A retry fault that finds none makes one, 2 MiB aligned and clipped to the VMA and to
its neighbours (``granularity``: fixed in 6.1, a module parameter since 6.12), and then maps it whole, every page that
the process may have there. munmap splits ranges inside the callback; what comes of that (children, bounds, removal) is
left to a work item, which takes mmap_lock for writing, for intervals cannot be changed in a callback.

It trades faults for pages: one fault brings in 512, and one page that is dropped has all 512 looked up again; in
exchange the device faults once in 2 MiB. Faults hold mmap_lock and the process's one ``svms->lock`` from end to end.

With ``xnack=off`` the GPU cannot fault. Memory is mapped whole when the application registers it (the ioctl
svm_range_set_attr(), here before the first access, in pieces of 1 GiB, max_svm_range_pages of a GPU with 32 GiB), and
the callback clears nothing: it stops all queues of the process, and a work item maps what was lost and starts them. So
a device fault is a registration there, or an access that waits for the queues.

Closing the file ends the mirror, as release of the mm does (since the kernel has secondary contexts; in 6.1 the latter
alone). One process, one GPU. Not modelled: migration to VRAM (it falls back to system memory, as APUs have it anyway),
the 2 ms for which a range is not validated again, BO reservations and process_info->lock, which mmap_lock orders as
well, and a restore's retry every millisecond where only the process can mend what failed: it is at the next access.
Addresses are bytes here, pages in C. Of the two SMI flags of an event ('R', triggers) nothing is kept.

Faults are here. ``kfd_svm_notifier`` has the callback and the work that it leaves, ``kfd_svm_map`` what maps ranges and
what takes pages from the GPU, ``kfd_svm_range`` how ranges are made, split and freed, ``kfd_process`` the file, the
process and its queues, ``kfd_priv`` the structures.
"""

from __future__ import annotations

from faultpath.designs.kfd_priv import SVM_OP_ADD_RANGE, SVM_OP_UNMAP_RANGE, Kfd, KfdProcess, SvmRange
from faultpath.designs.kfd_process import (
    kfd_lookup_process,
    kfd_open,
    kfd_process_mmu_notifier_ops,
    kfd_release,
    kfd_unref_process,
)
from faultpath.designs.kfd_svm_map import svm_range_restore_work, svm_range_validate_and_map
from faultpath.designs.kfd_svm_notifier import svm_range_add_notifier_locked, svm_range_mn_ops
from faultpath.designs.kfd_svm_range import svm_range_add_to_svms, svm_range_new
from faultpath.driver import *

# --- which range


@protocol
def svm_range_from_addr(svms: KfdProcess, addr: int) -> SvmRange:
    """svm_range_from_addr(): a range, or a child that waits to become one."""
    count("lookups")
    it_node = itree_first(svms.objects, addr, addr, LOOKUP_STEPS)
    if not it_node:
        return NULL
    prange = container_of(SvmRange, "it_node", it_node)
    if addr >= prange.start and addr <= prange.last:
        return prange
    for pchild in list_for_each_entry(SvmRange, "child_list", prange.child_list):
        if addr >= pchild.start and addr <= pchild.last:
            return pchild
    return NULL


@protocol
def svm_range_create_unregistered_range(svms: KfdProcess, mm: Mm, addr: int) -> SvmRange:
    """svm_range_create_unregistered_range() and svm_range_get_range_boundaries(): an aligned window, clipped."""
    vma = find_vma(mm, addr)
    if not vma or addr < vma.start:
        return NULL
    start = max(vma.start, addr & -svms.window)
    end = min(vma.last + 1, (addr & -svms.window) + svms.window)
    count("lookups")
    if right := IntervalNode(itree_first(svms.objects, addr + PAGE_SIZE, ULONG_MAX, LOOKUP_STEPS)):
        end = min(end, right.start)
        left = IntervalNode(itree_prev(right, LOOKUP_STEPS))
    else:
        left = IntervalNode(itree_last(svms.objects, ULONG_MAX, LOOKUP_STEPS))
    if left:
        if left.last >= addr:
            return NULL
        start = max(start, left.last + 1)
    prange = svm_range_new(svms, start, end - 1)
    svm_range_add_to_svms(prange)
    svm_range_add_notifier_locked(mm, prange)
    return prange


# --- faults


@protocol
def svm_range_skip_recover(prange: SvmRange) -> int:
    """svm_range_skip_recover(): it is being unmapped, or it has no notifier yet."""
    svms = prange.svms
    with spin_lock(svms.deferred_list_lock):
        if list_empty(prange.deferred_list) and list_empty(prange.child_list):
            return 0
    return prange.op == SVM_OP_UNMAP_RANGE or prange.op == SVM_OP_ADD_RANGE


@protocol
def svm_range_check_fault(mm: Mm, prange: SvmRange, addr: int, write: int) -> int:
    """svm_range_restore_pages() under ``migrate_mutex``: 1 to go on; a fault that comes too late is a success, 0."""
    if svm_range_skip_recover(prange):
        return 0
    vma = find_vma(mm, addr)
    if not vma or addr < vma.start:
        return 0
    if not vma.prot & PROT_READ or (write and not vma.prot & PROT_WRITE):  # svm_fault_allowed()
        return -EPERM
    count("kfd_page_fault_start")
    return 1


@protocol
def svm_range_of_fault(svms: KfdProcess, mm: Mm, addr: int) -> SvmRange:
    """svm_range_restore_pages() so far: ``lock`` and mmap_lock are held; to make a range, that for writing at first."""
    down_read(mm.mmap_lock)
    mutex_lock(svms.lock)
    prange = svm_range_from_addr(svms, addr)
    if not prange:
        mutex_unlock(svms.lock)
        up_read(mm.mmap_lock)
        down_write(mm.mmap_lock)
        mutex_lock(svms.lock)
        prange = svm_range_from_addr(svms, addr)
        if not prange:
            prange = svm_range_create_unregistered_range(svms, mm, addr)
        downgrade_write(mm.mmap_lock)
    return prange


@protocol
def svm_range_set_attr(svms: KfdProcess, mm: Mm, addr: int) -> SvmRange:
    """svm_range_set_attr(), up to its mapping: the application registers what is around an address, if it has not."""
    flush_work(svms.deferred_list_work)  # svm_range_list_lock_and_flush_work()
    down_write(mm.mmap_lock)
    while not list_empty(svms.deferred_range_list):
        up_write(mm.mmap_lock)
        flush_work(svms.deferred_list_work)
        down_write(mm.mmap_lock)
    mutex_lock(svms.lock)
    prange = SvmRange(NULL)
    if not svm_range_from_addr(svms, addr):
        prange = svm_range_create_unregistered_range(svms, mm, addr)
    downgrade_write(mm.mmap_lock)
    return prange


@protocol
def svm_range_restore_pages(svms: KfdProcess, mm: Mm, addr: int, write: int) -> int:
    """svm_range_restore_pages(), and with xnack off svm_range_set_attr(), which has a range mapped in the same way."""
    xnack = svms.xnack_enabled
    if xnack:
        if atomic_read(svms.drain_pagefaults):
            return 0
        prange = svm_range_of_fault(svms, mm, addr)
        count("kfd_faults")
    else:
        prange = svm_range_set_attr(svms, mm, addr)
    ret = -EFAULT
    if prange:
        with mutex_lock(prange.migrate_mutex):
            ret = 1
            if xnack:
                ret = svm_range_check_fault(mm, prange, addr, write)
            if ret > 0:
                ret = svm_range_validate_and_map(mm, prange)
                if xnack:
                    count("kfd_page_fault_end")
    mutex_unlock(svms.lock)
    up_read(mm.mmap_lock)
    return ret


@protocol
def amdgpu_vm_handle_fault(kfd: Kfd, p: KfdProcess, addr: int, write: int) -> int:
    """amdgpu_vm_handle_fault(): after -EAGAIN, a success in C, the hardware raises the fault again."""
    while not timed_out():
        kfd.ih_busy = p.xnack_enabled
        ret = svm_range_restore_pages(p, p.mm, addr, write)
        kfd.ih_busy = 0
        wake_up(kfd.ih_wait)
        if ret != -EAGAIN:
            return ret
        count("fault_retries")
    return -EAGAIN


# --- the device


@protocol
def access_without_xnack(kfd: Kfd, p: KfdProcess, addr: int, write: int) -> int:
    """What the hardware did not find: 0 if it does once the queues run, -EBUSY if they do not, 1 if it has no such."""
    if atomic_read(kfd.evicted):
        queue_work(p.restore_work, svm_range_restore_work, p)
        flush_work(p.restore_work)
    if atomic_read(kfd.evicted):
        return -EBUSY
    entry = pt_get(kfd.pt, addr)
    if entry & VALID and (entry & WRITE or not write):
        return 0
    return 1


@protocol
def gpu_fault(kfd: Kfd, addr: int, write: int) -> int:
    """A retry fault, for whose PASID the process is looked up; with xnack off an access that found nothing."""
    p = kfd_lookup_process(kfd)
    if not p:
        return 0
    ret = 1
    if not p.xnack_enabled:
        ret = access_without_xnack(kfd, p, addr, write)
    if ret > 0:
        ret = 0
        if mmget_not_zero(p.mm):
            ret = amdgpu_vm_handle_fault(kfd, p, addr, write)
            mmput(p.mm)
    kfd_unref_process(p)
    return ret


@protocol
def gpu_walk(kfd: Kfd, addr: int) -> int:
    """What the GPU's MMU finds for the process's queues, if any of them runs."""
    if not kfd.queues or atomic_read(kfd.evicted):
        return 0
    return pt_get(kfd.pt, addr)


design = Design(
    name="amdkfd",
    title="ranges with an interval each, split by munmap",
    source="drivers/gpu/drm/amd/amdkfd/kfd_svm.c, Linux 6.1.192",
    open=kfd_open,
    fault=gpu_fault,
    walk=gpu_walk,
    close=kfd_release,
    ops=[svm_range_mn_ops, kfd_process_mmu_notifier_ops],
    parameters=[
        Parameter("xnack", "on", "whether the GPU can retry faults", choices=("off", "on")),
        Parameter(
            "granularity",
            9,
            "log2 of the pages of the aligned window that an unregistered range is made in",
            maximum=18,
            small=2,
        ),
    ],
    never={PARALLEL_FAULTS: "one work item reads the ring of retry faults of a GPU"},
    counters=[
        "kfd_page_fault_start",
        "kfd_page_fault_end",
        "kfd_queue_eviction",
        "kfd_queue_restore",
        "kfd_unmap_from_gpu",
        "kfd_faults",
    ],
    doc=__doc__,
)
