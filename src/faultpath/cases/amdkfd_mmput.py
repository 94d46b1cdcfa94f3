"""amdkfd: a callback that may be the last user of the address space takes it down, under a lock its caller holds.

The callback took a reference on the mm, for the work that it may queue, and dropped it at its end. If the process has
exited meanwhile, that is the last one: mmput() runs exit_mmap() inside the callback. Whoever raised the invalidation,
compaction for one, walks the rmap under its lock, which exit_mmap() takes to unlink the VMAs.

The fix takes the reference where work is queued, if there still is a user, and the work drops it. Nothing is queued
here, for the event is a CLEAR, so no reference is taken. Of exit_mmap() there is the part that takes the lock; it is an
anon_vma's in the report and mapping->i_mmap_rwsem here.
"""

from __future__ import annotations

import dataclasses

from faultpath.cases import mirror
from faultpath.cases.case import BUGGY, FINAL_FIX, HOLDS, Case, Variant, memory
from faultpath.driver import *
from faultpath.kernel.mm import mmap
from faultpath.kernel.mm.reclaim import mm_reclaim
from faultpath.scenario import MM, Call, Scenario, address, exit_process


@protocol(replaces=mmap.exit_mmap)
def unlink_vmas(mm: Mm) -> None:
    """exit_mmap() as far as free_pgtables() and unlink_file_vma() go."""
    down_write(mm.i_mmap)
    up_write(mm.i_mmap)


@protocol
def svm_range_cpu_invalidate_pagetables(mni: IntervalNotifier, range: Range, cur_seq: int) -> int:
    """svm_range_cpu_invalidate_pagetables() after fa582c6f3684, Linux 5.19 to 6.15."""
    mm = mni.mm
    if not mmget_not_zero(mm):
        return 1
    mirror.mirror_invalidate(mni, range, cur_seq)  # svm_range_evict()
    mmput(mm)
    return 1


svm_range_mn_ops = Ops("svm_range_mn_ops", invalidate=svm_range_cpu_invalidate_pagetables)


@protocol
def svm_range_add(mm: Mm) -> mirror.Mirror:
    """svm_range_add_notifier_locked(), of one range."""
    return mirror.mirror_create(mm, svm_range_mn_ops)


@protocol(replaces=svm_range_cpu_invalidate_pagetables)
def invalidate_without_a_reference(mni: IntervalNotifier, range: Range, cur_seq: int) -> int:
    """svm_range_cpu_invalidate_pagetables() after cf234231fcbc."""
    return mirror.mirror_invalidate(mni, range, cur_seq)


@protocol
def compact_page(mm: Mm, page: int) -> None:
    """migrate_pages() for compaction: try_to_migrate_one(), called by rmap_walk() under the rmap's lock."""
    with down_read(mm.i_mmap):
        mm_reclaim(mm, page)


BEFORE = dataclasses.replace(
    mirror.design,
    name="amdkfd",
    open=svm_range_add,
    ops=[svm_range_mn_ops],
    replaces=[*mirror.design.replaces, unlink_vmas],
)
AFTER = dataclasses.replace(BEFORE, replaces=[*BEFORE.replaces, invalidate_without_a_reference])

SCENARIO = Scenario(
    "exit-vs-compaction",
    "The process exits while compaction moves a page of it.",
    memory(1),
    [exit_process(), Call("kcompactd", compact_page, (MM, address(0)))],
    pages=1,
)

case = Case(
    name="amdkfd-mmput",
    title="drm/amdkfd: Don't call mmput from MMU notifier callback",
    cve="CVE-2025-38520",
    property="locks",
    source="drivers/gpu/drm/amd/amdkfd/kfd_svm.c:svm_range_cpu_invalidate_pagetables()",
    variants=[
        Variant(BUGGY, BEFORE, SCENARIO, "locks"),
        Variant(FINAL_FIX, AFTER, SCENARIO, HOLDS, "cf234231fcbc", "6.16-rc5"),
    ],
    doc=__doc__,
)
