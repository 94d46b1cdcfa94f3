"""The compiled half of the strace reader: from lines to events in the layout of ``perf_columns``.

A line is ``[PID] SECONDS.FRACTION NAME(ARGUMENTS) = RESULT [<DURATION>]`` (strace 6.1, ``-f -ttt``). The number before
the time is the thread's; a call cut by another thread's line ends in ``<unfinished ...>`` and goes on in a line of
``<... NAME resumed>``. A call becomes two events, its entry and its exit. strace stamps the beginning of each line, so
an exit has the time of the ``resumed`` line, else that of the line plus its duration (``-T``; without it, of the line).

What perf records and strace does not, is made from results: a FORK where a new process is first seen or its maker
returns, a COMM where an exec succeeds, an EXIT at ``+++ exited``. Whose thread a new number is, is told by the result
of the clone that made it, which may come later: the walker stops at its first line with ``UNKNOWN`` and the caller
looks ahead.
"""

from __future__ import annotations

import numpy as np

from faultpath.jit import jit
from faultpath.trace.readers import perf_columns as pc
from faultpath.trace.readers.perf_columns import CPU, EVENT, FIELD, PID, TID, TIME, attribute_of
from faultpath.trace.readers.rows import (
    CLONE,
    CLONE3,
    CLONE_THREAD,
    EXECVE,
    EXECVEAT,
    EXIT_GROUP,
    FORK_FLAGS,
    MEMORY_CALLS,
    PID_LIMIT,
    VFORK,
    VFORK_FLAGS,
)
from faultpath.trace.readers.scan import (
    decimal_at,
    hash_name,
    is_at,
    line_end,
    name_at,
    number_at,
    seconds_at,
    skip_spaces,
    word,
)
from faultpath.trace.readers.syscalls import K_ENTER, K_EXIT, SYSCALLS
from faultpath.trace.readers.text import DONE, FULL, S_AT, S_ROWS

UNKNOWN, NAMED = 2, 3  # a thread whose maker must be found; a process that has just become another program

# A thread's slot; processes are kept plus one and calls plus one, so that zero means none. PATH is an offset.
T_PROCESS, T_CALL, T_FLAGS, T_PATH, T_DELIVERED, T_WIDTH = 0, 1, 2, 3, 4, 5
MISREAD = -1  # the thread is in a call whose arguments were not understood

S_MAIN, S_ALIVE, S_SUM, S_PENDING, S_MAKER, S_TID, S_CUT, S_TIME = range(2, 10)
S_PENDING_SUM, S_ORPHANS, S_OTHER, S_DURATIONS, S_EXITS, STATE_SIZE = range(10, 16)
ASK, NOBODY = -2, -1  # S_MAKER: not looked for yet, looked for in vain
HALF = 1 << 62  # ns; the sum of two such times still fits a signed word
MOST_EVENTS = 5  # that one line makes: FORK of its thread, entry, FORK or COMM, exit

#: Arguments that are read of each call, the first ones it has.
ARGUMENTS = np.array([len(c.fields) for c in SYSCALLS], np.int64)
FLAGS, EXIT_SIGNAL, MAP_HUGE_SHIFT = (hash_name(n) for n in ("flags", "exit_signal", "MAP_HUGE_SHIFT"))
ATTACHED, PROCESS, OWN = word(b" attached"), word(b"strace: Process "), word(b"strace: ")
PREFIX, RESUMED, UNFINISHED = word(b"[pid "), word(b" resumed>"), word(b"<unfinished ...>")
EXITED, KILLED, SUPERSEDED = word(b"exited with "), word(b"killed by "), word(b"superseded by execve in pid ")
INJECTED, ELSEWHERE, FRAME = word(b" (INJECTED"), word(b" /* "), word(b" > ")  # FRAME: of a stack, -k


@jit
def message_at(buf, at, stop):  # type: ignore[no-untyped-def]
    """Offset of ``strace: Process N attached`` that ends the line, or -1: strace puts it where it is just writing."""
    if stop - at < len(PROCESS) + 1 + len(ATTACHED) or not is_at(buf, stop - len(ATTACHED), stop, ATTACHED):
        return np.int64(-1)
    i = stop - len(ATTACHED)
    while i > at and 48 <= buf[i - 1] <= 57:
        i -= 1
    i -= len(PROCESS)
    return i if i >= at and is_at(buf, i, stop, PROCESS) else np.int64(-1)


