"""Synthetic traces: they are what they say, the same each time, and a process could have done it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from faultpath.compare import compare
from faultpath.trace.ops import Op
from faultpath.trace.schema import open_trace
from faultpath.trace.synth import KINDS, PID, synthesize

# of each kind: calls by name, and faults
HOLDS = {
    "static": ({"MMAP": 1}, 200_000),
    "many-vmas": ({"MMAP": 100_000, "MUNMAP": 10_000}, 100_000),
    "malloc-churn": ({"MMAP": 10_000, "MUNMAP": 9_936}, 159_221),
    "fork-storm": ({"MMAP": 1, "FORK": 500}, 4_096 + 500 * 64),
    "mprotect-storm": ({"MMAP": 1, "MPROTECT": 20_001}, 101_372),
    "sparse": ({"MMAP": 1, "MADVISE": 5_000}, 50_000),
    "sweep": ({"MMAP": 1, "MADVISE": 256}, 256 * 512),
}


def columns(path: Path) -> dict[str, np.ndarray]:
    pieces = list(open_trace(path).batches())
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def test_every_kind_is_counted_here() -> None:
    assert HOLDS.keys() == KINDS.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_does_what_it_says_and_the_same_each_time(kind: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        synthesize(kind, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    found = columns(tmp_path / "a")
    calls = Counter(Op(op).name for op in found["op"][found["pid"] == PID].tolist())
    faults = calls.pop("FAULT")
    assert calls.pop("EXIT") == 1
    assert (dict(calls), faults) == HOLDS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_no_access_is_refused_and_nothing_is_inferred(kind: str, tmp_path: Path) -> None:
    """Each fault lies in a mapping that allows it: the process that does this could exist."""
    synthesize(kind, tmp_path / "a.trace")
    counters = compare([tmp_path / "a.trace"], ["full-va"])["traces"][0]["results"][0]["counters"]
    assert counters["device_accesses"] == HOLDS[kind][1]
    assert counters["device_faults_refused"] == counters["vmas_inferred"] == 0
    assert counters["exit_callbacks"] > 0
