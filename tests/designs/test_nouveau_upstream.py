"""nouveau since 2019 by hand, and under the checker: what goes wrong, and that three mends are enough."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.verdicts import broken, verdict
from faultpath.design import PARALLEL_FAULTS
from faultpath.designs import nouveau_upstream, nouveau_v6_fixed
from faultpath.designs.nouveau_upstream import UpstreamSvmm
from faultpath.kernel import mmu_notifier
from faultpath.kernel.mmu_notifier import (
    ULONG_MAX,
    Mm,
    Notifier,
    Range,
    mn_hlist_invalidate_range_start,
    mn_itree_inv_end,
    mn_itree_invalidate,
    ops_free_notifier,
)
from faultpath.kernel.primitives.lists import hlist_first
from faultpath.kernel.primitives.locks import mutex_lock
from faultpath.protocol.language import Ops, container_of, protocol
from faultpath.scenario import Scenario
from faultpath.scenarios import SCENARIOS
from faultpath.trace.ops import Event, Op
from oracles.core import Row
from oracles.running import Run, table

PAGE = 4096
AT = 1 << 30
RW = (Op.MMAP, AT, 64 * PAGE, 3, 0x22)

APPLYING = [s for s in SCENARIOS if PARALLEL_FAULTS not in s.needs]
NAMED = {s.name: s for s in SCENARIOS}


def touch(page: int) -> Row:
    return (Op.FAULT, AT + page * PAGE, 0, 6, 0)


def run(*rows: Row) -> Run:
    found = Run(nouveau_upstream.design, [], raises=False, accesses=1)
    found.open()
    found.rows(table(rows))
    return found


def test_an_interval_lives_as_long_as_a_fault() -> None:
    found = run(RW, *map(touch, range(9))).counters()
    assert (found["intervals_created"], found["intervals_removed"], found["intervals_peak"]) == (9, 9, 1)
    assert (found["interval_bytes_peak"], found["allocs"], found["lookups"]) == (0, 1, 0)  # it is on the stack


def test_every_event_is_one_command_wherever_it_is() -> None:
    events = [(Op.INVALIDATE, (7 << 40) + i * PAGE, PAGE, kind, 0) for i, kind in enumerate(Event)]
    found = run(RW, touch(0), *events).counters()
    assert found["callbacks"] == found["callbacks_empty"] == len(Event)
    assert found["device_commands"] == 1 + len(Event)
    assert found["walk_steps"] == 0  # no interval is there when nobody faults


def test_only_the_range_of_an_event_goes() -> None:
    found = run(RW, *map(touch, range(4)), (Op.INVALIDATE, AT + PAGE, 2 * PAGE, Event.CLEAR, 0)).counters()
    assert (found["ptes_zapped"], found["ptes_probed"], found["callbacks_empty"]) == (2, 2, 0)


def test_exit_tells_it_nothing() -> None:
    """The list is emptied before the pages go, and there is no release: what the device has mapped stays mapped."""
    found = run(RW, touch(0), (Op.EXIT, 0, 0, 0, 0)).counters()
    assert (found["exit_callbacks"], found["exit_ptes_zapped"]) == (0, 0)


# --- under the checker

LATE = "NULL pointer dereference"
UNTOLD = "device PTE valid where no interval would be called back"
STUCK = "deadlock: nobody can go on"
VIOLATED = {
    "teardown-vs-fault": LATE,
    "teardown-vs-both": LATE,
    "exit-vs-fault": UNTOLD,
    "exit-vs-teardown": UNTOLD,
    "exit-vs-one-teardown": UNTOLD,
    "oom-vs-fault": STUCK,
    "oom-vs-dontneed": STUCK,
}


@pytest.mark.parametrize("scenario", APPLYING, ids=lambda s: s.name)
def test_what_it_violates(scenario: Scenario) -> None:
    assert broken(verdict(nouveau_upstream.design, scenario)) == VIOLATED.get(scenario.name, "holds")


@protocol(replaces=mmu_notifier.notify_range_start)
def a_refused_range_is_over_for_intervals_too(range: Range) -> int:  # noqa: A002 - the kernel's name
    subs = range.mm.notifier_subscriptions
    ret = mn_itree_invalidate(subs, range)
    if not ret and hlist_first(subs.list):
        ret = mn_hlist_invalidate_range_start(subs, range)
        if ret:
            mn_itree_inv_end(subs)
    return ret


@protocol
def nouveau_svmm_release(mn: Notifier, mm: Mm) -> None:
    """What would be mmu_notifier_ops.release."""
    svmm = container_of(UpstreamSvmm, "notifier", mn)
    with mutex_lock(svmm.mutex):
        if svmm.vmm:
            nouveau_upstream.nouveau_svmm_invalidate(svmm, 0, ULONG_MAX)


WITH_RELEASE = Ops("nouveau_mn_ops", **nouveau_upstream.nouveau_mn_ops.table, mm_release=nouveau_svmm_release)
RELEASED = replace(nouveau_upstream.design, ops=[WITH_RELEASE, nouveau_upstream.nouveau_svm_mni_ops])
MENDED = replace(  # fini waits for the fault worker, as it does since b46ddaf08234
    RELEASED,
    fault=nouveau_v6_fixed.fault_work,
    replaces=[*RELEASED.replaces, nouveau_v6_fixed.nouveau_svmm_part],
)


@pytest.mark.parametrize("scenario", APPLYING, ids=lambda s: s.name)
def test_with_three_mends_every_scenario_holds(scenario: Scenario) -> None:
    found = verdict(MENDED, scenario, a_refused_range_is_over_for_intervals_too)
    assert broken(found) == "holds"
    assert found.finished


@pytest.mark.parametrize("name", VIOLATED)
def test_each_mend_is_needed(name: str) -> None:
    scenario = NAMED[name]
    if VIOLATED[name] == STUCK:
        found = verdict(MENDED, scenario)
    elif VIOLATED[name] == LATE:
        found = verdict(RELEASED, scenario, a_refused_range_is_over_for_intervals_too)
    else:
        unreleased = replace(MENDED, ops=nouveau_upstream.design.ops)
        found = verdict(unreleased, scenario, a_refused_range_is_over_for_intervals_too)
    assert broken(found) == VIOLATED[name]


@protocol(replaces=mmu_notifier.mmu_notifier_free_rcu)
def freed_at_once(sub: Notifier) -> None:
    mm = sub.mm
    ops_free_notifier(sub.ops, sub)
    mmu_notifier.mmdrop(mm)


def test_a_notifier_that_is_put_is_freed_after_a_grace_period() -> None:
    found = verdict(nouveau_upstream.design, NAMED["teardown-vs-munmap"], freed_at_once)
    assert broken(found) == "use after free"
