"""From a trace to what a replay runs: the rows of one process, in the order in which they took effect.

A recorded page fault is stamped at its entry, before the invalidation that it may itself raise (copy-on-write break):
the row is moved behind that invalidation, for the page is in only then. A process that was forked during the recording
starts with its ancestors' mappings: their rows up to its birth come first, without invalidations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from faultpath.engine.rows import CHILD_COPIES, CHILD_ENDS, REACCESS
from faultpath.errors import FaultpathError
from faultpath.kernel.mm.fault import MAX_FORKS
from faultpath.kernel.mm.recorded import CLONE_VM
from faultpath.trace.ops import PF_PROT, PF_WRITE, Event, Op
from faultpath.trace.schema import Columns, Trace

Column = NDArray[np.int64]

# A fault that ends a batch waits for the next one, to see whether its thread goes on with an invalidation; so many
# rows at most are held back for that.
HELD = 4096

CANONICAL_END = 1 << 47  # user space with four-level paging
LA57_END = 1 << 56


@dataclass
class Process:
    """What one pass over a trace tells about a process.

    :ivar first_row: number of its first row in the trace
    """

    pid: int
    first_row: int
    rows: int = 0
    faults: int = 0
    accesses: int = 0
    first_ns: int = 0
    last_ns: int = 0
    limit: int = 0  # end of the highest range it names


@dataclass
class Survey:
    """Every process of a trace."""

    rows: int = 0
    processes: dict[int, Process] = field(default_factory=dict)

    def choose(self, pid: int | None, where: str) -> Process:
        """The process asked for; by default the one with most page faults and device accesses, then lowest pid."""
        busy = sorted(self.processes.values(), key=lambda p: (-p.faults - p.accesses, p.pid))
        if pid is not None:
            if pid not in self.processes:
                known = ", ".join(str(p.pid) for p in busy[:8]) or "none"
                raise FaultpathError(f"no process {pid}", where, f"choose one it has: {known}")
            return self.processes[pid]
        if not busy or not busy[0].faults + busy[0].accesses:
            raise FaultpathError("no page fault and no device access", where, "record the program while it runs")
        return busy[0]


def survey(trace: Trace) -> Survey:
    """Read the whole trace once, checking it, and count by process."""
    found = Survey()
    for columns in trace.batches():
        pids, first, inverse = np.unique(columns["pid"], return_index=True, return_inverse=True)
        fault = np.bincount(inverse, columns["op"] == Op.FAULT, pids.size)
        access = np.bincount(inverse, columns["op"] == Op.ACCESS, pids.size)
        rows = np.bincount(inverse, minlength=pids.size)
        end = columns["addr"] + columns["len"]
        moved = columns["op"] == Op.MREMAP
        end[moved] = np.maximum(end[moved], (columns["arg"] + columns["aux"])[moved].astype(np.uint64))
        for i, pid in enumerate(map(int, pids)):
            process = found.processes.setdefault(pid, Process(pid, found.rows + int(first[i])))
            times = columns["time"][inverse == i]
            process.first_ns = int(times[0]) if not process.rows else process.first_ns
            process.last_ns = int(times[-1])
            process.rows += int(rows[i])
            process.faults += int(fault[i])
            process.accesses += int(access[i])
            process.limit = max(process.limit, int(end[inverse == i].max()))
        found.rows += len(columns["time"])
    return found


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


def order(ops: Column, tids: Column, addrs: Column, sizes: Column, auxs: Column) -> Column:
    """The order in which rows take effect, as indices.

    Each fault moves behind the invalidation that is the next row of its thread, if that was raised in no system call
    and covers the faulting address.
    """
    position = np.arange(ops.size, dtype=np.int64) * 2
    by_thread = np.argsort(tids, kind="stable")
    first, second = by_thread[:-1], by_thread[1:]
    raised = (
        (tids[first] == tids[second])
        & (ops[first] == Op.FAULT)
        & (ops[second] == Op.INVALIDATE)
        & (auxs[second] == Op.FAULT)
        & (addrs[second] <= addrs[first])
        & (addrs[first] < addrs[second] + sizes[second])
    )
    position[first[raised]] = position[second[raised]] + 1
    return np.argsort(position, kind="stable")


def _held_back(ops: Column, tids: Column) -> int:
    """Index from which rows wait for the next batch: the first fault that is the last row of its thread."""
    recent = max(0, ops.size - HELD)
    _, from_end = np.unique(tids[recent:][::-1], return_index=True)
    last = ops.size - 1 - from_end
    waiting = last[ops[last] == Op.FAULT]
    return int(waiting.min()) if waiting.size else ops.size


def _as_rows(columns: Columns) -> Rows:
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


def ancestors(trace: Trace, found: Survey, pid: int) -> dict[int, int]:
    """Processes a process descends from, each with the row number before which it still was its ancestor's rows."""
    parents = {int(p["pid"]): int(p["parent"]) for p in trace.meta.processes}
    before: dict[int, int] = {}
    child = pid
    while (parent := parents.get(child, -1)) in found.processes and parent not in before and parent != child:
        before[parent] = found.processes[child].first_row
        child = parent
    return before


def inherited(trace: Trace, found: Survey, pid: int) -> Iterator[Rows]:
    """What built the address space that a process was born with: its ancestors' rows, invalidations left out.

    At each birth everything private becomes copy-on-write, as fork has it.
    """
    before = ancestors(trace, found, pid)
    births = [Rows(*(np.array([value], dtype=np.int64) for value in (Op.FORK, 0, 0, 0, 0)))]
    for ancestor, limit in reversed(before.items()):
        seen = 0
        for columns in trace.batches():
            number = seen + np.arange(len(columns["time"]))
            seen += number.size
            keep = (columns["pid"] == ancestor) & (number < limit) & (columns["op"] != Op.INVALIDATE)
            if keep.any():
                yield _as_rows({name: column[keep] for name, column in columns.items()})
            if seen >= limit:
                break
        yield from births


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


def ordered(trace: Trace, pid: int) -> Iterator[tuple[Rows, Column]]:
    """A process's own rows in the order in which they took effect, piece by piece, and the thread of each."""
    held: Columns | None = None
    pieces = filter(lambda piece: len(piece["op"]), map(Children(pid).own_rows, trace.batches()))
    while True:
        piece = next(pieces, None)
        if piece is None and held is None:
            return
        if held is not None and piece is not None:
            piece = {name: np.concatenate([held[name], piece[name]]) for name in piece}
        columns = piece if piece is not None else held
        assert columns is not None
        cut = _held_back(columns["op"], columns["tid"]) if piece is not None else len(columns["op"])
        held = {name: column[cut:] for name, column in columns.items()} if cut < len(columns["op"]) else None
        ready = {name: column[:cut] for name, column in columns.items()}
        rows = _as_rows(ready)
        sequence = order(rows.ops, ready["tid"], rows.addrs, rows.sizes, rows.auxs)
        rows = Rows(*(c[sequence] for c in (rows.ops, rows.addrs, rows.sizes, rows.args, rows.auxs)))
        yield rows, ready["tid"][sequence]


def batches(trace: Trace, pid: int, *, resident: bool) -> Iterator[Rows]:
    """What a replay runs of a process, piece by piece.

    :param resident: insert REACCESS rows (``--accesses resident``)
    """
    recorded = trace.meta.invalidations_from != "model"
    for rows, tids in ordered(trace, pid):
        yield _with_reaccess(rows, tids, recorded) if resident else rows
