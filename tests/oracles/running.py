"""Rows through the program under test, natively or as ordinary Python, quickly enough for thousands of short traces."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from faultpath.design import Design
from faultpath.engine import replay, world
from faultpath.engine.feed import Rows
from faultpath.engine.native import Native
from faultpath.engine.replay import Replay
from faultpath.kernel.mm.versions import LINUX_6_18
from faultpath.protocol.language import Protocol
from faultpath.protocol.program import Program
from faultpath.protocol.struct import current
from oracles.core import Machine, Row

TASK_SIZE = 1 << 47


@functools.cache
def linked(name: str) -> tuple[Program, Native]:
    program = replay_link(DESIGNS[name])
    fresh = world.new_world(1 << 21)
    return program, Native(program, {word: int(fresh[word]) for word in replay.NEVER_CHANGED})


replay_link = replay.link
DESIGNS: dict[str, Design] = {}


class Twin:
    """Stands for Native: runs the protocols as the Python that they are."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def call(self, root: Protocol, w: world.Words, *args: int) -> int:
        current.w, current.program = w, self.program
        return int(root(*args))


@functools.cache
def memory(twin: bool) -> world.Words:
    return world.new_world(1 << 27)


def clean_world(twin: bool) -> world.Words:
    """A fresh world in memory that was used before: to map and fault new memory takes longer than a short trace.

    There is one for either back end: two runs of the same one must not be alive at the same time.
    """
    w = memory(twin)
    kept = {word: int(w[word]) for word in (world.CAPACITY, world.LEAF_BITS, world.DIR_BITS)}
    w[: w[world.BRK]] = 0
    for word, value in kept.items():
        w[word] = value
    w[world.BRK] = world.HEAP
    return w


class Run(Replay):
    """A Replay whose program is compiled once per design, in memory that is used again."""

    def __init__(self, design: Design, values: list[int], *, raises: bool, accesses: int, twin: bool = False) -> None:
        DESIGNS[design.name] = design
        program, native = linked(design.name)
        self.design = design
        self.native = Twin(program) if twin else native  # type: ignore[assignment]
        self.w = clean_world(twin)
        self.values = values
        self.task_size = TASK_SIZE
        self.raises = raises
        self.accesses = accesses
        self.version = LINUX_6_18
        self.opened = False
        self.exit_counters = {"exit_callbacks": 0, "exit_ptes_zapped": 0}
        self._new_mm()


def table(rows: Sequence[Row]) -> Rows:
    columns = np.array(rows, dtype=np.int64).reshape(-1, 5).T.copy()
    return Rows(*columns)


def flat_locks(locks: dict[str, dict[str, int]]) -> dict[str, int]:
    """Replay's locks as the oracle has them: only what was taken."""
    names = {
        role if mode == "acquired" else f"{role} {mode}": n
        for role, modes in locks.items()
        for mode, n in modes.items()
    }
    return {name: n for name, n in names.items() if n}


def differences(run: Replay, machine: Machine) -> dict[str, tuple[int, int]]:
    """Counters and locks on which the two disagree: (program, oracle)."""
    ours = run.counters() | run.driver_counters() | flat_locks(run.locks())
    theirs = machine.counters() | dict(machine.counts.locks)
    gauges = {"intervals": machine.counts.intervals, "interval_bytes": machine.counts.interval_bytes}
    ours |= {name: int(run.w[world.INDEX[name]]) for name in gauges}
    theirs |= gauges
    names = sorted(set(ours) | set(theirs))
    return {n: (ours.get(n, 0), theirs.get(n, 0)) for n in names if ours.get(n, 0) != theirs.get(n, 0)}
