"""Locks and reference counts. A lock's acquisitions are counted under its role.

``role`` holds the role in its low eight bits, and above them a number for the lock's class, as lockdep has them.
"""

from __future__ import annotations

from faultpath.engine.world import BAD_ADDRESS, LOCK, REFCOUNT, STATUS, STATUS_ARG, TID, Stop, Words
from faultpath.kernel.primitives.debug import (
    READ,
    SLEEPS,
    SPINS,
    WRITE,
    lock_downgraded,
    lock_dropped,
    lock_taken,
    lock_tried,
    lock_wanted,
    might_sleep,
    set_count,
    set_lock,
)
from faultpath.protocol.language import helper, primitive
from faultpath.protocol.struct import Mutex, RefCount, RwLock, RwSem, SpinLock


@helper(raw=True)
def count_lock(w: Words, role: int, write: int) -> int:
    """One more acquisition."""
    w[LOCK + 2 * (role & 255) + write] += 1
    return 0


@helper(raw=True)
def not_held(w: Words, lock: int) -> int:
    """Somebody gives up what the running thread does not hold: the run stops."""
    w[STATUS] = BAD_ADDRESS
    w[STATUS_ARG] = lock
    raise Stop


@helper(raw=True)
def acquire(w: Words, lock: int, role: int, spins: int) -> int:
    """Take an exclusive lock for the running thread; 1 if somebody holds it."""
    if w[lock] != 0:
        return 1
    set_lock(w, lock, w[TID] + 1)
    count_lock(w, role, WRITE)
    return lock_taken(w, lock, role, WRITE, spins)


@helper(raw=True)
def release(w: Words, lock: int, spins: int) -> int:
    """Give up an exclusive lock."""
    lock_dropped(w, lock, WRITE, spins)
    if w[lock] != w[TID] + 1:
        not_held(w, lock)
    return set_lock(w, lock, 0)


@helper(raw=True)
def acquire_read(w: Words, lock: int, role: int, spins: int) -> int:
    """Take a semaphore or an rwlock for reading; 1 if a writer holds it."""
    if w[lock] < 0:
        return 1
    set_lock(w, lock, w[lock] + 1)
    count_lock(w, role, READ)
    return lock_taken(w, lock, role, READ, spins)


@helper(raw=True)
def acquire_write(w: Words, lock: int, role: int, spins: int) -> int:
    """Take a semaphore or an rwlock for writing; 1 if anybody holds it."""
    if w[lock] != 0:
        return 1
    set_lock(w, lock, -w[TID] - 1)
    count_lock(w, role, WRITE)
    return lock_taken(w, lock, role, WRITE, spins)


@helper(raw=True)
def release_read(w: Words, lock: int, spins: int) -> int:
    """Give a read lock up."""
    lock_dropped(w, lock, READ, spins)
    if w[lock] <= 0:
        not_held(w, lock)
    return set_lock(w, lock, w[lock] - 1)


@helper(raw=True)
def release_write(w: Words, lock: int, spins: int) -> int:
    """Give a write lock up."""
    lock_dropped(w, lock, WRITE, spins)
    if w[lock] != -w[TID] - 1:
        not_held(w, lock)
    return set_lock(w, lock, 0)


@helper(raw=True)
def write_to_read(w: Words, lock: int) -> int:
    """From a write lock to a read lock."""
    lock_downgraded(w, lock)
    if w[lock] != -w[TID] - 1:
        not_held(w, lock)
    return set_lock(w, lock, 1)


@primitive
def mutex_unlock(w: Words, lock: Mutex) -> int:
    """Give the mutex up."""
    return release(w, lock, SLEEPS)


@primitive(blocks=True, role=True, undone_by=mutex_unlock)
def mutex_lock(w: Words, lock: Mutex, role: int) -> int:
    """Sleep until the mutex is free, and take it."""
    lock_wanted(w, lock, role, SLEEPS)
    return acquire(w, lock, role, SLEEPS)


@primitive(blocks=True, role=True, undone_by=mutex_unlock)
def mutex_lock_nested(w: Words, lock: Mutex, role: int) -> int:
    """mutex_lock_nested(): the caller vouches for the order; lockdep learns nothing from it."""
    might_sleep(w)
    lock_tried(w, lock)
    return acquire(w, lock, role, SLEEPS)


@primitive(role=True)
def mutex_trylock(w: Words, lock: Mutex, role: int) -> int:
    """Take the mutex if it is free: 1 if taken."""
    lock_tried(w, lock)
    return 1 - acquire(w, lock, role, SLEEPS)


@helper(raw=True)
def is_mine(w: Words, lock: int) -> int:
    """Whether the running thread holds an exclusive lock: nothing that others do can change that."""
    return 1 if w[lock] == w[TID] + 1 else 0


@primitive
def mutex_is_mine(w: Words, lock: Mutex) -> int:
    """lockdep_is_held()."""
    return is_mine(w, lock)


