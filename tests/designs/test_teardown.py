"""Closing while the device faults: how a fault finds its mirror, and what keeps the mirror until it is over."""

from __future__ import annotations

from functools import cache

import pytest

from faultpath.catalog import find, integers
from faultpath.design import Design
from faultpath.designs import nouveau_v6, odp_implicit
from faultpath.designs.mlx5_ib import Mdev, Mkey
from faultpath.designs.nouveau_v6 import Svm
from faultpath.engine import world
from faultpath.engine.replay import link
from faultpath.engine.step import BLOCKED, ENDED, STEPPED, Stepper
from faultpath.engine.world import Words
from faultpath.kernel.errno import EFAULT, ENOENT
from faultpath.kernel.mirror import attach
from faultpath.kernel.mm.fault import mm_cpu_fault
from faultpath.kernel.mm.fork import mm_init
from faultpath.kernel.mm.recorded import recorded_invalidation, recorded_mmap
from faultpath.kernel.mm.versions import LINUX_6_18
from faultpath.kernel.workqueue import process_one_work
from faultpath.protocol.program import Program
from faultpath.trace.ops import Event

AT = 1 << 30
PAGE = 4096
CHILD = 64 * PAGE
ALIVE = 1

NOUVEAU, REFCOUNT, SRCU = CASES = ("nouveau-v6", "odp-implicit refcount", "odp-implicit srcu")
DESIGNS = {NOUVEAU: (nouveau_v6.design, []), REFCOUNT: (odp_implicit.design, [CHILD, 0])}
DESIGNS[SRCU] = (odp_implicit.design, [CHILD, 1])
REFUSED = {NOUVEAU: -ENOENT, REFCOUNT: -EFAULT, SRCU: -EFAULT}


@cache
def stepper_of(design: Design) -> Stepper:
    linked = link(design)
    extra = [
        design.fault,
        design.walk,
        design.close,
        mm_cpu_fault,
        recorded_mmap,
        recorded_invalidation,
        process_one_work,
    ]
    return Stepper(Program([*linked.roots, *extra], linked.ops, linked.replaced.values()))


class Machine:
    """A process of four pages and a device that is open on it."""

    def __init__(self, case: str) -> None:
        self.design, values = DESIGNS[case]
        self.stepper = stepper_of(self.design)
        self.w: Words = world.new_world(1 << 22)
        self.mm = self.call(mm_init, 1 << 47, 1, LINUX_6_18)
        self.device = self.call(self.design.open, self.mm, *values)
        self.call(attach, self.mm, self.device, int(self.design.driver()))
        self.call(recorded_mmap, self.mm, AT, 4 * PAGE, 3, 0x22)
        for page in range(4):
            self.call(mm_cpu_fault, self.mm, AT + page * PAGE, 1)

    def call(self, protocol, *args: int) -> int:
        return self.stepper.native.call(protocol, self.w, *args)

    def fault(self, page: int = 0) -> int:
        return self.call(self.design.fault, self.device, AT + page * PAGE, 1)

    def walk(self, page: int = 0) -> int:
        return self.call(self.design.walk, self.device, AT + page * PAGE)

    def spawn(self, number: int, protocol, *args: int) -> int:
        return self.stepper.spawn(self.w, number, protocol, *args)

    def go(self, thread: int) -> int:
        """Take a thread as far as it gets."""
        while (found := self.stepper.step(self.w, thread)) == STEPPED:
            pass
        return found

    def finish(self, *threads: int) -> None:
        """Let all come to their end, one after the other as far as each gets."""
        left = [t for t in threads if not self.stepper.ended(self.w, t)]
        while left:
            before = world.state(self.w).copy()
            left = [t for t in left if self.go(t) != ENDED]
            assert not left or (before[: world.state(self.w).size] != world.state(self.w)[: before.size]).any(), "stuck"

    def alive(self, obj: int) -> bool:
        return bool(self.w[obj] & ALIVE)


@pytest.mark.parametrize("case", CASES)
def test_after_closing_a_fault_finds_no_mirror(case: str) -> None:
    m = Machine(case)
    assert m.fault() == 0
    assert m.walk() & 1
    m.call(m.design.close, m.device)
    assert m.walk() == 0
    assert m.fault() == REFUSED[case]
    assert [m.w[world.INDEX[gauge]] for gauge in ("intervals", "interval_bytes")] == [0, 0]


