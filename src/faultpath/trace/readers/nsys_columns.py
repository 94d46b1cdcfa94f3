"""Records of an Nsight Systems export over arrays: what they name, and their rows by time. See ``nsys_sqlite``."""

from __future__ import annotations

import numpy as np

from faultpath.jit import jit_plain
from faultpath.trace.ops import Event, Op
from faultpath.trace.schema import ADDRESS_LIMIT

PAGE = 4096  # not in the export
PF_USER = 4  # bit of an x86 page fault's error code
PID_BITS = 24

# Columns of a record, whatever table it is from. FAULTS: how many it stands for.
TIME, OWNER, ADDR, SIZE, CODE, FAULTS, DEVICE, WIDTH = range(8)
# Tables.
GPU, CPU, COPIES, MEMORY = range(4)
# Codes that mean something.
READ, WRITE, ATOMIC, PREFETCH, TO_DEVICE, FROM_DEVICE, BETWEEN, FREED, CODES = range(9)
# Why a record gives no row, and rows of device accesses of unknown kind.
D_NO_ADDRESS, D_TO_DEVICE, D_BETWEEN, D_ALLOCATED, D_NO_PAGE, UNKNOWN, COUNTS = range(7)
# Words of a survey's state: time of the last record so far; whether records came by time; which one is bad; how many
# there are; the sum of FAULTS; a bit for each DEVICE, the last for 63 and above.
LAST, BY_TIME, BAD, RECORDS, SUM, DEVICES = range(6)

_ACCESS, _FAULT, _INVALIDATE, _MUNMAP = np.uint8(Op.ACCESS), np.uint8(Op.FAULT), np.uint8(Op.INVALIDATE), int(Op.MUNMAP)
_RAISED_IN_FAULT, _MIGRATE, _UNMAP = int(Op.FAULT), int(Event.MIGRATE), int(Event.UNMAP)


@jit_plain
def survey(records, count, state, pids, starts, ends):  # type: ignore[no-untyped-def]
    """The pages that the first ``count`` records name, as ranges; how many, or -1: record BAD is not in user space."""
    named = 0
    state[RECORDS] += count
    for i in range(count):
        time, addr, size = records[i, TIME], records[i, ADDR], records[i, SIZE]
        if time < state[LAST]:
            state[BY_TIME] = 0
        state[LAST] = time
        state[SUM] += records[i, FAULTS]
        state[DEVICES] |= np.int64(1) << min(max(records[i, DEVICE], 0), 63)
        if size < 0 or addr >= ADDRESS_LIMIT or size > ADDRESS_LIMIT - addr:
            state[BAD] = i
            return -1
        if addr >= 0 and records[i, OWNER] >= 0:
            pids[named] = pid_of(records[i, OWNER])
            starts[named] = addr & -PAGE
            ends[named] = (addr + max(size, 1) + PAGE - 1) & -PAGE
            named += 1
    return named


@jit_plain
def pid_of(owner):  # type: ignore[no-untyped-def]
    """A serialised global id has the process in bits 24 to 47 (user guide, "Serialized process and thread ids")."""
    return owner >> 24 & ((1 << PID_BITS) - 1)


@jit_plain
def make_rows(  # type: ignore[no-untyped-def]
    tables, records, half, at, count, open_, codes, counts, seen,
    time, pids, tids, cpus, ops, addrs, lens, args, auxs,
):  # fmt: skip
    """Rows of several tables by time, each table by time already; at equal times the earlier table first.

    Goes on until a table that is ``open_`` (more of it may come) has no record left, or there is no room for a row; how
    many rows.

    :param tables: what each is of
    :param records: shape ``(tables, 2, records, WIDTH)``; of each table ``at[t]`` to ``count[t]`` in ``half[t]`` wait
    :param codes: numbers in this export of the CODES
    :param counts: COUNTS, added to
    :param seen: by pid, set for each that has a row
    """
    rows = 0
    while rows < len(time):
        first, earliest = -1, np.int64(0)
        for t in range(len(tables)):
            if at[t] < count[t]:
                time_of = records[t, half[t], at[t], TIME]
                if first < 0 or time_of < earliest:
                    first, earliest = t, time_of
            elif open_[t]:
                return rows
        if first < 0:
            return rows
        h, i, table = half[first], at[first], tables[first]
        at[first] += 1
        addr, size, code = records[first, h, i, ADDR], records[first, h, i, SIZE], records[first, h, i, CODE]
        if addr < 0 or records[first, h, i, OWNER] < 0:
            counts[D_NO_ADDRESS] += 1
            continue
        length, aux = np.int64(0), np.int64(0)
        if table == GPU:
            op, arg = _ACCESS, np.int64(code == codes[WRITE] or code == codes[ATOMIC])
            if not arg and code != codes[READ] and code != codes[PREFETCH]:
                counts[UNKNOWN] += 1
        elif table == CPU:
            op, arg = _FAULT, np.int64(PF_USER)
        else:
            op = _INVALIDATE
            if table == COPIES:
                if code != codes[FROM_DEVICE]:
                    counts[D_TO_DEVICE if code == codes[TO_DEVICE] else D_BETWEEN] += 1
                    continue
                # A migration takes every page it touches.
                start, end = addr & -PAGE, (addr + size + PAGE - 1) & -PAGE
                arg, aux = np.int64(_MIGRATE), np.int64(_RAISED_IN_FAULT)
            else:
                if code != codes[FREED]:
                    counts[D_ALLOCATED] += 1
                    continue
                # What is freed leaves a page that something else lies in.
                start, end = (addr + PAGE - 1) & -PAGE, (addr + size) & -PAGE
                arg, aux = np.int64(_UNMAP), np.int64(_MUNMAP)
            if start >= end:
                counts[D_NO_PAGE] += 1
                continue
            addr, length = start, end - start
        pid = pid_of(records[first, h, i, OWNER])
        seen[pid] = True
        time[rows] = max(earliest, 0)  # what began before the session
        pids[rows] = tids[rows] = pid
        cpus[rows], ops[rows], addrs[rows], lens[rows], args[rows], auxs[rows] = -1, op, addr, length, arg, aux
        rows += 1
    return rows