@primitive
def spin_unlock(w: Words, lock: SpinLock) -> int:
    """Give a spinlock up."""
    return release(w, lock, SPINS)


@primitive(blocks=True, role=True, undone_by=spin_unlock)
def spin_lock(w: Words, lock: SpinLock, role: int) -> int:
    """Take a spinlock."""
    lock_wanted(w, lock, role, SPINS)
    return acquire(w, lock, role, SPINS)


@primitive
def spin_is_locked(w: Words, lock: SpinLock) -> int:
    """spin_is_locked()."""
    return 1 if w[lock] != 0 else 0


@primitive
def rwsem_is_write_locked(w: Words, lock: RwSem) -> int:
    """Whether somebody holds the semaphore for writing (what rwsem_assert_held_write() goes by)."""
    return 1 if w[lock] < 0 else 0


@primitive
def up_read(w: Words, lock: RwSem) -> int:
    """Give a read lock up."""
    return release_read(w, lock, SLEEPS)


@primitive(blocks=True, role=True, undone_by=up_read)
def down_read(w: Words, lock: RwSem, role: int) -> int:
    """Take the semaphore for reading. Fairness to waiting writers is the scheduler's business."""
    lock_wanted(w, lock, role, SLEEPS)
    return acquire_read(w, lock, role, SLEEPS)


@primitive
def up_write(w: Words, lock: RwSem) -> int:
    """Give a write lock up."""
    return release_write(w, lock, SLEEPS)


@primitive(blocks=True, role=True, undone_by=up_write)
def down_write(w: Words, lock: RwSem, role: int) -> int:
    """Take the semaphore for writing."""
    lock_wanted(w, lock, role, SLEEPS)
    return acquire_write(w, lock, role, SLEEPS)


@primitive
def read_unlock(w: Words, lock: RwLock) -> int:
    """Give a read lock up."""
    return release_read(w, lock, SPINS)


@primitive(blocks=True, role=True, undone_by=read_unlock)
def read_lock(w: Words, lock: RwLock, role: int) -> int:
    """Take an rwlock for reading. Fairness to waiting writers is the scheduler's business."""
    lock_wanted(w, lock, role, SPINS)
    return acquire_read(w, lock, role, SPINS)


@primitive
def write_unlock(w: Words, lock: RwLock) -> int:
    """Give a write lock up."""
    return release_write(w, lock, SPINS)


@primitive(blocks=True, role=True, undone_by=write_unlock)
def write_lock(w: Words, lock: RwLock, role: int) -> int:
    """Take an rwlock for writing."""
    lock_wanted(w, lock, role, SPINS)
    return acquire_write(w, lock, role, SPINS)


@helper
def refcount_fault(w: Words, ref: int) -> int:
    """A reference count went where it must not."""
    w[STATUS] = REFCOUNT
    w[STATUS_ARG] = ref
    raise Stop


@primitive
def refcount_set(w: Words, ref: RefCount, value: int) -> int:
    """refcount_set()."""
    w[ref] = value
    return 0


@primitive
def refcount_read(w: Words, ref: RefCount) -> int:
    """refcount_read()."""
    return w[ref]


@helper(raw=True)
def count_up(w: Words, ref: int) -> int:
    """One reference more: raising a count of zero is a use after free."""
    if w[ref] <= 0:
        refcount_fault(w, ref)
    return set_count(w, ref, w[ref] + 1, 0)


@helper(raw=True)
def count_up_not_zero(w: Words, ref: int) -> int:
    """One reference more if there was one: 1 if so."""
    found = 1 if w[ref] else 0
    set_count(w, ref, w[ref] + found, 0)
    return found


@helper(raw=True)
def dec_and_test(w: Words, ref: int) -> int:
    """One reference less; 1 if it was the last."""
    if w[ref] <= 0:
        refcount_fault(w, ref)
    set_count(w, ref, w[ref] - 1, 0)
    return 1 if w[ref] == 0 else 0


@primitive
def refcount_inc(w: Words, ref: RefCount) -> int:
    """refcount_inc()."""
    return count_up(w, ref)


@primitive
def refcount_inc_not_zero(w: Words, ref: RefCount) -> int:
    """refcount_inc_not_zero(): 1 if raised."""
    return count_up_not_zero(w, ref)


@primitive
def refcount_dec_and_test(w: Words, ref: RefCount) -> int:
    """refcount_dec_and_test(): 1 if it fell to zero."""
    return dec_and_test(w, ref)


@primitive(role=True)
def down_read_trylock(w: Words, lock: RwSem, role: int) -> int:
    """Take the semaphore for reading unless somebody writes: 1 if taken."""
    lock_tried(w, lock)
    return 1 - acquire_read(w, lock, role, SLEEPS)


@primitive
def downgrade_write(w: Words, lock: RwSem) -> int:
    """Turn one's write lock into a read lock, without a moment in between; no new acquisition."""
    return write_to_read(w, lock)
