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
"""

from __future__ import annotations

from faultpath.design import PARALLEL_FAULTS, Design, Parameter
from faultpath.engine.world import INDEX
from faultpath.kernel.errno import EAGAIN, EBUSY, EFAULT, EPERM
from faultpath.kernel.hmm import hmm_range_fault_pages
from faultpath.kernel.mirror import Device
from faultpath.kernel.mm.fork import mmget_not_zero, mmput, mmput_async
from faultpath.kernel.mm.vma import PROT_READ, PROT_WRITE, find_vma
from faultpath.kernel.mmu_notifier import (
    MMU_NOTIFY_RELEASE,
    MMU_NOTIFY_UNMAP,
    ULONG_MAX,
    IntervalNode,
    IntervalNotifier,
    Mm,
    Notifier,
    Range,
    mmu_interval_notifier_insert,
    mmu_interval_notifier_remove,
    mmu_interval_read_begin,
    mmu_interval_read_retry,
    mmu_interval_set_seq,
    mmu_notifier_register,
    mmu_notifier_unregister,
)
from faultpath.kernel.primitives.atomic import (
    Atomic,
    atomic_cmpxchg,
    atomic_dec,
    atomic_inc,
    atomic_inc_return,
    atomic_read,
)
from faultpath.kernel.primitives.heap import GFP_KERNEL, embedded, kfree, kmalloc, kvcalloc, kvfree, off_stack, on_stack
from faultpath.kernel.primitives.itree import itree_first, itree_insert, itree_last, itree_prev, itree_remove
from faultpath.kernel.primitives.list_head import list_add_tail, list_del_init, list_empty, list_first, list_next
from faultpath.kernel.primitives.lists import cancel_work, queue_work
from faultpath.kernel.primitives.locks import (
    down_read,
    down_write,
    downgrade_write,
    mutex_lock,
    mutex_lock_nested,
    mutex_unlock,
    refcount_dec_and_test,
    refcount_inc,
    refcount_set,
    spin_lock,
    spin_unlock,
    up_read,
    up_write,
)
from faultpath.kernel.primitives.pagetable import (
    PAGE_SHIFT,
    PAGE_SIZE,
    VALID,
    WRITE,
    device_zap,
    pt_copy,
    pt_free,
    pt_get,
    pt_init,
)
from faultpath.kernel.primitives.time import timed_out
from faultpath.kernel.primitives.wait import wake_up
from faultpath.kernel.srcu import Srcu, srcu_read_lock, srcu_read_unlock, synchronize_srcu
from faultpath.kernel.workqueue import flush_work
from faultpath.protocol.language import NULL, Ops, container_of, count, protocol, wait_event
from faultpath.protocol.struct import (
    IntervalTree,
    ListHead,
    Mutex,
    PageTable,
    ParentMutex,
    RefCount,
    SpinLock,
    Struct,
    WaitQueue,
    Work,
)

LOOKUP_STEPS = INDEX["lookup_steps"]
MAX_SVM_RANGE = 1 << 30

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
    mmu_notifier: Notifier
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


class KfdNotifier(Notifier):
    """``kfd_process.mmu_notifier``."""

    process: KfdProcess


class SvmRange(Struct):
    """``struct svm_range``. Its bounds may be ahead of those in the two trees, which the deferred work brings in."""

    interval_bytes = 544
    svms: KfdProcess
    migrate_mutex: ParentMutex
    start: int
    last: int
    it_node: IntervalNode
    list: ListHead
    dma_pages: int  # entries of dma_addr
    lock: Mutex
    invalid: Atomic
    notifier: IntervalNotifier
    op: int  # work_item
    mm: Mm
    deferred_list: ListHead
    child_list: ListHead
    mapped_to_gpu: int


class ItNode(IntervalNode):
    """``svm_range.it_node``."""

    prange: SvmRange


class RangeNotifier(IntervalNotifier):
    """``svm_range.notifier``."""

    prange: SvmRange


class HmmRange(Struct):
    """``struct hmm_range`` and its ``hmm_pfns``."""

    seq: int
    pfns: PageTable


# --- the process, its queues


@protocol
def kfd_lookup_process(kfd: Kfd) -> KfdProcess:
    """kfd_lookup_process_by_pasid() and kfd_lookup_process_by_mm(): with a reference, or NULL."""
    idx = srcu_read_lock(kfd.processes_srcu)
    p = KfdProcess(kfd.process)
    if p:
        refcount_inc(p.ref)
    srcu_read_unlock(kfd.processes_srcu, idx)
    return p


@protocol
def kfd_unref_process(p: KfdProcess) -> None:
    """kfd_unref_process()."""
    if refcount_dec_and_test(p.ref):
        queue_work(p.release_work, kfd_process_wq_release, p)


@protocol
def kgd2kfd_quiesce_mm(kfd: Kfd) -> None:
    """kgd2kfd_quiesce_mm() and kfd_process_evict_queues(): once it returns, no queue of the process runs."""
    p = kfd_lookup_process(kfd)
    if not p:
        return
    count("kfd_queue_eviction")
    count("device_commands")
    atomic_inc(kfd.evicted)
    kfd_unref_process(p)


@protocol
def kgd2kfd_resume_mm(kfd: Kfd) -> None:
    """kgd2kfd_resume_mm() and kfd_process_restore_queues(): they run again unless they were stopped twice."""
    p = kfd_lookup_process(kfd)
    if not p:
        return
    count("kfd_queue_restore")
    count("device_commands")
    atomic_dec(kfd.evicted)
    kfd_unref_process(p)


# --- ranges


@protocol
def svm_range_new(svms: KfdProcess, start: int, last: int) -> SvmRange:
    """svm_range_new()."""
    prange = kmalloc(SvmRange, GFP_KERNEL)
    prange.svms = svms
    prange.start = start
    prange.last = last
    it_node = embedded(ItNode)
    it_node.prange = prange
    prange.it_node = it_node
    notifier = embedded(RangeNotifier)
    notifier.prange = prange
    prange.notifier = notifier
    return prange


@protocol
def svm_range_free(prange: SvmRange) -> None:
    """svm_range_free()."""
    kvfree(8 * prange.dma_pages)
    kfree(ItNode(prange.it_node))
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
def svm_range_add_notifier_locked(mm: Mm, prange: SvmRange) -> None:
    """svm_range_add_notifier_locked(): mmap_lock is held for writing."""
    mmu_interval_notifier_insert(prange.notifier, mm, prange.start, prange.last + 1 - prange.start, svm_range_mn_ops)


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
def next_piece(prange: SvmRange, piece: SvmRange) -> SvmRange:
    """list_for_each_entry() over ``child_list``, and the range itself last; NULL begins and ends it."""
    if piece == prange:
        return NULL
    if piece:
        node = list_next(piece.child_list, prange.child_list)
    else:
        node = list_first(prange.child_list)
    if not node:
        return prange
    return container_of(SvmRange, "child_list", node)


# --- the callback


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
def svm_range_unmap_split(parent: SvmRange, prange: SvmRange, start: int, last: int) -> None:
    """svm_range_unmap_split(): what is left of the hole stays the range; hole and rest are children."""
    if prange.op == SVM_OP_UNMAP_RANGE or start > prange.last or last < prange.start:
        return
    head = prange
    tail = prange
    if start > prange.start:
        tail = svm_range_split(prange, prange.start, start - 1)
    if last < tail.last:
        head = svm_range_split(tail, last + 1, tail.last)
    if head != prange and tail != prange:
        svm_range_add_child(parent, head, SVM_OP_UNMAP_RANGE)
        svm_range_add_child(parent, tail, SVM_OP_ADD_RANGE)
    elif tail != prange:
        svm_range_add_child(parent, tail, SVM_OP_UNMAP_RANGE)
    elif head != prange:
        svm_range_add_child(parent, head, SVM_OP_UNMAP_RANGE)
    elif parent != prange:
        prange.op = SVM_OP_UNMAP_RANGE


@protocol
def svm_range_add_list_work(svms: KfdProcess, prange: SvmRange, mm: Mm, op: int) -> None:
    """svm_range_add_list_work(): with a use of the mm, unless the process exits."""
    spin_lock(svms.deferred_list_lock)
    if not list_empty(prange.deferred_list):
        if prange.op != SVM_OP_UNMAP_RANGE:
            prange.op = op
    elif mmget_not_zero(mm):
        prange.mm = mm
        prange.op = op
        list_add_tail(prange.deferred_list, svms.deferred_range_list)
    spin_unlock(svms.deferred_list_lock)


@protocol
def schedule_deferred_list_work(svms: KfdProcess) -> None:
    """schedule_deferred_list_work()."""
    spin_lock(svms.deferred_list_lock)
    if not list_empty(svms.deferred_range_list):
        queue_work(svms.deferred_list_work, svm_range_deferred_list_work, svms)
    spin_unlock(svms.deferred_list_lock)


@protocol
def svm_range_unmap_from_cpu(mm: Mm, prange: SvmRange, start: int, last: int) -> None:
    """svm_range_unmap_from_cpu(): nothing once kfd_process_notifier_release() has run, as at exit."""
    svms = kfd_lookup_process(prange.svms.kfd)
    if not svms:
        return
    atomic_inc(svms.drain_pagefaults)
    op = SVM_OP_UPDATE_RANGE_NOTIFIER
    if start <= prange.start and last >= prange.last:
        op = SVM_OP_UNMAP_RANGE
    piece = next_piece(prange, NULL)
    while piece:
        if piece != prange:
            mutex_lock_nested(piece.lock)
        svm_range_unmap_part(piece, start, last)
        svm_range_unmap_split(prange, piece, start, last)
        if piece != prange:
            mutex_unlock(piece.lock)
        piece = next_piece(prange, piece)
    svm_range_add_list_work(svms, prange, mm, op)
    schedule_deferred_list_work(svms)
    kfd_unref_process(svms)


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
    pchild = next_piece(prange, NULL)
    while pchild != prange:
        if pchild.mapped_to_gpu:
            mapped = 1
            mutex_lock_nested(pchild.lock)
            if pchild.start <= last and pchild.last >= start:
                atomic_inc(pchild.invalid)
            mutex_unlock(pchild.lock)
        pchild = next_piece(prange, pchild)
    if not mapped:
        return
    if prange.start <= last and prange.last >= start:
        atomic_inc(prange.invalid)
    svm_range_stop_queues(svms)


@protocol
def svm_range_evict(prange: SvmRange, start: int, last: int) -> None:
    """svm_range_evict() with xnack on: the GPU loses the pages and will fault for them."""
    piece = next_piece(prange, NULL)
    while piece:
        if piece != prange:
            mutex_lock_nested(piece.lock)
        svm_range_unmap_part(piece, start, last)
        if piece != prange:
            mutex_unlock(piece.lock)
        piece = next_piece(prange, piece)


@protocol
def svm_range_invalidate(mni: IntervalNotifier, range: Range, cur_seq: int) -> int:
    """svm_range_cpu_invalidate_pagetables(), clipped to the interval."""
    prange = RangeNotifier(mni).prange
    start = max(mni.start, range.start)
    last = min(mni.last, range.end - 1)
    mutex_lock(prange.lock)
    mmu_interval_set_seq(mni, cur_seq)
    if range.event == MMU_NOTIFY_UNMAP:
        svm_range_unmap_from_cpu(mni.mm, prange, start, last)
    elif prange.svms.xnack_enabled:
        svm_range_evict(prange, start, last)
    else:
        svm_range_evict_queues(prange, start, last)
    mutex_unlock(prange.lock)
    return 1


@protocol
def svm_range_cpu_invalidate_pagetables(mni: IntervalNotifier, range: Range, cur_seq: int) -> int:
    """svm_range_cpu_invalidate_pagetables(): whether it may sleep, it does not ask."""
    if range.event == MMU_NOTIFY_RELEASE:
        return 1
    return svm_range_invalidate(mni, range, cur_seq)


@protocol
def svm_range_owner(mni: IntervalNotifier) -> int:
    """Whose it is, for the checker: ranges of two processes may overlap."""
    return RangeNotifier(mni).prange.svms


svm_range_mn_ops = Ops("svm_range_mn_ops", invalidate=svm_range_cpu_invalidate_pagetables, owner=svm_range_owner)


# --- deferred work


@protocol
def svm_range_drain_retry_fault(svms: KfdProcess) -> None:
    """svm_range_drain_retry_fault(): wait until the faults now in the ring have been dropped."""
    kfd = svms.kfd
    drain = atomic_read(svms.drain_pagefaults)
    while drain:
        wait_event(kfd.ih_wait, kfd.ih_busy == 0)
        if atomic_cmpxchg(svms.drain_pagefaults, drain, 0) == drain:
            return
        drain = atomic_read(svms.drain_pagefaults)


@protocol
def svm_range_update_notifier_and_interval_tree(mm: Mm, prange: SvmRange) -> None:
    """svm_range_update_notifier_and_interval_tree(): between remove and insert the range has no notifier."""
    if prange.start == prange.notifier.start and prange.last == prange.notifier.last:
        return
    itree_remove(prange.svms.objects, prange.it_node)
    mmu_interval_notifier_remove(prange.notifier)
    prange.it_node.start = prange.start
    prange.it_node.last = prange.last
    itree_insert(prange.svms.objects, prange.it_node)
    svm_range_add_notifier_locked(mm, prange)


@protocol
def svm_range_handle_list_op(prange: SvmRange, mm: Mm) -> None:
    """svm_range_handle_list_op()."""
    if prange.op == SVM_OP_UNMAP_RANGE:
        svm_range_unlink(prange)
        svm_range_remove_notifier(prange)
        svm_range_free(prange)
    elif prange.op == SVM_OP_UPDATE_RANGE_NOTIFIER:
        svm_range_update_notifier_and_interval_tree(mm, prange)
    elif prange.op == SVM_OP_ADD_RANGE:
        svm_range_add_to_svms(prange)
        svm_range_add_notifier_locked(mm, prange)


@protocol
def svm_range_take_child(prange: SvmRange, pchild: SvmRange) -> None:
    """svm_range_deferred_list_work(): off the list, without ``lock``, under which the callback goes over it."""
    list_del_init(pchild.child_list)


@protocol
def svm_range_handle_deferred(prange: SvmRange, mm: Mm) -> None:
    """svm_range_deferred_list_work(): the children, then the range."""
    mutex_lock(prange.migrate_mutex)
    piece = next_piece(prange, NULL)
    while piece:
        following = SvmRange(NULL)
        if piece == prange:
            mutex_unlock(prange.migrate_mutex)
        else:
            svm_range_take_child(prange, piece)
            following = next_piece(prange, NULL)
        svm_range_handle_list_op(piece, mm)
        piece = following


@protocol
def svm_range_deferred_list_work(svms: KfdProcess) -> None:
    """svm_range_deferred_list_work(): one range after the other; faults from before are drained first."""
    spin_lock(svms.deferred_list_lock)
    node = list_first(svms.deferred_range_list)
    while node:
        spin_unlock(svms.deferred_list_lock)
        prange = container_of(SvmRange, "deferred_list", node)
        mm = prange.mm
        down_write(mm.mmap_lock)
        while atomic_read(svms.drain_pagefaults):
            up_write(mm.mmap_lock)
            svm_range_drain_retry_fault(svms)
            down_write(mm.mmap_lock)
        spin_lock(svms.deferred_list_lock)
        list_del_init(prange.deferred_list)
        spin_unlock(svms.deferred_list_lock)
        mutex_lock(svms.lock)
        svm_range_handle_deferred(prange, mm)
        mutex_unlock(svms.lock)
        up_write(mm.mmap_lock)
        mmput_async(mm)
        spin_lock(svms.deferred_list_lock)
        node = list_first(svms.deferred_range_list)
    spin_unlock(svms.deferred_list_lock)


# --- mapping


@protocol
def svm_range_from_addr(svms: KfdProcess, addr: int) -> SvmRange:
    """svm_range_from_addr(): a range, or a child that waits to become one."""
    count("lookups")
    it_node = itree_first(svms.objects, addr, addr, LOOKUP_STEPS)
    if not it_node:
        return NULL
    prange = ItNode(it_node).prange
    piece = next_piece(prange, NULL)
    while piece:
        if addr >= piece.start and addr <= piece.last:
            return piece
        piece = next_piece(prange, piece)
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
    right = itree_first(svms.objects, addr + PAGE_SIZE, ULONG_MAX, LOOKUP_STEPS)
    if right:
        end = min(end, ItNode(right).start)
        left = itree_prev(right, LOOKUP_STEPS)
    else:
        left = itree_last(svms.objects, ULONG_MAX, LOOKUP_STEPS)
    if left:
        if ItNode(left).last >= addr:
            return NULL
        start = max(start, ItNode(left).last + 1)
    prange = svm_range_new(svms, start, end - 1)
    svm_range_add_to_svms(prange)
    svm_range_add_notifier_locked(mm, prange)
    return prange


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
    mutex_lock(prange.lock)
    if mmu_interval_read_retry(prange.notifier, hmm_range.seq) or not list_empty(prange.child_list):
        ret = -EAGAIN
    else:
        svm_range_map_to_gpus(prange, hmm_range, addr, end)
    mutex_unlock(prange.lock)
    return ret


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


# --- faults


@protocol
def svm_range_skip_recover(prange: SvmRange) -> int:
    """svm_range_skip_recover(): it is being unmapped, or it has no notifier yet."""
    svms = prange.svms
    spin_lock(svms.deferred_list_lock)
    idle = 0
    if list_empty(prange.deferred_list) and list_empty(prange.child_list):
        idle = 1
    spin_unlock(svms.deferred_list_lock)
    if idle:
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
        mutex_lock(prange.migrate_mutex)
        ret = 1
        if xnack:
            ret = svm_range_check_fault(mm, prange, addr, write)
        if ret > 0:
            ret = svm_range_validate_and_map(mm, prange)
            if xnack:
                count("kfd_page_fault_end")
        mutex_unlock(prange.migrate_mutex)
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


# --- restore, with xnack off


@protocol
def svm_range_restore_ranges(mm: Mm, svms: KfdProcess) -> int:
    """The loop of svm_range_restore_work(): 0 once every range that was invalid is mapped, and stayed so."""
    node = list_first(svms.list)
    while node:
        prange = container_of(SvmRange, "list", node)
        invalid = atomic_read(prange.invalid)
        if invalid:
            mutex_lock(prange.migrate_mutex)
            ret = svm_range_validate_and_map(mm, prange)
            mutex_unlock(prange.migrate_mutex)
            if ret:
                return ret
            if atomic_cmpxchg(prange.invalid, invalid, 0) != invalid:
                return -EAGAIN
        node = list_next(prange.list, svms.list)
    return 0


@protocol
def svm_range_restore_work(svms: KfdProcess) -> None:
    """svm_range_restore_work(): under mmap_lock for writing; queues start only if nothing was evicted meanwhile."""
    mm = svms.mm
    if not atomic_read(svms.evicted_ranges) or not mmget_not_zero(mm):
        return
    ret = -EAGAIN
    down_write(mm.mmap_lock)
    if list_empty(svms.deferred_range_list):  # else this has to wait for that: there is one worker here
        mutex_lock(svms.lock)
        evicted = atomic_read(svms.evicted_ranges)
        ret = svm_range_restore_ranges(mm, svms)
        if not ret and atomic_cmpxchg(svms.evicted_ranges, evicted, 0) != evicted:
            ret = -EAGAIN
        if not ret:
            kgd2kfd_resume_mm(svms.kfd)
        mutex_unlock(svms.lock)
    up_write(mm.mmap_lock)
    if ret == -EAGAIN:
        queue_work(svms.restore_work, svm_range_restore_work, svms)
    mmput_async(mm)  # mmput(), and the worker is here


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


# --- the device


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


@protocol
def kfd_process_notifier_release_internal(p: KfdProcess) -> None:
    """kfd_process_notifier_release_internal(): mmu_notifier_put(). The queues run on until the last reference goes."""
    kfd_unref_process(p)  # after a grace period, for which kfd_process_wq_release() waits


@protocol
def kfd_process_notifier_release(mn: Notifier, mm: Mm) -> int:
    """kfd_process_notifier_release(): out of the table, once."""
    p = KfdNotifier(mn).process
    kfd = p.kfd
    mutex_lock(kfd.processes_mutex)
    found = kfd.process
    kfd.process = NULL
    mutex_unlock(kfd.processes_mutex)
    if found:
        synchronize_srcu(kfd.processes_srcu)
        kfd_process_notifier_release_internal(p)
    return 0


kfd_process_mmu_notifier_ops = Ops("kfd_process_mmu_notifier_ops", mm_release=kfd_process_notifier_release)


@protocol
def svm_range_list_fini(svms: KfdProcess) -> None:
    """svm_range_list_fini(): the deferred work is over, for the one worker is here."""
    cancel_work(svms.restore_work)
    atomic_inc(svms.drain_pagefaults)
    svm_range_drain_retry_fault(svms)
    node = list_first(svms.list)
    while node:
        prange = container_of(SvmRange, "list", node)
        svm_range_unlink(prange)
        svm_range_remove_notifier(prange)
        svm_range_free(prange)
        node = list_first(svms.list)


@protocol
def kfd_process_wq_release(p: KfdProcess) -> None:
    """kfd_process_wq_release(): the queues, the ranges, the GPU's tables."""
    kfd = p.kfd
    synchronize_srcu(p.mm.srcu)
    kfd.queues = 0
    svm_range_list_fini(p)
    pt_free(kfd.pt)
    kfree(KfdNotifier(p.mmu_notifier))
    kfree(p)


@protocol
def kfd_open(mm: Mm, xnack: int, granularity: int) -> Kfd:
    """kfd_open(), kfd_create_process(), create_process(), svm_range_list_init()."""
    kfd = on_stack(Kfd)
    kfd.mm = mm
    pt_init(kfd.pt, 0, mm.task_size)
    p = kmalloc(KfdProcess, GFP_KERNEL)
    if not p:
        off_stack(kfd)
        return NULL
    p.kfd = kfd
    p.mm = mm
    p.xnack_enabled = xnack
    p.window = MAX_SVM_RANGE
    if xnack:
        p.window = PAGE_SIZE << granularity
    refcount_set(p.ref, 2)  # the file's and the notifier's
    mn = embedded(KfdNotifier)
    mn.process = p
    mn.ops = kfd_process_mmu_notifier_ops
    p.mmu_notifier = mn
    mmu_notifier_register(mn, mm)
    kfd.process = p
    kfd.opened = p
    kfd.queues = 1
    return kfd


@protocol
def kfd_release(kfd: Kfd) -> None:
    """kfd_release()."""
    p = KfdProcess(kfd.opened)
    mmu_notifier_unregister(p.mmu_notifier, kfd.mm)
    kfd_unref_process(p)


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
