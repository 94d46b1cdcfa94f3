"""odp-explicit by hand: what is registered, what registering takes in, what an MR costs when it is no longer used."""

from __future__ import annotations

import pytest

from faultpath.designs import odp_explicit, rxe_odp
from faultpath.trace.ops import Event, Op
from oracles.core import Row
from oracles.running import Run, table

PAGE = 4096
AT = 1 << 30
RW = (Op.MMAP, AT, 64 * PAGE, 3, 0x22)
READ, WRITE = 0, 1


def cpu(page: int, write: bool = True) -> Row:
    return (Op.FAULT, AT + page * PAGE, 0, 4 | 2 * write, 0)


def device(page: int, write: int = WRITE) -> Row:
    return (Op.ACCESS, AT + page * PAGE, 0, write, 0)


def event(first: int, pages: int) -> Row:
    return (Op.INVALIDATE, AT + first * PAGE, pages * PAGE, Event.CLEAR, 0)


class Odp:
    """What a replay counts."""

    def __init__(self, *rows: Row, region: int = 0, design=odp_explicit.design) -> None:
        run = Run(design, [region], raises=False, accesses=0)
        run.open()
        run.rows(table(rows))
        self.counts = run.counters() | run.driver_counters()

    def __getitem__(self, counter: str) -> int:
        return self.counts[counter]


def test_registering_takes_in_what_is_there_and_faults_on_nothing() -> None:
    odp = Odp(RW, *map(cpu, range(10)), *map(device, range(10)))
    assert (odp["device_accesses"], odp["device_faults"], odp["page_faults"]) == (10, 1, 0)
    assert (odp["allocs"], odp["device_commands"]) == (4, 1)  # umem, two tables, MR; one UMR for all of it
    assert odp["interval_bytes_peak"] == 240 + 16 * 64
    assert odp["vma_steps"] == 2  # the mapping, and nothing behind it


def test_what_comes_later_faults_page_by_page() -> None:
    odp = Odp(RW, device(0), device(1), device(2), device(1))
    assert (odp["device_faults"], odp["page_faults"], odp["lookups"]) == (3, 3, 3)
    assert odp["device_commands"] == 1 + 3


def test_a_page_taken_in_for_reading_faults_once_more_when_written() -> None:
    odp = Odp(RW, cpu(0, write=False), device(0, READ), device(0), device(0))
    assert (odp["device_faults"], odp["page_faults"]) == (2, 1)


def test_an_mr_stays_when_its_mapping_goes_and_covers_the_next_one() -> None:
    odp = Odp(RW, device(0), event(0, 64), (Op.MUNMAP, AT, 64 * PAGE, 0, 0), RW, device(5), event(5, 1))
    assert (odp["intervals_created"], odp["intervals_removed"], odp["callbacks"]) == (1, 0, 2)
    assert (odp["ptes_zapped"], odp["page_faults"]) == (2, 2)


def test_an_empty_mr_is_called_back_and_scans_nothing() -> None:
    odp = Odp(RW, device(0), event(0, 1), event(0, 64), event(0, 64))
    assert (odp["callbacks"], odp["callbacks_empty"], odp["ptes_probed"]) == (3, 2, 1)


def test_a_mapping_that_grows_gets_another_mr_for_what_is_new() -> None:
    grown = (Op.MMAP, AT + 64 * PAGE, 16 * PAGE, 3, 0x22)
    odp = Odp(RW, device(0), grown, device(64), device(79))
    assert odp["intervals_created"] == 2
    assert odp["interval_bytes_peak"] == 2 * 240 + 16 * 80


def test_without_a_mapping_nothing_is_registered() -> None:
    odp = Odp(device(0))
    assert (odp["device_faults_refused"], odp["intervals_created"], odp["allocs"]) == (1, 0, 0)
    block = Odp(device(0), region=16 * PAGE)
    assert (block["device_faults_refused"], block["intervals_created"], block["allocs"]) == (1, 1, 4)


def test_a_tebibyte_is_the_most_that_an_mr_can_have() -> None:
    """kvcalloc() has at most INT_MAX bytes: one page less than 1 TiB does."""
    for more, refused in ((-PAGE, 0), (0, 1)):
        odp = Odp((Op.MMAP, AT, (1 << 40) + more, 3, 0x4022), device(0))
        assert (odp["device_faults_refused"], odp["intervals_created"]) == (refused, 1 - refused)


@pytest.mark.parametrize(
    ("pages", "range_end", "counted"),
    [
        ([3], 4, 1),
        ([3], 8, 5),  # to the range's end, absent ones as well
        ([3], 9, 6),  # cut at 8: five entries are cleared, 8 is counted with them
        ([3], 64, 6),
        ([0, 7], 64, 9),
        ([0, 20, 60], 64, 9 + 5 + 4),
        (list(range(64)), 64, 64),
    ],
)
def test_page_invalidations_are_entries_of_runs_and_one_more_for_each_that_is_cut(
    pages: list[int], range_end: int, counted: int
) -> None:
    odp = Odp(RW, *map(device, pages), event(0, range_end))
    assert odp["page_invalidations"] == counted
    assert odp["ptes_zapped"] == len(pages)


# --- rxe


def test_rxe_takes_its_mutex_for_each_access_and_has_no_device_to_command() -> None:
    odp = Odp(RW, cpu(0), device(0), device(1), design=rxe_odp.design)
    assert (odp["device_faults"], odp["lookups"], odp["device_commands"], odp["allocs"]) == (2, 2, 0, 4)


def test_rxe_goes_over_every_page_of_an_event_even_if_none_is_there() -> None:
    odp = Odp(RW, device(0), event(0, 1), event(0, 64), design=rxe_odp.design)
    assert (odp["callbacks"], odp["callbacks_empty"], odp["ptes_probed"]) == (2, 1, 65)


def test_rxe_writes_to_what_it_took_in_for_reading() -> None:
    """mlx5 faults again, and the process's page is copied first."""
    rows = RW, cpu(0, write=False), device(0, READ), device(0)
    assert Odp(*rows, design=rxe_odp.design)["device_faults"] == 1
    assert Odp(*rows)["device_faults"] == 2
