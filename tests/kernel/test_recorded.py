"""What a replay makes of a trace's calls: what Linux 6.18 raises for them, and past bugs."""

from __future__ import annotations

import pytest

from faultpath.designs import full_va, nouveau_v6
from faultpath.engine.derive import Derivation
from faultpath.kernel.mm.versions import LINUX_6_18
from faultpath.trace.ops import Event, Op
from oracles.core import CHILD_ENDS, Machine, Row
from oracles.designs import FullVa, NouveauV6
from oracles.running import Run, differences, table

PAGE = 4096
AT = 1 << 30
FAR = 3 << 30
RW_ANON = (3, 0x22)
MREMAP_MAY_MOVE_FIXED = 3


def read(address: int) -> Row:
    return (Op.FAULT, address, 0, 4, 0)


def write(address: int) -> Row:
    return (Op.FAULT, address, 0, 6, 0)


def invalidations(rows: list[Row]) -> int:
    run = Run(full_va.design, [], raises=True, accesses=1)
    run.open()
    run.rows(table(rows))
    return run.counters()["invalidations"]


def events(rows: list[Row]) -> list[tuple[int, int, Event]]:
    machine = Machine(FullVa, raises=True)
    machine.open()
    machine.run(rows)
    return machine.events


def test_mprotect_ends_when_the_new_vma_merges_with_its_right_neighbour() -> None:
    """It used to find the merged VMA again for ever."""
    rows = [
        (Op.MMAP, AT, 4 * PAGE, 3, 0x22),
        (Op.MMAP, AT + 4 * PAGE, 4 * PAGE, 1, 0x22),
        write(AT),
        (Op.MPROTECT, AT, 8 * PAGE, 1, 0),
        (Op.MPROTECT, AT, 4 * PAGE, 3, 0),
        write(AT),
    ]
    assert invalidations(rows) == 2  # PROTECTION_VMA twice; the page is the process's own, and may be written again


def test_a_write_after_a_read_breaks_the_zero_page() -> None:
    assert invalidations([(Op.MMAP, AT, PAGE, *RW_ANON), read(AT), write(AT)]) == 1


def test_the_device_can_go_over_everything_again() -> None:
    run = Run(full_va.design, [], raises=True, accesses=3)
    run.open()
    run.rows(table([write(AT), (Op.FORK, 0, 0, 7, 0x11), (100, 0, 1 << 56, 0, 0)]))
    assert run.counters()["device_accesses"] == 2


EVENTS = {
    "mprotect that changes nothing: no event": (
        [(Op.MMAP, AT, 8 * PAGE, *RW_ANON), write(AT), (Op.MPROTECT, AT, 8 * PAGE, 3, 0)],
        [],
    ),
    "mprotect: from the first table": (
        [(Op.MMAP, AT, 4 << 30, *RW_ANON), write(AT + (3 << 30)), (Op.MPROTECT, AT, 4 << 30, 1, 0)],
        [(AT + (3 << 30), AT + (4 << 30), Event.PROTECTION_VMA)],
    ),
    "mprotect of what no mapping is known of: it is there": (
        [(Op.MPROTECT, AT, 2 * PAGE, 3, 0), write(AT), (Op.MPROTECT, AT, 2 * PAGE, 1, 0)],
        [(AT, AT + 2 * PAGE, Event.PROTECTION_VMA)],
    ),
    "madvise: an event for each VMA": (
        [
            (Op.MMAP, AT, 4 * PAGE, 3, 0x02),
            (Op.MMAP, AT + 4 * PAGE, 4 * PAGE, 3, 0x02),
            (Op.MADVISE, AT + PAGE, 6 * PAGE, 4, 0),
        ],
        [(AT + PAGE, AT + 4 * PAGE, Event.CLEAR), (AT + 4 * PAGE, AT + 7 * PAGE, Event.CLEAR)],
    ),
    "a write to a page of a file that came in with another one: a copy": (
        [(Op.MMAP, AT, 8 * PAGE, 3, 0x02), read(AT), (Op.FAULT, AT + PAGE, 0, 7, 0)],
        [(AT + PAGE, AT + 2 * PAGE, Event.CLEAR)],
    ),
    "a write while a child lives: a copy; after it: none": (
        [
            (Op.MMAP, AT, 2 * PAGE, *RW_ANON),
            write(AT),
            write(AT + PAGE),
            (Op.FORK, 0, 0, 7, 0x11),
            (Op.FAULT, AT, 0, 7, 0),
            (CHILD_ENDS, 0, 0, 1, 0),
            (Op.FAULT, AT + PAGE, 0, 7, 0),
        ],
        [(AT, AT + 2 * PAGE, Event.PROTECTION_PAGE), (AT, AT + PAGE, Event.CLEAR)],
    ),
    "a heap that grows and shrinks": (
        [(Op.BRK, AT, 0, 0, 0), (Op.BRK, AT + 4 * PAGE, 0, 0, 0), write(AT), (Op.BRK, AT + PAGE, 0, 0, 0)],
        [(AT + PAGE, AT + 4 * PAGE, Event.UNMAP)],
    ),
}


