"""The protocols as ordinary Python end in the very state of the machine code: word for word."""

from __future__ import annotations

import numpy as np
import pytest
from against_oracle import CASES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from faultpath.engine import world
from faultpath.engine.replay import Replay
from faultpath.errors import FaultpathError
from faultpath.trace.ops import Op
from oracles.core import Row
from oracles.running import Run, table
from oracles.sequences import make, seeds

NAMES = [
    "nouveau-v6",
    "full-va",
    "odp-implicit:child=32K,protection=refcount",
    "odp-implicit:child=64K,protection=srcu",
    "kvm:slot=16K",
    "odp-explicit:region=0K",
    "rxe-odp:region=64K",
    "nouveau-upstream",
    "core-tracked",
]


def finish(run: Replay, rows: list[Row]) -> None:
    run.open()
    run.rows(table(rows))


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # entries are counted by a multiplication
@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=12, suppress_health_check=list(HealthCheck), database=None)
@given(seed=seeds, length=st.integers(5, 45), raises=st.booleans(), accesses=st.sampled_from([1, 3]))
def test_same_state(name: str, seed: int, length: int, raises: bool, accesses: int) -> None:
    case, rows = CASES[name], make(seed, length)
    native = Run(case.design, case.values, raises=raises, accesses=accesses)
    twin = Run(case.design, case.values, raises=raises, accesses=accesses, twin=True)
    finish(native, rows)
    finish(twin, rows)
    ours, theirs = world.state(native.w), world.state(twin.w)
    assert ours.size == theirs.size
    different = np.flatnonzero(ours != theirs)
    assert not different.size, f"words {different[:9]}"
    assert native.counters() == twin.counters()


def test_both_stop_at_the_same_word() -> None:
    """An address outside the page table: the run stops, and says where."""
    case, said = CASES["full-va"], []
    for twin in (False, True):
        run = Run(case.design, case.values, raises=True, accesses=1, twin=twin)
        run.open()
        with pytest.raises(FaultpathError) as stopped:
            run.rows(table([(Op.FAULT, 1 << 47, 0, 6, 0)]))
        said.append((str(stopped.value), int(run.w[world.STATUS]), int(run.w[world.STATUS_ARG])))
    assert said[0] == said[1]
    assert said[0][1:] == (world.BAD_ADDRESS, 1 << 47)
