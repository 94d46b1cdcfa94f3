"""The xarray against a dict, and the nodes that a load reads."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import Bench

from faultpath.engine.world import BRK, SCRATCH
from oracles.designs import Xarray

INDICES = st.one_of(
    st.integers(0, 3),
    st.sampled_from([62, 63, 64, 65, 4095, 4096, 4097, 262143, 262144, 1 << 17, (1 << 35) - 1]),
    st.integers(0, 1 << 35),
)


@pytest.mark.parametrize("python", [False, True], ids=["native", "python"])
@settings(deadline=None, max_examples=60, database=None)
@given(indices=st.lists(INDICES, min_size=1, max_size=12), seed=st.integers(0, 1 << 32))
def test_an_xarray_is_a_dict(python: bool, indices: list[int], seed: int) -> None:
    bench, random = Bench(python), Random(seed)
    entries: dict[int, int] = {}
    nodes = Xarray()
    for step in range(40):
        index = random.choice(indices)
        before = entries.get(index, 0)
        match random.choice(["store", "erase", "exchange", "miss", "load"]):
            case "store":
                bench.xa_store(bench.rig, index, 8 * step + 8)
                entries[index] = 8 * step + 8
                nodes.entries.add(index)
            case "erase" if index in entries:
                assert bench.xa_erase(bench.rig, index) == before
                del entries[index]
                nodes.entries.discard(index)
            case "exchange":
                assert bench.xa_cmpxchg(bench.rig, index, before, 8 * step + 8) == before
                entries[index] = 8 * step + 8
                nodes.entries.add(index)
            case "miss":
                assert bench.xa_cmpxchg(bench.rig, index, before + 1, 999) == before
        for i in indices:
            bench.w[SCRATCH] = 0
            assert bench.xa_load(bench.rig, i) == entries.get(i, 0)
            assert bench.w[SCRATCH] == nodes.nodes_read(i)
            assert bench.xa_next(bench.rig, i) == min((k for k in entries if k >= i), default=-1)


def test_a_load_reads_as_many_nodes_as_the_highest_index_needs() -> None:
    """Index 0 alone lives in the head; 64 slots a node."""
    for index, height in ((0, 0), (63, 1), (64, 2), (4095, 2), (4096, 3), (1 << 17, 3)):
        bench = Bench()
        bench.xa_store(bench.rig, index, 8)
        bench.w[SCRATCH] = 0
        assert bench.xa_load(bench.rig, index) == 8
        assert bench.w[SCRATCH] == height


def test_an_erased_high_index_makes_loads_shorter_again() -> None:
    bench = Bench()
    bench.xa_store(bench.rig, 0, 8)
    bench.xa_store(bench.rig, 5000, 16)
    bench.xa_store(bench.rig, 5000, 0)
    bench.w[SCRATCH] = 0
    assert bench.xa_load(bench.rig, 0) == 8
    assert bench.w[SCRATCH] == 0


def test_what_is_erased_or_destroyed_leaves_no_nodes() -> None:
    bench = Bench()
    assert bench.xa_erase(bench.rig, 7) == 0
    for _ in range(3):
        for index in (0, 5, 70, 5000, 1 << 30):
            bench.xa_store(bench.rig, index, 8)
        end = int(bench.w[BRK])
        bench.xa_destroy(bench.rig)
        assert bench.xa_next(bench.rig, 0) == -1
    assert end == bench.w[BRK]  # the second time the nodes of the first are used again
    bench.xa_destroy(bench.rig)
