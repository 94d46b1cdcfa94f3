"""The compiled half of the perf script reader: from lines to events in the layout of ``perf_columns``.

A line is ``COMM PID/TID [CPU] SECONDS.FRACTION: [PERIOD] EVENT: FIELDS`` (tools/perf/builtin-script.c, Linux 6.1 to
6.18). By default there is no ``PID/``. COMM may hold anything but is 15 bytes at most, too few for all up to EVENT, so
the first place that reads like that is it. FIELDS are as the tracepoint's format prints them; records of tasks
and mappings, which perf prints when asked to, begin with ``PERF_RECORD_``. Call chains, comments and lines of other
events are passed over.

The number of an event is its kind (``syscalls``), so that events need no table of their own.
"""

from __future__ import annotations

import numpy as np

from faultpath.jit import jit
from faultpath.trace.readers import perf_columns as pc
from faultpath.trace.readers.perf_columns import CPU, EVENT, FIELD, PID, TID, TIME, attribute_of
from faultpath.trace.readers.rows import PID_LIMIT
from faultpath.trace.readers.scan import (
    NAME_BITS,
    decimal_at,
    hash_name,
    hex_at,
    is_at,
    line_end,
    name_at,
    number_at,
    seconds_at,
    skip_spaces,
    word,
)
from faultpath.trace.readers.syscalls import K_EXIT, K_TAP
from faultpath.trace.readers.text import DONE, FULL, S_AT, S_ROWS

NEW = 2  # the first event of its kind: whether the other half was recorded must be found out
S_KIND, S_OTHER, S_MISREAD, S_GUESSED, S_LOST, S_LOST_SAMPLES, S_TASKS, S_MAPS, STATE_SIZE = range(2, 11)
UNSEEN, USED, UNUSED = 0, 1, 2  # of a kind

#: Numbers in the table of names: kinds of event, and above them record types.
RECORD = 1000
PERF_RECORD, EXEC = word(b"PERF_RECORD_"), word(b" exec: ")
MAP_SHARED, MAP_PRIVATE = 1, 2


@jit
def signed_at(buf, at, stop):  # type: ignore[no-untyped-def]
    """A decimal number, perhaps negative."""
    if at < stop and buf[at] == 45:
        value, next_ = decimal_at(buf, at + 1, stop)
        return -value, next_ if next_ > at + 1 else at
    return decimal_at(buf, at, stop)


@jit
def pair_at(buf, at, stop, between):  # type: ignore[no-untyped-def]
    """Two decimal numbers with one byte between them; ``at`` when they are not."""
    first, next_ = signed_at(buf, at, stop)
    if next_ == at or next_ >= stop or buf[next_] != between:
        return np.int64(0), np.int64(0), at
    second, end = signed_at(buf, next_ + 1, stop)
    return first, second, end if end > next_ + 1 else at


@jit
def head_at(buf, at, stop):  # type: ignore[no-untyped-def]
    """``PID/TID [CPU] TIME:`` at ``at``: process (-2: not there), thread, processor (-1), ns, offset after it or -1."""
    wrong = (np.int64(0), np.int64(0), np.int64(0), np.int64(0), np.int64(-1))
    pid = np.int64(-2)
    tid, p = signed_at(buf, at, stop)
    if p == at:
        return wrong
    if p < stop and buf[p] == 47:
        pid = tid
        tid, end = signed_at(buf, p + 1, stop)
        if end == p + 1:
            return wrong
        p = end
    if p >= stop or buf[p] != 32:
        return wrong
    p = skip_spaces(buf, p, stop)
    cpu = np.int64(-1)
    if p < stop and buf[p] == 91:
        cpu, end = decimal_at(buf, p + 1, stop)
        if end == p + 1 or end >= stop or buf[end] != 93 or cpu < 0 or cpu > 1 << 30:
            return wrong
        p = skip_spaces(buf, end + 1, stop)
    time, end = seconds_at(buf, p, stop)
    if end == p or end >= stop or buf[end] != 58:
        return wrong
    return pid, tid, cpu, time, end + 1


