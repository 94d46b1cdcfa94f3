"""From a trace to what a replay runs: the rows of one process, in the order in which they took effect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from faultpath.engine.rows import CHILD_COPIES, CHILD_ENDS, REACCESS
from faultpath.kernel.mm.fault import MAX_FORKS
from faultpath.kernel.mm.recorded import CLONE_VM
from faultpath.trace.ops import PF_PROT, PF_WRITE, Event, Op
from faultpath.trace.processes import Process, Survey, in_effect, until_birth
from faultpath.trace.schema import Columns, Trace

Column = NDArray[np.int64]

CANONICAL_END = 1 << 47  # user space with four-level paging
LA57_END = 1 << 56


def task_size(process: Process) -> int:
    """Where user space ends, as far as the process tells."""
    return LA57_END if process.limit > CANONICAL_END else CANONICAL_END


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

    def select(self, which: Column) -> Rows:
        """Some rows, by their numbers."""
        return Rows(*(column[which] for column in (self.ops, self.addrs, self.sizes, self.args, self.auxs)))

    def write(self, table: NDArray[np.int64]) -> None:
        """Store into Row structures: one table row each, its header word left alone."""
        for i, column in enumerate((self.ops, self.addrs, self.sizes, self.args, self.auxs), start=1):
            table[:, i] = column


def as_rows(columns: Columns) -> Rows:
    """The columns that a replay needs."""
    names = ("op", "addr", "len", "arg", "aux")
    return Rows(*(columns[name].astype(np.int64) for name in names))


def _with_reaccess(rows: Rows, tids: Column, recorded: bool) -> Rows:
    """Insert a REACCESS of each range that was invalidated but stays mapped, after the call or fault that did it."""
    n = len(rows)
    place = np.arange(n, dtype=np.int64)
    if recorded:
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
        yield from map(as_rows, rows)
        yield births


class Children:
    """Who still shares pages with a process: its forked children, numbered as ``mm_fork()`` does, and theirs."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.forks = 0
        self.number_of: dict[int, int] = {}

    def own_rows(self, columns: Columns) -> Columns:
        """The process's rows, and what its children do to pages that they share (CHILD_ENDS, CHILD_COPIES)."""
        ops, pids = columns["op"].copy(), columns["pid"]
        mine = pids == self.pid
        columns = columns | {"op": ops, "arg": columns["arg"].copy()}
        upto = 0
        for i in [*np.flatnonzero(np.isin(ops, (Op.FORK, Op.EXEC, Op.EXIT))).tolist(), len(ops)]:
            if len(self.number_of) == 1:
                written = np.arange(upto, i)[(ops[upto:i] == Op.FAULT) & (pids[upto:i] == next(iter(self.number_of)))]
                written = written[columns["arg"][written] & (PF_PROT | PF_WRITE) == PF_PROT | PF_WRITE]
                ops[written], mine[written] = CHILD_COPIES, True
            if i < len(ops) and self._ends(columns, i):
                mine[i] = True
            upto = i
        return {name: column[mine] for name, column in columns.items()}

    def _ends(self, columns: Columns, i: int) -> bool:
        """Follow who begins and ends; whether the row was made CHILD_ENDS: the last of a child's kin is gone."""
        op, pid = columns["op"][i], int(columns["pid"][i])
        if op != Op.FORK:
            number = self.number_of.pop(pid, 0)
            if number and number not in self.number_of.values():
                columns["op"][i], columns["arg"][i] = CHILD_ENDS, number
                return True
        elif not int(columns["aux"][i]) & CLONE_VM:
            child = int(columns["arg"][i])
            if pid == self.pid:
                self.forks = min(self.forks + 1, MAX_FORKS) if self.number_of else 1
                self.number_of[child] = self.forks
            elif pid in self.number_of:
                self.number_of[child] = self.number_of[pid]
        return False


def with_children(trace: Trace, pid: int) -> Iterator[Columns]:
    """A process's own rows and those of :class:`Children`, in the order in which they took effect, piece by piece."""
    return in_effect(map(Children(pid).own_rows, trace.batches()))


def batches(trace: Trace, pid: int, *, resident: bool) -> Iterator[Rows]:
    """What a replay runs of a process, piece by piece.

    :param resident: insert REACCESS rows (``--accesses resident``)
    """
    recorded = trace.meta.invalidations_from != "model"
    for columns in with_children(trace, pid):
        rows = as_rows(columns)
        yield _with_reaccess(rows, columns["tid"], recorded) if resident else rows
