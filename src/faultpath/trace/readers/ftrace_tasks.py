"""The process of each thread of an ftrace recording, which names threads only (``common_pid`` is the thread's id).

Births tell it, from the best source that was recorded:

1. task:task_newtask, whose ``clone_flags`` say whether the child is a thread;
2. sched:sched_process_fork, with the flags of the call its parent is in;
3. what clone and its kin returned to the parent: read beforehand, for a child may run before its parent returns.

clone3 keeps its flags in memory, so without task_newtask a child of it is taken to share its parent's address space
until it execs, as threads and children of posix_spawn do. A thread that was there before the recording and that
nothing tells of is taken to be a process of its own.

Events of births, execs and exits become rows as perf records them (``perf_columns``), which is what ``rows`` follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from faultpath.jit import jit
from faultpath.trace.readers import perf_columns as pc
from faultpath.trace.readers.perf_columns import EVENT, FIELD, PID, TID, TIME
from faultpath.trace.readers.rows import (
    CLONE,
    CLONE_THREAD,
    CLONE_VM,
    EXECVE,
    EXECVEAT,
    FORK,
    FORK_FLAGS,
    LAST_THREAD,
    NOT_LAST_THREAD,
    PID_LIMIT,
    VFORK,
    VFORK_FLAGS,
)
from faultpath.trace.readers.syscalls import K_ENTER, K_EXIT
from faultpath.trace.readers.tracing_data import EventFormat

NEWTASK, FORKED, EXEC, EXITED = 1, 2, 3, 4
#: Events that tell of tasks (include/trace/events/task.h and sched.h, Linux 6.1 to 6.18), with the fields needed. Of
#: an exit, group_dead tells whether it is of the last thread; where it is missing (before Linux 6.16), exits come
#: after the memory is given up, and threads can be counted.
TASK_EVENTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "task:task_newtask": (NEWTASK, ("pid", "clone_flags")),
    "sched:sched_process_fork": (FORKED, ("child_pid",)),
    "sched:sched_process_exec": (EXEC, ("pid", "old_pid")),
    "sched:sched_process_exit": (EXITED, ("pid", "group_dead")),
}
UNKNOWN_FLAGS = -1

# Births read beforehand, in time order: child, parent, flags, time of the parent's call; the child's next (0: none).
B_CHILD, B_PARENT, B_FLAGS, B_TIME, B_NEXT, B_WIDTH = range(6)


@jit
def process_of(tid, process, assumed):  # type: ignore[no-untyped-def]
    """The process of thread ``tid``; itself when nothing was told of it."""
    if process[tid] == 0:
        process[tid] = tid + 1
        assumed[tid] = tid != 0  # 0 is the idle task
    return np.int64(process[tid] - 1)


@jit
def bear(row, child, parent, flags, process, assumed):  # type: ignore[no-untyped-def]
    """Make ``row`` the birth of thread ``child``."""
    owner = process_of(parent, process, assumed)
    if flags == UNKNOWN_FLAGS:
        flags = np.int64(CLONE_VM)
    row[PID] = owner if flags & CLONE_THREAD else child
    process[child], assumed[child] = row[PID] + 1, 0
    row[TID], row[EVENT] = child, -pc.FORK
    row[FIELD], row[FIELD + 1], row[FIELD + 2] = owner, parent, flags


@jit
def flags_of(call, argument):  # type: ignore[no-untyped-def]
    """CLONE_* flags of a call that makes a task; ``UNKNOWN_FLAGS`` when they are not among its arguments."""
    if call == VFORK:
        return np.int64(VFORK_FLAGS)
    if call == FORK:
        return np.int64(FORK_FLAGS)
    return argument if call == CLONE else np.int64(UNKNOWN_FLAGS)


@jit
def place(events, kinds, tasks, told, group_dead, process, assumed, inside, births, next_birth):  # type: ignore[no-untyped-def]
    """Give ``events`` their processes, and turn those that tell of tasks into rows as perf records them.

    :param tasks: what events tell of tasks, by number
    :param told: where births are taken from: ``NEWTASK``, ``FORKED`` or 0
    :param group_dead: whether exits tell if they are of the last thread
    :param process: by thread, its process plus 1; 0 when not known
    :param assumed: by thread, whether its process is only assumed
    :param inside: by thread, flags of the call it makes a task in
    :param next_birth: by child, its first birth that is still to come (0: none)
    """
    for i in range(len(events)):
        row = events[i]
        tid, event = row[TID], row[EVENT]
        if tid < 0 or tid >= PID_LIMIT:
            row[PID] = -1
            continue
        kind, task = kinds[event], tasks[event]
        child = row[FIELD]
        if task in (NEWTASK, FORKED):
            if child < 0 or child >= PID_LIMIT or task != told:
                row[PID], row[EVENT] = -1, -pc.FORK  # is passed over
            else:
                bear(row, child, tid, row[FIELD + 1] if task == NEWTASK else inside[tid], process, assumed)
            continue
        if task == EXEC:
            # Whoever calls exec is the leader from then on; it was before when its id did not change.
            if row[FIELD] == row[FIELD + 1]:
                assumed[tid] = 0
            process[tid] = tid + 1
            row[PID], row[EVENT] = tid, -pc.COMM
            row[FIELD] = 1
            continue
        if K_ENTER + CLONE <= kind <= K_ENTER + VFORK:
            inside[tid] = flags_of(kind - K_ENTER, row[FIELD])
        elif K_EXIT + CLONE <= kind <= K_EXIT + VFORK and child == 0:
            birth, later = np.int64(0), np.int64(next_birth[tid])
            while later and births[later, B_TIME] <= row[TIME]:
                birth, later = later, births[later, B_NEXT]
            if birth:
                next_birth[tid] = later
                bear(row, tid, births[birth, B_PARENT], births[birth, B_FLAGS], process, assumed)
                continue
        elif kind in (K_EXIT + EXECVE, K_EXIT + EXECVEAT) and child == 0:
            process[tid] = tid + 1
        row[PID] = process_of(tid, process, assumed)
        if task == EXITED:
            dead = row[FIELD + 1]
            row[EVENT] = -pc.EXIT
            row[FIELD + 2] = (LAST_THREAD if dead else NOT_LAST_THREAD) if group_dead else 0


class Tasks:
    """Places batches of events, in time order.

    :param kinds: kind (``syscalls``) by number of the event
    :param events: the recorded events
    :ivar wanted: fields to decode by number of the event, for those that tell of tasks
    """

    def __init__(self, kinds: np.ndarray, events: Sequence[EventFormat]) -> None:
        self.kinds, self.tasks = kinds, np.zeros(len(kinds), np.int64)
        self.wanted: dict[int, tuple[str, ...]] = {}
        self.group_dead = False
        for number, event in enumerate(events):
            task, fields = TASK_EVENTS.get(f"{event.system}:{event.name}", (0, ()))
            if task == EXITED:
                self.group_dead = "group_dead" in event.fields
                fields = fields if self.group_dead else fields[:1]
            if task:
                self.tasks[number], self.wanted[number] = task, fields
        births = self.tasks[np.isin(self.tasks, (NEWTASK, FORKED))]
        self.told = int(births.min()) if len(births) else 0
        # Zero pages until touched: these cost what is used of them.
        self.process, self.next_birth = np.zeros(PID_LIMIT, np.int32), np.zeros(PID_LIMIT, np.int32)
        self.assumed, self.inside = np.zeros(PID_LIMIT, np.bool_), np.zeros(PID_LIMIT, np.int64)
        self.births = np.zeros((1, B_WIDTH), np.int64)

    def foresee(self, batches: Iterable[np.ndarray]) -> None:
        """Read beforehand what the calls that make tasks return, from all events of their entries and exits."""
        entered: dict[int, tuple[int, int]] = {}
        found = []
        for events in batches:
            for time, tid, event, value in events[:, [TIME, TID, EVENT, FIELD]].tolist():
                kind = int(self.kinds[event])
                if kind < K_EXIT:
                    entered[tid] = time, int(flags_of(kind - K_ENTER, value))
                elif tid in entered:
                    start, flags = entered.pop(tid)
                    if 0 < value < PID_LIMIT:
                        found.append((value, tid, flags, start, 0))
        found.sort(key=lambda birth: birth[B_TIME])
        self.births = np.array([(0,) * B_WIDTH, *found], np.int64)
        for number in range(len(found), 0, -1):
            child = self.births[number, B_CHILD]
            self.births[number, B_NEXT] = self.next_birth[child]
            self.next_birth[child] = number

    def place(self, events: np.ndarray) -> np.ndarray:
        """``events`` with their processes, in place."""
        place(
            events, self.kinds, self.tasks, self.told, self.group_dead, self.process, self.assumed, self.inside,
            self.births, self.next_birth,
        )  # fmt: skip
        return events

    def missing(self) -> list[str]:
        """One sentence for each thing that had to be assumed."""
        said = []
        recorded = set(self.tasks.tolist())
        if self.told != NEWTASK:
            source = "sched:sched_process_fork" if self.told else "what clone, fork and vfork returned"
            said.append(
                f"Which children are threads: task:task_newtask was not recorded; births are taken from {source}, and "
                "a child of clone3 is taken to share its parent's memory until it execs."
            )
        if EXITED not in recorded:
            said.append("Ends of processes: sched:sched_process_exit was not recorded.")
        if EXEC not in recorded:
            said.append("Execs of threads other than the first: sched:sched_process_exec was not recorded.")
        alone = np.flatnonzero(self.assumed)
        if len(alone):
            shown = ", ".join(map(str, alone[:5])) + (", ..." if len(alone) > 5 else "")
            said.append(
                f"The process of {len(alone)} threads older than the recording ({shown}): ftrace records threads only; "
                "each is taken to be a process of its own."
            )
        return said
