"""odp-implicit by hand: children, the commands they cost, and their end."""

from __future__ import annotations

import pytest

from faultpath.designs import odp_implicit
from faultpath.trace.ops import Event, Op
from oracles.core import Row
from oracles.running import Run, table

PAGE = 4096
CHILD = 64 * PAGE
AT = 1 << 30
REFCOUNT, SRCU = 0, 1


def touch(page: int, write: bool = True) -> Row:
    return (Op.FAULT, AT + page * PAGE, 0, 4 | 2 * write, 0)


def event(kind: Event, first: int, pages: int) -> Row:
    return (Op.INVALIDATE, AT + first * PAGE, pages * PAGE, kind, 0)


RW = (Op.MMAP, AT, 4 * CHILD, 3, 0x22)


class Odp:
    def __init__(self, *rows: Row, protection: int = REFCOUNT, raises: bool = False) -> None:
        self.run = Run(odp_implicit.design, [CHILD, protection], raises=raises, accesses=1)
        self.run.open()
        self(*rows)

    def __call__(self, *rows: Row) -> Odp:
        self.run.rows(table(rows))
        return self

    def __getitem__(self, counter: str) -> int:
        return self.run.counters()[counter]


def test_a_child_costs_four_allocations_and_two_commands_more() -> None:
    odp = Odp(RW)
    assert (odp["allocs"], odp["device_commands"]) == (1, 1)  # the parent: its KSM
    odp(touch(0))
    assert (odp["allocs"], odp["device_commands"]) == (5, 4)  # clear its MTTs, the page's MTT, its KSM entry
    odp(touch(1))
    assert (odp["allocs"], odp["device_commands"]) == (5, 5)
    assert odp["intervals_created"] == 1
    odp(touch(64))
    assert (odp["allocs"], odp["intervals_created"]) == (9, 2)
    assert odp["interval_bytes_peak"] == 2 * (240 + 16 * 64)


@pytest.mark.parametrize(
    ("pages", "posts"), [([0], 1), ([0, 1, 2], 1), ([0, 7], 1), ([0, 9], 2), ([1, 8, 15], 1), ([0, 20, 60], 3)]
)
def test_runs_of_ptes_are_cut_at_blocks_of_eight(pages: list[int], posts: int) -> None:
    odp = Odp(RW, *map(touch, pages), touch(63))
    before = odp["device_commands"]
    odp(event(Event.CLEAR, 0, 61))
    assert odp["device_commands"] - before == posts
    assert (odp["ptes_probed"], odp["ptes_zapped"]) == (61, len(pages))


@pytest.mark.parametrize("protection", [REFCOUNT, SRCU])
def test_the_last_page_takes_the_child_along(protection: int) -> None:
    odp = Odp(RW, touch(0), touch(5), event(Event.CLEAR, 0, 3), protection=protection)
    assert (odp["work_items"], odp["intervals_removed"]) == (0, 0)
    odp(event(Event.PROTECTION_PAGE, 5, 1))  # every kind of event is the same
    assert (odp["work_items"], odp["intervals_removed"]) == (1, 1)
    odp(event(Event.CLEAR, 0, 64))
    assert odp["callbacks"] == 2
    odp(touch(5))
    assert odp["intervals_created"] == 2


def test_an_event_is_clipped_to_each_child_and_scans_it_whole() -> None:
    odp = Odp(RW, touch(0), touch(64), event(Event.UNMAP, 32, 64))
    assert (odp["callbacks"], odp["callbacks_empty"]) == (2, 1)
    assert odp["ptes_probed"] == 64  # 32 of either
    assert odp["ptes_zapped"] == 1


def test_reading_what_the_process_may_only_read_is_refused() -> None:
    odp = Odp((Op.MMAP, AT, CHILD, 1, 0x22), touch(3, write=False))
    assert (odp["device_faults"], odp["device_faults_refused"]) == (1, 1)
    # The child stays, without pages: it is called, and does not scan.
    odp(event(Event.UNMAP, 0, 64))
    assert (odp["callbacks"], odp["callbacks_empty"], odp["ptes_probed"]) == (1, 1, 0)
    assert odp["work_items"] == 0


def test_every_mapping_may_be_written() -> None:
    odp = Odp(RW, touch(3, write=False), (Op.ACCESS, AT + 3 * PAGE, 0, 1, 0))
    assert (odp["device_accesses"], odp["device_faults"]) == (2, 1)


@pytest.mark.parametrize(("protection", "role"), [(REFCOUNT, "xa_lock"), (SRCU, "srcu")])
def test_how_a_lookup_keeps_its_child(protection: int, role: str) -> None:
    odp = Odp(RW, touch(0), touch(1), touch(2), protection=protection)
    lookups = {"xa_lock": 0, "srcu": 0} | {
        name: modes["acquired"] for name, modes in odp.run.locks().items() if name in ("xa_lock", "srcu")
    }
    registered = created = 1  # storing an mkey, or a new child, takes the xa_lock either way
    if role == "xa_lock":
        assert lookups == {"xa_lock": registered + created + 3 * 2, "srcu": 0}  # the mkey's, and the child's
    else:
        assert lookups == {"xa_lock": registered + created, "srcu": 3}


def test_fork_destroys_and_the_next_access_makes_anew() -> None:
    """Derived invalidations: copy-on-write takes every page from the device, and so the child."""
    odp = Odp(RW, touch(3), touch(4), (Op.FORK, 0, 0, 9, 0x11), raises=True)
    assert (odp["callbacks"], odp["ptes_zapped"]) == (1, 2)
    assert (odp["intervals_created"], odp["intervals_removed"], odp["work_items"]) == (1, 1, 1)
    odp((Op.ACCESS, AT + 3 * PAGE, 0, 0, 0))
    assert (odp["intervals_created"], odp["device_faults"], odp["intervals_peak"]) == (2, 3, 1)


def test_exit_frees_every_child() -> None:
    odp = Odp(RW, touch(0), touch(64), touch(65), (Op.EXIT, 0, 0, 0, 0))
    assert (odp["exit_callbacks"], odp["exit_ptes_zapped"]) == (4, 3)
    assert (odp["work_items"], odp["intervals_removed"]) == (0, 0)  # counted apart
