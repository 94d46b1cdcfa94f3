"""The resumable form of a program: the same states as the native replay, and threads that can be interleaved."""

from __future__ import annotations

import re

import numpy as np
import pytest

from faultpath.catalog import integers, load
from faultpath.engine import native, world
from faultpath.engine.replay import link
from faultpath.engine.rows import ACCESSES_TOUCHED, ROW_WORDS, replay_rows
from faultpath.engine.step import BLOCKED, ENDED, STEPPED, Stepper
from faultpath.errors import FaultpathError
from faultpath.kernel.mirror import attach
from faultpath.kernel.mm.fork import mm_init
from faultpath.kernel.mm.recorded import recorded_invalidation
from faultpath.kernel.mm.versions import LINUX_6_18
from faultpath.trace.ops import Event, Op

BASE = 0x10000000
PAGE = 4096
DESIGNS = ("odp-implicit", "full-va")  # each takes a minute to compile

ROWS = [
    (Op.MMAP, BASE, 1 << 21, 3, 0x22),
    *((Op.FAULT, BASE + PAGE * page + 5, 0, 6, 0) for page in range(8)),
    (Op.MPROTECT, BASE, 4 * PAGE, 1, 0),
    (Op.MUNMAP, BASE + 3 * PAGE, 2 * PAGE, 0, 0),
    (Op.FAULT, BASE + 2 * PAGE, 0, 4, 0),
    (Op.FORK, 0, 0, 99, 0),
    (Op.FAULT, BASE + 7 * PAGE, 0, 6, 0),
    (Op.MUNMAP, BASE, 1 << 21, 0, 0),
]


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly():
    """A replay as one flat list of steps is the longest function there is, and each runs but a moment."""
    with native.compiled_quickly():
        yield


@pytest.fixture(scope="module", params=DESIGNS)
def design(request):
    return load(request.param)


@pytest.fixture(scope="module")
def stepper(design):
    return Stepper(link(design, [recorded_invalidation]))


def machine(design, stepper):
    """A world with an mm and a device; what runs next is up to the test."""
    w = world.new_world(1 << 24)
    call = stepper.native.call
    mm = call(mm_init, w, 1 << 47, 1, LINUX_6_18)
    device = call(design.open, w, mm, *integers(design, {p.name: p.default for p in design.parameters}))
    call(attach, w, mm, device, int(design.driver()))
    return w, mm, device


def load_rows(w, rows):
    """Put rows where the replay reads them; (first, end)."""
    area = int(w[world.CAPACITY])
    end = area + len(rows) * ROW_WORDS
    w[area:end].reshape(-1, ROW_WORDS)[:, 1:] = np.array(rows, dtype=np.int64)
    return area, end


def final_state(w, thread):
    """The state without the thread that got it there."""
    w[thread : thread + 8 * 64] = 0
    w[world.TID] = 0
    return world.state(w).copy()


def test_stepped_one_access_at_a_time_ends_in_the_state_of_the_native_replay(design, stepper):
    states = []
    for stepped in (False, True):
        w, mm, device = machine(design, stepper)
        first, end = load_rows(w, ROWS)
        args = mm, device, first, end, ACCESSES_TOUCHED
        thread = stepper.spawn(w, 0, replay_rows, *args)
        if stepped:
            steps = 1
            while stepper.step(w, thread) == STEPPED:
                steps += 1
            assert steps > 10 * len(ROWS)
            assert stepper.result(w, thread) == end
        else:
            stepper.native.call(replay_rows, w, *args)
        states.append(final_state(w, thread))
    assert np.array_equal(*states)


def test_a_snapshot_taken_at_any_step_can_be_taken_on_from(design, stepper):
    w, mm, device = machine(design, stepper)
    first, end = load_rows(w, ROWS)
    thread = stepper.spawn(w, 0, replay_rows, mm, device, first, end, ACCESSES_TOUCHED)
    snapshots = []
    while stepper.step(w, thread) == STEPPED:
        if len(snapshots) < 400:
            snapshots.append(world.state(w).copy())
    expected = world.state(w).copy()
    for snapshot in snapshots[::37]:
        world.restore(w, snapshot)
        stepper.run(w, thread)
        assert np.array_equal(world.state(w), expected)


def alternate(stepper, w, threads):
    """Step threads in turn until all have ended; each waits at times for a lock that the other holds."""
    while threads:
        outcomes = [stepper.step(w, thread) for thread in threads]
        assert set(outcomes) != {BLOCKED}, "all wait"
        threads = [t for t, outcome in zip(threads, outcomes, strict=True) if outcome != ENDED]


def test_a_fault_started_at_every_point_of_an_invalidation_ends_or_waits_for_it(design, stepper):
    w, mm, device = machine(design, stepper)
    first, end = load_rows(w, ROWS[:9])
    stepper.native.call(replay_rows, w, mm, device, first, end, ACCESSES_TOUCHED)
    fault = stepper.spawn(w, 1, design.fault, device, BASE, 1)
    event = stepper.spawn(w, 2, recorded_invalidation, mm, BASE, BASE + PAGE, int(Event.CLEAR))
    waited = went_through = 0
    running = STEPPED
    while running == STEPPED:
        snapshot = world.state(w).copy()
        while (found := stepper.step(w, fault)) == STEPPED:
            pass
        if found == BLOCKED:
            waited += 1
            alternate(stepper, w, [fault, event])
        else:
            went_through += 1
        assert stepper.result(w, fault) == 0
        world.restore(w, snapshot)
        running = stepper.step(w, event)
    assert running == ENDED
    assert waited > 2
    assert went_through > 2


def test_a_thread_alone_that_waits_is_reported_with_its_line(design, stepper):
    w, mm, device = machine(design, stepper)
    first, end = load_rows(w, ROWS[:9])
    stepper.native.call(replay_rows, w, mm, device, first, end, ACCESSES_TOUCHED)
    fault = stepper.spawn(w, 1, design.fault, device, BASE, 1)
    event = stepper.spawn(w, 2, recorded_invalidation, mm, BASE, BASE + PAGE, int(Event.CLEAR))
    said = []
    while stepper.step(w, event) == STEPPED:
        snapshot = world.state(w).copy()
        try:
            stepper.run(w, fault)
        except FaultpathError as error:
            said.append(str(error))
        world.restore(w, snapshot)
    assert said
    assert all(re.search(r"waits for what nobody can do.*\.py:\d+ in \w+", line) for line in said)
