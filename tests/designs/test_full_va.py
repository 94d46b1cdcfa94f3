"""full-va by hand."""

from __future__ import annotations

import pytest

from faultpath.designs import full_va
from faultpath.trace.ops import Event, Op
from oracles.core import Row
from oracles.running import Run, table

PAGE = 4096
AT = 1 << 30
RW = (Op.MMAP, AT, 64 * PAGE, 3, 0x22)


def touch(page: int) -> Row:
    return (Op.FAULT, AT + page * PAGE, 0, 6, 0)


def counters(*rows: Row) -> dict[str, int]:
    run = Run(full_va.design, [], raises=False, accesses=1)
    run.open()
    run.rows(table(rows))
    return run.counters()


@pytest.mark.parametrize(
    ("first", "pages", "zapped"), [(0, 3, 4), (0, 1, 2), (2, 1, 2), (3, 1, 1), (4, 9, 0), (0, 9, 4)]
)
def test_one_page_too_many(first: int, pages: int, zapped: int) -> None:
    """dmirror_do_update() takes the end for the last page: pages 0..3 are mapped, [first, first + pages] goes."""
    event = (Op.INVALIDATE, AT + first * PAGE, pages * PAGE, Event.CLEAR, 0)
    found = counters(RW, *map(touch, range(4)), event)
    assert (found["ptes_zapped"], found["ptes_probed"]) == (zapped, zapped)
    assert found["callbacks_empty"] == (zapped == 0)


def test_every_event_of_the_process_calls_back() -> None:
    events = [(Op.INVALIDATE, (7 << 40) + i * PAGE, PAGE, kind, 0) for i, kind in enumerate(Event)]
    found = counters(RW, touch(0), *events)
    assert found["callbacks"] == found["callbacks_empty"] == found["invalidations"] == len(Event)
    assert found["walk_steps"] == len(Event)  # the root is all there is


def test_nothing_is_looked_up_or_made_by_faults() -> None:
    found = counters(RW, *map(touch, range(64)))
    assert (found["lookups"], found["lookup_steps"], found["device_commands"]) == (0, 0, 0)
    assert (found["allocs"], found["intervals_created"], found["interval_bytes_peak"]) == (1, 1, 88)


def test_exec_starts_over() -> None:
    found = counters(RW, touch(0), (Op.EXEC, 0, 0, 0, 0), RW, touch(0), (Op.EXIT, 0, 0, 0, 0))
    assert (found["device_faults"], found["intervals_created"], found["intervals_peak"]) == (2, 2, 1)
    assert (found["exit_callbacks"], found["exit_ptes_zapped"]) == (4, 2)
