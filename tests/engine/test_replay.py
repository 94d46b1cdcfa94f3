"""Whole replays against the oracle: every counter, every gauge and every lock, for each design."""

from __future__ import annotations

import pytest
from against_oracle import CASES, Options, assert_agrees
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oracles.sequences import lengths, make, seeds

quick = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck), database=None)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("raises", [True, False], ids=["derived", "recorded"])
@quick
@given(seed=seeds, length=lengths, accesses=st.sampled_from([1, 1, 3, 0]), open_at=st.sampled_from([0, 0, 0, 4, 20]))
def test_every_counter_agrees(name: str, raises: bool, seed: int, length: int, accesses: int, open_at: int) -> None:
    assert_agrees(CASES[name], Options(raises, accesses, open_at), make(seed, length))
