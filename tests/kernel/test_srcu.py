"""SRCU: a grace period waits for the readers that were there before it, and for no others."""

from __future__ import annotations

import pytest
from rig import Bench

from faultpath.engine import world
from faultpath.engine.world import BAD_ADDRESS, WOULD_BLOCK, Stop
from faultpath.protocol.struct import ROLES

BACK_ENDS = pytest.mark.parametrize("python", [False, True], ids=["native", "python"])


def waits(bench: Bench, name: str, *args: int) -> bool:
    """Whether a call waits; what it has begun by then stays begun, as of a thread that sleeps."""
    try:
        getattr(bench, name)(bench.rig, *args)
    except Stop:
        assert bench.status == WOULD_BLOCK
        bench.w[world.STATUS] = 0
        return True
    return False


@BACK_ENDS
def test_without_readers_nobody_waits(python: bool) -> None:
    bench = Bench(python)
    for _ in range(3):
        assert not waits(bench, "srcu_sync")


@BACK_ENDS
def test_a_grace_period_waits_for_every_earlier_reader(python: bool) -> None:
    bench = Bench(python)
    first, second = bench.srcu_lock(bench.rig), bench.srcu_lock(bench.rig)
    assert waits(bench, "srcu_sync")
    bench.srcu_unlock(bench.rig, first)
    assert waits(bench, "srcu_sync")
    bench.srcu_unlock(bench.rig, second)
    assert not waits(bench, "srcu_sync")
    assert bench.w[world.LOCK + 2 * ROLES.index("srcu")] == 2


@BACK_ENDS
def test_it_does_not_wait_for_a_later_reader(python: bool) -> None:
    bench = Bench(python)
    early = bench.srcu_lock(bench.rig)
    cookie = bench.srcu_cookie(bench.rig)
    assert waits(bench, "srcu_wait", cookie)
    late = bench.srcu_lock(bench.rig)
    assert late != early
    assert waits(bench, "srcu_wait", cookie)
    bench.srcu_unlock(bench.rig, early)
    assert not waits(bench, "srcu_wait", cookie)
    assert waits(bench, "srcu_sync")  # this one began after both
    bench.srcu_unlock(bench.rig, late)
    assert not waits(bench, "srcu_sync")


@BACK_ENDS
def test_who_comes_during_a_grace_period_needs_the_next(python: bool) -> None:
    bench = Bench(python)
    early = bench.srcu_lock(bench.rig)
    cookie = bench.srcu_cookie(bench.rig)
    assert waits(bench, "srcu_wait", cookie)
    middle = bench.srcu_lock(bench.rig)
    later = bench.srcu_cookie(bench.rig)
    bench.srcu_unlock(bench.rig, early)
    assert waits(bench, "srcu_wait", later)  # ends the first on its way
    assert not waits(bench, "srcu_wait", cookie)
    bench.srcu_unlock(bench.rig, middle)
    assert not waits(bench, "srcu_wait", later)


@BACK_ENDS
def test_an_index_that_nobody_holds_cannot_be_given_back(python: bool) -> None:
    bench = Bench(python)
    idx = bench.srcu_lock(bench.rig)
    with pytest.raises(Stop):
        bench.srcu_unlock(bench.rig, 1 - idx)
    assert bench.status == BAD_ADDRESS