@pytest.mark.parametrize("case", [REFCOUNT, SRCU])
@pytest.mark.parametrize("mapped", [False, True])
def test_odp_is_closed_at_any_point_of_a_fault_and_waits_for_it_if_it_found_the_mkey(case: str, mapped: bool) -> None:
    m = Machine(case)
    imr = int(m.w[m.device + Mdev.fields["mr"].offset])
    if mapped:
        assert m.fault(1) == 0
    fault = m.spawn(1, m.design.fault, m.device, AT, 1)
    close = m.spawn(2, m.design.close, m.device)
    results, waited = set(), 0
    running = STEPPED
    while running == STEPPED:
        snapshot = world.state(m.w).copy()
        if m.go(close) == BLOCKED:
            waited += 1
            assert m.alive(imr)
        m.finish(fault, close)
        assert m.walk() == 0
        assert not m.alive(imr)
        assert [m.w[world.INDEX[gauge]] for gauge in ("intervals", "interval_bytes")] == [0, 0]
        results.add(m.stepper.result(m.w, fault))
        world.restore(m.w, snapshot)
        running = m.stepper.step(m.w, fault)
    assert results == {0, -EFAULT}
    assert waited > 20


@pytest.mark.parametrize("case", [REFCOUNT, SRCU])
def test_odp_is_closed_at_any_point_of_an_invalidation_that_destroys_its_child(case: str) -> None:
    m = Machine(case)
    assert m.fault() == 0
    event = m.spawn(1, recorded_invalidation, m.mm, AT, AT + PAGE, int(Event.CLEAR))
    work = m.spawn(2, process_one_work)
    close = m.spawn(3, m.design.close, m.device)
    worked = 0
    running = STEPPED
    while running == STEPPED:
        snapshot = world.state(m.w).copy()
        m.go(close)
        m.finish(event)
        if m.w[world.WORK_HEAD]:
            m.finish(work, close)
            worked += 1
        m.finish(close)
        assert [m.w[world.INDEX[gauge]] for gauge in ("intervals", "interval_bytes")] == [0, 0]
        world.restore(m.w, snapshot)
        running = m.stepper.step(m.w, event)
    assert worked


def test_nouveau_s_fault_goes_on_with_an_svmm_that_is_gone() -> None:
    """b46ddaf08234: between the lookup and whatever comes next, closing waits for nobody and frees the svmm."""
    m = Machine(NOUVEAU)
    svmm = int(m.w[m.device + Svm.fields["ivmm"].offset])
    fault = m.spawn(1, m.design.fault, m.device, AT, 1)
    close = m.spawn(2, m.design.close, m.device)
    freed = 0
    for _ in range(12):
        snapshot = world.state(m.w).copy()
        if m.go(close) == ENDED and "nouveau_range_fault" in m.stepper.where(m.w, fault):
            assert not m.alive(svmm)
            freed += 1
        world.restore(m.w, snapshot)
        m.stepper.step(m.w, fault)
    assert freed


@pytest.mark.parametrize("name", ["nouveau-v6", "odp-implicit", "odp-implicit:protection=srcu", "full-va"])
def test_opening_and_closing_over_and_over_leaves_the_device_only(name: str) -> None:
    design, chosen = find(name)
    values = integers(design, chosen)
    stepper = stepper_of(design)
    w = world.new_world(1 << 22)
    mm = stepper.native.call(mm_init, w, 1 << 47, 1, LINUX_6_18)
    stepper.native.call(recorded_mmap, w, mm, AT, 4 << 30, 3, 0x22)
    grown = []
    for _ in range(4):
        before = int(w[world.BRK])
        device = stepper.native.call(design.open, w, mm, *values)
        stepper.native.call(attach, w, mm, device, int(design.driver()))
        for child in range(4):  # several children, so that the xarrays have nodes
            assert stepper.native.call(design.fault, w, device, AT + (child << 30), 1) == 0
        stepper.native.call(design.close, w, device)
        grown.append(int(w[world.BRK]) - before)
    assert max(grown[1:]) <= 8 * max(Svm.size_class(), Mdev.size_class())
    assert len(set(grown[1:])) == 1


def test_in_6_1_who_drops_the_last_reference_wakes_by_a_queue_that_may_be_gone() -> None:
    """mlx5r_deref_odp_mkey(): whoever waits for zero needs no waking to see it, and frees the MR with its queue."""
    m = Machine(REFCOUNT)
    imr = int(m.w[m.device + Mdev.fields["mr"].offset])
    fault = m.spawn(1, m.design.fault, m.device, AT, 1)
    close = m.spawn(2, m.design.close, m.device)
    while m.w[imr + Mkey.fields["usecount"].offset] == 1 or m.w[m.device + Mdev.fields["xa_lock"].offset]:
        assert m.stepper.step(m.w, fault) == STEPPED
    assert m.go(close) == BLOCKED  # it has dropped its own reference, and waits for the fault's
    gone = False
    while m.stepper.step(m.w, fault) == STEPPED:
        snapshot = world.state(m.w).copy()
        gone = gone or (m.go(close) == ENDED and not m.alive(imr))
        world.restore(m.w, snapshot)
    assert gone
