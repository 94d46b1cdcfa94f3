"""xe: the callback clears the GPU's page tables, and leaves the IOMMU's.

A userptr's pages are mapped for DMA when they are collected, and were unmapped when they are collected again, or the
userptr goes. Between the callback and that the pages are somebody else's, and the IOMMU still lets the device at them.

The fix unmaps them in the callback.

Of the two tables only the IOMMU's is here: what a device that does as it pleases could reach.
"""

from __future__ import annotations

import dataclasses

from faultpath.cases import mirror
from faultpath.cases.case import BUGGY, FINAL_FIX, HOLDS, Case, Variant, memory
from faultpath.cases.mirror import Mirror, mirror_create
from faultpath.driver import *
from faultpath.scenario import Scenario, fault, reclaim


@protocol
def xe_hmm_userptr_unmap(uptr: Mirror, start: int, end: int) -> None:
    """Until 6.13 the callback does not: xe_hmm_userptr_free_sg() will."""
    return


@protocol(replaces=xe_hmm_userptr_unmap)
def dma_unmap_sgtable(uptr: Mirror, start: int, end: int) -> None:
    """xe_hmm_userptr_unmap() after 333b89061743."""
    device_zap(uptr.pt, start, end)


@protocol
def vma_userptr_invalidate(mni: IntervalNotifier, range: Range, cur_seq: int) -> int:
    """vma_userptr_invalidate(); the GPU's page tables are zapped, too."""
    uptr = container_of(Mirror, "notifier", mni)
    with mutex_lock(uptr.notifier_lock):
        mmu_interval_set_seq(mni, cur_seq)
        xe_hmm_userptr_unmap(uptr, range.start, range.end)
    return 1


vma_userptr_notifier_ops = Ops("vma_userptr_notifier_ops", invalidate=vma_userptr_invalidate)


@protocol
def xe_vma_userptr_init(mm: Mm) -> Mirror:
    """xe_vma_create() of a userptr."""
    return mirror_create(mm, vma_userptr_notifier_ops)


BEFORE = dataclasses.replace(mirror.design, name="xe userptr", open=xe_vma_userptr_init, ops=[vma_userptr_notifier_ops])
AFTER = dataclasses.replace(BEFORE, replaces=[*BEFORE.replaces, dma_unmap_sgtable])

SCENARIO = Scenario(
    "pin-vs-reclaim",
    "A page is collected and mapped for DMA while kswapd takes it.",
    memory(1),
    [fault(0), reclaim(0)],
    pages=1,
)

case = Case(
    name="xe-iommu",
    title="drm/xe/userptr: Unmap userptrs in the mmu notifier",
    cve="",
    property="coherence",
    source="drivers/gpu/drm/xe/xe_vm.c:vma_userptr_invalidate()",
    variants=[
        Variant(BUGGY, BEFORE, SCENARIO, "coherence"),
        Variant(FINAL_FIX, AFTER, SCENARIO, HOLDS, "333b89061743", "6.14-rc6"),
    ],
    doc=__doc__,
)
