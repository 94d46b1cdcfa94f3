"""Intervals that follow VMAs: nouveau as "[PATCH v6 5/6] nouveau: use new mmu interval notifiers" has it.

Each interval covers about one VMA, clipped by its neighbours. A fault looks for an interval in the core's tree, under
the driver's mutex and the core's spinlock, and creates one over the whole VMA if there is none. munmap shrinks,
splits or drops intervals from within the callback, which the core defers to the last range_end.

It trades bookkeeping on the fault path and in munmap for few intervals and few callbacks that find nothing. Each
callback clears the event's whole range, not clipped to the interval. Growth of a VMA raises no event, so each grown
part gets an interval of its own; nothing merges them again.

Found by replaying real programs: for its left neighbour a new interval takes what find() returns, the first interval in
the VMA and not the nearest. Once a VMA holds two, the next one overlaps the second, though "we only create
non-overlapping intervals"; in a heap that grows, one event calls back hundreds of them.

The fault handler looks the svmm up by the faulting channel, under ``svm->mutex``, and goes on with it after it has let
the mutex go: nothing keeps nouveau_svmm_fini() from freeing it meanwhile (b46ddaf08234 mended that in 2026).

One device fault is one entry of the fault buffer here: the window is one page. There is one channel, so the list of
channels is one pointer. The unmanaged range, the batching of faults and migration to device memory are not modelled.
"""

from __future__ import annotations

from faultpath.driver import *
from faultpath.kernel import mmu_notifier_v6
from faultpath.kernel.mmu_notifier_v6 import (
    mmu_interval_notifier_find,
    mmu_interval_notifier_insert_safe,
    mmu_interval_notifier_put,
    mmu_interval_notifier_update,
)


class Vmm(Struct):
    """``struct nouveau_vmm``, the client's ``cli->svm``: the GPU's page table, and the svmm that mirrors into it."""

    svmm: int  # the Svmm, or NULL
    pt: PageTable


class Svmm(Struct):
    """``struct nouveau_svmm``."""

    mm: Mm
    vmm: Vmm
    mutex: Mutex


class Svm(Device):
    """``struct nouveau_svm``, one per GPU, and the one channel on it."""

    mutex: ParentMutex
    ivmm: Svmm  # svm->inst: whose faults the channel's are
    vmm: Vmm  # chan->vmm: what the GPU translates with, NULL when the channel is gone
    handling: int  # the fault handler runs, for those who wait for it: nobody in the series


class SvmmInterval(IntervalNotifier):
    """``struct svmm_interval``: 104 bytes of mmu_interval_notifier with the series applied, and a pointer."""

    interval_bytes = 112
    svmm: Svmm


@protocol
def nouveau_svmm_init(mm: Mm, vmm: Vmm) -> int:
    """nouveau_svmm_init(): the mm gets its interval tree (__mmu_notifier_register(NULL)), no notifier yet."""
    svmm = kmalloc(Svmm, GFP_KERNEL)
    if not svmm:
        return -ENOMEM
    svmm.vmm = vmm
    mmgrab(mm)
    svmm.mm = mm
    vmm.svmm = svmm
    return 0


@protocol
def nouveau_svmm_join(svm: Svm, svmm: Svmm) -> None:
    """nouveau_svmm_join(): faults of the channel are the svmm's from now on."""
    with mutex_lock(svm.mutex):
        svm.ivmm = svmm


@protocol
def nouveau_svmm_part(svm: Svm) -> None:
    """nouveau_svmm_part(): faults of the channel are nobody's from now on; one being handled goes on."""
    with mutex_lock(svm.mutex):
        svm.ivmm = NULL


@protocol
def nouveau_drm_open(mm: Mm) -> Svm:
    """What the client does first: nvif_vmm_init(), nouveau_svmm_init(), and a channel (nouveau_channel_new())."""
    vmm = on_stack(Vmm)
    pt_init(vmm.pt, 0, mm.task_size)
    if nouveau_svmm_init(mm, vmm):
        off_stack(vmm)
        return NULL
    svm = on_stack(Svm)
    svm.mm = mm
    svm.vmm = vmm
    nouveau_svmm_join(svm, Svmm(vmm.svmm))
    return svm


@protocol
def nouveau_svmm_invalidate(svmm: Svmm, start: int, limit: int) -> None:
    """nouveau_svmm_invalidate(): NVIF_VMM_V0_PFNCLR over ``[start, limit)``, which visits what is mapped there."""
    if limit > start:
        count("device_commands")
        device_zap(svmm.vmm.pt, start, limit)


@protocol
def nouveau_svmm_new_interval(svmm: Svmm, start: int, last: int) -> SvmmInterval:
    """nouveau_svmm_new_interval(): atomic allocation, for it may run in the callback."""
    smi = kmalloc(SvmmInterval, GFP_ATOMIC)
    if not smi:
        return NULL
    smi.svmm = svmm
    if mmu_interval_notifier_insert_safe(smi, svmm.mm, start, last - start + 1, nouveau_svm_mni_ops):
        kfree(smi)
        return NULL
    return smi


@protocol
def nouveau_svmm_do_unmap(mni: IntervalNotifier, range: Range) -> None:
    """nouveau_svmm_do_unmap(): stop tracking what is being unmapped. ``last <= range.end`` is the series' own test."""
    svmm = SvmmInterval(mni).svmm
    start = mni.start
    last = mni.last
    if start >= range.start:
        if last <= range.end:
            mmu_interval_notifier_put(mni)
        else:
            mmu_interval_notifier_update(mni, range.end, last)
        return
    mmu_interval_notifier_update(mni, start, range.start - 1)
    if last >= range.end and not nouveau_svmm_new_interval(svmm, range.end, last):
        nouveau_svmm_invalidate(svmm, range.end, last + 1)


