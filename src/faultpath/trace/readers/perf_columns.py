"""The compiled half of the perf.data reader: from bytes to rows of integers.

``walk`` goes over records (tools/perf/Documentation/perf.data-file-format.txt, include/uapi/linux/perf_event.h, Linux
6.1) and puts each sample it is asked for, and each FORK, EXIT and MMAP record, into one row of ``out``:

======  ======================================================================================
column  holds
======  ======================================================================================
TIME    ns, 0 for records that perf itself made before the recording began
PID     process, -1 when the task was already gone
TID     thread
CPU     processor, -1 when not recorded
EVENT   number of the event in the file for a sample, minus the record type for other records
FIELD.. a sample's fields as asked; MMAP: addr, len, prot, flags; FORK, EXIT: ppid, ptid, then 0 or what other
        readers know: CLONE_* flags of a FORK, whether an EXIT is of the last thread (``rows``)
======  ======================================================================================

Nothing outside ``buf[at:end]`` is ever read, whatever sizes the records claim. Errors are a negative status and the
offset; the caller makes the message. Records of other kinds are passed over, as perf does.
"""

from __future__ import annotations

import numpy as np

from faultpath.jit import jit

TIME, PID, TID, CPU, EVENT, FIELD = 0, 1, 2, 3, 4, 5

# perf_event_type and perf_user_event_type
MMAP, LOST, COMM, EXIT, FORK, SAMPLE, MMAP2, LOST_SAMPLES = 1, 2, 3, 4, 7, 9, 10, 13
HEADER_ATTR, HEADER_TRACING_DATA, FINISHED_ROUND, AUXTRACE, HEADER_FEATURE = 64, 66, 68, 71, 80
COMPRESSED, COMPRESSED2 = 81, 83
MISC_MMAP_DATA = MISC_COMM_EXEC = 1 << 13
PROT_READ_WRITE, PROT_READ_EXEC = 3, 5

# Columns of the table of attributes, in bytes; sample offsets count from the record, trailer offsets from its end.
(
    A_WANTED,
    A_TID,
    A_TIME,
    A_CPU,
    A_BODY,
    A_READ,
    A_CHAIN,
    A_RAW,
    A_TRAILER,
    A_TRAILER_TID,
    A_TRAILER_TIME,
    A_TRAILER_CPU,
    A_TYPE_OFFSET,
    A_TYPE,
    A_FIELD,
) = range(15)
FIELD_WIDTH = 3  # offset, size, signed

# What all attributes share: where the id is (0: nowhere), in samples from the record, in other records from the end.
P_ID, P_TRAILER_ID = 0, 1

STATE_SIZE = 10
# State that outlives a call. ROUND_LIMIT: no record earlier than this can still come (ordered-events.c, do_flush).
S_AT, S_ROWS, S_MAX, S_ROUND_MAX, S_ROUND_LIMIT = range(5)
S_LOST, S_LOST_SAMPLES, S_UNKNOWN_ID, S_LAST_TYPE, S_NAME_AT = range(5, STATE_SIZE)

MOST = 1 << 53  # losses are counted up to here, which JSON still holds exactly

DONE, PARTIAL, FULL, RARE, NAME = 0, 1, 2, 3, 4
BAD_SIZE, SHORT_SAMPLE, SHORT_RAW, WRONG_TYPE, BAD_TIME, SHORT_RECORD = -1, -2, -3, -4, -5, -6
ERRORS = {
    BAD_SIZE: "a record whose size is wrong",
    SHORT_SAMPLE: "a sample shorter than its event's attributes say",
    SHORT_RAW: "a sample too short for the fields its event's format names",
    WRONG_TYPE: "a sample whose type is not its event's",
    BAD_TIME: "a record with an impossible time",
    SHORT_RECORD: "a record too short for its type",
}


@jit
def u16(buf, at):  # type: ignore[no-untyped-def]
    i = np.uint64(at)  # an unsigned index spares the test for a negative one
    return np.int64(buf[i]) | np.int64(buf[i + np.uint64(1)]) << 8


@jit
def u32(buf, at):  # type: ignore[no-untyped-def]
    i = np.uint64(at)
    value = np.int64(buf[i])
    for k in range(1, 4):
        value |= np.int64(buf[i + np.uint64(k)]) << (8 * k)
    return value


@jit
def s32(buf, at):  # type: ignore[no-untyped-def]
    value = u32(buf, at)
    return value - ((value & 0x80000000) << 1)


@jit
def s64(buf, at):  # type: ignore[no-untyped-def]
    i = np.uint64(at)
    value = np.int64(buf[i])
    for k in range(1, 8):
        value |= np.int64(buf[i + np.uint64(k)]) << (8 * k)
    return value