@jit
def after_string(buf, at, stop):  # type: ignore[no-untyped-def]
    """Offset after the string whose opening quote is at ``at``."""
    at += 1
    while at < stop and buf[at] != 34:
        at += 2 if buf[at] == 92 else 1
    return min(at + 1, stop)


@jit
def after_decoration(buf, at, stop):  # type: ignore[no-untyped-def]
    """Offset after ``<...>`` (``-y``, ``-Y``) at ``at``; ``>`` in names is escaped, but not the arrow of a socket."""
    while at < stop and (buf[at] != 62 or buf[at - 1] == 45):
        at += 1
    return min(at + 1, stop)


@jit
def after_comment(buf, at, stop):  # type: ignore[no-untyped-def]
    at += 2
    while at + 1 < stop and not (buf[at] == 42 and buf[at + 1] == 47):
        at += 1
    return min(at + 2, stop)


@jit
def arguments_end(buf, at, stop):  # type: ignore[no-untyped-def]
    """Offset after the parenthesis that closes the arguments, or -1 where the line ends before it."""
    depth = 0
    while at < stop:
        c = buf[at]
        if c == 34:
            at = after_string(buf, at, stop)
            continue
        if c == 60:
            if is_at(buf, at, stop, UNFINISHED):
                return np.int64(-1)
            if 48 <= buf[at - 1] <= 57 or buf[at - 1] == 68:  # after a number or AT_FDCWD
                at = after_decoration(buf, at, stop)
                continue
        elif c == 47 and at + 1 < stop and buf[at + 1] == 42:
            at = after_comment(buf, at, stop)
            continue
        elif c == 40 or c == 91 or c == 123:
            depth += 1
        elif c == 41 or c == 93 or c == 125:
            if depth == 0:
                return at + 1
            depth -= 1
        at += 1
    return np.int64(-1)


@jit
def value_at(buf, at, stop, names, values):  # type: ignore[no-untyped-def]
    """An argument: names and numbers joined by ``|``, ``N<<MAP_HUGE_SHIFT``, comments. ``at`` when not understood."""
    total, i = np.int64(0), at
    while True:
        i = skip_spaces(buf, i, stop)
        if i < stop and (48 <= buf[i] <= 57 or buf[i] == 45):
            term, next_ = number_at(buf, i, stop)
            if next_ + 2 < stop and buf[next_] == 60 and buf[next_ + 1] == 60:
                shift, end = name_at(buf, next_ + 2, stop)
                if shift != MAP_HUGE_SHIFT:
                    return total, at
                term, next_ = (term & 63) << 26, end
        else:
            key, next_ = name_at(buf, i, stop)
            term = attribute_of(key, names, values)
            if term < 0:
                return total, at
        if next_ == i:
            return total, at
        total |= term
        i = skip_spaces(buf, next_, stop)
        if i + 1 < stop and buf[i] == 47 and buf[i + 1] == 42:
            i = skip_spaces(buf, after_comment(buf, i, stop), stop)
        if i >= stop or buf[i] != 124:
            return total, i
        i += 1


@jit
def read_arguments(buf, at, stop, count, names, values, row):  # type: ignore[no-untyped-def]
    """The first ``count`` arguments into ``row[FIELD:]``. Offset after them, or -1 when they are not understood.

    A call may have fewer: the last of mremap's is printed with MREMAP_FIXED and MREMAP_DONTUNMAP only.
    """
    for i in range(count):
        value, next_ = value_at(buf, at, stop, names, values)
        if next_ == at:
            return np.int64(-1)
        row[FIELD + i] = value
        at = next_
        if at < stop and buf[at] == 44:
            at += 1
        elif i + 1 < count:
            return at if i == 3 and (at >= stop or buf[at] == 41 or buf[at] == 60) else np.int64(-1)
    return at