@protocol
def nouveau_svmm_interval_invalidate(mni: IntervalNotifier, range: Range, cur_seq: int) -> int:
    """nouveau_svmm_interval_invalidate(): clears the event's range as it is, once per interval it touches."""
    svmm = SvmmInterval(mni).svmm
    if range.blockable:
        mutex_lock(svmm.mutex)
    elif not mutex_trylock(svmm.mutex):
        return 0
    mmu_interval_set_seq(mni, cur_seq)
    nouveau_svmm_invalidate(svmm, range.start, range.end)
    if range.event == MMU_NOTIFY_UNMAP:
        nouveau_svmm_do_unmap(mni, range)
    mutex_unlock(svmm.mutex)
    return 1


@protocol
def nouveau_svmm_interval_release(mni: IntervalNotifier) -> None:
    """nouveau_svmm_interval_release()."""
    kfree(SvmmInterval(mni))


@protocol
def nouveau_svmm_interval_owner(mni: IntervalNotifier) -> int:
    """Whose it is. The series does not ask; the checker does, for intervals of two clients may overlap."""
    return SvmmInterval(mni).svmm


nouveau_svm_mni_ops = Ops(
    "nouveau_svm_mni_ops",
    invalidate=nouveau_svmm_interval_invalidate,
    release=nouveau_svmm_interval_release,
    owner=nouveau_svmm_interval_owner,
)


@protocol
def nouveau_svmm_interval_find(svmm: Svmm, start: int) -> int:
    """nouveau_svmm_interval_find() for a window of one page at ``start``: an interval, or -errno."""
    end = start + PAGE_SIZE
    last = end - 1
    with mutex_lock(svmm.mutex):
        mni = mmu_interval_notifier_find(svmm.mm, nouveau_svm_mni_ops, start, last)
        if mni and start >= mni.start:
            return mni
        vma = find_vma(svmm.mm, start)
        if not vma or start < vma.start:
            return -ENOENT
        if right := mmu_interval_notifier_find(svmm.mm, nouveau_svm_mni_ops, end, vma.last):
            last = right.start - 1
        else:
            last = vma.last
        if left := mmu_interval_notifier_find(svmm.mm, nouveau_svm_mni_ops, vma.start, start - 1):
            start = left.last + 1
        else:
            start = vma.start
        smi = nouveau_svmm_new_interval(svmm, start, last)
    if not smi:
        return -ENOMEM
    return smi


@protocol
def nouveau_range_fault(svmm: Svmm, addr: int, write: int) -> int:
    """nouveau_range_fault(): read_begin may sleep, under mmap_sem."""
    mm = svmm.mm
    while not timed_out():
        with down_read(mm.mmap_lock):
            found = nouveau_svmm_interval_find(svmm, addr)
            if found < 0:
                return found
            mni = IntervalNotifier(found)
            seq = mmu_interval_read_begin(mni)
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


@protocol
def nouveau_svm_fault(svm: Svm, addr: int, write: int) -> int:
    """nouveau_svm_fault() for one entry of the fault buffer; -ENOENT: cancelled, as of a channel without SVM."""
    with mutex_lock(svm.mutex):
        svmm = svm.ivmm  # nouveau_ivmm_find()
    if not svmm:
        return -ENOENT
    mm = svmm.mm
    if not mmget_not_zero(mm):
        return -EFAULT
    ret = nouveau_range_fault(svmm, addr, write)
    mmput(mm)
    return ret


@protocol
def gpu_walk(svm: Svm, addr: int) -> int:
    """What the GPU's MMU finds."""
    if not svm.vmm:
        return 0
    return pt_get(svm.vmm.pt, addr)


@protocol
def nouveau_svmm_fini(vmm: Vmm) -> None:
    """nouveau_svmm_fini(): put whatever find still finds, then free."""
    svmm = Svmm(vmm.svmm)
    mm = svmm.mm
    with mutex_lock(svmm.mutex):
        while mni := mmu_interval_notifier_find(mm, nouveau_svm_mni_ops, 0, ULONG_MAX):
            mmu_interval_notifier_put(mni)
        svmm.vmm = NULL
    mmdrop(mm)
    kfree(svmm)
    vmm.svmm = NULL


@protocol
def nouveau_drm_postclose(svm: Svm) -> None:
    """nouveau_drm_postclose(): nouveau_channel_del(), which parts before the channel stops; then nouveau_vmm_fini()."""
    vmm = svm.vmm
    nouveau_svmm_part(svm)
    svm.vmm = NULL
    nouveau_svmm_fini(vmm)
    pt_free(vmm.pt)  # nvif_vmm_fini()
    off_stack(vmm)


design = Design(
    name="nouveau-v6",
    title="intervals follow VMAs",
    source="[PATCH v6 5/6] nouveau: use new mmu interval notifiers, Ralph Campbell, 2020-01-13, on v5.5-rc",
    open=nouveau_drm_open,
    fault=nouveau_svm_fault,
    walk=gpu_walk,
    close=nouveau_drm_postclose,
    ops=[nouveau_svm_mni_ops],
    core=mmu_notifier_v6,
    never={PARALLEL_FAULTS: "one worker serves the fault buffer of a GPU"},
    disjoint=True,
    doc=__doc__,
)
