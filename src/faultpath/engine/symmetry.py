"""Threads that run the same on the same may change places: of states that differ in that only, one is explored.

After each step like threads are put in order of their words. Only where neither owns memory: then what names a thread
is its own record, the words of the locks it holds, and its records of invalidations under way.
"""

from __future__ import annotations

from faultpath.engine.arena import (
    ARENA,
    LIKE,
    LOCK_AT,
    POOL,
    POOLS,
    RANGE_WORDS,
    RANGES,
    RECORD,
    SHADOW,
    SWAPPED,
    THREADS,
)
from faultpath.engine.sanitizer import put
from faultpath.engine.thread import HELD_WRITE, NUMBER
from faultpath.engine.world import Words
from faultpath.protocol.language import helper


@helper(raw=True)
def owns_memory(w: Words, number: int) -> int:
    """Whether there is anything in a thread's pool."""
    first = SHADOW + ((w[POOLS] + number * w[POOL] - ARENA) >> 3)
    for unit in range(first, first + (w[POOL] >> 3)):
        if w[unit]:
            return 1
    return 0


@helper(raw=True)
def swap(w: Words, one: int, other: int) -> int:
    """Two words of the state change places."""
    value = w[one]
    put(w, one, w[other])
    return put(w, other, value)


@helper(raw=True)
def give_locks(w: Words, record: int, number: int) -> int:
    """The locks that a record holds exclusively are held by this thread."""
    held = w[record + HELD_WRITE]
    lock = 0
    while held:
        lock += 1
        if held & 1:
            at = w[LOCK_AT + lock]
            put(w, at, -number - 2 if w[at] < 0 else number + 2)
        held = held >> 1
    return 0


@helper(raw=True)
def change_places(w: Words, one: int, other: int, words: int) -> int:
    """Two threads become each other."""
    first = w[RECORD + one]
    second = w[RECORD + other]
    for word in range(words):
        if word != NUMBER:
            swap(w, first + word, second + word)
    for word in range(2 * RANGE_WORDS):
        swap(w, RANGES + one * 2 * RANGE_WORDS + word, RANGES + other * 2 * RANGE_WORDS + word)
    give_locks(w, first, one)
    give_locks(w, second, other)
    w[SWAPPED] |= 1 << other
    return 0


@helper(raw=True)
def order(w: Words, one: int, other: int, words: int) -> int:
    """1 if the two threads are to change places: the first word in which they differ is smaller in the later one."""
    first = w[RECORD + one]
    second = w[RECORD + other]
    for word in range(words):
        if word != NUMBER and w[first + word] != w[second + word]:
            return 1 if w[first + word] > w[second + word] else 0
    return 0


@helper(raw=True)
def put_in_order(w: Words) -> int:
    """Like threads in order; SWAPPED says which changed places with the one before them."""
    w[SWAPPED] = 0
    for other in range(1, w[THREADS]):
        one = w[LIKE + other] - 1
        if one >= 0:
            words = w[RECORD + one + 1] - w[RECORD + one]
            if order(w, one, other, words) and not owns_memory(w, one) and not owns_memory(w, other):
                change_places(w, one, other, words)
    return 0
