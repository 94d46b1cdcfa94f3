"""What a process's calls and faults alone make the modelled kernel raise."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from faultpath.engine import world
from faultpath.engine.feed import Rows, as_rows, inherited, task_size, with_children
from faultpath.engine.native import Native
from faultpath.engine.rows import FIRST_OF_FEED, ROW_WORDS, Row, replay_call
from faultpath.engine.status import explain
from faultpath.engine.world import CAPACITY, ROWS_WORDS, Words
from faultpath.kernel.mm.fork import mm_init
from faultpath.kernel.mm.raising import RAISES_CALLS
from faultpath.kernel.mm.recorded import recorded_fault
from faultpath.kernel.mm.versions import version_of
from faultpath.kernel.mmu_notifier import Mm, Notifier, Range, mmu_notifier_register
from faultpath.kernel.primitives.heap import on_stack
from faultpath.protocol.language import Ops, Protocol, primitive, protocol
from faultpath.protocol.program import Program
from faultpath.trace.ops import Op
from faultpath.trace.processes import Process, Survey
from faultpath.trace.schema import Columns, Trace

#: Raised ranges, three words each, lie in the second half of the rows' area, behind a word that counts them.
LOG = ROWS_WORDS // 2
MOST_AT_ONCE = 1 << 17  # no call raises more: one for each VMA (vm.max_map_count)


@primitive
def note(w: Words, start: int, end: int, event: int) -> int:
    """Write down what is raised."""
    log = w[CAPACITY] + LOG
    at = log + 1 + 3 * w[log]
    w[at] = start
    w[at + 1] = end
    w[at + 2] = event
    w[log] += 1
    return 0


@primitive
def noted(w: Words) -> int:
    """How much has been written down."""
    return w[w[CAPACITY] + LOG]


@protocol
def told(sub: Notifier, range: Range) -> int:  # noqa: A002 - the kernel's name
    """A notifier that keeps account of what it is told."""
    note(range.start, range.end, range.event)
    return 0


listener = Ops("listener", invalidate_range_start=told)


@protocol
def listen(task_size: int, raises: int, version: int) -> Mm:
    """A new address space with a listener."""
    mm = mm_init(task_size, raises, version)
    sub = on_stack(Notifier)
    sub.ops = listener
    mmu_notifier_register(sub, mm)
    return mm


@protocol
def derive_rows(mm: Mm, row: Row, end: int, most: int) -> Row:
    """Run rows up to ``end``, or until ``most`` is noted; ``size`` of each is then how much was noted up to it."""
    while row < end and noted() < most:
        if row.op == Op.FAULT:
            recorded_fault(mm, row.addr, row.arg)
        else:
            replay_call(mm, row)
        row.size = noted()
        row = Row(row + ROW_WORDS)
    return row


class Derivation:
    """One process whose rows, invalidations and accesses aside, are run.

    :param task_size: addresses are below it
    :param version: LINUX_*
    """

    def __init__(self, task_size: int, version: int) -> None:
        self.native = Native(Program([listen, derive_rows], [listener]))
        self.w = world.new_world()
        self.start = task_size, RAISES_CALLS, version
        self.new_process()

    def new_process(self) -> None:
        """After exec: nothing is mapped."""
        self.mm = self._call(listen, *self.start)

    def _call(self, root: Protocol, *args: int) -> int:
        try:
            return self.native.call(root, self.w, *args)
        except world.Stop:
            raise explain(self.w, "deriving invalidations") from None

    def rows(self, rows: Rows) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """What each row that raises anything raises: its index, and an array of start, end, event."""
        theirs = np.isin(rows.ops, (Op.INVALIDATE, Op.ACCESS))
        ends = np.flatnonzero(np.isin(rows.ops, (Op.EXEC, Op.EXIT)))
        first = 0
        for end in [*ends.tolist(), len(rows)]:
            mine = first + np.flatnonzero(~theirs[first:end])
            for i, raised in self._run(rows.select(mine)):
                yield int(mine[i]), raised
            if end < len(rows):
                self.new_process()
            first = end + 1

    def _run(self, rows: Rows) -> Iterator[tuple[int, NDArray[np.int64]]]:
        area = int(self.w[CAPACITY])
        log = area + LOG
        room = LOG // ROW_WORDS
        most = (ROWS_WORDS - LOG) // 3 - MOST_AT_ONCE
        first = 0
        while first < len(rows):
            batch = rows.part(first, first + room)
            end = area + len(batch) * ROW_WORDS
            table = self.w[area:end].reshape(-1, ROW_WORDS)
            batch.write(table)
            self.w[log] = 0
            done = (self._call(derive_rows, self.mm, area, end, most) - area) // ROW_WORDS
            upto = table[:done, 3]
            counts = np.diff(upto, prepend=0)
            raised = self.w[log + 1 : log + 1 + 3 * int(self.w[log])].reshape(-1, 3).copy()
            for i in np.flatnonzero(counts).tolist():
                yield first + i, raised[upto[i] - counts[i] : upto[i]]
            first += done


def derivation(trace: Trace, found: Survey, process: Process) -> Derivation:
    """One that has come to the process's birth."""
    it = Derivation(task_size(process), version_of(trace.meta.kernel))
    for rows in inherited(trace, found, process.pid):
        for _ in it.rows(rows):
            pass
    return it


def with_derived(trace: Trace, found: Survey, process: Process) -> Iterator[Columns]:
    """A process's own rows in the order in which they took effect, before each the invalidations derived from it."""
    it = derivation(trace, found, process)
    for columns in with_children(trace, process.pid):
        at, what = [], []
        for i, raised in it.rows(as_rows(columns)):
            at += [i] * len(raised)
            what.append(raised)
        keep = np.flatnonzero(columns["op"] < FIRST_OF_FEED)
        source = np.concatenate([keep, np.array(at, np.int64)])
        position = np.concatenate([2 * keep + 1, 2 * np.array(at, np.int64)])
        sequence = np.argsort(position, kind="stable")
        piece = {name: column[source] for name, column in columns.items()}
        if at:
            start, end, event = np.concatenate(what).T
            new = slice(len(keep), None)
            piece["aux"][new] = piece["op"][new]
            piece["op"][new] = Op.INVALIDATE
            piece["addr"][new], piece["len"][new], piece["arg"][new] = start, end - start, event
        yield {name: column[sequence] for name, column in piece.items()}
