"""Which processes a trace holds, and the rows of one in the order in which they took effect.

A recorded page fault is stamped at its entry, before the invalidation that it may itself raise (copy-on-write break):
the row is moved behind that invalidation, for the page is in only then. A process that was forked during the recording
starts with its ancestors' mappings: their rows up to its birth come first, without invalidations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from faultpath.errors import FaultpathError
from faultpath.trace.ops import Op
from faultpath.trace.schema import Columns, Trace

# A fault that ends a batch waits for the next one, to see whether its thread goes on with an invalidation; so many
# rows at most are held back for that.
HELD = 4096


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

    def busiest(self) -> list[Process]:
        """Those with most page faults and device accesses first, then most rows, then by pid."""
        return sorted(self.processes.values(), key=lambda p: (-p.faults - p.accesses, -p.rows, p.pid))

    def choose(self, pid: int | None, where: str) -> Process:
        """The process asked for; by default the busiest."""
        busy = self.busiest()
        if pid is not None:
            if pid not in self.processes:
                known = ", ".join(str(p.pid) for p in busy[:8]) or "none"
                raise FaultpathError(f"no process {pid}", where, f"choose one it has: {known}")
            return self.processes[pid]
        if not busy or not busy[0].faults + busy[0].accesses:
            raise FaultpathError(
                "no page fault and no device access", where, "record page faults too, as faultpath record does"
            )
        return busy[0]


#: A process's own rows, the invalidations derived from them among them (faultpath.engine.derive).
Derive = Callable[[Trace, Survey, Process], Iterator[Columns]]


def ahead(pieces: Iterator[Columns]) -> Iterator[Columns]:
    """The same pieces; while one is worked on, a thread gets the next."""
    with ThreadPoolExecutor(1) as worker:
        waiting = worker.submit(next, pieces, None)
        while (piece := waiting.result()) is not None:
            waiting = worker.submit(next, pieces, None)
            yield piece


def survey(trace: Trace, also: Callable[[Columns], None] = lambda columns: None) -> Survey:
    """Read the whole trace once, checking it, and count by process.

    :param also: gets every piece of the trace, too
    """
    found = Survey()
    for columns in ahead(trace.batches()):
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
        also(columns)
    return found


def ancestors(trace: Trace, found: Survey, pid: int) -> dict[int, int]:
    """Processes a process descends from, each with the row number before which it still was its ancestor's rows."""
    parents = {int(p["pid"]): int(p["parent"]) for p in trace.meta.processes}
    before: dict[int, int] = {}
    child = pid
    while (parent := parents.get(child, -1)) in found.processes and parent not in before and parent != child:
        before[parent] = found.processes[child].first_row
        child = parent
    return before


def until_birth(trace: Trace, found: Survey, pid: int) -> Iterator[Iterator[Columns]]:
    """For each ancestor of a process, oldest first: its rows up to the birth of the next, invalidations left out."""
    for ancestor, limit in reversed(ancestors(trace, found, pid).items()):
        yield _rows_before(trace, ancestor, limit)


def _rows_before(trace: Trace, pid: int, limit: int) -> Iterator[Columns]:
    seen = 0
    for columns in trace.batches():
        number = seen + np.arange(len(columns["time"]))
        seen += number.size
        keep = (columns["pid"] == pid) & (number < limit) & (columns["op"] != Op.INVALIDATE)
        if keep.any():
            yield {name: column[keep] for name, column in columns.items()}
        if seen >= limit:
            break


def order(columns: Columns) -> NDArray[np.int64] | None:
    """The order in which rows take effect, as indices; None if it is the one they are in.

    Each fault moves behind the invalidation that is the next row of its thread, if that was raised in no system call
    and covers the faulting address.
    """
    ops, tids, addrs = columns["op"], columns["tid"], columns["addr"]
    of_fault = (ops == Op.INVALIDATE) & (columns["aux"] == Op.FAULT)
    if not of_fault.any():
        return None
    by_thread = np.argsort(tids, kind="stable")
    at = np.flatnonzero(of_fault[by_thread][1:])
    first, second = by_thread[at], by_thread[at + 1]
    raised = (
        (tids[first] == tids[second])
        & (ops[first] == Op.FAULT)
        & (addrs[second] <= addrs[first])
        & (addrs[first] < addrs[second] + columns["len"][second])
    )
    if not raised.any():
        return None
    position = np.arange(ops.size, dtype=np.int64) * 2
    position[first[raised]] = position[second[raised]] + 1
    return np.argsort(position, kind="stable")


def _held_back(ops: NDArray[np.uint8], tids: NDArray[np.int32]) -> int:
    """Index from which rows wait for the next batch: the first fault that is the last row of its thread."""
    recent = max(0, ops.size - HELD)
    _, from_end = np.unique(tids[recent:][::-1], return_index=True)
    last = ops.size - 1 - from_end
    waiting = last[ops[last] == Op.FAULT]
    return int(waiting.min()) if waiting.size else ops.size


def in_effect(pieces: Iterator[Columns]) -> Iterator[Columns]:
    """A process's own rows, piece by piece, in the order in which they took effect."""
    held: Columns | None = None
    pieces = filter(lambda piece: len(piece["op"]) > 0, pieces)
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
        sequence = order(ready)
        yield ready if sequence is None else {name: column[sequence] for name, column in ready.items()}
