"""nouveau-v6 with the smallest set of changes under which every scenario of the checker holds.

Only what differs from :mod:`faultpath.designs.nouveau_v6` is here; three of the seven changes are in the core
(:mod:`faultpath.kernel.mmu_notifier_v6_fixed`), four in the driver. Leave any one out and a scenario fails
(tests/designs/test_nouveau_v6_fixed.py says which). Intervals still follow VMAs.
"""

from __future__ import annotations

from faultpath.designs import nouveau_v6
from faultpath.designs.nouveau_v6 import (
    Svm,
    Svmm,
    Vmm,
    gpu_walk,
    nouveau_drm_open,
    nouveau_drm_postclose,
    nouveau_svm_fault,
    nouveau_svm_mni_ops,
    nouveau_svmm_invalidate,
)
from faultpath.driver import *
from faultpath.kernel import mmu_notifier_v6
from faultpath.kernel.mmu_notifier_v6 import (
    mmu_interval_notifier_insert_safe,
    mmu_interval_notifier_put,
    mmu_interval_notifier_update,
)
from faultpath.kernel.mmu_notifier_v6_fixed import (
    mmu_interval_notifier_find,
    mmu_interval_notifier_find_last,
    mmu_interval_notifier_synchronize,
)


class SvmmInterval(nouveau_v6.SvmmInterval):
    """The series' 112 bytes, a kref, and what the driver tracks: nothing once ``tracked_last`` is below its start."""

    interval_bytes = 136
    refs: RefCount
    tracked_start: int
    tracked_last: int


@protocol
def svmm_interval_get(smi: SvmmInterval) -> None:
    """Change 4: a fault holds a reference on the interval it found, from under the mutex to the end of its try.

    Forced by fault-vs-munmap: the interval's release comes at any time after the mutex is let go, and read_begin,
    hmm_range_fault and read_retry all read from it. Change 1 alone keeps it only as long as the mutex is held.
    """
    refcount_inc(smi.refs)


@protocol
def svmm_interval_put(smi: SvmmInterval) -> None:
    """kref_put()."""
    if refcount_dec_and_test(smi.refs):
        kfree(smi)


@protocol
def svmm_interval_done(smi: SvmmInterval) -> None:
    """The fault's own reference goes."""
    svmm_interval_put(smi)


@protocol(replaces=nouveau_v6.nouveau_svmm_interval_release)
def nouveau_svmm_interval_release(mni: IntervalNotifier) -> None:
    """nouveau_svmm_interval_release(): the tree's reference goes."""
    svmm_interval_put(SvmmInterval(mni))


@protocol(replaces=nouveau_v6.nouveau_svmm_new_interval)
def nouveau_svmm_new_interval(svmm: Svmm, start: int, last: int) -> SvmmInterval:
    """nouveau_svmm_new_interval(), for the larger structure."""
    smi = kmalloc(SvmmInterval, GFP_ATOMIC)
    if not smi:
        return NULL
    smi.svmm = svmm
    refcount_set(smi.refs, 1)
    smi.tracked_start = start
    smi.tracked_last = last
    if mmu_interval_notifier_insert_safe(smi, svmm.mm, start, last - start + 1, nouveau_svm_mni_ops):
        kfree(smi)
        return NULL
    return smi


@protocol
def track(smi: SvmmInterval, start: int, last: int) -> None:
    """What the driver wants of an interval, as of now and under its mutex; the tree follows at the last range_end."""
    smi.tracked_start = start
    smi.tracked_last = last
    if start > last:
        mmu_interval_notifier_put(smi)
    else:
        mmu_interval_notifier_update(smi, start, last)


@protocol(replaces=nouveau_v6.nouveau_svmm_do_unmap)
def nouveau_svmm_do_unmap(mni: IntervalNotifier, range: Range) -> None:
    """nouveau_svmm_do_unmap(). Change 5: it goes by what the driver still tracks, not by the bounds in the tree.

    Forced by background: a second munmap in one epoch calls the interval back by its old bounds, and puts again what is
    being removed: its list node is added twice. And by two-holes: the second hole updates the interval to bounds that
    reach into the piece right of the first. A ``put`` that may be repeated would mend only the former.
    """
    smi = SvmmInterval(mni)
    svmm = smi.svmm
    start = smi.tracked_start
    last = smi.tracked_last
    if start > last or last < range.start or start >= range.end:
        return
    if start >= range.start:
        if last < range.end:
            track(smi, 1, 0)
        else:
            track(smi, range.end, last)
        return
    track(smi, start, range.start - 1)
    if last >= range.end and not nouveau_svmm_new_interval(svmm, range.end, last):
        nouveau_svmm_invalidate(svmm, range.end, last + 1)


@protocol(replaces=nouveau_v6.nouveau_svmm_interval_find)
def nouveau_svmm_interval_find(svmm: Svmm, start: int) -> int:
    """nouveau_svmm_interval_find(): with changes 1 to 4; -EAGAIN when the tree has to be waited for."""
    with mutex_lock(svmm.mutex):
        found = mmu_interval_notifier_find(svmm.mm, nouveau_svm_mni_ops, svmm, start, start + PAGE_SIZE - 1)
        if not found:
            found = nouveau_svmm_interval_create(svmm, start)
        if found > 0:
            svmm_interval_get(SvmmInterval(found))
    return found


