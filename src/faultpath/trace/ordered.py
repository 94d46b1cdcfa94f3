"""A table of integers ordered by key, for jitted code: find the row at or below a key, insert, remove, walk.

Rows lie in chunks of ``ROOM``, sorted inside and by ORDER among each other, as the leaves of a B+ tree of two levels:
an insertion moves at most a chunk's rows and, when a chunk is split, two words for each chunk above it. A place in the
table is ``position in order * ROOM + row``; NONE is none. Insertions and removals move places. One array holds all:
each array that a function takes costs compile time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from faultpath.jit import jit_plain

SHIFT = 6
ROOM = 1 << SHIFT
NONE = np.int64(-1)

#: int64; axes: chunk, row in the chunk, word. Word 0 of a row is its key; keys differ. Row ROOM of a chunk is a header:
#: SIZE is its own, the rows in use; ORDER and LOW are by position: which chunk comes there, and its lowest key. Behind
#: the first ``[0, ROOM, USED]`` of them are the free chunks. ``[0, ROOM, HINT]`` is the place that was found last.
Table = NDArray[np.int64]
SIZE, ORDER, LOW, USED, HINT = range(5)


def table(words: int | np.int64, chunks: int = 4) -> Table:
    """An empty table of rows of so many words, at least five."""
    t = np.zeros((chunks, ROOM + 1, int(words)), np.int64)
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


@jit_plain
def lacks(t, insertions):  # type: ignore[no-untyped-def]
    """Whether so many insertions might find no chunk free."""
    used = t[0, ROOM, USED]
    return used + min(insertions, used + insertions // (ROOM // 2) + 1) + 1 > len(t)


@jit_plain
def floor(t, key):  # type: ignore[no-untyped-def]
    """The place of the row with the greatest key not above ``key``, or NONE."""
    used, hint = t[0, ROOM, USED], t[0, ROOM, HINT]
    at, i = hint >> SHIFT, hint & (ROOM - 1)
    if at < used:
        chunk = t[at, ROOM, ORDER]
        size = t[chunk, ROOM, SIZE]
        if i < size and t[chunk, i, 0] <= key:
            last = at + 1 == used or t[at + 1, ROOM, LOW] > key
            if last if i + 1 == size else t[chunk, i + 1, 0] > key:
                return hint
    if used == 0 or t[0, ROOM, LOW] > key:
        return NONE
    # Halving without a branch on what is found: the processor could not foresee it.
    at, left = 0, used
    while left > 1:
        half = left >> 1
        at += half if t[at + half, ROOM, LOW] <= key else 0
        left -= half
    chunk = t[at, ROOM, ORDER]
    i, left = 0, t[chunk, ROOM, SIZE]
    while left > 1:
        half = left >> 1
        i += half if t[chunk, i + half, 0] <= key else 0
        left -= half
    t[0, ROOM, HINT] = at << SHIFT | i
    return at << SHIFT | i


@jit_plain
def following(t, place):  # type: ignore[no-untyped-def]
    """The place after ``place``, or the first after NONE; NONE at the end."""
    at = max(place, 0) >> SHIFT
    if place != NONE:
        if (place & (ROOM - 1)) + 1 < t[t[at, ROOM, ORDER], ROOM, SIZE]:
            return place + 1
        at += 1
    return at << SHIFT if at < t[0, ROOM, USED] else NONE


@jit_plain
def get(t, place, word):  # type: ignore[no-untyped-def]
    """A word of the row at a place. Not the row as an array: its reference count would cost more than the look."""
    return t[t[place >> SHIFT, ROOM, ORDER], place & (ROOM - 1), word]


@jit_plain
def put(t, place, word, value):  # type: ignore[no-untyped-def]
    """Write a word of the row at a place; a key stays between those of its neighbours."""
    at, i = place >> SHIFT, place & (ROOM - 1)
    t[t[at, ROOM, ORDER], i, word] = value
    if word == 0 and i == 0:
        t[at, ROOM, LOW] = value


@jit_plain
def insert(t, key):  # type: ignore[no-untyped-def]
    """A new row, zero but for its key, which no row has; its place. There must be a chunk free (``lacks``)."""
    words, used = t.shape[2], t[0, ROOM, USED]
    place = floor(t, key)
    at, i = max(place, 0) >> SHIFT, (place & (ROOM - 1)) + 1 if place >= 0 else 0
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
    return at << SHIFT | i


@jit_plain
def remove(t, place):  # type: ignore[no-untyped-def]
    """Take a row out; the place of the one that followed it, or NONE."""
    at, i = place >> SHIFT, place & (ROOM - 1)
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
        return at << SHIFT if at < used else NONE
    if i == 0:
        t[at, ROOM, LOW] = t[chunk, 0, 0]
    if i < size:
        return place
    return (at + 1) << SHIFT if at + 1 < t[0, ROOM, USED] else NONE
