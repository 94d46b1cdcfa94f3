"""amdkfd: a retry fault that is older than the munmap() it meets kills the queue.

A GPU's retry faults wait in a ring. munmap() takes the VMA away before its UNMAP is raised, and the driver takes its
range away later still, in a work item. The handler finds the range, finds no VMA, fails to validate, and reports a
fault that nobody can mend; but the access was made when the page was still mapped, and nothing is wrong.

The fix recognises a range without a VMA: the fault is stale, and is said to be done. The GPU tries again; what it then
finds is another matter, as is draining the ring before the range goes, which the work item does.

``fatal`` is what the GPU is told; that it never is, is the design's own rule here. The work item has not run yet.
"""

from __future__ import annotations

import dataclasses

from faultpath.cases import mirror
from faultpath.cases.case import BUGGY, FINAL_FIX, HOLDS, Case, Variant, memory
from faultpath.cases.mirror import Mirror, mirror_init, mirror_ops
from faultpath.driver import *
from faultpath.scenario import Scenario, fault, munmap


class Svms(Mirror):
    """``struct svm_range_list``, with one range."""

    fatal: int


@protocol
def svm_range_add(mm: Mm) -> Svms:
    """svm_range_set_attr() of one range."""
    svms = kmalloc(Svms, GFP_KERNEL)
    if not svms:
        return NULL
    mirror_init(svms, mm, mirror_ops)
    return svms


@protocol
def vma_is_removed(svms: Svms, addr: int) -> int:
    """Until 5.15: svm_fault_allowed() lets it pass."""
    return 0


@protocol(replaces=vma_is_removed)
def look_for_the_vma(svms: Svms, addr: int) -> int:
    """After 0cc53cb45066: mmap_lock is held."""
    if vma_at(svms.mm, addr):
        return 0
    return 1


@protocol
def map_if_valid(svms: Svms, addr: int, pfn: int, seq: int) -> int:
    """amdgpu_hmm_range_get_pages_done() under the range's lock, and svm_range_map_to_gpus()."""
    ret = -EBUSY
    with mutex_lock(svms.notifier_lock):
        if not mmu_interval_read_retry(svms.notifier, seq):
            pt_set(svms.pt, addr, pfn)
            ret = 0
    return ret


@protocol
def svm_range_restore_pages(svms: Svms, addr: int, write: int) -> int:
    """svm_range_restore_pages() and svm_range_validate_and_map(), of an entry that was in the ring before."""
    mm = svms.mm
    mni = svms.notifier
    ret = -EBUSY
    with down_read(mm.mmap_lock):
        if vma_is_removed(svms, addr):
            ret = 0
        while ret == -EBUSY and not timed_out():
            seq = mmu_interval_read_begin(mni)
            ret = hmm_range_fault(mm, mni, seq, addr, write)
            if ret > 0:
                ret = map_if_valid(svms, addr, ret, seq)
            if ret == -EBUSY:
                count("fault_retries")
    if ret == -EFAULT:
        svms.fatal = 1
    return ret


@protocol
def no_fault_is_fatal(svms: Svms) -> int:
    """The process has done nothing wrong."""
    return svms.fatal


BEFORE = dataclasses.replace(
    mirror.design, name="amdkfd", open=svm_range_add, fault=svm_range_restore_pages, invariant=no_fault_is_fatal
)
AFTER = dataclasses.replace(BEFORE, replaces=[*BEFORE.replaces, look_for_the_vma])

SCENARIO = Scenario(
    "stale-fault-vs-munmap",
    "A fault that was in the ring, while its page is unmapped.",
    memory(1),
    [fault(0), munmap(0, 1)],
    pages=1,
)

case = Case(
    name="amdkfd-vma-removed",
    title="drm/amdkfd: handle VMA remove race",
    cve="",
    property="structure",
    source="drivers/gpu/drm/amd/amdkfd/kfd_svm.c:svm_range_restore_pages()",
    variants=[
        Variant(BUGGY, BEFORE, SCENARIO, "structure"),
        Variant(FINAL_FIX, AFTER, SCENARIO, HOLDS, "0cc53cb45066", "5.16"),
    ],
    doc=__doc__,
)