@protocol
def nouveau_svmm_interval_create(svmm: Svmm, start: int) -> int:
    """The second half of nouveau_svmm_interval_find(): an interval over the VMA, between its neighbours."""
    vma = find_vma(svmm.mm, start)
    if not vma or start < vma.start:
        return -ENOENT
    first = vma.start
    last = vma.last
    right = mmu_interval_notifier_find(svmm.mm, nouveau_svm_mni_ops, svmm, start + PAGE_SIZE, last)
    if right < 0:
        return right
    if right:
        last = IntervalNotifier(right).start - 1
    left = mmu_interval_notifier_find_last(svmm.mm, nouveau_svm_mni_ops, svmm, start - 1)
    if left < 0:
        return left
    if left:
        first = max(first, IntervalNotifier(left).last + 1)
    smi = nouveau_svmm_new_interval(svmm, first, last)
    if not smi:
        return -ENOMEM
    return smi


@protocol
def still_tracks(smi: SvmmInterval, addr: int) -> int:
    """Change 6: before it maps, a fault makes sure that the interval whose number it checks still covers the page.

    Forced by shrunk-interval: a fault that found the interval before munmap's callback and called read_begin after it
    holds a number that stays valid, and the interval shrinks without another; and by failed-allocation, where no other
    interval comes in its place. The bounds in the tree will not do: range_end moves the sequence number on before it
    gets to them, and read_begin's wait takes no lock. Nor does an interval that is removed change them.
    """
    return smi.tracked_start <= addr and addr <= smi.tracked_last


@protocol(replaces=nouveau_v6.nouveau_range_fault)
def nouveau_range_fault(svmm: Svmm, addr: int, write: int) -> int:
    """nouveau_range_fault(), with changes 1, 4 and 6."""
    mm = svmm.mm
    while not timed_out():
        down_read(mm.mmap_lock)
        found = nouveau_svmm_interval_find(svmm, addr)
        if found < 0:
            up_read(mm.mmap_lock)
            if found != -EAGAIN:
                return found
            mmu_interval_notifier_synchronize(mm)
            count("fault_retries")
            continue
        smi = SvmmInterval(found)
        seq = mmu_interval_read_begin(smi)
        pfn = hmm_range_fault(mm, smi, seq, addr, write)
        up_read(mm.mmap_lock)
        if pfn < 0:
            svmm_interval_done(smi)
            if pfn != -EBUSY:
                return pfn
            count("fault_retries")
            continue
        mutex_lock(svmm.mutex)
        if not mmu_interval_read_retry(smi, seq) and still_tracks(smi, addr):
            count("device_commands")  # NVIF_VMM_V0_PFNMAP
            pt_set(svmm.vmm.pt, addr, pfn)
            mutex_unlock(svmm.mutex)
            svmm_interval_done(smi)
            return 0
        mutex_unlock(svmm.mutex)
        svmm_interval_done(smi)
        count("fault_retries")
    return -EBUSY


@protocol
def fault_work(svm: Svm, addr: int, write: int) -> int:
    """The work item that runs nouveau_svm_fault(), so that it can be flushed."""
    svm.handling = 1
    ret = nouveau_svm_fault(svm, addr, write)
    svm.handling = 0
    return ret


@protocol
def flush_fault_work(svm: Svm) -> None:
    """Change 7: closing waits for the fault handler, which may still have the svmm, as b46ddaf08234 does since 2026.

    Forced by teardown-vs-fault. A reference on the svmm would keep the memory, but the handler would go on to map
    through ``svmm->vmm``, which is gone.
    """
    wait_until(not svm.handling)


@protocol(replaces=nouveau_v6.nouveau_svmm_part)
def nouveau_svmm_part(svm: Svm) -> None:
    """nouveau_svmm_part(): who finds the svmm from now on finds none; who found it is waited for.

    nouveau flushes in nouveau_svmm_fini(), which comes next and knows the GPU; here it does not.
    """
    with mutex_lock(svm.mutex):
        svm.ivmm = NULL
    flush_fault_work(svm)


@protocol(replaces=nouveau_v6.nouveau_svmm_fini)
def nouveau_svmm_fini(vmm: Vmm) -> None:
    """nouveau_svmm_fini(): as ``find`` answers only when nothing is deferred, none left means none to come."""
    svmm = Svmm(vmm.svmm)
    mm = svmm.mm
    mutex_lock(svmm.mutex)
    while found := mmu_interval_notifier_find(mm, nouveau_svm_mni_ops, svmm, 0, ULONG_MAX):
        if found > 0:
            SvmmInterval(found).tracked_last = 0
            mmu_interval_notifier_put(IntervalNotifier(found))
        else:
            mutex_unlock(svmm.mutex)
            mmu_interval_notifier_synchronize(mm)
            mutex_lock(svmm.mutex)
    svmm.vmm = NULL
    mutex_unlock(svmm.mutex)
    mmdrop(mm)
    kfree(svmm)
    vmm.svmm = NULL


design = Design(
    name="nouveau-v6-fixed",
    title="intervals follow VMAs, mended",
    source="nouveau-v6 with seven changes, each forced by a counterexample of the checker",
    open=nouveau_drm_open,
    fault=fault_work,
    walk=gpu_walk,
    close=nouveau_drm_postclose,
    ops=[nouveau_svm_mni_ops],
    core=mmu_notifier_v6,
    replaces=[
        nouveau_svmm_interval_release,
        nouveau_svmm_new_interval,
        nouveau_svmm_do_unmap,
        nouveau_svmm_interval_find,
        nouveau_range_fault,
        nouveau_svmm_part,
        nouveau_svmm_fini,
    ],
    disjoint=True,
    doc=__doc__,
)
