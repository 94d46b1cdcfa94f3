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
PIECE = 1 << 24  # bytes gone over at a time, and the most that a line may have
FIELDS = 5  # of an event: mremap needs as many
S_AT, S_ROWS = 0, 1  # of a walker's state: where it is, events it has made

DONE, FULL = 0, 1  # a walker's status; every other one is the reader's to answer, before the same line is read again


class Text:
    """The file, mapped.

    :ivar head: its first 64 KiB
    :ivar whole: whether it ends with the end of a line
    :ivar long: lines passed over because they are longer than ``PIECE``
    :raises FaultpathError: when it cannot be read
    """

    def __init__(self, path: Path) -> None:
        check_readable(path)
        with path.open("rb") as file:
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.head = self.map[:HEAD]
        self.whole = self.map[-1:] == b"\n"
        self.long = 0
        self._released = 0

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
        total = len(whole)
        while state[S_AT] < total:
            at = int(state[S_AT])
            end = self._piece_end(at, total)
            if end < 0:
                state[S_AT] = self._after_line(at + PIECE, total)
                continue
            status = walk(whole, at, end, out)
            if status > FULL:
                answer(status)
            elif state[S_ROWS]:
                yield out[: state[S_ROWS]]
                state[S_ROWS] = 0
            if progress:
                progress(int(state[S_AT]), total)
            self._release(int(state[S_AT]))
        if state[S_ROWS]:
            yield out[: state[S_ROWS]]

    def dropped(self, lines: dict[str, int]) -> dict[str, int]:
        """Counts of lines that gave no event, by reason, with those that are too long; only those there are."""
        counts = {**lines, f"lines longer than {PIECE >> 20} MiB": self.long}
        return {reason: count for reason, count in counts.items() if count}

    def _piece_end(self, at: int, total: int) -> int:
        """Where a piece of whole lines ends that begins at ``at``; -1 when the first line is too long."""
        if at + PIECE >= total:
            return total
        last = self.map.rfind(b"\n", at, at + PIECE)
        return last + 1 if last >= 0 else -1

    def _after_line(self, at: int, total: int) -> int:
        """Offset after the line that ``at`` lies in."""
        self.long += 1
        while at < total:
            newline = self.map.find(b"\n", at, at + PIECE)
            if newline >= 0:
                return newline + 1
            at += PIECE
            self._release(min(at, total))
        return total

    def _release(self, at: int) -> None:
        """Pages of the file before ``at`` would count as ours until the kernel needs them."""
        done = at // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        if done - self._released >= PIECE:
            self.map.madvise(mmap.MADV_DONTNEED, self._released, done - self._released)
            self._released = done
