"""amdkfd's ranges by themselves: made, linked, split, freed, and all of them freed with their process; kfd_svm.c.

What munmap splits off a range is on its ``child_list``, until the deferred work adds it to the ranges or frees it.
"""

from __future__ import annotations

from faultpath.designs.kfd_priv import KfdProcess, RangeNotifier, SvmRange
from faultpath.driver import *


@protocol
def svm_range_new(svms: KfdProcess, start: int, last: int) -> SvmRange:
    """svm_range_new()."""
    prange = kmalloc(SvmRange, GFP_KERNEL)
    prange.svms = svms
    prange.start = start
    prange.last = last
    notifier = embedded(RangeNotifier)
    notifier.prange = prange
    prange.notifier = notifier
    return prange


@protocol
def svm_range_free(prange: SvmRange) -> None:
    """svm_range_free()."""
    kvfree(8 * prange.dma_pages)
    kfree(RangeNotifier(prange.notifier))
    kfree(prange)


@protocol
def svm_range_unlink(prange: SvmRange) -> None:
    """svm_range_unlink(): a child that was never added is in no tree."""
    list_del_init(prange.list)
    if prange.it_node.start:
        itree_remove(prange.svms.objects, prange.it_node)


@protocol
def svm_range_add_to_svms(prange: SvmRange) -> None:
    """svm_range_add_to_svms()."""
    list_add_tail(prange.list, prange.svms.list)
    prange.it_node.start = prange.start
    prange.it_node.last = prange.last
    itree_insert(prange.svms.objects, prange.it_node)


@protocol
def svm_range_remove_notifier(prange: SvmRange) -> None:
    """svm_range_remove_notifier()."""
    if prange.notifier.start:
        mmu_interval_notifier_remove(prange.notifier)


@protocol
def svm_range_split_adjust(new: SvmRange, old: SvmRange) -> None:
    """svm_range_split_adjust(): what the new range takes over; that pages of it are invalid is not among it."""
    new.mapped_to_gpu = old.mapped_to_gpu


@protocol
def svm_range_split(prange: SvmRange, start: int, last: int) -> SvmRange:
    """svm_range_split(): the range keeps ``[start, last]``; what it loses, at one end."""
    new_start = prange.start
    new_last = start - 1
    if prange.start == start:
        new_start = last + 1
        new_last = prange.last
    new = svm_range_new(prange.svms, new_start, new_last)
    if prange.dma_pages:  # svm_range_split_array()
        new.dma_pages = (new.last + 1 - new.start) >> PAGE_SHIFT
        kvcalloc(8 * new.dma_pages)
        kvcalloc(8 * (prange.dma_pages - new.dma_pages))
        kvfree(8 * prange.dma_pages)
        prange.dma_pages -= new.dma_pages
    prange.start = start
    prange.last = last
    svm_range_split_adjust(new, prange)
    return new


@protocol
def svm_range_add_child(prange: SvmRange, pchild: SvmRange, op: int) -> None:
    """svm_range_add_child()."""
    pchild.op = op
    list_add_tail(pchild.child_list, prange.child_list)


@protocol
def svm_range_drain_retry_fault(svms: KfdProcess) -> None:
    """svm_range_drain_retry_fault(): wait until the faults now in the ring have been dropped."""
    kfd = svms.kfd
    while drain := atomic_read(svms.drain_pagefaults):
        wait_event(kfd.ih_wait, kfd.ih_busy == 0)
        if atomic_cmpxchg(svms.drain_pagefaults, drain, 0) == drain:
            return


@protocol
def svm_range_list_fini(svms: KfdProcess) -> None:
    """svm_range_list_fini(): the deferred work is over, for the one worker is here."""
    cancel_work(svms.restore_work)
    atomic_inc(svms.drain_pagefaults)
    svm_range_drain_retry_fault(svms)
    while node := list_first(svms.list):
        prange = container_of(SvmRange, "list", node)
        svm_range_unlink(prange)
        svm_range_remove_notifier(prange)
        svm_range_free(prange)
