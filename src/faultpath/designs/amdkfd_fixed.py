"""amdkfd with six changes, each of which ``faultpath check amdkfd`` asks for.

1. ``mapped_to_gpu`` is set with the mapping itself, under ``lock``, for each part of a range. In 6.1 it is set after
   the lock is let go, once all parts are mapped: until then the callback takes the range for unmapped and leaves what
   it has in the GPU's tables (first-fault-vs-dontneed). Since 6.7 it is under ``lock``, still with the last part only.
2. New bounds get a new notifier before the old one is removed. In between, an invalidation that needs no mmap_lock
   (reclaim) reaches nobody (fault-vs-munmap-left).
3. A child leaves the list that callbacks go over under ``lock``, and evicted, for it has no notifier until it is added.
   In 6.1 it leaves as it is, and may be freed under a callback that stands at it. With xnack off it also forgets, when
   it is split off, that it is invalid: the queues start, and nobody has mapped it anew.
4. An invalidation that must not sleep is refused (oom-vs-fault).
5. The queues are destroyed when the mm is released, before its pages go (exit-vs-fault).
6. With xnack off, who evicts second waits until the first has stopped the queues. In 6.1 it sees that it is the second
   and returns, while they still run.
"""

from __future__ import annotations

import dataclasses
import sys

from faultpath.designs import amdkfd, kfd_process, kfd_svm_map, kfd_svm_notifier
from faultpath.designs.kfd_priv import SVM_OP_ADD_RANGE, HmmRange, KfdProcess, RangeNotifier, SvmRange
from faultpath.designs.kfd_process import kfd_unref_process, kgd2kfd_quiesce_mm
from faultpath.designs.kfd_svm_map import svm_range_evict, svm_range_evict_queues, svm_range_restore_work
from faultpath.designs.kfd_svm_notifier import svm_range_add_notifier_locked, svm_range_invalidate
from faultpath.driver import *


@protocol(replaces=kfd_svm_map.svm_range_map_to_gpus)
def svm_range_map_to_gpus(prange: SvmRange, hmm_range: HmmRange, addr: int, end: int) -> None:
    """Change 1."""
    count("device_commands")
    prange.mapped_to_gpu = 1
    pt_copy(prange.svms.kfd.pt, hmm_range.pfns, addr, end)


@protocol(replaces=kfd_svm_notifier.svm_range_update_notifier_and_interval_tree)
def svm_range_update_notifier_and_interval_tree(mm: Mm, prange: SvmRange) -> None:
    """Change 2."""
    old = RangeNotifier(prange.notifier)
    if prange.start == old.start and prange.last == old.last:
        return
    itree_remove(prange.svms.objects, prange.it_node)
    prange.it_node.start = prange.start
    prange.it_node.last = prange.last
    itree_insert(prange.svms.objects, prange.it_node)
    notifier = embedded(RangeNotifier)
    notifier.prange = prange
    prange.notifier = notifier
    svm_range_add_notifier_locked(mm, prange)
    mmu_interval_notifier_remove(old)
    kfree(old)


@protocol(replaces=kfd_svm_notifier.svm_range_take_child)
def svm_range_take_child(prange: SvmRange, pchild: SvmRange) -> None:
    """Change 3."""
    with mutex_lock(prange.lock):
        if pchild.op == SVM_OP_ADD_RANGE:
            if prange.svms.xnack_enabled:
                svm_range_evict(prange, pchild.start, pchild.last)
            else:
                svm_range_evict_queues(prange, pchild.start, pchild.last)
        list_del_init(pchild.child_list)


@protocol(replaces=kfd_svm_notifier.svm_range_cpu_invalidate_pagetables)
def svm_range_cpu_invalidate_pagetables(mni: IntervalNotifier, range: Range, cur_seq: int) -> int:
    """Change 4."""
    if range.event == MMU_NOTIFY_RELEASE:
        return 1
    if not range.blockable:
        return 0
    return svm_range_invalidate(mni, range, cur_seq)


@protocol(replaces=kfd_process.kfd_process_notifier_release_internal)
def kfd_process_notifier_release_internal(p: KfdProcess) -> None:
    """Change 5."""
    p.kfd.queues = 0
    kfd_unref_process(p)


@protocol(replaces=kfd_svm_map.svm_range_stop_queues)
def svm_range_stop_queues(svms: KfdProcess) -> None:
    """Change 6."""
    with mutex_lock(svms.kfd.processes_mutex):
        if atomic_inc_return(svms.evicted_ranges) == 1:
            kgd2kfd_quiesce_mm(svms.kfd)
            queue_work(svms.restore_work, svm_range_restore_work, svms)


design = dataclasses.replace(
    amdkfd.design,
    name="amdkfd-fixed",
    title="amdkfd with six changes",
    source=f"{amdkfd.design.source}, changed in six places",
    core=sys.modules[__name__],
    doc=__doc__,
)
