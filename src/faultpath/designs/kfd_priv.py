"""amdkfd's structures: kfd_priv.h and kfd_svm.h, Linux 6.1; one GPU, one process."""

from __future__ import annotations

from faultpath.driver import *

# enum svm_work_list_ops
SVM_OP_UNMAP_RANGE = 1
SVM_OP_UPDATE_RANGE_NOTIFIER = 2
SVM_OP_ADD_RANGE = 4


class Kfd(Device):
    """``struct kfd_dev``, one per GPU; kfd_processes_table with its one entry; what of that process is on the GPU."""

    processes_mutex: ParentMutex
    processes_srcu: Srcu
    process: int  # the KfdProcess, or NULL once its mm has gone
    opened: int  # the KfdProcess, for who has the file open
    pt: PageTable  # its amdgpu_vm
    queues: int  # it has user queues
    evicted: Atomic  # qpd->evicted: how many have stopped them
    ih_busy: int  # the ring of retry faults is being read
    ih_wait: WaitQueue


class KfdProcess(Struct):
    """``struct kfd_process``, and its ``struct svm_range_list``: from ``lock`` on."""

    ref: RefCount
    release_work: Work
    mmu_notifier: Member[Notifier]
    kfd: Kfd
    mm: Mm
    xnack_enabled: int
    window: int  # how far around a fault a range reaches at most
    lock: ParentMutex
    objects: IntervalTree
    list: ListHead
    deferred_list_work: Work
    deferred_range_list: ListHead
    deferred_list_lock: SpinLock
    evicted_ranges: Atomic
    drain_pagefaults: Atomic
    restore_work: Work


class SvmRange(Struct):
    """``struct svm_range``. Its bounds may be ahead of those in the two trees, which the deferred work brings in."""

    interval_bytes = 544
    svms: KfdProcess
    migrate_mutex: ParentMutex
    start: int
    last: int
    it_node: Member[IntervalNode]
    list: ListHead
    dma_pages: int  # entries of dma_addr
    lock: Mutex
    invalid: Atomic
    notifier: IntervalNotifier  # a RangeNotifier, which amdkfd-fixed replaces
    op: int  # work_item
    mm: Mm
    deferred_list: ListHead
    child_list: ListHead
    mapped_to_gpu: int


class RangeNotifier(IntervalNotifier):
    """``svm_range.notifier``."""

    prange: SvmRange


class HmmRange(Struct):
    """``struct hmm_range`` and its ``hmm_pfns``."""

    seq: int
    pfns: PageTable
