"""From a trace to what a replay runs: the rows of one process, in the order in which they took effect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from faultpath.engine.rows import REACCESS
from faultpath.trace.ops import Event, Op
from faultpath.trace.processes import Survey, in_effect, until_birth
from faultpath.trace.schema import Columns, Trace

Column = NDArray[np.int64]

CANONICAL_END = 1 << 47  # user space with four-level paging
LA57_END = 1 << 56


@dataclass
class Rows:
    """Columns of equal length: operation, address, bytes, and the two arguments (see Op)."""

    ops: Column
    addrs: Column
    sizes: Column
    args: Column
    auxs: Column

    def __len__(self) -> int:
        return self.ops.size

    def part(self, first: int, end: int) -> Rows:
        """Rows ``[first, end)``, as views."""
        return Rows(*(column[first:end] for column in (self.ops, self.addrs, self.sizes, self.args, self.auxs)))

    def write(self, table: NDArray[np.int64]) -> None:
        """Store into Row structures: one table row each, its header word left alone."""
        for i, column in enumerate((self.ops, self.addrs, self.sizes, self.args, self.auxs), start=1):
            table[:, i] = column


def _as_rows(columns: Columns) -> Rows:
    names = ("op", "addr", "len", "arg", "aux")
    return Rows(*(columns[name].astype(np.int64) for name in names))


def _with_reaccess(rows: Rows, tids: Column, tapped: bool) -> Rows:
    """Insert a REACCESS of each range that was invalidated but stays mapped, after the call or fault that did it."""
    n = len(rows)
    place = np.arange(n, dtype=np.int64)
    if tapped:
        ranges = (rows.ops == Op.INVALIDATE) & (rows.args != Event.UNMAP)
        by_thread = np.argsort(tids, kind="stable")
        closing = place.copy()
        following = n  # walked backwards per thread: the next row that is no invalidation
        thread = None
        for i in by_thread[::-1]:
            if tids[i] != thread:
                thread, following = tids[i], n
            if rows.ops[i] != Op.INVALIDATE:
                following = i
            elif following < n:
                closing[i] = following
        place = closing
    else:
        ranges = np.isin(rows.ops, (Op.MPROTECT, Op.MADVISE, Op.FORK))
    again = np.flatnonzero(ranges)
    position = np.concatenate([np.arange(n) * 2, place[again] * 2 + 1])
    fork = rows.ops[again] == Op.FORK
    extra = Rows(
        np.full(again.size, REACCESS),
        np.where(fork, 0, rows.addrs[again]),
        np.where(fork, LA57_END, rows.sizes[again]),
        np.zeros(again.size, np.int64),
        np.zeros(again.size, np.int64),
    )
    sequence = np.argsort(position, kind="stable")
    mine = (rows.ops, rows.addrs, rows.sizes, rows.args, rows.auxs)
    theirs = (extra.ops, extra.addrs, extra.sizes, extra.args, extra.auxs)
    return Rows(*(np.concatenate(pair)[sequence] for pair in zip(mine, theirs, strict=True)))


def inherited(trace: Trace, found: Survey, pid: int) -> Iterator[Rows]:
    """What built the address space that a process was born with: its ancestors' rows, invalidations left out.

    At each birth everything private becomes copy-on-write, as fork has it.
    """
    births = Rows(*(np.array([value], dtype=np.int64) for value in (Op.FORK, 0, 0, 0, 0)))
    for rows in until_birth(trace, found, pid):
        yield from map(_as_rows, rows)
        yield births


def batches(trace: Trace, pid: int, *, resident: bool) -> Iterator[Rows]:
    """A process's own rows, in the order in which they took effect, piece by piece.

    :param resident: insert REACCESS rows (``--accesses resident``)
    """
    tapped = trace.meta.invalidations_from == "tap"
    for columns in in_effect(trace, pid):
        rows = _as_rows(columns)
        yield _with_reaccess(rows, columns["tid"], tapped) if resident else rows
