"""uvm-hmm by hand: blocks that stay, what callbacks ignore, and what its own count does not see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from faultpath.catalog import run_file
from faultpath.design import Design
from faultpath.designs import uvm_hmm, uvm_va_block
from faultpath.designs.uvm_va_block import VaBlock
from faultpath.engine.check import Check
from faultpath.engine.status import VIOLATIONS
from faultpath.kernel.mm.reclaim import mm_reclaim
from faultpath.protocol.language import Protocol, protocol
from faultpath.scenario import Scenario, access, clear_soft_dirty, cpu_access, dontneed, fault, map_memory, reclaim
from faultpath.trace.ops import Event, Op
from oracles.core import Row
from oracles.running import Run, table

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
PAGE = 4096
BLOCK = 512 * PAGE
AT = 1 << 30
RW = (Op.MMAP, AT, 4 * BLOCK, 3, 0x22)


def touch(page: int, write: bool = True) -> Row:
    return (Op.FAULT, AT + page * PAGE, 0, 4 | 2 * write, 0)


def access_row(page: int, write: bool) -> Row:
    return (Op.ACCESS, AT + page * PAGE, 0, int(write), 0)


def event(kind: Event, first: int, pages: int) -> Row:
    return (Op.INVALIDATE, AT + first * PAGE, pages * PAGE, kind, 0)


class Uvm:
    def __init__(self, *rows: Row) -> None:
        self.run = Run(uvm_hmm.design, [BLOCK], raises=False, accesses=1)
        self.run.open()
        self.run.rows(table(rows))

    def __getitem__(self, counter: str) -> int:
        return (self.run.counters() | self.run.driver_counters())[counter]

    def locked(self, role: str) -> int:
        return self.run.locks().get(role, {"acquired": 0})["acquired"]


def test_what_blocks_and_pages_cost() -> None:
    """The va_space; a block with four tables and a chunk per page; a context with two masks per callback."""
    assert Uvm(RW, touch(0))["allocs"] == 1 + 5 + 1
    assert Uvm(RW, touch(0), touch(1), touch(511))["allocs"] == 1 + 5 + 3
    uvm = Uvm(RW, touch(0), touch(512), event(Event.CLEAR, 0, 1))
    assert (uvm["allocs"], uvm["intervals_created"]) == (1 + 2 * 6 + 3, 2)
    assert uvm["device_commands"] == 2 + 1


def test_blocks_outlive_what_was_mapped_there() -> None:
    uvm = Uvm(RW, touch(0), touch(1), (Op.MUNMAP, AT, BLOCK, 0, 0), event(Event.UNMAP, 0, 512), RW, touch(0))
    assert (uvm["intervals_created"], uvm["intervals_removed"], uvm["intervals_updated"]) == (1, 0, 0)
    assert (uvm["ptes_zapped"], uvm["device_faults"], uvm["deferred_ops"], uvm["work_items"]) == (2, 3, 0, 0)
    uvm = Uvm(RW, touch(0), *[event(Event.UNMAP, 0, 512)] * 3)
    assert (uvm["callbacks"], uvm["callbacks_empty"], uvm["device_commands"]) == (3, 2, 1 + 1)


def test_an_event_is_a_callback_for_each_block_clipped_to_it() -> None:
    uvm = Uvm(RW, touch(0), touch(511), touch(512), touch(1600), event(Event.CLEAR, 511, 1090))
    assert (uvm["callbacks"], uvm["callbacks_empty"]) == (3, 0)
    assert (uvm["ptes_zapped"], uvm["ptes_probed"]) == (3, 3)


@pytest.mark.parametrize("kind", list(Event))
def test_which_events_are_ignored(kind: Event) -> None:
    uvm = Uvm(RW, touch(0), event(kind, 0, 512))
    ignored = kind in (Event.SOFT_DIRTY, Event.RELEASE)
    assert (uvm["callbacks"], uvm["callbacks_empty"], uvm["ptes_zapped"]) == (1, ignored, not ignored)
    assert uvm.locked("driver") == 2 + (not ignored)  # the fault takes the block's lock twice


def test_a_page_may_be_written_where_its_vma_may() -> None:
    uvm = Uvm(RW, touch(0, write=False), access_row(0, True))
    assert (uvm["device_accesses"], uvm["device_faults"]) == (2, 1)


def test_a_write_that_the_vma_forbids_is_refused_and_leaves_a_block() -> None:
    uvm = Uvm((Op.MMAP, AT, BLOCK, 1, 0x22), access_row(0, True), access_row(0, False), access_row(0, True))
    assert (uvm["device_faults"], uvm["device_faults_refused"], uvm["intervals_created"]) == (3, 2, 1)
    assert uvm["replayable_faults"] == uvm["replayable_faults_bh"] == uvm["replays_start"] == 3


def test_without_a_vma_that_may_be_read_there_is_no_block() -> None:
    for rows in ([], [(Op.MMAP, AT, BLOCK, 0, 0x22)]):
        uvm = Uvm(*rows, access_row(0, False))
        assert (uvm["device_faults_refused"], uvm["intervals_created"], uvm["lookups"]) == (1, 0, 0)


def test_a_block_is_looked_for_twice_before_it_is_made() -> None:
    uvm = Uvm(RW, touch(0))
    assert (uvm["lookups"], uvm["lookup_steps"]) == (2, 0)
    uvm = Uvm(RW, touch(0), touch(512), touch(1024), touch(513))
    assert (uvm["lookups"], uvm["lookup_steps"]) == (2 + 2 + 2 + 1, 0 + 2 * 1 + 2 * 2 + 1)  # the root, at last


def test_exit_finds_every_block() -> None:
    uvm = Uvm(RW, touch(0), touch(512), touch(513), (Op.EXIT, 0, 0, 0, 0))
    assert (uvm["exit_callbacks"], uvm["exit_ptes_zapped"], uvm["callbacks"]) == (4, 3, 0)


# --- what check says of it


def checked(scenario: Scenario, *replacements: Protocol, of: Design = uvm_hmm.design) -> str:
    """The property that is broken, or "" if the scenario holds."""
    found = Check(of, [16 << 10], scenario, replacements=list(replacements)).run()
    assert found.verdict in ("holds", "violated")
    return VIOLATIONS[found.status][0] if found.status else ""


def test_the_gpu_writes_on_after_clear_refs() -> None:
    assert checked(Scenario("clear", "", [map_memory(0, 4), access(1)], [clear_soft_dirty()])) == "coherence"


def test_a_callback_without_memory_says_that_all_is_done() -> None:
    setup, threads = [map_memory(0, 4), access(1)], [dontneed(1, 1)]
    assert checked(Scenario("memory", "", setup, threads)) == ""
    assert checked(Scenario("no memory", "", setup, threads, failures=1)) == "coherence"


reclaiming = run_file(str(EXAMPLES / "direct_reclaim.py"))
splitting = run_file(str(EXAMPLES / "split.py"))


@protocol(replaces=uvm_va_block.hmm_invalidated)
def nothing_is_exempt(va_block: VaBlock) -> None:
    """The fault's own invalidations make it retry, as any other's."""


@protocol(replaces=uvm_hmm.hmm_va_block_cpu_page_populate)
def chunk_reclaims(va_block: VaBlock, addr: int) -> None:
    """The chunk's allocation reclaims a page of this process."""
    mm_reclaim(va_block.va_space.mm, reclaiming.COLD)