@pytest.mark.parametrize("what", EVENTS)
def test_what_is_raised(what: str) -> None:
    rows, expected = EVENTS[what]
    assert events(rows) == expected
    derived = [raised.tolist() for _, raised in Derivation(1 << 47, LINUX_6_18).rows(table(rows))]
    assert [tuple(what) for raised in derived for what in raised] == expected


def test_a_move_that_shrinks_unmaps_the_tail_first() -> None:
    """mremap_to(): what was at the new place goes, then the tail, then move_page_tables() and do_munmap()."""
    rows = [
        (Op.MMAP, AT, 8 * PAGE, *RW_ANON),
        (Op.MMAP, FAR, 4 * PAGE, *RW_ANON),
        (Op.MREMAP, AT, 8 * PAGE, FAR, 4 * PAGE | MREMAP_MAY_MOVE_FIXED),
    ]
    assert events(rows) == [
        (FAR, FAR + 4 * PAGE, Event.UNMAP),
        (AT + 4 * PAGE, AT + 8 * PAGE, Event.UNMAP),
        (AT, AT + 4 * PAGE, Event.UNMAP),
        (AT, AT + 4 * PAGE, Event.UNMAP),
    ]
    assert invalidations(rows) == 4


def test_a_file_mapping_that_grows_in_place_stays_one() -> None:
    """Seen through nouveau's intervals, which follow VMAs."""
    run = Run(nouveau_v6.design, [], raises=True, accesses=1)
    run.open()
    grown = (Op.MREMAP, AT, 4 * PAGE, AT, 8 * PAGE)
    run.rows(table([(Op.MMAP, AT, 4 * PAGE, 3, 0x02), grown, write(AT), write(AT + 7 * PAGE)]))
    assert run.counters()["intervals_created"] == 1


def test_a_move_that_shrinks_makes_room_first() -> None:
    """mremap_to(): do_munmap() of the new range comes first; nouveau meets the events in that order.

    One interval over both ranges: whether the left part or the right part is cut off first tells how it is split.
    """
    run = Run(nouveau_v6.design, [], raises=True, accesses=1)
    run.open()
    rows = [(Op.MMAP, AT, 16 * PAGE, *RW_ANON), write(AT)]
    run.rows(table([*rows, (Op.MREMAP, AT, 8 * PAGE, AT + 10 * PAGE, 4 * PAGE | MREMAP_MAY_MOVE_FIXED)]))
    machine = Machine(NouveauV6, raises=True)
    machine.open()
    machine.run([*rows, (Op.MREMAP, AT, 8 * PAGE, AT + 10 * PAGE, 4 * PAGE | MREMAP_MAY_MOVE_FIXED)])
    assert not differences(run, machine)


def test_an_anonymous_mapping_that_grows_up_to_its_neighbour_merges_with_it() -> None:
    rows = [
        (Op.MMAP, AT, 4 * PAGE, *RW_ANON),
        (Op.MMAP, AT + 8 * PAGE, 4 * PAGE, *RW_ANON),
        (Op.MREMAP, AT, 4 * PAGE, AT, 8 * PAGE),
    ]
    run = Run(nouveau_v6.design, [], raises=True, accesses=1)
    run.open()
    run.rows(table([*rows, write(AT), write(AT + 11 * PAGE)]))
    assert run.counters()["intervals_created"] == 1


def test_what_mprotect_said_of_an_inferred_page_is_known() -> None:
    """A collector's write barrier: read-only by mprotect, then a write that ends in SIGSEGV."""
    run = Run(full_va.design, [], raises=False, accesses=1)
    run.open()
    run.rows(table([write(AT), (Op.MPROTECT, AT, PAGE, 1, 0), (Op.INVALIDATE, AT, PAGE, 2, 0), write(AT)]))
    assert run.counters()["device_faults_refused"] == 1
