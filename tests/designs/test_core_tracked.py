"""core-tracked by hand, and under the checker: intervals are where VMAs are, and every scenario holds."""

from __future__ import annotations

import pytest

from faultpath.designs import core_tracked
from faultpath.engine.check import Verdict
from faultpath.scenario import Scenario
from faultpath.scenarios import SCENARIOS
from faultpath.trace.ops import Event, Op
from mutants.engine import checked, found
from mutants.tracked import CHANGING, TRACKED
from oracles.core import Row
from oracles.running import Run, table

PAGE = 4096
AT = 1 << 30
READ, WRITE = 1, 3


def mmap(page: int, pages: int, prot: int = WRITE) -> Row:
    return (Op.MMAP, AT + page * PAGE, pages * PAGE, prot, 0x22)


def munmap(page: int, pages: int) -> Row:
    return (Op.MUNMAP, AT + page * PAGE, pages * PAGE, 0, 0)


def mprotect(page: int, pages: int, prot: int) -> Row:
    return (Op.MPROTECT, AT + page * PAGE, pages * PAGE, prot, 0)


def touch(page: int) -> Row:
    return (Op.FAULT, AT + page * PAGE, 0, 6, 0)


def counters(*rows: Row, raises: bool = False) -> dict[str, int]:
    run = Run(core_tracked.design, [], raises=raises, accesses=1)
    run.open()
    run.rows(table(rows))
    return run.counters()


def intervals(*rows: Row) -> tuple[int, int, int]:
    """How many were made, removed and updated."""
    counted = counters(*rows)
    return counted["intervals_created"], counted["intervals_removed"], counted["intervals_updated"]


def test_the_first_fault_in_a_vma_makes_its_interval() -> None:
    assert intervals(mmap(0, 64)) == (0, 0, 0)
    assert intervals(mmap(0, 64), *map(touch, range(9))) == (1, 0, 0)


def test_a_vma_that_grows_has_one_interval() -> None:
    grown = [row for i in range(5) for row in (mmap(i, 1), touch(i))]
    assert intervals(*grown) == (1, 0, 4)


def test_a_vma_that_is_split_has_one_for_each_part_and_gives_them_back() -> None:
    split = [mmap(0, 9), touch(4), mprotect(3, 3, READ)]
    assert intervals(*split) == (3, 0, 2)  # each split makes one and shortens another
    assert intervals(*split, mprotect(3, 3, WRITE)) == (3, 2, 4)


def test_who_takes_a_neighbour_in_takes_its_interval() -> None:
    apart = [mmap(0, 4), mmap(4, 4, READ), touch(1), (Op.FAULT, AT + 5 * PAGE, 0, 4, 0)]
    assert intervals(*apart) == (2, 0, 0)
    assert intervals(*apart, mprotect(4, 4, WRITE)) == (2, 1, 1)


def test_a_boundary_that_moves_is_two_updates() -> None:
    apart = [mmap(0, 4), mmap(4, 4, READ), touch(1), (Op.FAULT, AT + 5 * PAGE, 0, 4, 0)]
    assert intervals(*apart, mprotect(4, 2, WRITE)) == (2, 0, 2)


def test_a_hole_leaves_two() -> None:
    assert intervals(mmap(0, 9), touch(4), munmap(3, 3)) == (3, 1, 2)


def test_an_interval_goes_with_its_vma() -> None:
    assert intervals(mmap(0, 9), touch(4), munmap(0, 9), mmap(0, 9)) == (1, 1, 0)
    assert intervals(mmap(0, 9), touch(4), mmap(0, 9), touch(5)) == (2, 1, 0)  # mmap() over it unmaps it first


def test_an_event_is_cleared_once_whoever_hears_of_it() -> None:
    rows = [mmap(0, 9), *map(touch, range(9)), mprotect(3, 3, READ), (Op.INVALIDATE, AT, 9 * PAGE, Event.CLEAR, 0)]
    counted = counters(*rows)
    assert (counted["callbacks"], counted["callbacks_empty"]) == (3, 0)
    assert (counted["ptes_probed"], counted["ptes_zapped"]) == (9, 9)


def test_munmap_still_calls_back_what_it_has_taken_out() -> None:
    counted = counters(mmap(0, 9), touch(4), munmap(3, 3), raises=True)
    assert (counted["callbacks"], counted["ptes_zapped"]) == (1, 1)


def test_a_lookup_reads_a_node_of_a_list() -> None:
    counted = counters(mmap(0, 64), *map(touch, range(64)))
    assert (counted["lookups"], counted["lookup_steps"], counted["allocs_atomic"]) == (64, 63, 0)


@pytest.mark.parametrize("scenario", [*SCENARIOS, *CHANGING], ids=lambda s: s.name)
def test_every_scenario_holds(scenario: Scenario) -> None:
    verdict: Verdict = checked(TRACKED, scenario)
    assert found(verdict) == "holds"
    assert verdict.finished
