"""drm-gpusvm by hand: which range a fault makes, what one event takes from the device, and how ranges end."""

from __future__ import annotations

import pytest

from faultpath.catalog import find, integers
from faultpath.designs import drm_gpusvm
from faultpath.engine.arena import LIVELOCK
from faultpath.engine.check import Check
from faultpath.scenario import Scenario, access, fault, map_memory, protect_read
from faultpath.trace.ops import Event, Op
from oracles.core import Row
from oracles.running import Run, table

PAGE = 4096
AT = 1 << 30
NOTIFIER = 512 << 20
PAGES_2M = 512
SIZES = ("4K", "64K", "2M")


def mapping(first: int, pages: int, prot: int = 3) -> Row:
    return (Op.MMAP, AT + first * PAGE, pages * PAGE, prot, 0x22)


def touch(page: int, write: bool = True) -> Row:
    return (Op.FAULT, AT + page * PAGE, 0, 4 | 2 * write, 0)


def access_to(page: int) -> Row:
    return (Op.ACCESS, AT + page * PAGE, 0, 1, 0)


def event(kind: Event, first: int, pages: int) -> Row:
    return (Op.INVALIDATE, AT + first * PAGE, pages * PAGE, kind, 0)


class Gpusvm:
    def __init__(
        self, *rows: Row, raises: bool = False, values: tuple[int, ...] = (NOTIFIER, 2 << 20, 64 << 10)
    ) -> None:
        self.run = Run(drm_gpusvm.design, list(values), raises=raises, accesses=1)
        self.run.open()
        self(*rows)

    def __call__(self, *rows: Row) -> Gpusvm:
        self.run.rows(table(rows))
        return self

    def __getitem__(self, counter: str) -> int:
        return (self.run.counters() | self.run.driver_counters())[counter]

    def ranges(self) -> tuple[int, ...]:
        """Rounds of faults that found or made a range of 4 KiB, 64 KiB, 2 MiB."""
        return tuple(self[f"svm_{size}_pagefault_count"] for size in SIZES)


def test_one_fault_and_one_bind_for_512_pages() -> None:
    svm = Gpusvm(mapping(0, 1024), *map(touch, range(PAGES_2M)))
    assert (svm["device_accesses"], svm["device_faults"], svm["svm_pagefault_count"]) == (512, 1, 1)
    assert svm.ranges() == (0, 0, 1)
    assert svm["device_commands"] == 1
    svm(access_to(700))  # nobody has touched any of these pages
    assert (svm["device_faults"], svm["device_commands"]) == (2, 2)
    svm(event(Event.CLEAR, 512, 512))
    assert svm["ptes_zapped"] == 512


def test_an_event_on_one_page_takes_the_range() -> None:
    svm = Gpusvm(mapping(0, 1024), touch(0), event(Event.CLEAR, 5, 1))
    assert (svm["callbacks"], svm["ptes_zapped"], svm["device_commands"]) == (1, 512, 2)
    svm(event(Event.CLEAR, 6, 1))  # it is invalidated already
    assert (svm["callbacks"], svm["callbacks_empty"], svm["device_commands"]) == (2, 1, 2)
    svm(*map(access_to, range(PAGES_2M)))
    assert (svm["device_faults"], svm["device_commands"]) == (2, 3)
    assert (svm["intervals_created"], svm["intervals_removed"], svm["work_items"]) == (1, 0, 0)


def test_one_tlb_invalidation_for_all_ranges_of_a_notifier() -> None:
    """svm_tlb_inval_count says TLB invalidations and counts ranges, as xe_svm_range_notifier_event_begin() does."""
    svm = Gpusvm(mapping(0, 1024), touch(0), touch(512), event(Event.CLEAR, 511, 2))
    assert (svm["callbacks"], svm["ptes_zapped"]) == (1, 1024)
    assert (svm["svm_tlb_inval_count"], svm["tlb_inval_count"]) == (2, 1)


@pytest.mark.parametrize(
    ("page", "ranges"),
    [(8, (1, 0, 0)), (15, (1, 0, 0)), (16, (0, 1, 0)), (511, (0, 1, 0)), (512, (0, 0, 1)), (1030, (1, 0, 0))],
)
def test_the_largest_that_fits_the_mapping(page: int, ranges: tuple[int, ...]) -> None:
    """The mapping is pages 8 to 1033: neither its first 64 KiB nor its last are whole."""
    assert Gpusvm(mapping(8, 1026), touch(page)).ranges() == ranges


def test_the_largest_that_overlaps_no_range() -> None:
    svm = Gpusvm(mapping(0, 1), touch(0), mapping(1, 1023))
    svm(touch(1))
    assert svm.ranges() == (2, 0, 0)
    svm(touch(16))
    assert svm.ranges() == (2, 1, 0)
    svm(touch(512))
    assert svm.ranges() == (2, 1, 1)


