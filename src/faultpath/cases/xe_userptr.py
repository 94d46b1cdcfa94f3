"""xe: pages are used that nobody holds; and the mending takes two locks the wrong way round.

What hmm_range_fault() returns are pages without a reference: they are there as long as the notifier's lock is held and
the sequence number has not moved. xe marked them accessed and dirty before it had looked. A page that has been migrated
away in the meantime is free memory, or somebody else's.

The first fix does it under the lock, after the look. But marking a page dirty takes the folio's lock, and who migrates
a folio holds that while the callback waits for the notifier's. The second leaves the marking out: faulting the page in
for writing has done it.

The folio of page 0 is an object here, which migration frees; of pages that come later there is none.
"""

from __future__ import annotations

import dataclasses

from faultpath.cases import mirror
from faultpath.cases.case import BUGGY, FINAL_FIX, FIRST_FIX, HOLDS, Case, Variant, memory
from faultpath.cases.mirror import Mirror, mirror_init, mirror_ops
from faultpath.driver import *
from faultpath.kernel.mm.raising import CLEAR, RAISES_CALLS, raise_end, raise_start
from faultpath.scenario import DEVICE, Call, Scenario, address, fault


class Folio(Struct):
    """``struct folio``."""

    lock: Mutex
    dirty: int


class Userptr(Mirror):
    """``struct xe_userptr``; its vm's notifier_lock is a semaphore in C, read where it is not the callback's."""

    folio: Folio  # what page 0's frame is, or NULL


@protocol
def xe_vma_userptr_init(mm: Mm) -> Userptr:
    """xe_vma_create() of a userptr."""
    uptr = kmalloc(Userptr, GFP_KERNEL)
    if not uptr:
        return NULL
    mirror_init(uptr, mm, mirror_ops)
    uptr.folio = kmalloc(Folio, GFP_KERNEL)
    return uptr


@protocol
def set_page_dirty_lock(folio: Folio) -> None:
    """set_page_dirty_lock() and mark_page_accessed()."""
    with mutex_lock(folio.lock):
        folio.dirty = 1


@protocol
def xe_mark_range_accessed(folio: Folio) -> None:
    """xe_mark_range_accessed()."""
    if folio:
        set_page_dirty_lock(folio)


@protocol
def before_the_look(folio: Folio) -> None:
    """Where xe_hmm_userptr_populate_range() marked pages until 6.13."""
    xe_mark_range_accessed(folio)


@protocol
def under_the_lock(folio: Folio) -> None:
    """Where it does since 0a98219bcc96: the notifier's lock is held, and the sequence number valid."""
    return


@protocol(replaces=before_the_look)
def nothing_before_the_look(folio: Folio) -> None:
    """Not any more."""
    return


@protocol(replaces=under_the_lock)
def marked_under_the_lock(folio: Folio) -> None:
    """After 0a98219bcc96."""
    xe_mark_range_accessed(folio)


@protocol
def xe_vma_userptr_pin_pages(uptr: Userptr, addr: int, write: int) -> int:
    """xe_hmm_userptr_populate_range() until it succeeds, and the bind."""
    mm = uptr.mm
    mni = uptr.notifier
    while not timed_out():
        seq = mmu_interval_read_begin(mni)
        with down_read(mm.mmap_lock):
            pfn = hmm_range_fault(mm, mni, seq, addr, write)
            folio = uptr.folio  # hmm_pfn_to_page()
        if pfn >= 0:
            before_the_look(folio)
            with mutex_lock(uptr.notifier_lock):
                if not mmu_interval_read_retry(mni, seq):
                    under_the_lock(folio)
                    pt_set(uptr.pt, addr, pfn)
                    return 0
        elif pfn != -EBUSY:
            return pfn
        count("fault_retries")
    return -EBUSY


@protocol
def migrate_folio(uptr: Userptr, page: int) -> None:
    """migrate_pages_batch() of page 0's folio, which is free when it has moved."""
    folio = uptr.folio
    with mutex_lock(folio.lock):
        range = raise_start(uptr.mm, page, page + PAGE_SIZE, CLEAR, RAISES_CALLS)
        pt_clear(uptr.mm.pt, page, page + PAGE_SIZE)
        uptr.folio = Folio(NULL)
        raise_end(range)
    kfree(folio)


BEFORE = dataclasses.replace(mirror.design, name="xe userptr", open=xe_vma_userptr_init, fault=xe_vma_userptr_pin_pages)
FIRST = dataclasses.replace(BEFORE, replaces=[*BEFORE.replaces, nothing_before_the_look, marked_under_the_lock])
FINAL = dataclasses.replace(BEFORE, replaces=[*BEFORE.replaces, nothing_before_the_look])

SCENARIO = Scenario(
    "pin-vs-migration",
    "Pages are collected while one of them is migrated.",
    memory(1),
    [fault(0), Call("kcompactd", migrate_folio, (DEVICE, address(0)))],
    pages=1,
)

case = Case(
    name="xe-userptr",
    title="drm/xe/hmm: Don't dereference struct page pointers without notifier lock",
    cve="CVE-2025-37868",
    property="lifetime",
    source="drivers/gpu/drm/xe/xe_hmm.c:xe_hmm_userptr_populate_range()",
    variants=[
        Variant(BUGGY, BEFORE, SCENARIO, "lifetime"),
        Variant(FIRST_FIX, FIRST, SCENARIO, "locks", "0a98219bcc96", "6.14-rc6"),
        Variant(FINAL_FIX, FINAL, SCENARIO, HOLDS, "2577b202458c", "6.15-rc3"),
    ],
    doc=__doc__,
)
