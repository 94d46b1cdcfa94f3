"""khugepaged takes page tables away and tells nobody.

When pages of a file or of shmem have become a huge page, the page tables that mapped the small ones are freed in every
process. The CPUs' TLBs were flushed; no notifier was called. A device went on through its copy of what is no longer
mapped, for good.

The fix brackets the flush with range_start and range_end. It also keeps the small page: no new one is faulted in before
the table is gone, for mmap_lock is held for writing.
"""

from __future__ import annotations

import dataclasses

from faultpath.cases import mirror
from faultpath.cases.case import BUGGY, FINAL_FIX, HOLDS, Case, Variant, memory
from faultpath.driver import *
from faultpath.kernel.mm.raising import CLEAR, RAISES_CALLS, raise_end, raise_start
from faultpath.scenario import MM, Call, Scenario, address, fault


@protocol
def collapse_and_free_pmd(mm: Mm, start: int, end: int) -> None:
    """collapse_and_free_pmd(), until 6.0: pmdp_collapse_flush() and no word to anybody."""
    pt_clear(mm.pt, start, end)


@protocol(replaces=collapse_and_free_pmd)
def collapse_and_tell(mm: Mm, start: int, end: int) -> None:
    """collapse_and_free_pmd(), Linux 6.1."""
    range = raise_start(mm, start, end, CLEAR, RAISES_CALLS)
    pt_clear(mm.pt, start, end)
    raise_end(range)


@protocol
def retract_page_tables(mm: Mm, start: int, size: int) -> None:
    """retract_page_tables(), for one mm."""
    with down_write(mm.mmap_lock):
        collapse_and_free_pmd(mm, start, start + size)


AFTER = dataclasses.replace(mirror.design, replaces=[*mirror.design.replaces, collapse_and_tell])

SCENARIO = Scenario(
    "fault-vs-retract",
    "A fault, while khugepaged retracts the page table of a file that has become a huge page.",
    memory(1),
    [fault(0), Call("khugepaged", retract_page_tables, (MM, address(0), PAGE_SIZE))],
    pages=1,
)

case = Case(
    name="khugepaged-file",
    title="mm/khugepaged: invoke MMU notifiers in shmem/file collapse paths",
    cve="CVE-2022-48991",
    property="coherence",
    source="mm/khugepaged.c:retract_page_tables(), collapse_pte_mapped_thp()",
    variants=[
        Variant(BUGGY, mirror.design, SCENARIO, "coherence"),
        Variant(FINAL_FIX, AFTER, SCENARIO, HOLDS, "f268f6cf875f", "6.1-rc8"),
    ],
    doc=__doc__,
)
