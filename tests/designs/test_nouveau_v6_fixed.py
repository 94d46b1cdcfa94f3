"""nouveau-v6 and its mended version under the checker: what goes wrong, and that no change can be left out."""

from __future__ import annotations

import pytest

from engine.verdicts import broken, verdict
from faultpath.design import PARALLEL_FAULTS
from faultpath.designs import nouveau_v6, nouveau_v6_fixed
from faultpath.designs.nouveau_v6 import Svm, Svmm
from faultpath.designs.nouveau_v6_fixed import SvmmInterval, track
from faultpath.engine.status import VIOLATIONS
from faultpath.kernel import mmu_notifier_v6_fixed
from faultpath.kernel.mm.vma import find_vma
from faultpath.kernel.mmu_notifier import IntervalNotifier, Mm, Range, Subscriptions
from faultpath.kernel.mmu_notifier_v6_fixed import mmu_interval_notifier_find
from faultpath.protocol.language import Protocol, protocol
from faultpath.scenario import Scenario
from faultpath.scenarios import SCENARIOS

APPLYING = [s for s in SCENARIOS if PARALLEL_FAULTS not in s.needs]  # one worker serves a GPU's faults
NAMED = {s.name: s for s in SCENARIOS}

UAF = "use after free"
REFCOUNT = "refcount_t: underflow, or raised from zero"
LIST_ADD = "list: double add"
OVERLAP = "intervals promised disjoint overlap"
DURING = "device PTE valid between range_start's return and range_end"
UNCOVERED = "device PTE valid where no interval would be called back"

PROPERTY = {what: which for which, what in VIOLATIONS.values()}  # two ways to break one may come equally early

VIOLATED = {
    "fault-vs-munmap": UAF,
    "shrunk-interval": DURING,
    "fault-vs-mremap": UAF,
    "device-cow": DURING,
    "background": UAF,
    "grown-mapping": OVERLAP,
    "unmapped-twice": LIST_ADD,
    "two-holes": OVERLAP,
    "teardown-vs-fault": UAF,
    "teardown-vs-munmap": LIST_ADD,
    "teardown-vs-both": UAF,
    "exit-vs-teardown": LIST_ADD,
    "oom-vs-fault": UAF,
    "two-clients": DURING,
    "failed-allocation": UNCOVERED,
    "oom-vs-dontneed": UAF,
    "second-client": DURING,
    "exit-vs-one-teardown": UNCOVERED,
}


@pytest.mark.parametrize("scenario", APPLYING, ids=lambda s: s.name)
def test_what_the_series_violates(scenario: Scenario) -> None:
    assert broken(verdict(nouveau_v6.design, scenario)) == VIOLATED.get(scenario.name, "holds")


@pytest.mark.parametrize("scenario", APPLYING, ids=lambda s: s.name)
def test_with_every_change_every_scenario_holds(scenario: Scenario) -> None:
    found = verdict(nouveau_v6_fixed.design, scenario)
    assert broken(found) == "holds"
    assert found.finished


# --- each change taken back, all the others in place


@protocol(replaces=mmu_notifier_v6_fixed.tree_is_behind)
def find_answers_always(subs: Subscriptions) -> int:
    return 0


@protocol(replaces=mmu_notifier_v6_fixed.is_of)
def find_tells_drivers_apart_only(sub: IntervalNotifier, ops: int, owner: int) -> int:
    return sub.ops == ops


@protocol(replaces=mmu_notifier_v6_fixed.mmu_interval_notifier_find_last)
def left_neighbour_is_the_lowest(mm: Mm, ops: int, owner: int, last: int) -> int:
    return mmu_interval_notifier_find(mm, ops, owner, find_vma(mm, last + 1).start, last)


@protocol(replaces=nouveau_v6_fixed.svmm_interval_get)
def no_reference_taken(smi: SvmmInterval) -> None:
    pass


@protocol(replaces=nouveau_v6_fixed.svmm_interval_done)
def no_reference_dropped(smi: SvmmInterval) -> None:
    pass


