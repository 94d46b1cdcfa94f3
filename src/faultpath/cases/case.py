"""What a case is: a bug that the kernel had, as protocols before its fix and after each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from faultpath.design import Design
from faultpath.kernel.mm import fault
from faultpath.kernel.mm.fault import EXCLUSIVE, new_anon_page
from faultpath.kernel.mm.mmap import map_vma
from faultpath.kernel.mm.raising import UNMAP, zap_range
from faultpath.kernel.mm.vma import Vma, drop_vmas
from faultpath.kernel.mmu_notifier import Mm
from faultpath.kernel.primitives.locks import down_write
from faultpath.kernel.primitives.pagetable import PAGE_SIZE, WRITE, pt_cmpxchg, pt_fork
from faultpath.protocol.language import protocol
from faultpath.scenario import MM, PRIVATE_ANONYMOUS, READ_WRITE, Call, Scenario, address

BUGGY, FIRST_FIX, FINAL_FIX = "buggy", "first-fix", "final-fix"
PROPOSED = "proposed"  # not the kernel's: what would mend what the final fix has left
HOLDS = "holds"


@dataclass(frozen=True)
class Variant:
    """One state of the code, and what the checker must say of it.

    :param name: BUGGY, FIRST_FIX, FINAL_FIX or PROPOSED; a case has each once at most
    :param expected: the property that is violated, or HOLDS
    :param commit: the fix that led to it, twelve digits; "" where only its posting is known
    :param version: the first release that has that, or when it was committed
    """

    name: str
    design: Design
    scenario: Scenario
    expected: str
    commit: str = ""
    version: str = ""


@dataclass(frozen=True)
class Case:
    """A bug with its story.

    :param name: how users call it
    :param title: the subject of the commit that mended it, or of the first that was to
    :param cve: its number, or ""
    :param property: what the bug violates
    :param source: functions and files that it was in
    """

    name: str
    title: str
    cve: str
    property: str
    source: str
    variants: Sequence[Variant]
    doc: str

    def commits(self) -> str:
        """The fixes, in order."""
        return ", ".join(v.commit for v in self.variants if v.commit)

    def versions(self) -> str:
        """The first release that has each."""
        return ", ".join(v.version for v in self.variants if v.version)


# --- what scenarios of cases share


@protocol(replaces=fault.wp_page_copy)
def nothing_is_shared(mm: Mm, vma: Vma, page: int, pte: int, since: int) -> None:
    """No case forks, so there is no copy-on-write to break: a fault raises nothing, and compiles in half the time."""
    return


@protocol
def touch(mm: Mm, start: int, end: int) -> None:
    """What the process's first write to each page left."""
    while start < end:
        pt_cmpxchg(mm.pt, start, 0, new_anon_page(mm, start) | WRITE)
        start += PAGE_SIZE


@protocol
def write_protect(mm: Mm, start: int, size: int) -> None:
    """What a fork leaves: pages that may not be written to and are not the mm's alone (copy_present_pte())."""
    pt_fork(mm.pt, start, start + size, EXCLUSIVE)
    mm.children = ~0  # and a child that lives


@protocol
def unmap(mm: Mm, start: int, size: int) -> None:
    """munmap() of a whole mapping: nothing is split, and mmap_lock is not downgraded."""
    with down_write(mm.mmap_lock):
        drop_vmas(mm, start, start + size)
        zap_range(mm, start, start + size, UNMAP)


def memory(pages: int, flags: int = PRIVATE_ANONYMOUS) -> list[Call]:
    """Memory that the process has written to, from page 0 on. Nothing was there, so nothing is unmapped first."""
    return [
        Call("mmap", map_vma, (MM, address(0), address(pages), READ_WRITE, flags, 0, 0)),
        Call("touch", touch, (MM, address(0), address(pages))),
    ]