@jit
def event_at(buf, at, stop):  # type: ignore[no-untyped-def]
    """``[PERIOD] SYSTEM:NAME[:MODIFIERS]: ``, or a record's name: its hash, whether it is a record, the offset after
    it, which is -1 when it is neither."""
    at = skip_spaces(buf, at, stop)
    _, p = decimal_at(buf, at, stop)
    if p > at:
        at = skip_spaces(buf, p, stop)
    key, p = name_at(buf, at, stop)
    if is_at(buf, at, stop, PERF_RECORD):
        return key, True, p
    if p == at or p >= stop or buf[p] != 58:
        return key, False, np.int64(-1)
    second, end = name_at(buf, p + 1, stop)
    if end == p + 1 or end >= stop or buf[end] != 58:
        return key, False, np.int64(-1)
    if end + 1 < stop and buf[end + 1] != 32:  # modifiers, as in page_fault_user:u
        _, end = name_at(buf, end + 1, stop)
    return (key * 131 + second) & NAME_BITS, False, min(end + 1, stop)


@jit
def read_fields(buf, at, stop, wanted, count, row):  # type: ignore[no-untyped-def]
    """``name: number, ...`` or ``name=number ...``: those whose hash is in ``wanted[:count]`` into ``row[FIELD:]``.

    Whether all are there.
    """
    found = 0
    while found < count and at < stop:
        key, p = name_at(buf, at, stop)
        if p == at or p >= stop or not (buf[p] == 58 or buf[p] == 61):
            return False
        p = skip_spaces(buf, p + 1, stop)
        for i in range(count):
            if wanted[i] == key:
                value, end = number_at(buf, p, stop)
                if end == p:
                    return False
                row[FIELD + i] = value
                found += 1
                p = end
        while p < stop and buf[p] != 32:
            p += 1
        at = skip_spaces(buf, p, stop)
    return found == count


@jit
def read_range(buf, at, stop, row):  # type: ignore[no-untyped-def]
    """The first two hexadecimal numbers with a prefix into ``row[FIELD:]``. Whether they are there."""
    found = 0
    while at + 2 < stop:
        if buf[at] == 48 and buf[at + 1] == 120:
            value, end = hex_at(buf, at + 2, stop)
            if end == at + 2:
                return False
            row[FIELD + found] = value
            found += 1
            if found == 2:
                return True
            at = end
        else:
            at += 1
    return False


@jit
def read_record(buf, at, stop, kind, row):  # type: ignore[no-untyped-def]
    """What follows the type of a FORK, EXIT, COMM, MMAP or MMAP2 record, into ``row``. Whether it is understood."""
    row[FIELD:] = 0
    row[EVENT] = -kind
    if kind == pc.FORK or kind == pc.EXIT:  # (pid:tid):(ppid:ptid)
        row[PID], row[TID], p = pair_at(buf, at + 1, stop, 58)
        if p == at + 1 or p + 3 > stop:
            return False
        row[FIELD], row[FIELD + 1], end = pair_at(buf, p + 3, stop, 58)
        return end > p + 3
    if kind == pc.COMM:  # [ exec]: name:pid/tid, and the name may hold colons
        row[FIELD] = 1 if is_at(buf, at, stop, EXEC) else 0
        p = stop
        while p > at and buf[p - 1] != 58:
            p -= 1
        row[PID], row[TID], end = pair_at(buf, p, stop, 47)
        return end == stop and end > p
    at = skip_spaces(buf, at, stop)  # pid/tid: [0xaddr(0xlen) @ ...]: rwxp file, or one letter for the old record
    row[PID], row[TID], p = pair_at(buf, at, stop, 47)
    if p == at or not read_range(buf, p, stop, row):
        return False
    while p + 3 < stop and not (buf[p] == 93 and buf[p + 1] == 58):
        p += 1
    p += 3
    if kind == pc.MMAP:
        if p >= stop:
            return False
        row[FIELD + 2] = pc.PROT_READ_EXEC if buf[p] == 120 else pc.PROT_READ_WRITE
        return True
    if p + 4 > stop:
        return False
    row[FIELD + 2] = (buf[p] == 114) * 1 | (buf[p + 1] == 119) * 2 | (buf[p + 2] == 120) * 4
    row[FIELD + 3] = MAP_SHARED if buf[p + 3] == 115 else MAP_PRIVATE
    return True


