"""hmm_range_fault over many pages: what it brings in, where it stops, and when it says -EBUSY."""

from __future__ import annotations

from functools import cache

import pytest

from faultpath.designs import full_va
from faultpath.designs.full_va import Dmirror, dmirror_fops_open
from faultpath.engine import world
from faultpath.engine.native import Native
from faultpath.kernel.errno import EBUSY, EFAULT, EPERM
from faultpath.kernel.hmm import hmm_range_fault_pages
from faultpath.kernel.mirror import attach
from faultpath.kernel.mm.fault import mm_cpu_fault
from faultpath.kernel.mm.fork import mm_fork, mm_init
from faultpath.kernel.mm.mprotect import mm_mprotect
from faultpath.kernel.mm.raising import RAISES_ALL
from faultpath.kernel.mm.recorded import recorded_mmap
from faultpath.kernel.mm.versions import LINUX_6_18
from faultpath.kernel.mmu_notifier import Mm, mmu_interval_read_begin
from faultpath.kernel.primitives.heap import on_stack
from faultpath.kernel.primitives.pagetable import pt_get, pt_init
from faultpath.protocol.language import protocol
from faultpath.protocol.program import Program
from faultpath.protocol.struct import PageTable, Struct

AT = 1 << 30
PAGE = 4096
VALID, WRITE = 1, 2


class Pfns(Struct):
    pt: PageTable


@protocol
def new_pfns(start: int, end: int) -> Pfns:
    pfns = on_stack(Pfns)
    pt_init(pfns.pt, start, end)
    return pfns


@protocol
def walk(dmirror: Dmirror, start: int, end: int, write: int, pfns: Pfns) -> int:
    seq = mmu_interval_read_begin(dmirror.notifier)
    return hmm_range_fault_pages(dmirror.mm, dmirror.notifier, seq, start, end, write, pfns.pt)


@protocol
def pfn(pfns: Pfns, addr: int) -> int:
    return pt_get(pfns.pt, addr)


@protocol
def cpu(mm: Mm, addr: int) -> int:
    return pt_get(mm.pt, addr)


@cache
def native() -> Native:
    roots = [new_pfns, walk, pfn, cpu, mm_init, attach, dmirror_fops_open]
    roots += [recorded_mmap, mm_cpu_fault, mm_fork, mm_mprotect]
    return Native(Program(roots, [full_va.design.driver(), *full_va.design.ops]))


class Process:
    """A process of a thousand pages, and a device that is told of everything."""

    def __init__(self) -> None:
        self.w = world.new_world(1 << 22)
        self.mm = self.call(mm_init, 1 << 47, RAISES_ALL, LINUX_6_18)
        self.dmirror = self.call(dmirror_fops_open, self.mm)
        self.call(recorded_mmap, self.mm, AT, 1000 * PAGE, 3, 0x22)
        self.pfns = self.call(new_pfns, 0, 1 << 40)

    def call(self, called, *args: int) -> int:
        return native().call(called, self.w, *args)

    def walk(self, first: int, end: int, write: int = 1) -> int:
        return self.call(walk, self.dmirror, AT + first * PAGE, AT + end * PAGE, write, self.pfns)

    def found(self) -> dict[int, int]:
        entries = {page: self.call(pfn, self.pfns, AT + page * PAGE) for page in range(1000)}
        return {page: entry for page, entry in entries.items() if entry}

    def there(self) -> set[int]:
        return {page for page in range(1000) if self.call(cpu, self.mm, AT + page * PAGE) & VALID}


def test_every_page_comes_in_and_is_found() -> None:
    p = Process()
    p.call(mm_cpu_fault, p.mm, AT + 5 * PAGE, 1)
    assert p.walk(3, 700) == 0
    assert p.there() == set(range(3, 700)) == set(p.found())
    assert all(entry & WRITE for entry in p.found().values())
    assert len({entry >> 2 for entry in p.found().values()}) == 63  # each its own, as far as there are numbers
    assert {page: p.call(cpu, p.mm, AT + page * PAGE) & 255 for page in p.there()} == p.found()


def test_for_reading_what_can_be_read_is_left_as_it_is() -> None:
    p = Process()
    p.call(mm_cpu_fault, p.mm, AT + 5 * PAGE, 1)
    assert p.walk(4, 7, write=0) == 0
    assert [bool(p.found()[page] & WRITE) for page in (4, 5, 6)] == [False, True, False]


@pytest.mark.parametrize(("prot", "error"), [(1, EPERM), (0, EFAULT), (2, EFAULT)])
def test_it_stops_at_a_mapping_that_forbids_it_and_the_pages_before_have_come_in(prot: int, error: int) -> None:
    p = Process()
    p.call(mm_mprotect, p.mm, AT + 10 * PAGE, PAGE, prot)
    assert p.walk(8, 20) == -error
    assert p.there() == {8, 9}


def test_a_hole_is_an_error() -> None:
    assert Process().walk(990, 1001) == -EFAULT


def test_a_broken_copy_on_write_is_an_invalidation_and_those_after_it_are_broken_in_the_same_round() -> None:
    """hmm_vma_fault() goes on to the end of the page table before anybody looks at the sequence number again."""
    p = Process()
    for page in range(8):
        p.call(mm_cpu_fault, p.mm, AT + page * PAGE, 1)
    p.call(mm_fork, p.mm)
    before = p.w[world.INDEX["invalidations"]]
    assert p.walk(0, 8) == -EBUSY
    assert p.w[world.INDEX["invalidations"]] - before == 8
    assert p.walk(0, 8) == 0
    assert set(p.found()) == set(range(8))


def test_a_page_table_ends_a_round() -> None:
    p = Process()
    for page in (511, 512):
        p.call(mm_cpu_fault, p.mm, AT + page * PAGE, 1)
    p.call(mm_fork, p.mm)
    before = p.w[world.INDEX["invalidations"]]
    assert p.walk(511, 513) == -EBUSY
    assert p.w[world.INDEX["invalidations"]] - before == 1
    assert p.walk(511, 513) == -EBUSY
    assert p.walk(511, 513) == 0
