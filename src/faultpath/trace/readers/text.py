"""A recording that is text: the open file, and going over it a batch of events at a time."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from faultpath.trace.formats import HEAD, Progress
from faultpath.trace.readers.perf_columns import FIELD
from faultpath.trace.schema import check_readable

BATCH = 1 << 16  # events handed out at a time: they stay in the cache
PIECE = 1 << 24  # bytes gone over at a time, so that progress shows where lines make no events
FIELDS = 5  # of an event: mremap needs as many
S_AT, S_ROWS = 0, 1  # of a walker's state: where it is, events it has made

DONE, FULL = 0, 1  # a walker's status; every other one is the reader's to answer, before the same line is read again


class Text:
    """The file, mapped: lines of any length need no memory of ours.

    :ivar head: its first 64 KiB
    :ivar whole: whether it ends with the end of a line
    :raises FaultpathError: when it cannot be read
    """

    def __init__(self, path: Path) -> None:
        check_readable(path)
        with path.open("rb") as file:
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.head = self.map[:HEAD]
        self.whole = self.map[-1:] == b"\n"

    def batches(
        self,
        walk: Callable[[np.ndarray, int, int, np.ndarray], int],
        state: np.ndarray,
        answer: Callable[[int], None],
        progress: Progress | None,
    ) -> Iterator[np.ndarray]:
        """Events in the layout of ``perf_columns``, as the walker makes them; each batch is good until the next.

        :param walk: given the file's bytes, from where to where, and the array to fill; returns a status and leaves
            ``state[S_AT]`` at the line it did not read and ``state[S_ROWS]`` at the count of events
        :param answer: called with each status that is neither ``DONE`` nor ``FULL``
        """
        whole = np.frombuffer(self.map, np.uint8)
        out = np.zeros((BATCH, FIELD + FIELDS), np.int64)
        total, released = len(whole), 0
        while state[S_AT] < total:
            at = int(state[S_AT])
            stop = self.map.find(b"\n", min(at + PIECE, total))
            status = walk(whole, at, total if stop < 0 else stop + 1, out)
            if status > FULL:
                answer(status)
            if status == FULL or (status == DONE and state[S_ROWS]) or state[S_AT] >= total:
                yield out[: state[S_ROWS]]
                state[S_ROWS] = 0
            if progress:
                progress(int(state[S_AT]), total)
            # Pages of the file that are done with would count as ours until the kernel needs them.
            done = int(state[S_AT]) // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
            if done - released >= PIECE:
                self.map.madvise(mmap.MADV_DONTNEED, released, done - released)
                released = done