@jit
def walk(  # type: ignore[no-untyped-def]
    buf, at, end, keys, numbers, wanted, counts, use, process_of, line_of, out, state
):
    """Go over the lines of ``buf[at:end]``. Returns ``DONE``, ``FULL``, or ``NEW`` before an event ``state[S_KIND]``.

    :param keys, numbers: table of the names of events and records
    :param wanted, counts: hashes of the fields of each kind
    :param use: by kind: not seen yet, used, passed over
    :param process_of: by thread, plus one, from records; line_of: by process, its last line's offset plus one
    """
    count = state[S_ROWS]
    status = DONE
    while at < end:
        if count == len(out):
            status = FULL
            break
        stop = line_end(buf, at, end)
        following = stop + 1
        if stop > at and buf[stop - 1] == 13:
            stop -= 1
        if stop == at or buf[at] == 9 or buf[at] == 35:  # nothing, a call chain, a comment
            at = following
            continue
        # Each word may begin the head; the name before it has fifteen bytes, but is padded to sixteen.
        p = skip_spaces(buf, at, stop)
        latest = min(p + 64, stop)
        headed, key, record = False, np.int64(0), False
        pid, tid, cpu, time = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
        next_ = np.int64(-1)
        while next_ < 0 and p < latest:
            if buf[p] == 45 or 48 <= buf[p] <= 57:
                pid, tid, cpu, time, next_ = head_at(buf, p, stop)
                if next_ >= 0:
                    headed = True
                    key, record, next_ = event_at(buf, next_, stop)
            while p < latest and buf[p] != 32:
                p += 1
            p = skip_spaces(buf, p, stop)
        if next_ < 0:
            state[S_OTHER] += not headed  # with a head it is of an event that is no tracepoint
            at = following
            continue
        p = next_
        number = attribute_of(key, keys, numbers)
        if number < 0 or record != (number >= RECORD):
            at = following
            continue
        row = out[count]
        row[TIME], row[CPU] = time, cpu
        if record:
            kind = number - RECORD
            if kind == pc.LOST or kind == pc.LOST_SAMPLES:
                while p < stop and not 48 <= buf[p] <= 57:
                    p += 1
                lost, _ = decimal_at(buf, p, stop)
                which = S_LOST if kind == pc.LOST else S_LOST_SAMPLES
                state[which] = min(state[which] + min(max(lost, 0), pc.MOST), pc.MOST)
            elif not read_record(buf, p, stop, kind, row):
                state[S_MISREAD] += 1
            else:
                if 0 <= row[TID] < PID_LIMIT and 0 <= row[PID] < PID_LIMIT:
                    process_of[row[TID]] = row[PID] + 1
                    if row[PID] == row[TID]:
                        line_of[row[PID]] = at + 1
                state[S_TASKS] += kind == pc.FORK or kind == pc.EXIT or kind == pc.COMM
                state[S_MAPS] += kind == pc.MMAP or kind == pc.MMAP2
                count += 1
            at = following
            continue
        if use[number] == UNSEEN:
            state[S_KIND] = number
            status = NEW
            break
        if use[number] == UNUSED:
            at = following
            continue
        p = skip_spaces(buf, p, stop)
        row[EVENT] = number
        row[FIELD:] = 0
        if number == K_TAP:
            good = read_range(buf, p, stop, row)
        elif number >= K_EXIT:
            row[FIELD], next_ = number_at(buf, p, stop)
            good = next_ > p
        else:
            good = read_fields(buf, p, stop, wanted[number], counts[number], row)
        if good:
            if pid == -2:
                pid = tid
                if 0 <= tid < PID_LIMIT:
                    if process_of[tid]:
                        pid = np.int64(process_of[tid] - 1)
                    else:
                        state[S_GUESSED] += 1
            row[PID], row[TID] = pid, tid
            if 0 <= pid < PID_LIMIT and (pid == tid or line_of[pid] == 0):
                line_of[pid] = at + 1
            count += 1
        else:
            state[S_MISREAD] += 1
        at = following
    state[S_AT] = min(at, end)
    state[S_ROWS] = count
    return status


def event_hash(name: str) -> int:
    """What ``walk`` makes of ``system:name``, or of a record's name."""
    system, _, event = name.partition(":")
    if not event:
        return hash_name(name)
    return (hash_name(system) * 131 + hash_name(event)) & NAME_BITS
