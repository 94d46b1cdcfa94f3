"""Locks and reference counts: who waits, what stops the run, what is counted."""

from __future__ import annotations

import pytest
from rig import Bench

from faultpath.engine import world
from faultpath.engine.world import BAD_ADDRESS, REFCOUNT, WOULD_BLOCK, Stop
from faultpath.protocol.struct import ROLES

BACK_ENDS = pytest.mark.parametrize("python", [False, True], ids=["native", "python"])


def acquired(bench: Bench, role: str, mode: int = 1) -> int:
    return int(bench.w[world.LOCK + 2 * ROLES.index(role) + mode])


def stops(bench: Bench, status: int, name: str, *args: int) -> None:
    with pytest.raises(Stop):
        getattr(bench, name)(bench.rig, *args)
    assert bench.status == status


@BACK_ENDS
def test_a_nested_lock_is_the_same_lock(python: bool) -> None:
    bench = Bench(python)
    bench.mutex_lock_nested(bench.rig)
    stops(bench, WOULD_BLOCK, "mutex_lock")
    bench.mutex_unlock(bench.rig)
    bench.mutex_lock(bench.rig)
    assert acquired(bench, "driver") == 2


@BACK_ENDS
def test_atomic_operations_that_tell(python: bool) -> None:
    bench = Bench(python)
    assert [bench.count_up(bench.rig) for _ in range(3)] == [1, 2, 3]
    assert bench.count_swap(bench.rig, 2, 7) == 3
    assert bench.count_swap(bench.rig, 3, 7) == 3
    assert bench.count_up(bench.rig) == 8


@BACK_ENDS
@pytest.mark.parametrize(("kind", "role"), [("mutex", "driver"), ("spin", "spinlock")])
def test_an_exclusive_lock(python: bool, kind: str, role: str) -> None:
    bench = Bench(python)
    lock, unlock = f"{kind}_lock", f"{kind}_unlock"
    stops(bench, BAD_ADDRESS, unlock)
    getattr(bench, lock)(bench.rig)
    stops(bench, WOULD_BLOCK, lock)
    bench.w[world.TID] = 1
    stops(bench, BAD_ADDRESS, unlock)  # another thread's
    bench.w[world.TID] = 0
    getattr(bench, unlock)(bench.rig)
    getattr(bench, lock)(bench.rig)
    assert acquired(bench, role) == 2
    assert acquired(bench, role, 0) == 0


@BACK_ENDS
def test_whose_a_mutex_is(python: bool) -> None:
    bench = Bench(python)
    assert bench.mutex_is_mine(bench.rig) == 0
    bench.mutex_lock(bench.rig)
    assert bench.mutex_is_mine(bench.rig) == 1
    bench.w[world.TID] = 1
    assert bench.mutex_is_mine(bench.rig) == 0


@BACK_ENDS
def test_trylock(python: bool) -> None:
    bench = Bench(python)
    assert bench.mutex_trylock(bench.rig) == 1
    assert bench.mutex_trylock(bench.rig) == 0
    assert acquired(bench, "driver") == 1


@BACK_ENDS
@pytest.mark.parametrize(
    ("reads", "writes", "role"),
    [
        (("down_read", "up_read"), ("down_write", "up_write"), "rwsem"),
        (("read_lock", "read_unlock"), ("write_lock", "write_unlock"), "driver"),
    ],
    ids=["rwsem", "rwlock"],
)
def test_many_readers_or_one_writer(python: bool, reads: tuple[str, str], writes: tuple[str, str], role: str) -> None:
    bench = Bench(python)
    rig = bench.rig
    read, unread = reads
    write, unwrite = writes
    stops(bench, BAD_ADDRESS, unread)
    stops(bench, BAD_ADDRESS, unwrite)
    getattr(bench, read)(rig)
    getattr(bench, read)(rig)
    stops(bench, WOULD_BLOCK, write)
    getattr(bench, unread)(rig)
    stops(bench, WOULD_BLOCK, write)
    stops(bench, BAD_ADDRESS, unwrite)
    getattr(bench, unread)(rig)
    getattr(bench, write)(rig)
    stops(bench, WOULD_BLOCK, read)
    stops(bench, WOULD_BLOCK, write)
    stops(bench, BAD_ADDRESS, unread)
    getattr(bench, unwrite)(rig)
    assert (acquired(bench, role, 0), acquired(bench, role, 1)) == (2, 1)


@BACK_ENDS
def test_who_asks_takes_nothing(python: bool) -> None:
    bench = Bench(python)
    rig = bench.rig
    assert (bench.spin_is_locked(rig), bench.write_locked(rig)) == (0, 0)
    bench.spin_lock(rig)
    bench.down_read(rig)
    assert (bench.spin_is_locked(rig), bench.write_locked(rig)) == (1, 0)
    bench.up_read(rig)
    bench.down_write(rig)
    assert bench.write_locked(rig) == 1
    assert (acquired(bench, "spinlock"), acquired(bench, "rwsem", 0), acquired(bench, "rwsem", 1)) == (1, 1, 1)


@BACK_ENDS
def test_a_downgraded_writer_is_a_reader_and_was_never_nobody(python: bool) -> None:
    bench = Bench(python)
    rig = bench.rig
    stops(bench, BAD_ADDRESS, "downgrade_write")
    bench.down_read(rig)
    stops(bench, BAD_ADDRESS, "downgrade_write")
    bench.up_read(rig)
    bench.down_write(rig)
    assert bench.down_read_trylock(rig) == 0
    bench.w[world.TID] = 1
    stops(bench, BAD_ADDRESS, "downgrade_write")  # another thread's
    bench.w[world.TID] = 0
    bench.downgrade_write(rig)
    assert bench.down_read_trylock(rig) == 1
    stops(bench, WOULD_BLOCK, "down_write")
    stops(bench, BAD_ADDRESS, "up_write")
    bench.up_read(rig)
    bench.up_read(rig)
    bench.down_write(rig)
    assert (acquired(bench, "rwsem", 0), acquired(bench, "rwsem", 1)) == (2, 2)


@BACK_ENDS
def test_reference_counts_neither_rise_from_zero_nor_fall_below(python: bool) -> None:
    bench = Bench(python)
    rig = bench.rig
    stops(bench, REFCOUNT, "ref_inc")
    stops(bench, REFCOUNT, "ref_dec")
    assert bench.ref_inc_not_zero(rig) == 0
    bench.ref_set(rig, 1)
    bench.ref_inc(rig)
    assert bench.ref_inc_not_zero(rig) == 1
    assert [bench.ref_dec(rig) for _ in range(3)] == [0, 0, 1]
    stops(bench, REFCOUNT, "ref_dec")