def test_the_largest_that_fits_the_notifier() -> None:
    svm = Gpusvm(mapping(0, 1024), touch(0), values=(32 << 10, 2 << 20, 8 << 10))
    svm(event(Event.CLEAR, 0, 1))
    assert svm["ptes_zapped"] == 2


def test_notifiers_are_512_mib_apart() -> None:
    svm = Gpusvm(mapping(0, 1), touch(0), mapping(NOTIFIER // PAGE, 1), touch(NOTIFIER // PAGE))
    assert svm["intervals_created"] == 2
    svm(event(Event.CLEAR, 1, NOTIFIER // PAGE - 1))
    assert (svm["callbacks"], svm["callbacks_empty"]) == (1, 1)


def test_partial_munmap_ends_the_whole_range() -> None:
    svm = Gpusvm(mapping(0, 1024), touch(0), event(Event.UNMAP, 10, 1), (Op.MUNMAP, AT + 10 * PAGE, PAGE, 0, 0))
    assert (svm["callbacks"], svm["ptes_zapped"], svm["work_items"]) == (1, 512, 1)
    assert svm["device_commands"] == 3  # bind; the callback's TLB invalidation; unbind, though nothing is there
    assert svm["tlb_inval_count"] == 2
    assert (svm["intervals_created"], svm["intervals_removed"]) == (1, 1)
    svm(access_to(0), access_to(16))
    assert svm.ranges() == (1, 1, 1)  # what is left does not hold its 2 MiB any more


def test_a_notifier_goes_with_its_last_range() -> None:
    svm = Gpusvm(mapping(0, 1024), touch(0), touch(512), event(Event.UNMAP, 0, 512))
    assert (svm["intervals_removed"], svm["work_items"]) == (0, 1)
    svm(event(Event.UNMAP, 512, 512))
    assert (svm["intervals_removed"], svm["work_items"]) == (1, 2)


def test_what_a_range_costs() -> None:
    svm = Gpusvm(mapping(0, 1024))
    assert (svm["allocs"], svm["interval_bytes_peak"]) == (1, 0)
    svm(touch(0))
    notifier, one, dma_addr, pfns = 200, 144, 16 * PAGES_2M, 8 * PAGES_2M
    assert svm["allocs"] == 5
    assert svm["interval_bytes_peak"] == notifier + one + dma_addr + pfns
    svm(event(Event.CLEAR, 0, 1), access_to(0))  # both arrays anew
    assert svm["allocs"] == 7
    assert svm["interval_bytes_peak"] == notifier + one + dma_addr + pfns


def test_locks_of_a_first_fault() -> None:
    svm = Gpusvm(mapping(0, 16), touch(0))
    locks = {role: sum(modes.values()) for role, modes in svm.run.locks().items()}
    inserted = 1
    without_array, with_array = 1, 1
    staged, committed = 1, 1
    assert locks["driver"] == inserted + without_array + with_array + staged + committed
    assert locks["driver_parent"] == 1  # vm->lock
    assert locks["spinlock"] == 1  # the garbage collector's list
    assert locks["rwsem"] == 2  # usm.lock: the VM gets its ASID, the fault looks it up


def test_memory_that_may_only_be_read_is_refused() -> None:
    svm = Gpusvm(mapping(0, 1024, prot=1), touch(0, write=False))
    assert (svm["device_faults"], svm["device_faults_refused"]) == (1, 1)
    assert (svm["intervals_created"], svm["intervals_removed"]) == (1, 1)  # before it knew
    assert svm.ranges() == (0, 0, 0)


def test_a_fault_beside_a_page_that_has_become_read_only_is_refused_in_a_replay() -> None:
    svm = Gpusvm(mapping(0, 1024), touch(0), (Op.MPROTECT, AT, PAGE, 1, 0), raises=True)
    svm(access_to(1))
    assert (svm["device_faults"], svm["device_faults_refused"]) == (2, 1)
    assert svm.ranges() == (0, 0, 2)
    svm(access_to(512))
    assert (svm["device_faults_refused"], svm["svm_2M_pagefault_count"]) == (1, 3)


@pytest.mark.parametrize("before", [True, False], ids=["before", "meanwhile"])
def test_and_goes_round_for_ever_in_the_kernel(before: bool) -> None:
    """__xe_svm_handle_pagefault() retries on -EPERM without end: each round finds the range that spans both VMAs."""
    setup, threads = [map_memory(0, 4), access(1)], [fault(1)]
    (setup if before else threads).append(protect_read(0, 1))
    design, values = find("drm-gpusvm", small=True)
    verdict = Check(design, integers(design, values), Scenario("read-only", "", setup, threads)).run()
    assert (verdict.verdict, verdict.status) == ("violated", LIVELOCK)
