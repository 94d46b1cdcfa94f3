"""nouveau-v6 by hand: which intervals there are after each event, and what was done to them."""

from __future__ import annotations

import pytest

from faultpath.designs import nouveau_v6
from faultpath.engine.world import INDEX, MM
from faultpath.kernel.mmu_notifier import Mm, Subscriptions
from faultpath.trace.ops import Event, Op
from oracles.core import Row
from oracles.running import Run, table

PAGE = 4096
AT = 1 << 30
START, LAST = 4, 5  # words of an interval
ANON, FILE = 0x22, 0x02


def mmap(first: int, pages: int, prot: int = 3, flags: int = ANON) -> Row:
    return (Op.MMAP, AT + first * PAGE, pages * PAGE, prot, flags)


def touch(page: int, write: bool = True) -> Row:
    return (Op.FAULT, AT + page * PAGE, 0, 4 | 2 * write, 0)


def event(kind: Event, first: int, pages: int) -> Row:
    return (Op.INVALIDATE, AT + first * PAGE, pages * PAGE, kind, 0)


class Nouveau:
    """A run from recorded invalidations, and a look at its interval tree."""

    def __init__(self, *rows: Row) -> None:
        self.run = Run(nouveau_v6.design, [], raises=False, accesses=1)
        self.run.open()
        self(*rows)

    def __call__(self, *rows: Row) -> Nouveau:
        self.run.rows(table(rows))
        return self

    def __getitem__(self, counter: str) -> int:
        return self.run.counters()[counter]

    def intervals(self) -> list[tuple[int, int]]:
        """First and last page of each interval, in order."""
        w = self.run.w
        subs = int(w[w[MM] + Mm.fields["notifier_subscriptions"].offset])
        tree = subs + Subscriptions.fields["itree"].offset
        found = []

        def visit(node: int) -> None:
            if node:
                visit(int(w[node + 2]))
                found.append(((int(w[node + START]) - AT) // PAGE, (int(w[node + LAST]) + 1 - AT) // PAGE - 1))
                visit(int(w[node + 3]))

        visit(int(w[tree]))
        return found


def test_the_first_fault_makes_an_interval_over_the_vma() -> None:
    nouveau = Nouveau(mmap(0, 16), touch(5), touch(6), touch(5))
    assert nouveau.intervals() == [(0, 15)]
    assert nouveau["device_faults"] == 2
    assert nouveau["lookups"] == 4  # three to create it (itself, right, left), then one
    assert (nouveau["intervals_created"], nouveau["allocs_atomic"]) == (1, 1)
    assert nouveau["device_commands"] == 2
    assert nouveau["interval_bytes_peak"] == 112


@pytest.mark.parametrize(
    ("hole", "left", "updated", "created", "removed"),
    [
        ((4, 2), [(0, 3), (6, 15)], 1, 2, 0),  # in the middle: shrink, and one more for the right part
        ((0, 4), [(4, 15)], 1, 1, 0),  # at the start
        ((12, 4), [(0, 11)], 1, 1, 0),  # at the end
        ((0, 16), [], 0, 1, 1),  # the whole
        ((-3, 30), [], 0, 1, 1),  # more than the whole
        ((-3, 5), [(2, 15)], 1, 1, 0),
        ((14, 9), [(0, 13)], 1, 1, 0),
    ],
)
def test_unmap(hole: tuple[int, int], left: list[tuple[int, int]], updated: int, created: int, removed: int) -> None:
    nouveau = Nouveau(mmap(0, 16), touch(5), event(Event.UNMAP, *hole))
    assert nouveau.intervals() == left
    assert nouveau["intervals_updated"] == updated
    assert nouveau["intervals_created"] == created
    assert nouveau["intervals_removed"] == removed
    assert nouveau["deferred_ops"] == updated + created - 1 + removed


@pytest.mark.parametrize("kind", [k for k in Event if k != Event.UNMAP])
def test_no_other_event_changes_an_interval(kind: Event) -> None:
    nouveau = Nouveau(mmap(0, 16), touch(5), event(kind, 4, 2))
    assert nouveau.intervals() == [(0, 15)]
    assert (nouveau["callbacks"], nouveau["ptes_zapped"], nouveau["deferred_ops"]) == (1, 1, 0)


def test_each_interval_clears_the_events_range_not_its_own() -> None:
    """Two intervals, one event over both: the first callback clears everything, the second finds nothing."""
    nouveau = Nouveau(mmap(0, 4), mmap(4, 4, flags=FILE), touch(1), touch(5))
    assert nouveau.intervals() == [(0, 3), (4, 7)]
    commands = nouveau["device_commands"]
    nouveau(event(Event.CLEAR, 0, 8))
    assert (nouveau["callbacks"], nouveau["callbacks_empty"]) == (2, 1)
    assert (nouveau["ptes_zapped"], nouveau["ptes_probed"]) == (2, 2)
    assert nouveau["device_commands"] - commands == 2


def test_an_event_beside_every_interval_calls_nobody() -> None:
    nouveau = Nouveau(mmap(0, 4), touch(1), event(Event.UNMAP, 4, 4))
    assert (nouveau["invalidations"], nouveau["callbacks"]) == (1, 0)


def test_growth_gets_an_interval_of_its_own_and_nothing_merges_them() -> None:
    nouveau = Nouveau(mmap(0, 4), touch(1), mmap(4, 4), touch(5), mmap(8, 4), touch(9))
    # The third begins after the lowest interval to its left, not the nearest: it overlaps the second.
    assert nouveau.intervals() == [(0, 3), (4, 7), (4, 11)]
    assert nouveau["intervals_peak"] == 3


def test_a_new_interval_stops_at_its_right_neighbour() -> None:
    nouveau = Nouveau(mmap(0, 16), touch(5), event(Event.UNMAP, 0, 8), touch(2))
    assert nouveau.intervals() == [(0, 7), (8, 15)]


def test_the_left_neighbour_found_is_the_lowest_so_intervals_overlap() -> None:
    """find returns the first in order of start: with two intervals to the left, the new one begins after the lower."""
    nouveau = Nouveau(mmap(0, 16), touch(5))
    nouveau(event(Event.UNMAP, 3, 2), event(Event.UNMAP, 8, 8))  # leaves [0..2] and [5..7], the VMA as it is
    assert nouveau.intervals() == [(0, 2), (5, 7)]
    nouveau(touch(12))
    assert nouveau.intervals() == [(0, 2), (3, 15), (5, 7)]


def test_what_is_refused_still_leaves_its_interval() -> None:
    nouveau = Nouveau(mmap(0, 4, prot=1), (Op.ACCESS, AT, 0, 1, 0))
    assert (nouveau["device_faults"], nouveau["device_faults_refused"]) == (1, 1)
    assert nouveau.intervals() == [(0, 3)]


def test_without_a_vma_there_is_neither() -> None:
    nouveau = Nouveau((Op.ACCESS, AT, 0, 0, 0))
    assert (nouveau["device_faults_refused"], nouveau["intervals_created"]) == (1, 0)
    assert nouveau.intervals() == []


def test_a_read_only_pte_faults_again_for_a_write() -> None:
    nouveau = Nouveau(mmap(0, 4), touch(1, write=False), (Op.ACCESS, AT + PAGE, 0, 0, 0))
    assert (nouveau["device_accesses"], nouveau["device_faults"]) == (2, 1)
    nouveau((Op.ACCESS, AT + PAGE, 0, 1, 0), (Op.ACCESS, AT + PAGE, 0, 1, 0))
    assert (nouveau["device_accesses"], nouveau["device_faults"]) == (4, 2)


def test_exit_calls_every_interval_twice_and_leaves_nothing() -> None:
    nouveau = Nouveau(mmap(0, 4), mmap(8, 4), touch(1), touch(9))
    running = {name: nouveau[name] for name in ("callbacks", "lookups", "intervals_removed", "invalidations")}
    nouveau((Op.EXIT, 0, 0, 0, 0))
    assert (nouveau["exit_callbacks"], nouveau["exit_ptes_zapped"]) == (4, 2)
    assert {name: nouveau[name] for name in running} == running
    assert [nouveau.run.w[INDEX[gauge]] for gauge in ("intervals", "interval_bytes")] == [0, 0]
