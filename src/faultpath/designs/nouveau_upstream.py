"""One plain notifier for the whole mm, and one interval per fault: nouveau as it has been since 2019 (Linux 5.5).

The device is cleared by the plain notifier, which hears every event of the process. What an interval is for is the
sequence number alone: one of the faulting page lies on the fault worker's stack for as long as the fault takes. There
is nothing to look up, shrink or split, and no memory but the svmm's. In exchange every event costs a command over its
whole range, wherever it is, every fault an insertion and a removal, and a removal waits out whatever invalidation runs.

It is right because interval notifiers are called before plain ones: the number moves before the device is cleared, both
under ``svmm->mutex``. A fault maps before the one and is cleared, or comes after the other and retries.

Only what differs from :mod:`faultpath.designs.nouveau_v6` is here. The GPU, its channel, and what is said there of them
are the same: one fault is one page, one channel, no unmanaged range, no migration to device memory. Nor are atomic
faults (make_device_exclusive_range()) modelled, nor pages larger than 4 KiB: no PTE here is. A plain notifier that is
put is freed after an SRCU grace period. nouveau exports no statistics of its SVM: there are no counters of its own.

What check finds is in docs/findings.md: the device keeps its PTEs past exit_mmap(), an OOM reaper leaves a count
behind for which every later fault waits, and the fault worker goes on with an svmm that is freed.
"""

from __future__ import annotations

from faultpath.designs import nouveau_v6
from faultpath.designs.nouveau_v6 import (
    Svmm,
    Vmm,
    gpu_walk,
    nouveau_drm_open,
    nouveau_drm_postclose,
    nouveau_svm_fault,
    nouveau_svmm_invalidate,
)
from faultpath.driver import *


class UpstreamSvmm(Svmm):
    """``struct nouveau_svmm``; ``mm`` is the notifier's in C."""

    notifier: Member[Notifier]


class SvmNotifier(IntervalNotifier):
    """``struct svm_notifier``, on the stack of the fault worker."""

    svmm: UpstreamSvmm


@protocol
def nouveau_svmm_invalidate_range_start(mn: Notifier, range: Range) -> int:
    """nouveau_svmm_invalidate_range_start(): refuses whatever must not block, whether or not anybody has the mutex."""
    svmm = container_of(UpstreamSvmm, "notifier", mn)
    if not range.blockable:
        return -EAGAIN
    with mutex_lock(svmm.mutex):
        if svmm.vmm:
            nouveau_svmm_invalidate(svmm, range.start, range.end)
    return 0


@protocol
def nouveau_svmm_free_notifier(mn: Notifier) -> None:
    """nouveau_svmm_free_notifier()."""
    kfree(container_of(UpstreamSvmm, "notifier", mn))


nouveau_mn_ops = Ops(
    "nouveau_mn_ops",
    invalidate_range_start=nouveau_svmm_invalidate_range_start,
    free_notifier=nouveau_svmm_free_notifier,
)


@protocol
def nouveau_svm_range_invalidate(mni: IntervalNotifier, range: Range, cur_seq: int) -> int:
    """nouveau_svm_range_invalidate(): moves the sequence number and leaves the device to the plain notifier."""
    svmm = SvmNotifier(mni).svmm
    if range.blockable:
        mutex_lock(svmm.mutex)
    elif not mutex_trylock(svmm.mutex):
        return 0
    mmu_interval_set_seq(mni, cur_seq)
    mutex_unlock(svmm.mutex)
    return 1


nouveau_svm_mni_ops = Ops("nouveau_svm_mni_ops", invalidate=nouveau_svm_range_invalidate)


@protocol(replaces=nouveau_v6.nouveau_svmm_init)
def nouveau_svmm_init(mm: Mm, vmm: Vmm) -> int:
    """nouveau_svmm_init(): the notifier owns the svmm from here on."""
    svmm = kmalloc(UpstreamSvmm, GFP_KERNEL)
    if not svmm:
        return -ENOMEM
    svmm.vmm = vmm
    svmm.mm = mm
    svmm.notifier.ops = nouveau_mn_ops
    mmu_notifier_register(svmm.notifier, mm)
    vmm.svmm = svmm
    return 0


@protocol(replaces=nouveau_v6.nouveau_range_fault)
def nouveau_range_fault(svmm: Svmm, addr: int, write: int) -> int:
    """nouveau_range_fault() and its caller's svm_notifier."""
    notifier = on_stack(SvmNotifier)
    notifier.svmm = UpstreamSvmm(svmm)
    mmu_interval_notifier_insert(notifier, svmm.mm, addr, PAGE_SIZE, nouveau_svm_mni_ops)
    ret = fault_loop(svmm, notifier, addr, write)
    mmu_interval_notifier_remove(notifier)
    off_stack(notifier)
    return ret


@protocol
def fault_loop(svmm: Svmm, mni: IntervalNotifier, addr: int, write: int) -> int:
    """The loop of nouveau_range_fault() and the command that follows it, under the mutex with which it ends."""
    mm = svmm.mm
    while not timed_out():
        seq = mmu_interval_read_begin(mni)
        with down_read(mm.mmap_lock):
            pfn = hmm_range_fault(mm, mni, seq, addr, write)
        if pfn == -EBUSY:
            count("fault_retries")
            continue
        if pfn < 0:
            return pfn
        with mutex_lock(svmm.mutex):
            if not mmu_interval_read_retry(mni, seq):
                count("device_commands")  # NVIF_VMM_V0_PFNMAP
                pt_set(svmm.vmm.pt, addr, pfn)
                return 0
        count("fault_retries")
    return -EBUSY


@protocol(replaces=nouveau_v6.nouveau_svmm_fini)
def nouveau_svmm_fini(vmm: Vmm) -> None:
    """nouveau_svmm_fini(), before b46ddaf08234 (2026) made it wait for the fault worker."""
    svmm = UpstreamSvmm(vmm.svmm)
    with mutex_lock(svmm.mutex):
        svmm.vmm = NULL
    mmu_notifier_put(svmm.notifier)
    vmm.svmm = NULL


design = Design(
    name="nouveau-upstream",
    title="one notifier for the mm, one interval per fault",
    source="drivers/gpu/drm/nouveau/nouveau_svm.c, Linux 6.1",
    open=nouveau_drm_open,
    fault=nouveau_svm_fault,
    walk=gpu_walk,
    close=nouveau_drm_postclose,
    ops=[nouveau_mn_ops, nouveau_svm_mni_ops],
    replaces=[nouveau_svmm_init, nouveau_range_fault, nouveau_svmm_fini],
    never={PARALLEL_FAULTS: "one worker serves the fault buffer of a GPU"},
    doc=__doc__,
)