@jit
def clone_flags(buf, at, stop, names, values):  # type: ignore[no-untyped-def]
    """``flags=`` and ``exit_signal=`` among the arguments of clone or clone3, or -1 without the first."""
    flags, found = np.int64(0), False
    while at < stop and buf[at] != 41 and buf[at] != 125:
        key, next_ = name_at(buf, at, stop)
        if key in (FLAGS, EXIT_SIGNAL) and next_ < stop and buf[next_] == 61:
            value, end = value_at(buf, next_ + 1, stop, names, values)
            if end == next_ + 1:
                return np.int64(-1)
            flags |= value
            found = found or key == FLAGS
            next_ = end
        at = max(next_, at + 1)
    return flags if found else np.int64(-1)


@jit
def result_at(buf, at, stop):  # type: ignore[no-untyped-def]
    """The result after the closing parenthesis: whether there is one, its value (-1: failed), and the offset after it.

    ``?`` is none, unless an error follows: then the call will be made again. A result that ``strace -e inject`` made
    up is a failure: the call did not happen.
    """
    at = skip_spaces(buf, at, stop)
    if at >= stop or buf[at] != 61:
        return False, np.int64(0), at
    at = skip_spaces(buf, at + 1, stop)
    if at < stop and buf[at] == 63:
        return at + 2 < stop and buf[at + 2] == 69, np.int64(-1), at
    value, next_ = number_at(buf, at, stop)
    if next_ == at:
        return False, np.int64(0), at
    if next_ < stop and buf[next_] == 60:
        next_ = after_decoration(buf, next_, stop)
    if is_at(buf, next_, stop, INJECTED):
        value = np.int64(-1)
    if is_at(buf, next_, stop, ELSEWHERE):  # --pidns-translation: 5 /* 1234 in strace's PID NS */
        other, end = decimal_at(buf, next_ + len(ELSEWHERE), stop)
        if end > next_ + len(ELSEWHERE) and end < stop and buf[end] == 32:
            value = other
    return True, value, next_


@jit
def duration_at(buf, at, stop):  # type: ignore[no-untyped-def]
    """ns of the ``<seconds>`` that ends the line, or -1."""
    if stop - at < 4 or buf[stop - 1] != 62:
        return np.int64(-1)
    i = stop - 2
    while i > at and buf[i] != 60:
        i -= 1
    duration, end = seconds_at(buf, i + 1, stop)
    return duration if end == stop - 1 and duration < HALF else np.int64(-1)


@jit
def put(out, count, time, pid, tid, event, field0, field1):  # type: ignore[no-untyped-def]
    """One event; returns the new count."""
    out[count, TIME], out[count, PID], out[count, TID], out[count, CPU] = time, pid, tid, -1
    out[count, EVENT], out[count, FIELD], out[count, FIELD + 1] = event, field0, field1
    out[count, FIELD + 2 :] = 0
    return count + 1


@jit
def leave(tid, tasks, state):  # type: ignore[no-untyped-def]
    """The thread is in no call any more. Returns the call it was in, plus one."""
    call = tasks[tid, T_CALL]
    tasks[tid, T_CALL] = 0
    if CLONE < call <= VFORK + 1:
        state[S_PENDING] -= 1
        state[S_PENDING_SUM] -= tid
    return call


@jit
def adopt(maker, tid, time, tasks, out, count, state):  # type: ignore[no-untyped-def]
    """``tid`` is what ``maker``'s call made: one of its threads, or a new process. Returns the new count."""
    parent = tasks[maker, T_PROCESS] - 1
    tasks[maker, T_DELIVERED] = 1
    leave(tid, tasks, state)  # who had this number before, and whose end was not printed
    tasks[tid, :] = 0
    if tasks[maker, T_FLAGS] & CLONE_THREAD:
        tasks[tid, T_PROCESS] = parent + 1
        return count
    tasks[tid, T_PROCESS] = tid + 1
    return put(out, count, time, tid, tid, -pc.FORK, parent, maker)


