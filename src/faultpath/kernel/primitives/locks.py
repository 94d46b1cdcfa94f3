"""Locks and reference counts. A lock's acquisitions are counted under its role."""

from __future__ import annotations

from faultpath.engine.world import BAD_ADDRESS, LOCK, REFCOUNT, STATUS, STATUS_ARG, TID, Stop, Words
from faultpath.protocol.language import helper, primitive
from faultpath.protocol.struct import Mutex, RefCount, RwSem, SpinLock


@helper
def acquire(w: Words, lock: int, role: int) -> int:
    """Take an exclusive lock for the running thread; 1 if somebody holds it."""
    if w[lock] != 0:
        return 1
    w[lock] = w[TID] + 1
    w[LOCK + 2 * role + 1] += 1
    return 0


@helper
def release(w: Words, lock: int) -> int:
    """Give up an exclusive lock; unlocking what the thread does not hold stops the run."""
    if w[lock] != w[TID] + 1:
        w[STATUS] = BAD_ADDRESS
        w[STATUS_ARG] = lock
        raise Stop
    w[lock] = 0
    return 0


@primitive(blocks=True, role=True)
def mutex_lock(w: Words, lock: Mutex, role: int) -> int:
    """Sleep until the mutex is free, and take it."""
    return acquire(w, lock, role)


@primitive(role=True)
def mutex_trylock(w: Words, lock: Mutex, role: int) -> int:
    """Take the mutex if it is free: 1 if taken."""
    return 1 - acquire(w, lock, role)


@primitive
def mutex_unlock(w: Words, lock: Mutex) -> int:
    """Give the mutex up."""
    return release(w, lock)


@primitive(blocks=True, role=True)
def spin_lock(w: Words, lock: SpinLock, role: int) -> int:
    """Take a spinlock."""
    return acquire(w, lock, role)


@primitive
def spin_unlock(w: Words, lock: SpinLock) -> int:
    """Give a spinlock up."""
    return release(w, lock)


@primitive(blocks=True, role=True)
def down_read(w: Words, lock: RwSem, role: int) -> int:
    """Take the semaphore for reading. Fairness to waiting writers is the scheduler's business."""
    if w[lock] < 0:
        return 1
    w[lock] += 1
    w[LOCK + 2 * role] += 1
    return 0


@primitive
def up_read(w: Words, lock: RwSem) -> int:
    """Give a read lock up."""
    if w[lock] <= 0:
        w[STATUS] = BAD_ADDRESS
        w[STATUS_ARG] = lock
        raise Stop
    w[lock] -= 1
    return 0


@primitive(blocks=True, role=True)
def down_write(w: Words, lock: RwSem, role: int) -> int:
    """Take the semaphore for writing."""
    if w[lock] != 0:
        return 1
    w[lock] = -w[TID] - 1
    w[LOCK + 2 * role + 1] += 1
    return 0


@primitive
def up_write(w: Words, lock: RwSem) -> int:
    """Give a write lock up."""
    if w[lock] != -w[TID] - 1:
        w[STATUS] = BAD_ADDRESS
        w[STATUS_ARG] = lock
        raise Stop
    w[lock] = 0
    return 0


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


@primitive
def refcount_inc(w: Words, ref: RefCount) -> int:
    """refcount_inc(): raising a count of zero is a use after free."""
    if w[ref] <= 0:
        refcount_fault(w, ref)
    w[ref] += 1
    return 0


@primitive
def refcount_inc_not_zero(w: Words, ref: RefCount) -> int:
    """refcount_inc_not_zero(): 1 if raised."""
    if w[ref] == 0:
        return 0
    w[ref] += 1
    return 1


@primitive
def refcount_dec_and_test(w: Words, ref: RefCount) -> int:
    """refcount_dec_and_test(): 1 if it fell to zero."""
    if w[ref] <= 0:
        refcount_fault(w, ref)
    w[ref] -= 1
    return 1 if w[ref] == 0 else 0
