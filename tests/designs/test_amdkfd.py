"""amdkfd by hand: whole ranges, what munmap makes of them, and queues that stop."""

from __future__ import annotations

import pytest

from faultpath.designs import amdkfd
from faultpath.trace.ops import Event, Op
from oracles.core import Row
from oracles.running import Run, table

PAGE = 4096
AT = 1 << 30
OFF, ON = 0, 1
RANGE = 544


def touch(page: int, write: bool = True) -> Row:
    return (Op.FAULT, AT + page * PAGE, 0, 4 | 2 * write, 0)


def access_row(page: int, write: bool = True) -> Row:
    return (Op.ACCESS, AT + page * PAGE, 0, int(write), 0)


def event(kind: Event, first: int, pages: int) -> Row:
    return (Op.INVALIDATE, AT + first * PAGE, pages * PAGE, kind, 0)


def mmap(first: int, pages: int, prot: int = 3) -> Row:
    return (Op.MMAP, AT + first * PAGE, pages * PAGE, prot, 0x22)


class Kfd:
    def __init__(self, *rows: Row, xnack: int = ON, granularity: int = 9, raises: bool = False) -> None:
        self.run = Run(amdkfd.design, [xnack, granularity], raises=raises, accesses=1)
        self.run.open()
        self(*rows)

    def __call__(self, *rows: Row) -> Kfd:
        self.run.rows(table(rows))
        return self

    def __getitem__(self, counter: str) -> int:
        return (self.run.counters() | self.run.driver_counters())[counter]


def test_one_fault_maps_two_mebibytes_or_what_the_mapping_has_of_them() -> None:
    kfd = Kfd(mmap(0, 600), touch(0), *(access_row(page) for page in range(512)))
    assert (kfd["device_faults"], kfd["kfd_faults"], kfd["intervals_created"]) == (1, 1, 1)
    kfd(*(access_row(page) for page in range(512, 600)))
    assert (kfd["device_faults"], kfd["intervals_created"]) == (2, 2)
    assert kfd["interval_bytes_peak"] == 2 * RANGE + 8 * 600  # a DMA address for each page


def test_the_window_is_aligned_and_ends_at_its_neighbours() -> None:
    kfd = Kfd(mmap(0, 3), touch(1), mmap(3, 20), touch(5), granularity=3)
    assert kfd["intervals_created"] == 2  # [0, 3), and what is left of [0, 8)
    kfd(access_row(7), access_row(8))
    assert (kfd["device_faults"], kfd["intervals_created"]) == (3, 3)


def test_one_page_lost_has_the_whole_range_mapped_again() -> None:
    kfd = Kfd(mmap(0, 512), touch(0), event(Event.CLEAR, 7, 1))
    assert (kfd["ptes_zapped"], kfd["kfd_unmap_from_gpu"]) == (1, 1)
    allocations = kfd["allocs"]
    kfd(access_row(8), access_row(7))
    assert (kfd["device_faults"], kfd["kfd_page_fault_start"], kfd["kfd_page_fault_end"]) == (2, 2, 2)
    assert kfd["allocs"] == allocations + 2  # struct hmm_range, and its pfns


def test_a_range_lost_whole_is_told_only_once() -> None:
    kfd = Kfd(mmap(0, 4), touch(0), event(Event.CLEAR, 0, 4), event(Event.CLEAR, 0, 4), event(Event.CLEAR, 1, 1))
    assert (kfd["callbacks"], kfd["callbacks_empty"]) == (3, 2)
    assert kfd["kfd_unmap_from_gpu"] == 1  # mapped_to_gpu fell with the first
    kfd(access_row(0), event(Event.CLEAR, 0, 2), event(Event.CLEAR, 0, 2))
    assert kfd["kfd_unmap_from_gpu"] == 3  # in part it is not remembered


def test_a_hole_leaves_two_ranges_and_the_work_item_tells_the_trees() -> None:
    kfd = Kfd(mmap(0, 12), touch(0), event(Event.UNMAP, 4, 4))
    assert (kfd["work_items"], kfd["ptes_zapped"], kfd["kfd_unmap_from_gpu"]) == (1, 4, 1)
    # The tail is new; the range itself is taken out and put in again; the hole never was an interval.
    assert (kfd["intervals_created"], kfd["intervals_removed"], kfd["intervals_peak"]) == (3, 1, 2)
    kfd(access_row(0), access_row(3), access_row(8), access_row(11))
    assert kfd["device_faults"] == 1  # all still mapped
    kfd(event(Event.CLEAR, 3, 6))
    assert (kfd["callbacks"], kfd["ptes_zapped"]) == (3, 6)


@pytest.mark.parametrize(("first", "pages", "created", "removed"), [(0, 4, 2, 1), (8, 4, 2, 1), (0, 12, 1, 1)])
def test_an_end_or_all_of_it(first: int, pages: int, created: int, removed: int) -> None:
    kfd = Kfd(mmap(0, 12), touch(0), event(Event.UNMAP, first, pages))
    assert (kfd["intervals_created"], kfd["intervals_removed"], kfd["work_items"]) == (created, removed, 1)


