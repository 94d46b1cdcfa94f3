"""The flagship: a sequence number that is read once too often, and then once too seldom.

A range is walked in chunks of 2 GiB, and for each, and for each retry, the notifier's sequence number is read anew; in
the end only the last one is compared. What an invalidation has taken away from a chunk already collected is mapped.

The first fix reads the number once, before the first chunk, and leaves the retry loop as it was. hmm_range_fault() says
-EBUSY when the number has moved, and nothing in the loop reads it again: it goes round, holding mmap_lock, until its
second is over. The final fix gives -EBUSY to the caller, who lets mmap_lock go and begins anew.

A chunk is a page here. The callback zaps; KFD's stops the queues, which comes to the same.
"""

from __future__ import annotations

import dataclasses

from faultpath.cases import mirror
from faultpath.cases.case import BUGGY, FINAL_FIX, FIRST_FIX, HOLDS, Case, Variant, memory
from faultpath.cases.mirror import PAGES, Mirror
from faultpath.driver import *
from faultpath.scenario import SPAN, Scenario, fault, reclaim


class HmmRange(Struct):
    """``struct hmm_range``, the driver's own."""

    notifier_seq: int
    hmm_pfns: PageTable


@protocol
def amdgpu_hmm_range_get_pages(bo: Mirror, range: HmmRange, write: int) -> int:
    """amdgpu_hmm_range_get_pages(), Linux 6.2 to 7.0; mmap_lock is held."""
    start = SPAN
    while start < SPAN + PAGES * PAGE_SIZE:
        range.notifier_seq = mmu_interval_read_begin(bo.notifier)
        pfn = hmm_range_fault(bo.mm, bo.notifier, range.notifier_seq, start, write)
        while pfn == -EBUSY and not timed_out():
            range.notifier_seq = mmu_interval_read_begin(bo.notifier)
            pfn = hmm_range_fault(bo.mm, bo.notifier, range.notifier_seq, start, write)
        if pfn < 0:
            return pfn
        pt_set(range.hmm_pfns, start, pfn)
        start += PAGE_SIZE
    return 0


@protocol(replaces=amdgpu_hmm_range_get_pages)
def read_once(bo: Mirror, range: HmmRange, write: int) -> int:
    """amdgpu_hmm_range_get_pages() after c08972f55594."""
    start = SPAN
    range.notifier_seq = mmu_interval_read_begin(bo.notifier)
    while start < SPAN + PAGES * PAGE_SIZE:
        pfn = hmm_range_fault(bo.mm, bo.notifier, range.notifier_seq, start, write)
        while pfn == -EBUSY and not timed_out():
            pfn = hmm_range_fault(bo.mm, bo.notifier, range.notifier_seq, start, write)
        if pfn < 0:
            return pfn
        pt_set(range.hmm_pfns, start, pfn)
        start += PAGE_SIZE
    return 0


@protocol(replaces=amdgpu_hmm_range_get_pages)
def read_once_and_return(bo: Mirror, range: HmmRange, write: int) -> int:
    """amdgpu_hmm_range_get_pages() after 342981fff328."""
    start = SPAN
    range.notifier_seq = mmu_interval_read_begin(bo.notifier)
    while start < SPAN + PAGES * PAGE_SIZE:
        pfn = hmm_range_fault(bo.mm, bo.notifier, range.notifier_seq, start, write)
        if pfn < 0:
            return pfn
        pt_set(range.hmm_pfns, start, pfn)
        start += PAGE_SIZE
    return 0


@protocol
def map_if_valid(bo: Mirror, range: HmmRange) -> int:
    """confirm_valid_user_pages_locked() and the update of the page tables: amdgpu_hmm_range_valid() under the lock."""
    ret = -EBUSY
    with mutex_lock(bo.notifier_lock):
        if not mmu_interval_read_retry(bo.notifier, range.notifier_seq):
            addr = SPAN
            while addr < SPAN + PAGES * PAGE_SIZE:
                pt_set(bo.pt, addr, pt_get(range.hmm_pfns, addr))
                addr += PAGE_SIZE
            ret = 0
    return ret


@protocol
def restore_userptr_worker(bo: Mirror, addr: int, write: int) -> int:
    """amdgpu_amdkfd_restore_userptr_worker(): again and again, until the pages are valid when they are mapped."""
    ret = -EBUSY
    while ret == -EBUSY and not timed_out():
        range = kmalloc(HmmRange, GFP_KERNEL)
        pt_init(range.hmm_pfns, SPAN, SPAN + PAGES * PAGE_SIZE)
        with down_read(bo.mm.mmap_lock):
            ret = amdgpu_hmm_range_get_pages(bo, range, write)
        if not ret:
            ret = map_if_valid(bo, range)
        if ret == -EBUSY:
            count("fault_retries")
        pt_free(range.hmm_pfns)
        kfree(range)
    return ret


design = dataclasses.replace(mirror.design, name="amdgpu userptr", fault=restore_userptr_worker)
FIRST = dataclasses.replace(design, replaces=[*design.replaces, read_once])
FINAL = dataclasses.replace(design, replaces=[*design.replaces, read_once_and_return])

SCENARIO = Scenario(
    "chunk-vs-reclaim",
    "A range of two chunks is collected while kswapd takes a page of the first.",
    memory(PAGES),
    [fault(0), reclaim(0)],
    pages=PAGES,
)

case = Case(
    name="amdgpu-get-pages",
    title="drm/amdgpu: fix amdgpu_hmm_range_get_pages",
    cve="CVE-2026-63879",
    property="coherence",
    source="amdgpu_hmm.c:amdgpu_hmm_range_get_pages()",
    variants=[
        Variant(BUGGY, design, SCENARIO, "coherence"),
        Variant(FIRST_FIX, FIRST, SCENARIO, "progress", "c08972f55594", "7.1-rc6"),
        Variant(FINAL_FIX, FINAL, SCENARIO, HOLDS, "342981fff328", "7.2-rc1"),
    ],
    doc=__doc__,
)
