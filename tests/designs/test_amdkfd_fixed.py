"""amdkfd and its mended version under the checker: what goes wrong, and that no change can be left out."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from engine import verdicts
from faultpath.design import PARALLEL_FAULTS, Design
from faultpath.designs import amdkfd, amdkfd_fixed, kfd_svm_map
from faultpath.designs.kfd_priv import HmmRange, SvmRange
from faultpath.engine.status import VIOLATIONS
from faultpath.kernel.primitives.pagetable import pt_copy
from faultpath.protocol.language import Protocol, protocol
from faultpath.scenario import Scenario, access, dontneed, fault, map_memory, munmap, protect_read, reclaim
from faultpath.scenarios import SCENARIOS

OFF, ON = 0, 1
GRANULARITY = 2
NAMED = {s.name: s for s in SCENARIOS if PARALLEL_FAULTS not in s.needs}
USED = [map_memory(0, 4), access(1)]
HOLE_AND_RECLAIM = Scenario("", "What is right of a hole is reclaimed.", USED, [munmap(1, 1), reclaim(2)])
EVICTED_AND_SPLIT = Scenario("", "A hole left of what is dropped.", USED, [munmap(1, 1), dontneed(3, 1)])
TWO_RANGES = Scenario(
    "",
    "Two ranges are evicted at once.",
    [*USED, map_memory(5, 2), access(5)],
    [dontneed(0, 4), reclaim(5)],
    pages=8,
)
TWO_MAPPINGS = Scenario(
    "",
    "A range that lies in two mappings is mapped again, and its first part dropped.",
    [*USED, dontneed(0, 4), protect_read(0, 2)],
    [fault(3), dontneed(0, 1)],
)

DURING = "device PTE valid between range_start's return and range_end"
UNCOVERED = "device PTE valid where no interval would be called back"
SLEEPS = "sleeping function called in a non-blockable callback"

VIOLATED = {
    "fault-vs-munmap-left": UNCOVERED,
    "fault-vs-munmap-hole": UNCOVERED,
    "first-fault-vs-dontneed": DURING,
    "two-holes": UNCOVERED,
    "exit-vs-fault": DURING,
    "oom-vs-fault": SLEEPS,
    "oom-vs-munmap": SLEEPS,
}


def broken(design: Design, scenario: Scenario, xnack: int = ON) -> str:
    return verdicts.broken(verdicts.verdict(design, scenario, values=[xnack, GRANULARITY]))


@pytest.mark.parametrize("name", VIOLATED)
def test_what_linux_6_1_violates(name: str) -> None:
    assert broken(amdkfd.design, NAMED[name]) == VIOLATED[name]


@pytest.mark.parametrize("name", [*VIOLATED, "fault-vs-munmap", "teardown-vs-munmap", "exit-vs-teardown"])
def test_with_every_change_they_hold(name: str) -> None:
    assert broken(amdkfd_fixed.design, NAMED[name]) == "holds"


@pytest.mark.parametrize(
    "scenario", [HOLE_AND_RECLAIM, EVICTED_AND_SPLIT, TWO_RANGES, TWO_MAPPINGS], ids=lambda s: s.doc
)
@pytest.mark.parametrize("xnack", [OFF, ON])
def test_with_every_change_these_hold_as_well(scenario: Scenario, xnack: int) -> None:
    assert broken(amdkfd_fixed.design, scenario, xnack) == "holds"


def without(left_out: Protocol, *instead: Protocol) -> Design:
    changes = [p for p in vars(amdkfd_fixed).values() if isinstance(p, Protocol) and p.replaces]
    assert left_out in changes
    kept = [p for p in changes if p is not left_out] + list(instead)
    core = SimpleNamespace(**{p.__name__: p for p in kept})
    return dataclasses.replace(amdkfd_fixed.design, name=f"without {left_out.__name__}", core=core)


@pytest.mark.parametrize(
    ("change", "scenario", "xnack", "what"),
    [
        (amdkfd_fixed.svm_range_map_to_gpus, NAMED["first-fault-vs-dontneed"], ON, "coherence"),
        (amdkfd_fixed.svm_range_update_notifier_and_interval_tree, NAMED["fault-vs-munmap-left"], ON, "coverage"),
        (amdkfd_fixed.svm_range_take_child, HOLE_AND_RECLAIM, ON, "lifetime"),
        (amdkfd_fixed.svm_range_cpu_invalidate_pagetables, NAMED["oom-vs-fault"], ON, "locks"),
        (amdkfd_fixed.kfd_process_notifier_release_internal, NAMED["exit-vs-fault"], ON, "coherence"),
        (amdkfd_fixed.svm_range_take_child, EVICTED_AND_SPLIT, OFF, "coherence"),
        (amdkfd_fixed.svm_range_stop_queues, TWO_RANGES, OFF, "coherence"),
    ],
    ids=["mapped_to_gpu", "bounds", "children", "non-blockable", "release", "evicted", "second"],
)
def test_no_change_can_be_left_out(change: Protocol, scenario: Scenario, xnack: int, what: str) -> None:
    found = broken(without(change), scenario, xnack)
    assert {text: which for which, text in VIOLATIONS.values()}.get(found, found) == what


@protocol(replaces=kfd_svm_map.svm_range_map_to_gpus)
def svm_range_map_to_gpus(prange: SvmRange, hmm_range: HmmRange, addr: int, end: int) -> None:
    """As from Linux 6.7 on."""
    pt_copy(prange.svms.kfd.pt, hmm_range.pfns, addr, end)
    if end == prange.last + 1:
        prange.mapped_to_gpu = 1


def test_under_the_lock_and_with_the_last_part_is_not_enough() -> None:
    since_6_7 = without(amdkfd_fixed.svm_range_map_to_gpus, svm_range_map_to_gpus)
    assert broken(since_6_7, NAMED["first-fault-vs-dontneed"]) == "holds"
    assert broken(since_6_7, TWO_MAPPINGS) == DURING
