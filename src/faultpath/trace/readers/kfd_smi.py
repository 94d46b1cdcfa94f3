"""Logs of amdkfd's SMI events: the text that its event descriptor (AMDKFD_IOC_SMI_EVENTS) gives, as rows of a trace.

A line is a hexadecimal event number and a body (drivers/gpu/drm/amd/amdkfd/kfd_smi_events.c, Linux 6.1;
KFD_EVENT_FMT_*, include/uapi/linux/kfd_ioctl.h, Linux 6.18). Times are ns since boot, addresses and sizes are pages.

==  ================  =============================================  ============================================
no  event             body                                           becomes
==  ================  =============================================  ============================================
5   MIGRATE_START     ns -pid @start(size) from->to at:pref trigger  nothing, or INVALIDATE (MIGRATE), see below
7   PAGE_FAULT_START  ns -pid @addr(node) R|W                        ACCESS, when the fault ends
8   PAGE_FAULT_END    ns -pid @addr(node) M|U                        (the time of that row)
b   UNMAP_FROM_GPU    ns -pid @addr(size) node trigger               INVALIDATE: CLEAR, MIGRATE, UNMAP by trigger
c   DROPPED_EVENT     ns -pid count                                  lost events
==  ================  =============================================  ============================================

No event tells the thread: ``tid`` is the process.

A fault's device PTEs are in only when it ends, after the migration that it may itself make and the invalidation that
this raises: its row stands there. Where the log has no PAGE_FAULT_END at all, it stands at the start.

A migration raises MMU_NOTIFY_MIGRATE, amdkfd does not exclude itself (Linux 6.1), and what its callback takes from a
device shows as UNMAP_FROM_GPU. So migrations give no row, unless the log holds no UNMAP_FROM_GPU: then those to system
memory (node 0) do. One invalidation that concerns several devices is one event each, one after the other: one row.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from faultpath.errors import FaultpathError
from faultpath.jit import jit
from faultpath.trace.formats import Progress
from faultpath.trace.ops import Event, Op
from faultpath.trace.readers import extents
from faultpath.trace.readers.extents import Extents
from faultpath.trace.schema import ADDRESS_LIMIT, COLUMNS, Columns, TraceMeta

PAGE_SHIFT = 12  # not in the log
PAGES = ADDRESS_LIMIT >> PAGE_SHIFT
PID_LIMIT = 1 << 22
CHUNK = 1 << 22
SHORTEST = 15  # bytes of a line that gives an event, at least
LONGEST = 4096  # bytes of a line, at most: the kernel's own have up to 96
WINDOW = 1 << 16  # events that are held back, for others that come late: logs of several descriptors are read in turn

MOST_DEVICES = 256  # more than a machine has

MIGRATE_START, MIGRATE_END, FAULT_START, FAULT_END, QUEUE_EVICTION, QUEUE_RESTORE, UNMAP, DROPPED = range(5, 13)
KINDS = 32
OTHERS = {
    1: "vmfault",
    2: "thermal throttle",
    3: "gpu pre reset",
    4: "gpu post reset",
    MIGRATE_END: "migrate end",
    FAULT_END: "page fault end",
    QUEUE_EVICTION: "queue eviction",
    QUEUE_RESTORE: "queue restore",
}
#: KFD_SVM_UNMAP_TRIGGERS: MMU_NOTIFY (any other event), MMU_NOTIFY_MIGRATE, UNMAP_FROM_CPU.
TRIGGERS = np.array([Event.CLEAR, Event.MIGRATE, Event.UNMAP], np.int64)
RAISED_IN = np.array([Op.FAULT, Op.FAULT, Op.MUNMAP], np.int64)

# Columns of an event. ADDR and SIZE are pages; NODE is a migration's source, ARG its destination, 1 for a write, or an
# unmap's trigger.
TIME, PID, KIND, ADDR, SIZE, NODE, ARG, WIDTH = range(8)
S_AT, S_EVENTS, S_LINES, S_LOST, STATE = range(5)
DONE, BAD_LINE, BAD_RANGE, LONG_LINE = 0, -1, -2, -3
ERRORS = {
    BAD_LINE: "not a line of amdkfd's SMI events",
    BAD_RANGE: "a range that is not in user space",
    LONG_LINE: f"a line of more than {LONGEST} bytes",
}

# Of a device that a process uses: the fault it is in. Of a process: the last unmap.
P_ADDR, P_WRITE, P_WIDTH = 0, 1, 2
U_ADDR, U_SIZE, U_ARG, U_NODE, U_WIDTH = range(5)
D_NO_END, D_NO_START, D_TO_DEVICE, D_TOLD, D_OTHER_DEVICE, D_SIZE = range(6)
UNPAIRED = {
    D_NO_END: "page fault without an end: not answered",
    D_NO_START: "page fault end without a start",
    D_TO_DEVICE: "migrate start to a device",
    D_TOLD: "migrate start from a device: unmap from gpu tells",
    D_OTHER_DEVICE: "unmap from gpu on another device",
}


@jit
def number(buf, at, end, base):  # type: ignore[no-untyped-def]
    """The unsigned number at ``at`` and where it ends, at most ``end``; (0, -1) if there is none below 2^60."""
    value = np.int64(0)
    begin = at
    while at < end:
        c = np.int64(buf[at])
        if 48 <= c <= 57:
            digit = c - 48
        elif base == 16 and 97 <= c <= 102:
            digit = c - 87
        else:
            break
        if value >= 1 << 56:
            return np.int64(0), np.int64(-1)
        value = value * base + digit
        at += 1
    if at == begin:
        return np.int64(0), np.int64(-1)
    return value, np.int64(at)


@jit
def after(buf, at, end, char):  # type: ignore[no-untyped-def]
    """Where the text goes on after ``char``; -1 if that is not at ``at``, or ``at`` is -1 already."""
    if at < 0 or at >= end or buf[at] != char:
        return np.int64(-1)
    return np.int64(at + 1)


@jit
def parse(buf, at, end, kind, row):  # type: ignore[no-untyped-def]
    """The body of an event of a kind that is used, ``buf[at:end]``, into ``row``; DONE or an error."""
    row[:] = 0
    row[KIND] = kind
    row[TIME], at = number(buf, at, end, 10)
    at = after(buf, after(buf, at, end, 32), end, 45)
    row[PID], at = number(buf, max(at, 0), end if at >= 0 else 0, 10)
    at = after(buf, at, end, 32)
    if at < 0 or row[PID] >= PID_LIMIT:
        return BAD_LINE
    if kind == DROPPED:
        row[ARG], at = number(buf, at, end, 10)
        return DONE if at == end else BAD_LINE
    at = after(buf, at, end, 64)
    row[ADDR], at = number(buf, max(at, 0), end if at >= 0 else 0, 16)
    at = after(buf, at, end, 40)
    row[SIZE], at = number(buf, max(at, 0), end if at >= 0 else 0, 16)
    at = after(buf, after(buf, at, end, 41), end, 32)
    if at < 0:
        return BAD_LINE
    if kind in (FAULT_START, FAULT_END):
        row[NODE], row[SIZE] = row[SIZE], 1
        if at + 1 != end:
            return BAD_LINE
        c = buf[at]
        if (kind == FAULT_START and c != 82 and c != 87) or (kind == FAULT_END and c != 77 and c != 85):
            return BAD_LINE
        row[ARG] = c == 87
    else:
        row[NODE], at = number(buf, at, end, 16)
        if kind == UNMAP:
            at = after(buf, at, end, 32)
            row[ARG], at = number(buf, max(at, 0), end if at >= 0 else 0, 10)
            if at != end or row[ARG] >= len(TRIGGERS):
                return BAD_LINE
        else:  # the prefetched and preferred locations and the trigger that follow are not used
            at = after(buf, after(buf, at, end, 45), end, 62)
            row[ARG], at = number(buf, max(at, 0), end if at >= 0 else 0, 16)
            if after(buf, at, end, 32) < 0:
                return BAD_LINE
    if row[SIZE] == 0 or row[ADDR] >= PAGES or row[SIZE] > PAGES - row[ADDR]:
        return BAD_RANGE
    return DONE


@jit
def scan(buf, end, out, seen, state):  # type: ignore[no-untyped-def]
    """Go over the whole lines in ``buf[:end]`` and count them by kind in ``seen``.

    ``state[S_AT]`` is where the last line that is not all there begins, or the line an error is about.
    """
    at, count = np.int64(0), np.int64(0)
    status = DONE
    while True:
        state[S_AT] = at
        stop = at
        while stop < end and buf[stop] != 10:
            stop += 1
        if stop - at > LONGEST:
            status = LONG_LINE
            break
        if stop == end:
            break
        state[S_LINES] += 1
        last = stop
        if last > at and buf[last - 1] == 13:
            last -= 1
        if last > at:
            kind, body = number(buf, at, last, 16)
            body = after(buf, body, last, 32)
            if body < 0 or kind < 1 or kind >= KINDS:
                status = BAD_LINE
                break
            seen[kind] += 1
            if kind in (MIGRATE_START, FAULT_START, FAULT_END, UNMAP, DROPPED):
                status = parse(buf, body, last, kind, out[count])
                if status < 0:
                    break
                if kind == DROPPED:
                    state[S_LOST] += out[count, ARG]
                else:
                    count += 1
        at = stop + 1
    state[S_EVENTS] = count
    return status


@jit
def make_rows(events, users, owners, ends, unmaps, faults, last, dropped, rows):  # type: ignore[no-untyped-def]
    """Rows (op, event index, arg, aux) of events in time order, into ``rows``; how many.

    :param users: for each event which process on which device, an index into ``faults``
    :param owners: for each event which process, an index into ``last``
    :param ends: whether the log has PAGE_FAULT_END events, ``unmaps`` whether it has UNMAP_FROM_GPU
    """
    n = 0
    for i in range(len(events)):
        kind, addr, arg = events[i, KIND], events[i, ADDR], events[i, ARG]
        fault, unmap = faults[users[i]], last[owners[i]]
        op = aux = np.int64(0)
        if kind == FAULT_START and ends:
            if fault[P_ADDR] >= 0:
                dropped[D_NO_END] += 1
            fault[P_ADDR], fault[P_WRITE] = addr, arg
        elif kind == FAULT_START:
            op = np.int64(Op.ACCESS)
        elif kind == FAULT_END:
            if fault[P_ADDR] == addr:
                op, arg = np.int64(Op.ACCESS), fault[P_WRITE]
                fault[P_ADDR] = -1
            else:
                dropped[D_NO_START] += 1
        elif kind == UNMAP:
            same = unmap[U_ADDR] == addr and unmap[U_SIZE] == events[i, SIZE] and unmap[U_ARG] == arg
            if same and unmap[U_NODE] != events[i, NODE]:
                dropped[D_OTHER_DEVICE] += 1
                continue
            unmap[U_ADDR], unmap[U_SIZE], unmap[U_ARG], unmap[U_NODE] = addr, events[i, SIZE], arg, events[i, NODE]
            op, aux, arg = np.int64(Op.INVALIDATE), RAISED_IN[arg], TRIGGERS[arg]
        elif arg != 0:
            dropped[D_TO_DEVICE] += 1
        elif unmaps:
            dropped[D_TOLD] += 1
        else:
            op, aux, arg = np.int64(Op.INVALIDATE), np.int64(Op.FAULT), np.int64(Event.MIGRATE)
        if op == Op.ACCESS:
            unmap[U_ADDR] = -1
        if op:
            rows[n, 0], rows[n, 1], rows[n, 2], rows[n, 3] = op, i, arg, aux
            n += 1
    return n


class Index:
    """Small numbers for keys, in the order they come; with a table that has a row of -1 for each."""

    def __init__(self, width: int) -> None:
        self._numbers: dict[int, int] = {}
        self.table = np.full((64, width), -1, np.int64)

    def of(self, keys: np.ndarray) -> np.ndarray:
        values = np.unique(keys)
        known = [self._numbers.setdefault(int(value), len(self._numbers)) for value in values]
        while len(self.table) < len(self._numbers):
            self.table = np.concatenate([self.table, np.full_like(self.table, -1)])
        return np.array(known, np.int64)[np.searchsorted(values, keys)]

    def __len__(self) -> int:
        return len(self._numbers)


class KfdSmiLog:
    """The file is read twice: what is mapped, and which events there are at all, shows only at its end."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.size = source.stat().st_size
        self.seen = np.zeros(KINDS, np.int64)
        self.dropped = np.zeros(D_SIZE, np.int64)
        self.faults, self.processes, self.devices = Index(P_WIDTH), Index(U_WIDTH), Index(1)
        self.lost = self.late = 0
        self.cut = False

    def rows(self, progress: Progress | None = None) -> Iterator[Columns]:
        found = Extents(str(self.source))
        for events in self._events(self.seen, progress, 0):
            starts = events[:, ADDR] << PAGE_SHIFT
            found.add(events[:, PID], starts, starts + (events[:, SIZE] << PAGE_SHIFT))
            self.devices.of(events[events[:, KIND] != MIGRATE_START, NODE])
            if len(self.devices) > MOST_DEVICES:
                raise FaultpathError(f"more than {MOST_DEVICES} devices", str(self.source), "the log is damaged")
        begun = False
        for events in self._in_order(self._events(np.zeros_like(self.seen), progress, self.size)):
            columns = self._rows(events)
            if not begun and len(columns["time"]):
                yield found.rows(int(columns["time"][0]))
                begun = True
            yield columns
        self.dropped[D_NO_END] += int((self.faults.table[:, P_ADDR] >= 0).sum())

    def _events(self, seen: np.ndarray, progress: Progress | None, before: int) -> Iterator[np.ndarray]:
        """The events of a pass over the file, in the order of its lines. Lines are counted by kind in ``seen``."""
        state = np.zeros(STATE, np.int64)
        rest = b""
        done = 0
        with self.source.open("rb") as file:
            while chunk := file.read(CHUNK):
                text = rest + chunk
                out = np.empty((len(text) // SHORTEST + 1, WIDTH), np.int64)
                status = scan(np.frombuffer(text, np.uint8), len(text), out, seen, state)
                rest = text[state[S_AT] :]
                if status < 0:
                    line = rest[:LONGEST].split(b"\n")[0][:100].decode("ascii", "backslashreplace")
                    raise FaultpathError(
                        f"{ERRORS[status]} ({line})",
                        f"{self.source}, line {int(state[S_LINES]) + (status == LONG_LINE)}",
                        "log the text of the event descriptor (AMDKFD_IOC_SMI_EVENTS) as it comes",
                    )
                done += len(chunk)
                if progress:
                    progress((before + done) // 2, self.size)
                yield out[: state[S_EVENTS]]
        self.lost = int(state[S_LOST])
        self.cut = bool(rest.strip())

    def _in_order(self, batches: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Events by time. One that comes more than WINDOW events late gets the time of the one before it."""
        held = np.empty((0, WIDTH), np.int64)
        last = 0
        while True:
            batch = next(batches, None)
            if batch is not None:
                held = np.concatenate([held, batch])
                if (np.diff(held[:, TIME]) < 0).any():
                    held = held[np.argsort(held[:, TIME], kind="stable")]
            ready = held[: len(held) - WINDOW] if batch is not None else held
            if len(ready):
                self.late += int((ready[:, TIME] < last).sum())
                ready[:, TIME] = np.maximum(ready[:, TIME], last)
                last = int(ready[-1, TIME])
                yield ready
                held = held[len(ready) :]
            if batch is None:
                return

    def _rows(self, events: np.ndarray) -> Columns:
        users = self.faults.of(events[:, PID] << 32 | events[:, NODE] & 0xFFFFFFFF)
        owners = self.processes.of(events[:, PID])
        rows = np.empty((len(events), 4), np.int64)
        count = make_rows(
            events, users, owners, self.seen[FAULT_END] > 0, self.seen[UNMAP] > 0, self.faults.table,
            self.processes.table, self.dropped, rows,
        )  # fmt: skip
        rows = rows[:count]
        events = events[rows[:, 1]]
        ranged = rows[:, 0] == Op.INVALIDATE
        columns = {name: np.zeros(count, dtype) for name, dtype in COLUMNS.items()}
        columns["time"][:] = events[:, TIME]
        columns["pid"][:] = columns["tid"][:] = events[:, PID]
        columns["cpu"][:] = -1
        columns["op"][:] = rows[:, 0]
        columns["addr"][:] = events[:, ADDR] << PAGE_SHIFT
        columns["len"][ranged] = events[ranged, SIZE] << PAGE_SHIFT
        columns["arg"][:] = rows[:, 2]
        columns["aux"][:] = rows[:, 3]
        return columns

    def meta(self) -> TraceMeta:
        dropped = {OTHERS.get(kind, f"event {kind:x}"): int(self.seen[kind]) for kind in range(KINDS)}
        for kind in (MIGRATE_START, FAULT_START, UNMAP, DROPPED):
            dropped.pop(f"event {kind:x}")
        dropped |= {reason: int(self.dropped[i]) for i, reason in UNPAIRED.items()}
        dropped["last line, cut off"] = int(self.cut)
        return TraceMeta(
            format="kfd-smi",
            source=self.source.name,
            page_size=1 << PAGE_SHIFT,
            clock="boottime",
            lost_events=self.lost,
            invalidations_from="device",
            missing=self._missing(),
            dropped={reason: count for reason, count in dropped.items() if count},
        )

    def _missing(self) -> list[str]:
        said = [
            extents.SAID,
            "Page faults of the processor and memory calls: amdkfd does not report them.",
            "Invalidations that found nothing mapped on the device: amdkfd reports those that took something from it.",
            "The other pages that a fault mapped: amdkfd maps the range around it, whose later accesses do not show.",
            f"The page size: taken for {1 << PAGE_SHIFT} bytes.",
        ]
        if not self.seen[FAULT_START]:
            said.append(
                "Device accesses: the log has no page fault; without XNACK (HSA_XNACK=1) the device takes none."
            )
        if not self.seen[UNMAP]:
            said.append("What invalidations took from the device: the log has no UNMAP_FROM_GPU; migrations to system "
                        "memory stand for them.")  # fmt: skip
        if len(self.devices) > 1:
            said.append(f"Which device: {len(self.devices)} devices are taken for one.")
        if self.late:
            said.append(f"The order of {self.late} events that come more than {WINDOW} events late in the log.")
        return said
