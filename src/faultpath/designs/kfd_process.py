"""amdkfd's process, the file that it is opened by, its queues: kfd_process.c and kfd_chardev.c, Linux 6.1."""

from __future__ import annotations

from faultpath.designs.kfd_priv import Kfd, KfdProcess
from faultpath.designs.kfd_svm_range import svm_range_list_fini
from faultpath.driver import *

MAX_SVM_RANGE = 1 << 30


@protocol
def kfd_lookup_process(kfd: Kfd) -> KfdProcess:
    """kfd_lookup_process_by_pasid() and kfd_lookup_process_by_mm(): with a reference, or NULL."""
    with srcu_read_lock(kfd.processes_srcu):
        if p := KfdProcess(kfd.process):
            refcount_inc(p.ref)
    return p


@protocol
def kfd_unref_process(p: KfdProcess) -> None:
    """kfd_unref_process()."""
    if refcount_dec_and_test(p.ref):
        queue_work(p.release_work, kfd_process_wq_release, p)


@protocol
def kfd_process_wq_release(p: KfdProcess) -> None:
    """kfd_process_wq_release(): the queues, the ranges, the GPU's tables."""
    kfd = p.kfd
    synchronize_srcu(p.mm.srcu)
    kfd.queues = 0
    svm_range_list_fini(p)
    pt_free(kfd.pt)
    kfree(p)


@protocol
def kfd_process_notifier_release_internal(p: KfdProcess) -> None:
    """kfd_process_notifier_release_internal(): mmu_notifier_put(). The queues run on until the last reference goes."""
    kfd_unref_process(p)  # after a grace period, for which kfd_process_wq_release() waits


@protocol
def kfd_process_notifier_release(mn: Notifier, mm: Mm) -> int:
    """kfd_process_notifier_release(): out of the table, once."""
    p = container_of(KfdProcess, "mmu_notifier", mn)
    kfd = p.kfd
    with mutex_lock(kfd.processes_mutex):
        found = kfd.process
        kfd.process = NULL
    if found:
        synchronize_srcu(kfd.processes_srcu)
        kfd_process_notifier_release_internal(p)
    return 0


kfd_process_mmu_notifier_ops = Ops("kfd_process_mmu_notifier_ops", mm_release=kfd_process_notifier_release)


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
    p.mmu_notifier.ops = kfd_process_mmu_notifier_ops
    mmu_notifier_register(p.mmu_notifier, mm)
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


# --- the queues


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
