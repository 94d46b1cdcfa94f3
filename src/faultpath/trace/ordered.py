"""A table of integers ordered by key, for jitted code: find the row at or below a key, insert, remove, walk.

Rows lie in chunks of ``ROOM``, sorted inside and by ``order`` among each other, as the leaves of a B+ tree of two levels:
an insertion moves at most a chunk's rows and, when a chunk is split, eight bytes for each chunk above it. A place in the
table is ``position in order * ROOM + row``; NONE is none. Insertions and removals move places.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from faultpath.jit import jit

ROOM = 64
NONE = -1


class Table(NamedTuple):
    """Axes: chunk, row in the chunk, word. Word 0 of a row is its key; keys differ.

    :ivar size: rows in use, by chunk
    :ivar order: chunks by their keys; behind the first ``used[0]`` the free ones
    :ivar low: by position in ``order``: the chunk's lowest key
    """

    rows: NDArray[np.int64]
    size: NDArray[np.int64]
    order: NDArray[np.int64]
    low: NDArray[np.int64]
    used: NDArray[np.int64]

    def all(self) -> NDArray[np.int64]:
        """A copy of the rows in use, by key."""
        chunks = self.order[: self.used[0]]
        inside = np.arange(ROOM) < self.size[chunks][:, None]
        return self.rows[chunks][inside]


def table(words: int, chunks: int = 4) -> Table:
    """An empty table of rows of so many words."""
    empty = np.zeros(chunks, np.int64)
    return Table(
        np.zeros((chunks, ROOM, words), np.int64), empty, np.arange(chunks), empty.copy(), np.zeros(1, np.int64)
    )


def grown(t: Table, chunks: int) -> Table:
    """The same rows with room for so many chunks, which are more than before."""
    new = table(t.rows.shape[2], chunks)
    for old, larger in zip(t[:4], new[:4], strict=True):
        larger[: len(old)] = old
    new.used[0] = t.used[0]
    return new


@jit
def lacks(t, insertions):  # type: ignore[no-untyped-def]
    """Whether so many insertions might find no chunk free."""
    splits = min(insertions, t.used[0] + insertions // (ROOM // 2) + 1)
    return t.used[0] + splits + 1 > len(t.order)


@jit
def floor(t, key):  # type: ignore[no-untyped-def]
    """The place of the row with the greatest key not above ``key``, or NONE."""
    first, end = 0, t.used[0]
    while first < end:
        middle = (first + end) >> 1
        if t.low[middle] <= key:
            first = middle + 1
        else:
            end = middle
    if first == 0:
        return NONE
    at = first - 1
    chunk = t.order[at]
    low, high = 0, t.size[chunk]
    while low < high:
        middle = (low + high) >> 1
        if t.rows[chunk, middle, 0] <= key:
            low = middle + 1
        else:
            high = middle
    return at * ROOM + low - 1


@jit
def following(t, place):  # type: ignore[no-untyped-def]
    """The place after ``place``, which may be NONE for the first; NONE at the end."""
    if place == NONE:
        return 0 if t.used[0] else NONE
    at = place // ROOM
    if place % ROOM + 1 < t.size[t.order[at]]:
        return place + 1
    return (at + 1) * ROOM if at + 1 < t.used[0] else NONE


@jit
def row(t, place):  # type: ignore[no-untyped-def]
    """The row at a place, to read and, but for its key, to write."""
    return t.rows[t.order[place // ROOM], place % ROOM]


@jit
def set_key(t, place, key):  # type: ignore[no-untyped-def]
    """Change a row's key, between those of its neighbours."""
    at, i = place // ROOM, place % ROOM
    t.rows[t.order[at], i, 0] = key
    if i == 0:
        t.low[at] = key


@jit
def _new_chunk(t, at, low):  # type: ignore[no-untyped-def]
    used = t.used[0]
    chunk = t.order[used]
    for i in range(used, at, -1):
        t.order[i] = t.order[i - 1]
        t.low[i] = t.low[i - 1]
    t.order[at] = chunk
    t.low[at] = low
    t.size[chunk] = 0
    t.used[0] = used + 1
    return chunk


@jit
def insert(t, key):  # type: ignore[no-untyped-def]
    """A new row, zero but for its key, which no row has; its place. There must be a chunk free (``lacks``)."""
    if t.used[0] == 0:
        _new_chunk(t, 0, key)
    place = floor(t, key)
    at = max(place, 0) // ROOM
    i = place % ROOM + 1 if place >= 0 else 0
    chunk = t.order[at]
    if t.size[chunk] == ROOM:
        half = ROOM // 2
        upper = _new_chunk(t, at + 1, t.rows[chunk, half, 0])
        t.rows[upper, : ROOM - half] = t.rows[chunk, half:]
        t.size[upper] = ROOM - half
        t.size[chunk] = half
        if i > half:
            at, i, chunk = at + 1, i - half, upper
    size = t.size[chunk]
    for j in range(size, i, -1):
        for word in range(t.rows.shape[2]):
            t.rows[chunk, j, word] = t.rows[chunk, j - 1, word]
    t.rows[chunk, i] = 0
    t.rows[chunk, i, 0] = key
    t.size[chunk] = size + 1
    if i == 0:
        t.low[at] = key
    return at * ROOM + i


@jit
def remove(t, place):  # type: ignore[no-untyped-def]
    """Take a row out; the place of the one that followed it, or NONE."""
    at, i = place // ROOM, place % ROOM
    chunk = t.order[at]
    size = t.size[chunk] - 1
    for j in range(i, size):
        for word in range(t.rows.shape[2]):
            t.rows[chunk, j, word] = t.rows[chunk, j + 1, word]
    t.size[chunk] = size
    if size == 0:
        used = t.used[0] - 1
        for j in range(at, used):
            t.order[j] = t.order[j + 1]
            t.low[j] = t.low[j + 1]
        t.order[used] = chunk
        t.used[0] = used
        return at * ROOM if at < used else NONE
    if i == 0:
        t.low[at] = t.rows[chunk, 0, 0]
    if i < size:
        return place
    return (at + 1) * ROOM if at + 1 < t.used[0] else NONE