@jit
def returned(call, value, time, tid, tasks, out, count, state):  # type: ignore[no-untyped-def]
    """The exit of a call, and what it tells. Returns the new count; ``state[S_TID]`` is the thread after an exec."""
    if CLONE <= call <= VFORK and 0 < value < PID_LIMIT and not tasks[tid, T_DELIVERED]:
        if not tasks[value, T_PROCESS]:
            state[S_ALIVE] += 1
            state[S_SUM] += value
        count = adopt(tid, value, time, tasks, out, count, state)
    process = tasks[tid, T_PROCESS] - 1
    if EXECVE <= call <= EXECVEAT and value == 0:
        count = put(out, count, time, process, tid, -pc.COMM, 1, 0)
        state[S_TID] = tid
    return put(out, count, time, process, tid, K_EXIT + call, value, 0)


@jit
def walk(  # type: ignore[no-untyped-def]
    buf, at, end, calls, call_numbers, names, values, tasks, misread, out, state
):
    """Go over the lines of ``buf[at:end]``.

    Returns ``DONE``, ``FULL``, ``UNKNOWN`` before the first line of ``state[S_TID]``, or ``NAMED`` after the exec of
    ``state[S_TID]``.

    :param calls, call_numbers: table of the calls that are read; names, values: of arguments
    :param tasks: by thread; misread: lines whose arguments were not understood, by call
    """
    count = state[S_ROWS]
    status = DONE
    while at < end:
        if count + MOST_EVENTS > len(out):
            status = FULL
            break
        stop = line_end(buf, at, end)
        following = stop + 1
        message = message_at(buf, at, stop)
        if message >= 0:
            stop = message
        elif stop > at and buf[stop - 1] == 13:
            stop -= 1
        # Whose line it is.
        p, tid = at, np.int64(-1)
        if is_at(buf, p, stop, PREFIX):
            tid, next_ = decimal_at(buf, skip_spaces(buf, p + len(PREFIX), stop), stop)
            p = next_
        else:
            tid, next_ = decimal_at(buf, p, stop)
            if next_ == p or next_ >= stop or buf[next_] == 46:
                tid = np.int64(-1)
            else:
                p = next_
        if tid >= 0:
            if p < stop and buf[p] == 60:
                p = after_decoration(buf, p, stop)
            if p < stop and buf[p] == 93:
                p += 1
        named = tid >= 0
        p = skip_spaces(buf, p, stop)
        time, next_ = seconds_at(buf, p, stop)
        if next_ == p or tid >= PID_LIMIT:
            cut = state[S_CUT] - 1
            if cut >= 0 and stop > at and not named:
                # The rest of a line that a message of strace itself broke.
                call = tasks[cut, T_CALL] - 1
                closed = arguments_end(buf, at, stop)
                if call >= 0 and closed >= 0:
                    finished, value, _ = result_at(buf, closed, stop)
                    if finished:
                        state[S_TID] = -1
                        leave(cut, tasks, state)
                        count = returned(call, value, state[S_TIME], cut, tasks, out, count, state)
                        if state[S_TID] >= 0:
                            status = NAMED
                state[S_CUT] = 0 if message < 0 else state[S_CUT]
            elif stop > at and not is_at(buf, at, stop, FRAME) and not is_at(buf, at, stop, OWN):
                state[S_OTHER] += 1
            at = following
            if status != DONE:
                break
            continue
        p = skip_spaces(buf, next_, stop)
        # -i, -n and -r put their own between time and name.
        while p + 1 < stop and (buf[p] == 91 or (buf[p] == 40 and buf[p + 1] == 43)):
            while p < stop and buf[p] != 93 and buf[p] != 41:
                p += 1
            p = skip_spaces(buf, p + 1, stop)
        if p >= stop:
            at = following
            continue
        first = buf[p]
        q = skip_spaces(buf, p + 3, stop)
        taken = np.int64(-1)
        if first == 43 and is_at(buf, q, stop, SUPERSEDED):
            taken, _ = decimal_at(buf, q + len(SUPERSEDED), stop)
        if not named:
            tid = state[S_MAIN]
            if state[S_ALIVE] == 1:
                tid = state[S_SUM]
            elif state[S_ALIVE] == 2 and 0 <= taken < PID_LIMIT and tasks[taken, T_PROCESS]:
                tid = state[S_SUM] - taken
        if tasks[tid, T_PROCESS] == 0:
            maker = np.int64(NOBODY)
            if state[S_PENDING] > 0:
                maker = state[S_MAKER]
                if maker == ASK:
                    state[S_TID] = tid
                    status = UNKNOWN
                    break
                state[S_MAKER] = ASK
            if maker >= 0:
                count = adopt(maker, tid, time, tasks, out, count, state)
            else:
                tasks[tid, :] = 0
                tasks[tid, T_PROCESS] = tid + 1
                state[S_ORPHANS] += 1
            state[S_ALIVE] += 1
            state[S_SUM] += tid
        process = tasks[tid, T_PROCESS] - 1
        state[S_TIME] = time
        if message >= 0:
            state[S_CUT] = tid + 1
        if first == 43:  # +++
            if is_at(buf, q, stop, EXITED) or is_at(buf, q, stop, KILLED):
                count = put(out, count, time, process, tid, -pc.EXIT, 0, 0)
                leave(tid, tasks, state)
                tasks[tid, T_PROCESS] = 0
                state[S_ALIVE] -= 1
                state[S_SUM] -= tid
                state[S_EXITS] += 1
            elif 0 <= taken < PID_LIMIT and tasks[taken, T_PROCESS] and taken != tid:
                # The thread that called exec goes on under its process's number.
                leave(tid, tasks, state)
                tasks[tid, T_CALL], tasks[tid, T_PATH] = leave(taken, tasks, state), tasks[taken, T_PATH]
                tasks[taken, T_PROCESS] = 0
                state[S_ALIVE] -= 1
                state[S_SUM] -= taken
            at = following
            continue
        resumed = first == 60
        key, next_ = name_at(buf, skip_spaces(buf, p + 4, stop) if resumed else p, stop)
        call = attribute_of(key, calls, call_numbers)
        if call < 0 or next_ >= stop:
            at = following
            continue
        if resumed:
            if not is_at(buf, next_, stop, RESUMED):
                at = following
                continue
            entered = leave(tid, tasks, state)
            if entered == MISREAD:
                at = following
                continue
            p = next_ + len(RESUMED)
            if CLONE <= call <= VFORK and entered != call + 1:
                tasks[tid, T_DELIVERED] = 1  # with what flags is not known
        else:
            if buf[next_] != 40:
                at = following
                continue
            leave(tid, tasks, state)
            p = next_ + 1
            if call < MEMORY_CALLS:
                put(out, count, time, process, tid, K_ENTER + call, 0, 0)
                p = read_arguments(buf, p, stop, ARGUMENTS[call], names, values, out[count])
            else:
                flags = np.int64(0)
                if CLONE <= call <= CLONE3:
                    flags = clone_flags(buf, p, stop, names, values)
                elif call <= VFORK:
                    flags = np.int64(VFORK_FLAGS if call == VFORK else FORK_FLAGS)
                elif call != EXIT_GROUP:
                    tasks[tid, T_PATH] = p
                put(out, count, time, process, tid, K_ENTER + call, flags, 0)
                tasks[tid, T_FLAGS], tasks[tid, T_DELIVERED] = flags, 0
                p = p if flags >= 0 else np.int64(-1)
            if p < 0:
                misread[call] += 1
                tasks[tid, T_CALL] = MISREAD
                at = following
                continue
            count += 1
        closed = arguments_end(buf, p, stop)
        finished, value, next_ = result_at(buf, closed, stop) if closed >= 0 else (False, np.int64(0), p)
        if finished:
            duration = duration_at(buf, next_, stop)
            if duration >= 0:
                state[S_DURATIONS] += 1
                if not resumed and time < HALF:
                    time += duration
            state[S_TID] = -1
            count = returned(call, value, time, tid, tasks, out, count, state)
            if state[S_TID] >= 0:
                status = NAMED
        elif closed < 0:
            tasks[tid, T_CALL] = call + 1
            if CLONE <= call <= VFORK:
                state[S_PENDING] += 1
                state[S_PENDING_SUM] += tid
        at = following
        if status != DONE:
            break
    state[S_AT] = min(at, end)
    state[S_ROWS] = count
    return status
