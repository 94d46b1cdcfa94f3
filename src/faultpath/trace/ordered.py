"""A table of integers ordered by key, for jitted code: find the row at or below a key, insert, remove, walk.

Rows lie in chunks of ``ROOM``, sorted inside and by ORDER among each other, as the leaves of a B+ tree of two levels: an
insertion moves at most a chunk's rows and, when a chunk is split, two words for each chunk above it. A place in the
table is ``position in order * ROOM + row``; NONE is none. Insertions and removals move places. One array holds all, for
each array that a function takes costs compile time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from faultpath.jit import jit

ROOM = 64
NONE = np.int64(-1)

#: int64; axes: chunk, row in the chunk, word. Word 0 of a row is its key; keys differ. Row ROOM is a header. SIZE is the
#: chunk's own, rows in use; ORDER and LOW are by position: which chunk comes there, and its lowest key (behind the first
#: ``[0, ROOM, USED]`` the free chunks).
Table = NDArray[np.int64]
SIZE, ORDER, LOW, USED = range(4)


def table(words: int, chunks: int = 4) -> Table:
    """An empty table of rows of so many words, at least four."""
    t = np.zeros((chunks, ROOM + 1, words), np.int64)
    t[:, ROOM, ORDER] = np.arange(chunks)
    return t


def grown(t: Table) -> Table:
    """The same rows with twice the room."""
    new = table(t.shape[2], 2 * len(t))
    new[: len(t)] = t
    return new


def rows(t: Table) -> NDArray[np.int64]:
    """A copy of the rows in use, by key."""
    chunks = t[t[: t[0, ROOM, USED], ROOM, ORDER]]
    return chunks[:, :ROOM][np.arange(ROOM) < chunks[:, ROOM, SIZE, None]]


@jit
def lacks(t, insertions):  # type: ignore[no-untyped-def]
    """Whether so many insertions might find no chunk free."""
    used = t[0, ROOM, USED]
    return used + min(insertions, used + insertions // (ROOM // 2) + 1) + 1 > len(t)


@jit
def floor(t, key):  # type: ignore[no-untyped-def]
    """The place of the row with the greatest key not above ``key``, or NONE."""
    low, high = 0, t[0, ROOM, USED]
    while low < high:
        middle = (low + high) >> 1
        if t[middle, ROOM, LOW] <= key:
            low = middle + 1
        else:
            high = middle
    if low == 0:
        return NONE
    at = low - 1
    chunk = t[at, ROOM, ORDER]
    low, high = 0, t[chunk, ROOM, SIZE]
    while low < high:
        middle = (low + high) >> 1
        if t[chunk, middle, 0] <= key:
            low = middle + 1
        else:
            high = middle
    return at * ROOM + low - 1


@jit
def following(t, place):  # type: ignore[no-untyped-def]
    """The place after ``place``, or the first after NONE; NONE at the end."""
    at = max(place, 0) // ROOM
    if place != NONE:
        if place % ROOM + 1 < t[t[at, ROOM, ORDER], ROOM, SIZE]:
            return place + 1
        at += 1
    return at * ROOM if at < t[0, ROOM, USED] else NONE


@jit
def row(t, place):  # type: ignore[no-untyped-def]
    """The row at a place, to read and, but for its key, to write."""
    return t[t[place // ROOM, ROOM, ORDER], place % ROOM]


@jit
def set_key(t, place, key):  # type: ignore[no-untyped-def]
    """Change a row's key, between those of its neighbours."""
    at, i = place // ROOM, place % ROOM
    t[t[at, ROOM, ORDER], i, 0] = key
    if i == 0:
        t[at, ROOM, LOW] = key


@jit
def insert(t, key):  # type: ignore[no-untyped-def]
    """A new row, zero but for its key, which no row has; its place. There must be a chunk free (``lacks``)."""
    words, used = t.shape[2], t[0, ROOM, USED]
    place = floor(t, key)
    at, i = max(place, 0) // ROOM, place % ROOM + 1 if place >= 0 else 0
    chunk = t[at, ROOM, ORDER]
    full = t[chunk, ROOM, SIZE] == ROOM
    if full or used == 0:
        new, to = t[used, ROOM, ORDER], at + full
        for j in range(used, to, -1):
            t[j, ROOM, ORDER], t[j, ROOM, LOW] = t[j - 1, ROOM, ORDER], t[j - 1, ROOM, LOW]
        t[to, ROOM, ORDER], t[new, ROOM, SIZE] = new, 0
        t[0, ROOM, USED] = used + 1
        if full:
            # Keys that rise from the end on leave full chunks behind.
            keep = ROOM - 1 if i == ROOM and to == used else ROOM // 2
            for j in range(keep, ROOM):
                for word in range(words):
                    t[new, j - keep, word] = t[chunk, j, word]
            t[chunk, ROOM, SIZE], t[new, ROOM, SIZE] = keep, ROOM - keep
            t[to, ROOM, LOW] = t[new, 0, 0]
            if i > keep:
                at, i, chunk = to, i - keep, new
        else:
            chunk = new
    size = t[chunk, ROOM, SIZE]
    for j in range(size, i, -1):
        for word in range(words):
            t[chunk, j, word] = t[chunk, j - 1, word]
    t[chunk, i, 0] = key
    for word in range(1, words):
        t[chunk, i, word] = 0
    t[chunk, ROOM, SIZE] = size + 1
    if i == 0:
        t[at, ROOM, LOW] = key
    return at * ROOM + i


@jit
def remove(t, place):  # type: ignore[no-untyped-def]
    """Take a row out; the place of the one that followed it, or NONE."""
    at, i = place // ROOM, place % ROOM
    chunk = t[at, ROOM, ORDER]
    size = t[chunk, ROOM, SIZE] - 1
    for j in range(i, size):
        for word in range(t.shape[2]):
            t[chunk, j, word] = t[chunk, j + 1, word]
    t[chunk, ROOM, SIZE] = size
    if size == 0:
        used = t[0, ROOM, USED] - 1
        for j in range(at, used):
            t[j, ROOM, ORDER], t[j, ROOM, LOW] = t[j + 1, ROOM, ORDER], t[j + 1, ROOM, LOW]
        t[used, ROOM, ORDER] = chunk
        t[0, ROOM, USED] = used
        return at * ROOM if at < used else NONE
    if i == 0:
        t[at, ROOM, LOW] = t[chunk, 0, 0]
    if i < size:
        return place
    return (at + 1) * ROOM if at + 1 < t[0, ROOM, USED] else NONE
