"""The compiled half of the trace.dat reader: from pages of the kernel's ring buffer to rows of integers, in time order.

A page (kernel/trace/ring_buffer.c, struct buffer_data_page, Linux 6.1 to 6.18) begins with the time of its first record
and a word that holds how many bytes are used and whether events were lost before it; their number may follow the used
bytes. A record begins with five bits ``type_len`` and 27 bits ``time_delta``, then a word ``array[0]``:

* 0: ``array[0]`` bytes with itself; 1 to 28: that many words, from ``array[0]`` on;
* 29, padding: ``array[0]`` bytes after the first word, or, without a ``time_delta``, the rest of the page;
* 30: ``array[0] << 27`` adds to the time; 31: the time, but for its highest five bits.

Rows have the columns of ``perf_columns``; PID is left to who knows the process of a thread (``ftrace_tasks``).
Nothing outside the page is ever read. Errors are a negative status; the caller makes the message.
"""

from __future__ import annotations

import numpy as np

from faultpath.jit import jit
from faultpath.trace.readers.perf_columns import (
    CPU,
    EVENT,
    FIELD,
    FIELD_WIDTH,
    MOST,
    PID,
    TID,
    TIME,
    load,
    s64,
    u16,
    u32,
)

# Columns of the table of events: bytes a record must have, where its thread is, then its fields (offset, size, signed).
A_NEED, A_TID, A_FIELD = 0, 1, 2

# What the pages of a file share: bytes of a page, of its head, of a long in it, offset of common_type, and the
# multiplier (0: none) and shift that make ns of a time stamp.
P_PAGE, P_HEAD, P_LONG, P_TYPE, P_MULT, P_SHIFT, P_SIZE = range(7)

# Where a processor's stream is: page, record in it (0: none yet), end of its records, time; losses; rows put out.
S_PAGE, S_RECORD, S_END, S_TIME, S_LOST, S_ROWS, S_SIZE = range(7)

USED = (1 << 27) - 1
LOST, LOST_STORED = 1 << 31, 1 << 30
PADDING, TIME_EXTEND, TIME_STAMP = 29, 30, 31
HIGHEST = ~((1 << 59) - 1)

DONE, FULL = 0, 1
BAD_PAGE, BAD_RECORD, SHORT_RECORD, BAD_TIME = -1, -2, -3, -4
ERRORS = {
    BAD_PAGE: "a page that is fuller than it is large",
    BAD_RECORD: "a record whose size is wrong",
    SHORT_RECORD: "a record too short for the fields its event's format names",
    BAD_TIME: "a record with an impossible time",
}