@protocol(replaces=nouveau_v6_fixed.nouveau_svmm_do_unmap)
def unmap_by_the_bounds_in_the_tree(mni: IntervalNotifier, event: Range) -> None:
    smi = SvmmInterval(mni)
    svmm = Svmm(smi.svmm)
    start = mni.start
    last = mni.last
    if start >= event.start:
        if last <= event.end:
            track(smi, 1, 0)
        else:
            track(smi, event.end, last)
        return
    track(smi, start, event.start - 1)
    if last >= event.end and not nouveau_v6.nouveau_svmm_new_interval(svmm, event.end, last):
        nouveau_v6.nouveau_svmm_invalidate(svmm, event.end, last + 1)


@protocol(replaces=nouveau_v6_fixed.still_tracks)
def number_only(smi: SvmmInterval, addr: int) -> int:
    return 1


@protocol(replaces=mmu_notifier_v6_fixed.is_of)
def find_skips_what_is_being_removed(sub: IntervalNotifier, ops: int, owner: int) -> int:
    if sub.ops != ops:
        return 0
    smi = SvmmInterval(sub)
    if smi.tracked_start > smi.tracked_last:
        return 0
    return smi.svmm == owner


@protocol(replaces=nouveau_v6_fixed.still_tracks)
def covered_in_the_tree(smi: SvmmInterval, addr: int) -> int:
    return smi.start <= addr and addr <= smi.last


@protocol(replaces=nouveau_v6_fixed.flush_fault_work)
def no_flush(svm: Svm) -> None:
    pass


LEFT_OUT: dict[str, tuple[list[Protocol], dict[str, str]]] = {
    "1: find waits for what is deferred": (
        [find_answers_always],
        {
            "fault-vs-munmap": REFCOUNT,
            "background": REFCOUNT,
            "teardown-vs-munmap": LIST_ADD,
            "teardown-vs-both": LIST_ADD,
            "exit-vs-teardown": LIST_ADD,
            "oom-vs-fault": REFCOUNT,
            "two-clients": REFCOUNT,
        },
    ),
    "2: find knows the owner": (
        [find_tells_drivers_apart_only],
        {"device-cow": DURING, "two-clients": DURING},
    ),
    "3: the nearest left neighbour": ([left_neighbour_is_the_lowest], {"grown-mapping": OVERLAP}),
    "4: a reference on the interval": (
        [no_reference_taken, no_reference_dropped],
        {
            "fault-vs-munmap": UAF,
            "fault-vs-mremap": UAF,
            "background": UAF,
            "oom-vs-fault": UAF,
            "two-clients": UAF,
        },
    ),
    "5: unmap by what is tracked": (
        [unmap_by_the_bounds_in_the_tree],
        {
            "unmapped-twice": LIST_ADD,
            "two-holes": OVERLAP,
            "teardown-vs-munmap": LIST_ADD,
            "teardown-vs-both": LIST_ADD,
            "exit-vs-teardown": LIST_ADD,
        },
    ),
    "6: the page is still covered": (
        [number_only],
        {"shrunk-interval": DURING, "oom-vs-fault": UNCOVERED, "failed-allocation": UNCOVERED},
    ),
    "7: the fault handler is flushed": (
        [no_flush],
        {"teardown-vs-fault": UAF, "teardown-vs-both": UAF},
    ),
    # Half a change.
    "1: find skips what is being removed": (
        [find_answers_always, find_skips_what_is_being_removed],
        {"teardown-vs-munmap": UAF, "teardown-vs-both": UAF, "exit-vs-teardown": UAF},
    ),
    "6: the page is in the tree's bounds": (
        [covered_in_the_tree],
        {"oom-vs-fault": UNCOVERED, "failed-allocation": UNCOVERED},
    ),
}


@pytest.mark.parametrize("change", LEFT_OUT)
def test_no_change_can_be_left_out(change: str) -> None:
    changes, expected = LEFT_OUT[change]
    found = {name: broken(verdict(nouveau_v6_fixed.design, NAMED[name], *changes)) for name in expected}
    assert {n: PROPERTY.get(w, w) for n, w in found.items()} == {n: PROPERTY[w] for n, w in expected.items()}, found
