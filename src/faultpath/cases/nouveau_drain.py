"""nouveau: the fault handler goes on with a svmm that its client has freed.

The handler looks the svmm up by the faulting channel, under svm->mutex, and lets the mutex go before it handles the
fault, which may take long. The client's exit takes the svmm off the list under that mutex, and frees it.

The fix lets the handler's work drain between the two: what has found the svmm is over, and nobody finds it any more.
"""

from __future__ import annotations

import dataclasses

from faultpath.cases import mirror
from faultpath.cases.case import BUGGY, FINAL_FIX, HOLDS, Case, Variant, memory
from faultpath.driver import *
from faultpath.scenario import SPAN, Scenario, close, fault


class Svmm(Notifier):
    """``struct nouveau_svmm``, which begins with its mmu_notifier here."""

    svm: int  # the Svm
    mutex: Mutex


class Svm(Device):
    """``struct nouveau_svm``, one per GPU, and the one channel on it."""

    mutex: ParentMutex
    ivmm: Svmm  # svm->inst: whose faults the channel's are
    buffer: Work  # the fault buffer's work item
    pt: PageTable


class SvmNotifier(IntervalNotifier):
    """``struct svm_notifier``: there for the time of one fault, on the handler's stack."""

    svmm: Svmm


@protocol
def nouveau_svmm_invalidate_range_start(mn: Notifier, range: Range) -> int:
    """nouveau_svmm_invalidate_range_start(): what is mapped is cleared."""
    svmm = Svmm(mn)
    with mutex_lock(svmm.mutex):
        device_zap(Svm(svmm.svm).pt, range.start, range.end)
    return 0


@protocol
def nouveau_svm_range_invalidate(mni: IntervalNotifier, range: Range, cur_seq: int) -> int:
    """nouveau_svm_range_invalidate(): what is being mapped is told."""
    sn = SvmNotifier(mni)
    with mutex_lock(sn.svmm.mutex):
        mmu_interval_set_seq(mni, cur_seq)
    return 1


nouveau_mn_ops = Ops("nouveau_mn_ops", invalidate_range_start=nouveau_svmm_invalidate_range_start)
nouveau_svm_mni_ops = Ops("nouveau_svm_mni_ops", invalidate=nouveau_svm_range_invalidate)


@protocol
def nouveau_svmm_init(mm: Mm) -> Svm:
    """The GPU, nouveau_svmm_init() of a client, and nouveau_svmm_join() of its channel."""
    svm = on_stack(Svm)
    svm.mm = mm
    pt_init(svm.pt, 0, mm.task_size)
    svmm = kmalloc(Svmm, GFP_KERNEL)
    if not svmm:
        return NULL
    svmm.svm = svm
    svmm.ops = nouveau_mn_ops
    mmu_notifier_register(svmm, mm)
    svm.ivmm = svmm
    return svm


@protocol
def nouveau_range_fault(svm: Svm, svmm: Svmm, addr: int) -> int:
    """nouveau_range_fault() with the interval of nouveau_svm_fault()."""
    mm = svmm.mm
    sn = on_stack(SvmNotifier)
    sn.svmm = svmm
    mmu_interval_notifier_insert(sn, mm, addr, PAGE_SIZE, nouveau_svm_mni_ops)
    ret = -EBUSY
    while ret == -EBUSY and not timed_out():
        seq = mmu_interval_read_begin(sn)
        with down_read(mm.mmap_lock):
            ret = hmm_range_fault(mm, sn, seq, addr, 1)
        if ret >= 0:
            with mutex_lock(svmm.mutex):
                if mmu_interval_read_retry(sn, seq):
                    ret = -EBUSY
                else:
                    pt_set(svm.pt, addr, ret)
    mmu_interval_notifier_remove(sn)
    off_stack(sn)
    return ret


@protocol
def nouveau_svm_fault(svm: Svm) -> None:
    """nouveau_svm_fault(): the work item's function, for one entry of the fault buffer."""
    with mutex_lock(svm.mutex):
        svmm = svm.ivmm  # nouveau_ivmm_find()
    if svmm:
        nouveau_range_fault(svm, svmm, SPAN)


@protocol
def nouveau_svm_event(svm: Svm, addr: int, write: int) -> int:
    """nouveau_svm_event(): the GPU's interrupt."""
    queue_work(svm.buffer, nouveau_svm_fault, svm)
    return 0


@protocol
def drain_fault_handler(svm: Svm) -> None:
    """Until the fix: nothing waits."""
    return


@protocol(replaces=drain_fault_handler)
def flush_fault_handler(svm: Svm) -> None:
    """After b46ddaf08234: what has found the svmm is over."""
    flush_work(svm.buffer)


@protocol
def nouveau_svmm_fini(svm: Svm) -> None:
    """nouveau_svmm_part() and nouveau_svmm_fini(), whose mmu_notifier_put() frees after a grace period."""
    svmm = svm.ivmm
    with mutex_lock(svm.mutex):
        svm.ivmm = Svmm(NULL)
    drain_fault_handler(svm)
    mmu_notifier_unregister(svmm, svmm.mm)
    kfree(svmm)


@protocol
def gpu_walk(svm: Svm, addr: int) -> int:
    """What the GPU's MMU finds."""
    return pt_get(svm.pt, addr)


BEFORE = dataclasses.replace(
    mirror.design,
    name="nouveau",
    open=nouveau_svmm_init,
    fault=nouveau_svm_event,
    walk=gpu_walk,
    close=nouveau_svmm_fini,
    ops=[nouveau_mn_ops, nouveau_svm_mni_ops],
)
AFTER = dataclasses.replace(BEFORE, replaces=[*BEFORE.replaces, flush_fault_handler])

SCENARIO = Scenario("fini-vs-handler", "A client exits during a fault of its.", memory(1), [fault(0), close()], pages=1)

case = Case(
    name="nouveau-drain",
    title="drm/nouveau/svm: drain fault handler before freeing svmm",
    cve="",
    property="lifetime",
    source="drivers/gpu/drm/nouveau/nouveau_svm.c:nouveau_svmm_fini(), nouveau_svm_fault()",
    variants=[
        Variant(BUGGY, BEFORE, SCENARIO, "lifetime"),
        Variant(FINAL_FIX, AFTER, SCENARIO, HOLDS, "b46ddaf08234", "2026-08"),
    ],
    doc=__doc__,
)