def test_a_child_can_be_split_again_before_the_work_runs() -> None:
    """Two UNMAPs of one call: the range lies in three mappings, the call takes two pieces of it."""
    kfd = Kfd(mmap(0, 12), touch(0), (Op.MPROTECT, AT + 5 * PAGE, 2 * PAGE, 1, 0))
    before = kfd["work_items"]
    kfd((Op.MUNMAP, AT + 4 * PAGE, 4 * PAGE, 0, 0))
    assert (before, kfd["intervals_created"]) == (0, 1)  # recorded invalidations: the call raises none
    kfd = Kfd(mmap(0, 12), touch(0), (Op.MPROTECT, AT + 5 * PAGE, 2 * PAGE, 1, 0), raises=True)
    kfd((Op.MUNMAP, AT + 4 * PAGE, 4 * PAGE, 0, 0))
    assert (kfd["work_items"], kfd["intervals_created"], kfd["intervals_removed"], kfd["intervals_peak"]) == (
        1,
        3,
        1,
        2,
    )


def test_what_may_not_be_written_is_refused_before_anything_is_mapped() -> None:
    kfd = Kfd(mmap(0, 4, prot=1), touch(0), access_row(1, write=False))
    assert (kfd["device_faults_refused"], kfd["kfd_faults"], kfd["kfd_page_fault_start"]) == (1, 2, 1)
    assert kfd["intervals_created"] == 1


def test_a_range_over_a_mapping_that_may_not_be_read_can_be_mapped_no_more() -> None:
    kfd = Kfd(mmap(0, 8), touch(0), event(Event.PROTECTION_VMA, 0, 8), (Op.MPROTECT, AT + 4 * PAGE, 4 * PAGE, 0, 0))
    kfd(access_row(0))
    assert (kfd["device_faults_refused"], kfd["kfd_page_fault_end"]) == (1, 2)
    kfd(access_row(3))
    assert kfd["device_faults"] == 2  # yet its first part is


def test_a_fault_with_no_mapping_makes_nothing() -> None:
    kfd = Kfd(mmap(0, 4), access_row(9))
    assert (kfd["device_faults_refused"], kfd["kfd_faults"], kfd["intervals_created"]) == (1, 1, 0)
    assert kfd["lookups"] == 2  # under mmap_lock for reading, and again for writing


# --- xnack off


def test_registration_maps_all_and_every_loss_stops_the_queues() -> None:
    kfd = Kfd(mmap(0, 600), touch(0), *(access_row(page) for page in range(600)), xnack=OFF)
    assert (kfd["device_faults"], kfd["intervals_created"], kfd["kfd_faults"]) == (1, 1, 0)
    kfd(event(Event.CLEAR, 7, 1))
    assert (kfd["kfd_queue_eviction"], kfd["kfd_queue_restore"], kfd["work_items"]) == (1, 1, 1)
    assert (kfd["ptes_zapped"], kfd["callbacks_empty"]) == (0, 1)
    kfd(access_row(7))
    assert kfd["device_faults"] == 1


def test_munmap_stops_no_queue() -> None:
    kfd = Kfd(mmap(0, 12), touch(0), event(Event.UNMAP, 4, 4), access_row(0), access_row(11), xnack=OFF)
    assert (kfd["kfd_queue_eviction"], kfd["ptes_zapped"], kfd["kfd_unmap_from_gpu"]) == (0, 4, 1)
    assert (kfd["device_faults"], kfd["intervals_created"]) == (1, 3)


def test_queues_stay_stopped_while_a_range_cannot_be_mapped() -> None:
    kfd = Kfd(mmap(0, 8), touch(0), (Op.MPROTECT, AT + 4 * PAGE, 4 * PAGE, 0, 0), event(Event.CLEAR, 4, 4), xnack=OFF)
    assert (kfd["kfd_queue_eviction"], kfd["kfd_queue_restore"]) == (1, 0)
    kfd(access_row(0))
    assert (kfd["device_faults_refused"], kfd["work_items"]) == (1, 2)
    kfd((Op.MPROTECT, AT + 4 * PAGE, 4 * PAGE, 3, 0), access_row(0))
    assert (kfd["device_faults_refused"], kfd["kfd_queue_restore"]) == (1, 1)


# --- exit


def test_at_exit_nothing_is_unmapped_from_the_gpu() -> None:
    """The process is out of the table before anything is unmapped: kfd_lookup_process_by_mm() finds none."""
    kfd = Kfd(mmap(0, 4), touch(0), (Op.EXIT, 0, 0, 0, 0))
    assert (kfd["exit_callbacks"], kfd["exit_ptes_zapped"]) == (2, 0)
    assert kfd["kfd_unmap_from_gpu"] == 0