@jit
def load(buf, at, size, signed):  # type: ignore[no-untyped-def]
    """An integer of 1, 2, 4 or 8 bytes; eight unsigned bytes keep their bits."""
    if size == 8:
        return s64(buf, at)
    if size == 4:
        return s32(buf, at) if signed else u32(buf, at)
    value = u16(buf, at) if size == 2 else np.int64(buf[at])
    if signed:
        top = np.int64(1) << (size * 8 - 1)
        value = (value ^ top) - top
    return value


@jit
def attribute_of(key, ids, attribute):  # type: ignore[no-untyped-def]
    """The attribute an id belongs to, or -1. ``ids`` is an open-addressed table whose free slots have attribute -1."""
    mask = len(ids) - 1
    slot = (key ^ (key >> 15)) & mask
    while attribute[slot] >= 0:
        if ids[slot] == key:
            return attribute[slot]
        slot = (slot + 1) & mask
    return np.int64(-1)


def id_table(owners: dict[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The table that ``attribute_of`` reads, as (ids, attributes), from a dictionary of attributes by id.

    Not compiled: a recording has some thousands of ids at most, and loading compiled code takes longer than this.
    """
    slots = 1 << max(4, (2 * len(owners)).bit_length())
    ids, attribute = np.zeros(slots, np.int64), np.full(slots, -1, np.int64)
    for key, owner in owners.items():
        slot = (key ^ (key >> 15)) & (slots - 1)
        while attribute[slot] >= 0:
            slot = (slot + 1) & (slots - 1)
        ids[slot], attribute[slot] = key, owner
    return ids, attribute


@jit
def raw_at(buf, body, end, read, chain):  # type: ignore[no-untyped-def]
    """Offset of a sample's raw size word, after what has no fixed size; -1 when the sample ends before it."""
    if read:
        read_format = read >> 1
        extra = (read_format & 1) + (read_format >> 1 & 1)
        per = 1 + (read_format >> 2 & 1) + (read_format >> 4 & 1)
        if read_format & 8:  # PERF_FORMAT_GROUP: a count first, then values
            if body + 8 > end:
                return np.int64(-1)
            count = s64(buf, body)
            if count < 0 or count > end - body:
                return np.int64(-1)
            body += 8 * (1 + extra + count * per)
        else:
            body += 8 * (extra + per)
    if chain:
        if body + 8 > end:
            return np.int64(-1)
        count = s64(buf, body)
        if count < 0 or count > end - body:
            return np.int64(-1)
        body += 8 + 8 * count
    return body


@jit
def put_record(buf, at, end, kind, misc, attrs, event, out, count):  # type: ignore[no-untyped-def]
    """Decode a FORK, EXIT, COMM or MMAP record into ``out``; 0 or a negative status."""
    trailer = attrs[event, A_TRAILER]
    need = 8 + 8 if kind == COMM else 8 + 24 if kind in (FORK, EXIT) else 8 + 32 if kind == MMAP else 8 + 64
    if at + need + trailer > end:
        return SHORT_RECORD
    out[count, FIELD:] = 0
    out[count, EVENT] = -kind
    out[count, PID] = s32(buf, at + 8)
    if kind in (FORK, EXIT):
        out[count, TID] = s32(buf, at + 16)
        out[count, FIELD] = s32(buf, at + 12)
        out[count, FIELD + 1] = s32(buf, at + 20)
        out[count, TIME] = s64(buf, at + 24)
    else:
        out[count, TID] = s32(buf, at + 12)
        out[count, TIME] = s64(buf, end - attrs[event, A_TRAILER_TIME]) if attrs[event, A_TRAILER_TIME] else 0
    if kind in (MMAP, MMAP2):
        out[count, FIELD] = s64(buf, at + 16)
        out[count, FIELD + 1] = s64(buf, at + 24)
        if kind == MMAP2:
            out[count, FIELD + 2] = u32(buf, at + 64)
            out[count, FIELD + 3] = u32(buf, at + 68)
        else:  # the old record says only whether the mapping can be executed
            out[count, FIELD + 2] = PROT_READ_WRITE if misc & MISC_MMAP_DATA else PROT_READ_EXEC
            out[count, FIELD + 3] = 0
    elif kind == COMM:
        out[count, FIELD] = 1 if misc & MISC_COMM_EXEC else 0
    out[count, CPU] = u32(buf, end - attrs[event, A_TRAILER_CPU]) if attrs[event, A_TRAILER_CPU] else -1
    if out[count, TIME] == -1:
        out[count, TIME] = 0
    return BAD_TIME if out[count, TIME] < 0 else 0


@jit
def walk(buf, at, end, shared, attrs, ids, attribute, out, state):  # type: ignore[no-untyped-def]
    """Go over the records in ``buf[at:end]``.

    Returns ``DONE`` at the end, ``PARTIAL`` before a record that is not all there, ``FULL`` before one there is no
    row for, ``RARE`` before one the caller must handle itself, ``NAME`` after a COMM record whose name begins at
    ``state[S_NAME_AT]``, or an error. ``state[S_AT]`` is the offset of the record it stopped before.
    """
    count = state[S_ROWS]
    capacity = len(out)
    fields = out.shape[1] - FIELD
    status = DONE
    while at < end:
        if at + 8 > end:
            status = PARTIAL
            break
        kind, misc, size = u32(buf, at), u16(buf, at + 4), u16(buf, at + 6)
        if size < 8:
            status = BAD_SIZE
            break
        stop = at + size
        if stop > end:
            status = PARTIAL
            break
        state[S_LAST_TYPE] = kind
        if kind == SAMPLE:
            event = np.int64(0)
            if shared[P_ID]:
                if shared[P_ID] + 8 > size:
                    status = SHORT_SAMPLE
                    break
                event = attribute_of(s64(buf, at + shared[P_ID]), ids, attribute)
            if event < 0:
                state[S_UNKNOWN_ID] += 1
            elif attrs[event, A_WANTED]:
                # Not a function of its own: passing arrays to one costs more than all that is done here.
                if count == capacity:
                    status = FULL
                    break
                raw = at + attrs[event, A_BODY]
                if attrs[event, A_READ] | attrs[event, A_CHAIN]:
                    raw = raw_at(buf, raw, stop, attrs[event, A_READ], attrs[event, A_CHAIN])
                if raw < 0 or raw + 4 > stop:
                    status = SHORT_SAMPLE
                    break
                time = s64(buf, at + attrs[event, A_TIME])
                if time < 0:
                    status = BAD_TIME
                    break
                out[count, TIME] = time
                out[count, PID] = s32(buf, at + attrs[event, A_TID])
                out[count, TID] = s32(buf, at + attrs[event, A_TID] + 4)
                out[count, CPU] = u32(buf, at + attrs[event, A_CPU]) if attrs[event, A_CPU] else -1
                out[count, EVENT] = event
                raw_size = u32(buf, raw)
                raw += 4
                if raw_size > stop - raw or attrs[event, A_TYPE_OFFSET] + 2 > raw_size:
                    status = SHORT_RAW
                    break
                if u16(buf, raw + attrs[event, A_TYPE_OFFSET]) != attrs[event, A_TYPE]:
                    status = WRONG_TYPE
                    break
                for i in range(fields):
                    column = A_FIELD + FIELD_WIDTH * i
                    offset, width = attrs[event, column], attrs[event, column + 1]
                    if offset + width > raw_size:
                        status = SHORT_RAW
                        break
                    # An event with fewer fields has width 0 in the others.
                    out[count, FIELD + i] = load(buf, raw + offset, width, attrs[event, column + 2]) if width else 0
                if status < 0:
                    break
                state[S_MAX] = max(state[S_MAX], time)
                count += 1
        elif kind in (FORK, EXIT, COMM, MMAP, MMAP2):
            if count == capacity:
                status = FULL
                break
            event = np.int64(0)
            if shared[P_TRAILER_ID]:
                if 8 + shared[P_TRAILER_ID] > size:
                    status = SHORT_RECORD
                    break
                # Records that perf made itself carry id 0: they have the first event's layout.
                event = max(attribute_of(s64(buf, stop - shared[P_TRAILER_ID]), ids, attribute), np.int64(0))
            status = put_record(buf, at, stop, kind, misc, attrs, event, out, count)
            if status < 0:
                break
            state[S_MAX] = max(state[S_MAX], out[count, TIME])
            count += 1
            if kind == COMM:
                state[S_NAME_AT] = at + 16
                at = stop
                status = NAME
                break
        elif kind == FINISHED_ROUND:
            state[S_ROUND_LIMIT] = state[S_ROUND_MAX]
            state[S_ROUND_MAX] = state[S_MAX]
        elif kind == LOST:
            if size < 24:
                status = SHORT_RECORD
                break
            state[S_LOST] = min(state[S_LOST] + min(max(s64(buf, at + 16), 0), MOST), MOST)
        elif kind == LOST_SAMPLES:
            if size < 16:
                status = SHORT_RECORD
                break
            state[S_LOST_SAMPLES] = min(state[S_LOST_SAMPLES] + min(max(s64(buf, at + 8), 0), MOST), MOST)
        elif kind in (HEADER_ATTR, HEADER_TRACING_DATA, AUXTRACE, COMPRESSED, COMPRESSED2):
            status = RARE
            break
        at = stop
    state[S_AT] = at
    state[S_ROWS] = count
    return status