def test_the_fault_takes_an_invalidation_of_its_block_for_its_own_of_another() -> None:
    (scenario,) = reclaiming.scenarios
    assert checked(scenario) == ""
    assert checked(scenario, *reclaiming.design.replaces) == "coherence"
    assert checked(scenario, *reclaiming.design.replaces, nothing_is_exempt) == ""


def test_an_allocation_under_the_blocks_lock_may_need_the_blocks_lock() -> None:
    assert checked(Scenario("chunk", "", [map_memory(0, 8), cpu_access(4)], [fault(5)]), chunk_reclaims) == "locks"


@pytest.mark.parametrize("number", [0, 1])
def test_a_split_that_waits_and_passes_refusals_on(number: int) -> None:
    scenario = splitting.scenarios[number]
    bare = [splitting.no_cover, splitting.no_uncover]
    assert checked(scenario, *splitting.MENDED, of=splitting.design) == ""
    assert checked(scenario, *splitting.MENDED, *bare, of=splitting.design) == "coverage"


def test_a_block_beside_others_is_what_is_left() -> None:
    """After a split, a fault in the hole makes a block of the hole."""
    setup = [*splitting.USED, splitting.EXTERNAL, map_memory(1, 1), access(1)]
    assert (
        checked(Scenario("hole", "", setup, [reclaim(1), reclaim(0)]), of=replace(splitting.design, disjoint=True))
        == ""
    )
