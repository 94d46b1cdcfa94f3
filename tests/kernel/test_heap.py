"""Allocation: classes of eight words, reuse, accounting, and what a debug kernel would catch."""

from __future__ import annotations

from random import Random

import pytest
from rig import Bench, Large, Small

from faultpath.engine import world
from faultpath.engine.world import BAD_ADDRESS, DOUBLE_FREE, OUT_OF_MEMORY, Stop
from faultpath.kernel.primitives.heap import GFP_NOMEMALLOC

ATOMIC = 1


@pytest.mark.parametrize("python", [False, True], ids=["native", "python"])
def test_objects_are_apart_aligned_zeroed_and_reused(python: bool) -> None:
    bench, random = Bench(python), Random(1)
    live: dict[int, tuple[str, int]] = {}  # address -> (kind, words)
    freed: dict[str, list[int]] = {"small": [], "large": []}
    most = 0
    for _ in range(600):
        if not live or random.random() < 0.55:
            kind, words = random.choice([("small", 8), ("large", 16)])
            obj = bench.new_small(0) if kind == "small" else bench.new_large(0)
            assert obj % 8 == 0
            assert obj >= world.HEAP
            assert not any(obj < other + w and other < obj + words for other, (_, w) in live.items())
            assert not bench.w[obj + 1 : obj + words].any()
            assert bench.w[obj] & 1
            if freed[kind]:
                assert obj == freed[kind].pop()  # the last one freed comes first
            bench.w[obj + 1 : obj + words] = random.randint(1, 1 << 60)
            live[obj] = (kind, words)
            most = max(most, len(live))
        else:
            obj = random.choice(list(live))
            kind, _ = live.pop(obj)
            header = bench.w[obj]
            (bench.free_small if kind == "small" else bench.free_large)(obj)
            assert bench.w[obj] == header & ~1  # a late access can be told
            freed[kind].append(obj)
        assert bench.counter("interval_bytes") == 40 * len(live)
        assert bench.counter("interval_bytes_peak") == 40 * most
    assert Small.size_class() == 1
    assert Large.size_class() == 2


def test_atomic_allocations_count_twice() -> None:
    bench = Bench()
    bench.new_small(0)
    bench.new_small(ATOMIC)
    bench.new_large(ATOMIC)
    bench.new_small(GFP_NOMEMALLOC)
    assert (bench.counter("allocs"), bench.counter("allocs_atomic")) == (4, 2)


def test_a_second_free_stops_the_run() -> None:
    bench = Bench()
    obj = bench.new_small(0)
    bench.free_small(obj)
    with pytest.raises(Stop):
        bench.free_small(obj)
    assert (bench.status, bench.w[world.STATUS_ARG]) == (DOUBLE_FREE, obj)


def test_freeing_null_stops_the_run() -> None:
    bench = Bench()
    with pytest.raises(Stop):
        bench.free_small(0)
    assert bench.status == BAD_ADDRESS


def test_the_heap_ends_where_it_must() -> None:
    bench = Bench()
    bench.w[world.CAPACITY] = bench.w[world.BRK] + 8
    bench.new_small(0)
    with pytest.raises(Stop):
        bench.new_small(0)
    assert bench.status == OUT_OF_MEMORY


def test_a_state_taken_and_restored_is_the_same() -> None:
    bench = Bench()
    first = bench.new_small(0)
    saved = world.state(bench.w).copy()
    bench.w[bench.new_large(0) + 3] = 77
    bench.free_small(first)
    world.restore(bench.w, saved)
    assert (world.state(bench.w) == saved).all()
    assert not bench.w[saved.size : saved.size + 64].any()
    assert bench.new_small(0) > first