@jit
def walk(buf, end, shared, events, number_of, seen, cpu, out, state):  # type: ignore[no-untyped-def]
    """Go over the records of the whole pages ``buf[state[S_PAGE]:end]``.

    :param number_of: number of the event by id, -1 for those that are not wanted
    :param seen: counts records by number of the event
    :returns: ``DONE`` at the end, ``FULL`` before a record there is no row for, or an error in ``state[S_PAGE]``
    """
    page, head = shared[P_PAGE], shared[P_HEAD]
    mult, shift = np.uint64(shared[P_MULT]), np.uint64(shared[P_SHIFT])
    count, capacity = state[S_ROWS], len(out)
    fields = out.shape[1] - FIELD
    at, stop, time = state[S_RECORD], state[S_END], state[S_TIME]
    status = DONE
    while state[S_PAGE] < end:
        start = state[S_PAGE]
        if at == 0:
            word = s64(buf, start + 8) if shared[P_LONG] == 8 else u32(buf, start + 8)
            used = word & USED
            if used > page - head:
                status = BAD_PAGE
                break
            time, at = s64(buf, start), start + head
            stop = at + used
            if word & LOST:
                lost = np.int64(1)  # at least: the number is stored where there is room
                if word & LOST_STORED and stop + shared[P_LONG] <= start + page:
                    lost = max(s64(buf, stop) if shared[P_LONG] == 8 else u32(buf, stop), np.int64(1))
                state[S_LOST] = min(state[S_LOST] + min(lost, MOST), MOST)
        while at < stop:
            if at + 4 > stop:
                status = BAD_RECORD
                break
            word = u32(buf, at)
            kind, delta = word & 31, word >> 5
            body = at + 4
            if kind == PADDING and delta == 0:
                at = stop
                break
            size = 4 * kind
            array = np.int64(0)
            if kind == 0 or kind > 28:
                if body + 4 > stop:
                    status = BAD_RECORD
                    break
                array = u32(buf, body)
                if kind == 0:
                    if array < 4:
                        status = BAD_RECORD
                        break
                    body += 4
                    size = (array - 1) & ~3
                else:
                    size = array if kind == PADDING else np.int64(4)
            if size > stop - body:
                status = BAD_RECORD
                break
            if kind == TIME_STAMP:
                time = array << 27 | delta | time & HIGHEST
            elif kind == TIME_EXTEND:
                time += array << 27 | delta
            else:
                event = np.int64(-1)
                if kind != PADDING:
                    if shared[P_TYPE] + 2 > size:
                        status = SHORT_RECORD
                        break
                    event = number_of[u16(buf, body + shared[P_TYPE])]
                if event >= 0:
                    if count == capacity:
                        status = FULL
                        break
                    if events[event, A_NEED] > size:
                        status = SHORT_RECORD
                        break
                    now = time + delta
                    if mult:
                        stamp = np.uint64(now)
                        low, high = stamp & np.uint64(0xFFFFFFFF), stamp >> np.uint64(32)
                        now = np.int64((low * mult >> shift) + (high * mult << np.uint64(32) - shift))
                    if now < 0:
                        status = BAD_TIME
                        break
                    out[count, TIME] = now
                    out[count, PID] = -1
                    out[count, TID] = load(buf, body + events[event, A_TID], 4, 1)
                    out[count, CPU] = cpu
                    out[count, EVENT] = event
                    for i in range(fields):
                        column = A_FIELD + FIELD_WIDTH * i
                        width = events[event, column + 1]
                        # An event with fewer fields has width 0 in the others.
                        out[count, FIELD + i] = (
                            load(buf, body + events[event, column], width, events[event, column + 2]) if width else 0
                        )
                    seen[event] += 1
                    count += 1
                time += delta
            at = body + size
        if status:
            break
        state[S_PAGE] += page
        at = np.int64(0)
    state[S_RECORD], state[S_END], state[S_TIME], state[S_ROWS] = at, stop, time, count
    return status


@jit
def earlier(rows, at, a, b):  # type: ignore[no-untyped-def]
    """Whether the next row of stream ``a`` comes before that of ``b``: by time, then by number of the stream."""
    first, second = rows[a, at[a], TIME], rows[b, at[b], TIME]
    return first < second or (first == second and a < b)


@jit
def merge(rows, at, count, heap, out):  # type: ignore[no-untyped-def]
    """Take rows of several streams in time order, until ``out`` is full or a stream has run out.

    :param rows: shape ``(streams, capacity, columns)``; those of stream ``s`` that are left are ``at[s]:count[s]``
    :param heap: room for the number of each stream
    :returns: rows taken
    """
    size = 0
    for stream in range(len(at)):
        if at[stream] < count[stream]:
            place = size
            heap[place] = stream
            size += 1
            while place and earlier(rows, at, stream, heap[(place - 1) >> 1]):
                heap[place] = heap[(place - 1) >> 1]
                place = (place - 1) >> 1
            heap[place] = stream
    taken = 0
    while size and taken < len(out):
        stream = heap[0]
        for column in range(out.shape[1]):
            out[taken, column] = rows[stream, at[stream], column]
        taken += 1
        at[stream] += 1
        if at[stream] == count[stream]:
            break
        place = 0
        while True:
            child = 2 * place + 1
            if child >= size:
                break
            if child + 1 < size and earlier(rows, at, heap[child + 1], heap[child]):
                child += 1
            if not earlier(rows, at, heap[child], stream):
                break
            heap[place] = heap[child]
            place = child
        heap[place] = stream
    return taken
