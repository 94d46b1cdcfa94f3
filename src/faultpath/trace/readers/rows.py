"""From events to trace rows: pairing system calls, following processes, typing invalidations.

A system call becomes one row at its successful exit. What the kernel stamps while it runs comes before that exit, so an
invalidation takes its type from the arguments the thread entered with:

* inside munmap, mmap, mremap, brk, execve: UNMAP; mprotect: PROTECTION_VMA; fork and its kin: PROTECTION_PAGE; else
  CLEAR;
* but one aligned 2 MiB block that is not contained in the range the call asked to change is CLEAR: the kernel splits
  the huge page at a new VMA boundary first (``vma_adjust_trans_huge``, mm/huge_memory.c, Linux 6.1).

FORK and EXEC are taken from perf's own records where there are any: they are stamped when the new address space
exists, before the child's first event (a vfork parent returns only after its child has gone). A child made with
CLONE_VM but without CLONE_THREAD, as by vfork, runs in its parent's address space until it execs or exits: its rows
carry the parent's ``pid`` and its own ``tid``. EXIT is the exit of a process's last thread.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from faultpath.errors import FaultpathError
from faultpath.jit import jit
from faultpath.trace.ops import Event, Op
from faultpath.trace.readers import perf_columns as pc
from faultpath.trace.readers.perf_columns import CPU, EVENT, FIELD, PID, TID, TIME
from faultpath.trace.readers.syscalls import K_ENTER, K_EXIT, K_FAULT, K_TAP, SYSCALLS
from faultpath.trace.schema import ADDRESS_LIMIT, COLUMNS, Columns

#: What an EXIT may say in its third field; 0 when it does not know, and threads are counted.
LAST_THREAD, NOT_LAST_THREAD = 1, 2
#: Event number of rows handed in by the recorder (``/proc/PID/maps``): the fields of an MMAP2 record.
SNAPSHOT = -1000
#: Thread ids are below this (PID_MAX_LIMIT, include/linux/threads.h, 64 bit).
PID_LIMIT = 1 << 22

NAMES = [call.name for call in SYSCALLS]
MMAP, MUNMAP, MREMAP, MPROTECT, PKEY_MPROTECT, MADVISE, MBIND, BRK = (
    NAMES.index(n) for n in ("mmap", "munmap", "mremap", "mprotect", "pkey_mprotect", "madvise", "mbind", "brk")
)
CLONE, CLONE3, FORK, VFORK, EXECVE, EXECVEAT, EXIT_GROUP = (
    NAMES.index(n) for n in ("clone", "clone3", "fork", "vfork", "execve", "execveat", "exit_group")
)
CALLS = len(SYSCALLS)
CALL_OP = np.array([call.op for call in SYSCALLS], np.int64)
CALL_EVENT = np.array([call.event for call in SYSCALLS], np.int64)

# A thread's slot: the call it is in (-1: none) with its arguments, and what happened in it.
T_PID, T_GENERATION, T_CALL, T_ARG, T_FORKED, T_EXECED, T_WIDTH = 0, 1, 2, 3, 8, 9, 10
# A process's slot: whose address space it runs in, its threads, how often it called exec.
P_OWNER, P_THREADS, P_GENERATION, P_LEADER_GONE, P_PARENT, P_PID, P_WIDTH = 0, 1, 2, 3, 4, 5, 6

# Counters: four for each call, then these.
D_FAILED, D_NO_EXIT, D_NO_ENTRY, D_EMPTY = 0, CALLS, 2 * CALLS, 3 * CALLS
D_KERNEL, D_NO_TASK, D_NO_RANGE, D_SIZE = 4 * CALLS, 4 * CALLS + 1, 4 * CALLS + 2, 4 * CALLS + 3

S_THREADS, S_PROCESSES, S_LAST_TIME, S_AT, S_ROWS = range(5)
OK, GROW, BAD_ADDRESS, BAD_RANGE = 0, 1, -1, -2

CLONE_VM, CLONE_THREAD = 0x100, 0x10000
VFORK_FLAGS, FORK_FLAGS = 0x4111, 0x11  # CLONE_VFORK | CLONE_VM | SIGCHLD, SIGCHLD: kernel/fork.c
MAP_FIXED, MAP_HUGETLB, MAP_FIXED_NOREPLACE = 0x10, 0x40000, 0x100000
MREMAP_FIXED = 2
HUGE = 1 << 21
LIMIT = ADDRESS_LIMIT
MEMORY_CALLS = 8  # calls below this number change mappings themselves

_FAULT, _VMA, _INVALIDATE, _FORK, _EXEC, _EXIT = (
    int(o) for o in (Op.FAULT, Op.VMA, Op.INVALIDATE, Op.FORK, Op.EXEC, Op.EXIT)
)
_CLEAR = int(Event.CLEAR)


@jit
def enter_process(pid, parent, processes, process_of, state):  # type: ignore[no-untyped-def]
    """The slot of ``pid``, made if it is new."""
    slot = process_of[pid]
    if slot == 0:
        slot = state[S_PROCESSES]
        state[S_PROCESSES] += 1
        process_of[pid] = slot
        processes[slot, :] = 0
        processes[slot, P_OWNER] = pid
        processes[slot, P_PARENT] = parent
        processes[slot, P_PID] = pid
    return slot


@jit
def enter_thread(tid, pid, threads, thread_of, processes, process_of, state):  # type: ignore[no-untyped-def]
    """The slot of thread ``tid`` of ``pid``, made if it is new or if the number has been used again."""
    process = enter_process(pid, -1, processes, process_of, state)
    slot = thread_of[tid]
    if slot == 0:
        slot = state[S_THREADS]
        state[S_THREADS] += 1
        thread_of[tid] = slot
        threads[slot, T_PID] = -1
    if threads[slot, T_PID] != pid or threads[slot, T_GENERATION] != processes[process, P_GENERATION]:
        threads[slot, :] = 0
        threads[slot, T_PID] = pid
        threads[slot, T_GENERATION] = processes[process, P_GENERATION]
        threads[slot, T_CALL] = -1
        processes[process, P_THREADS] += 1
    return slot


@jit
def asked_to_change(call, a0, a1, a2, a3, a4, start, end, mask):  # type: ignore[no-untyped-def]
    """Whether ``[start, end)`` lies in the range the call asked to change."""
    if call == MREMAP:
        new = (a2 + mask) & ~mask
        if start >= a0 and end <= a0 + ((a1 + mask) & ~mask):
            return True
        return (a3 & MREMAP_FIXED) != 0 and start >= a4 and end <= a4 + new
    if call == MMAP:
        return (a3 & MAP_FIXED) != 0 and start >= a0 and end <= a0 + ((a1 + mask) & ~mask)
    if call == BRK:  # the old break is not an argument
        return start >= ((a0 + mask) & ~mask)
    if call < MEMORY_CALLS:
        return start >= a0 and end <= a0 + ((a1 + mask) & ~mask)
    return True


@jit
def make_rows(  # type: ignore[no-untyped-def]
    events, at, kinds, page, snapshots, threads, thread_of, processes, process_of, dropped, state,
    time, pids, tids, cpus, ops, addrs, lens, args, auxs,
):  # fmt: skip
    """Turn ``events[at:]`` into rows, at most one each. A status other than OK is about event ``state[S_AT]``."""
    mask = page - 1
    zero = np.int64(0)
    no_row: Any = (zero, zero, zero, zero, zero)
    n = 0
    status = OK
    while at < len(events):
        if state[S_THREADS] + 2 > len(threads) or state[S_PROCESSES] + 2 > len(processes):
            status = GROW
            break
        event, pid, tid = events[at, EVENT], events[at, PID], events[at, TID]
        if pid < 0 or tid < 0 or pid >= PID_LIMIT or tid >= PID_LIMIT:
            # Samples of a task that is already gone have no process; synthesized maps of the kernel have none either.
            if event >= 0:
                dropped[D_NO_TASK] += 1
            at += 1
            continue
        now = max(events[at, TIME], state[S_LAST_TIME])
        op, addr, length, arg, aux = no_row
        f0, f1 = events[at, FIELD], events[at, FIELD + 1]
        process = process_of[pid]
        thread = thread_of[tid]
        stale = (
            thread == 0
            or process == 0
            or threads[thread, T_PID] != pid
            or threads[thread, T_GENERATION] != processes[process, P_GENERATION]
        )
        if stale and event != -pc.EXIT and event != SNAPSHOT and event != -pc.FORK:
            thread = enter_thread(tid, pid, threads, thread_of, processes, process_of, state)
            process = process_of[pid]
        owner = processes[process, P_OWNER] if process else pid
        kind = kinds[event] if event >= 0 else 0
        if kind == K_FAULT:
            if threads[thread, T_CALL] >= 0:  # a fault in user mode: the call has ended and its exit was lost
                dropped[D_NO_EXIT + threads[thread, T_CALL]] += 1
                threads[thread, T_CALL] = -1
            if f0 < 0 and f0 >= -LIMIT:
                dropped[D_KERNEL] += 1
            elif f0 < 0 or f0 >= LIMIT:
                status = BAD_ADDRESS
                break
            else:
                op, addr, arg = _FAULT, f0, f1
        elif kind == K_TAP:
            start, end = f0 & ~mask, f1
            if end < 0 or end > LIMIT:
                end = LIMIT
            end = (end + mask) & ~mask
            if start < 0 or start >= end:
                dropped[D_NO_RANGE] += 1
            else:
                op, addr, length, arg, aux = _INVALIDATE, start, end - start, _CLEAR, _FAULT
                call = threads[thread, T_CALL]
                if call >= 0:
                    aux = CALL_OP[call]
                    arg = CALL_EVENT[call]
                    if length == HUGE and start & (HUGE - 1) == 0:
                        a = T_ARG
                        if not asked_to_change(
                            call, threads[thread, a], threads[thread, a + 1], threads[thread, a + 2],
                            threads[thread, a + 3], threads[thread, a + 4], start, end, mask,
                        ):  # fmt: skip
                            arg = _CLEAR
        elif kind >= K_EXIT:
            call, ret = kind - K_EXIT, f0
            entered = threads[thread, T_CALL] == call
            if entered:
                threads[thread, T_CALL] = -1
            if ret < 0 and ret >= -4095:
                dropped[D_FAILED + call] += 1
            elif call in (EXECVE, EXECVEAT):
                if not threads[thread, T_EXECED]:
                    processes[process, P_OWNER] = pid
                    op, owner = _EXEC, pid
                threads[thread, T_EXECED] = 0
            elif not entered:
                # A child leaves the call that made it without having entered it.
                if not (CLONE <= call <= VFORK and ret == 0):
                    dropped[D_NO_ENTRY + call] += 1
            elif CLONE <= call <= VFORK:
                flags = threads[thread, T_ARG]
                if not threads[thread, T_FORKED] and call != CLONE3 and not flags & CLONE_THREAD:
                    op, arg, aux = _FORK, ret, flags
            else:
                a0, a1 = threads[thread, T_ARG], threads[thread, T_ARG + 1]
                a2, a3 = threads[thread, T_ARG + 2], threads[thread, T_ARG + 3]
                op, addr = CALL_OP[call], a0
                if call == BRK:
                    addr = ret
                else:
                    if a1 < 0 or a1 > LIMIT:
                        status = BAD_RANGE
                        break
                    length = (a1 + mask) & ~mask
                    if call == MMAP:
                        addr, arg, aux = ret, a2, a3
                        if a3 & MAP_HUGETLB:  # rounded up to the huge page (mm/mmap.c, ksys_mmap_pgoff)
                            shift = a3 >> 26 & 63
                            huge = np.int64(1) << (shift if shift else 21)
                            length = (length + huge - 1) & ~(huge - 1)
                    elif call == MREMAP:
                        new = (a2 + mask) & ~mask
                        arg, aux = ret, new | (a3 & mask)
                        if a2 < 0 or a2 > LIMIT or new > LIMIT or ret < 0 or ret > LIMIT - new or ret & mask:
                            status = BAD_RANGE
                            break
                    elif call != MUNMAP:
                        arg = a2
                    if length == 0 and call != MREMAP:
                        dropped[D_EMPTY + call] += 1
                        op = 0
                if op and (
                    addr < 0 or length < 0 or length > LIMIT or addr > LIMIT - length or (call != BRK and addr & mask)
                ):
                    status = BAD_RANGE
                    break
        elif kind >= K_ENTER:
            call = kind - K_ENTER
            if threads[thread, T_CALL] >= 0:
                dropped[D_NO_EXIT + threads[thread, T_CALL]] += 1
            threads[thread, T_CALL] = call
            threads[thread, T_FORKED] = 0
            threads[thread, T_EXECED] = 0
            for i in range(5):
                threads[thread, T_ARG + i] = events[at, FIELD + i]
            if call == VFORK:
                threads[thread, T_ARG] = VFORK_FLAGS
            elif call == FORK:
                threads[thread, T_ARG] = FORK_FLAGS
        elif event == SNAPSHOT or event == -pc.MMAP2 or event == -pc.MMAP:
            own = event != SNAPSHOT
            inside = own and 0 <= threads[thread, T_CALL] < MEMORY_CALLS
            if not inside and not (own and snapshots[pid]):
                length = (f1 + mask) & ~mask
                if f0 < 0 and f0 >= -LIMIT:
                    pass  # the vsyscall page, which every process has
                elif f0 < 0 or f1 <= 0 or f1 > LIMIT or f0 > LIMIT - length or f0 & mask:
                    status = BAD_RANGE
                    break
                else:
                    op, addr, arg, aux = _VMA, f0, events[at, FIELD + 2], events[at, FIELD + 3]
        elif event == -pc.FORK:
            parent, parent_tid = f0, f1
            if parent != pid:
                stale = process_of[pid]
                if stale:
                    processes[stale, P_GENERATION] += 1
                    processes[stale, P_THREADS] = 0
                    processes[stale, P_LEADER_GONE] = 0
                    processes[stale, P_OWNER] = pid
                    processes[stale, P_PARENT] = parent
                process = enter_process(pid, parent, processes, process_of, state)
            thread = enter_thread(tid, pid, threads, thread_of, processes, process_of, state)
            if parent != pid and events[at, TIME] > 0 and 0 <= parent < PID_LIMIT and 0 <= parent_tid < PID_LIMIT:
                op, arg, owner = _FORK, pid, parent
                if process_of[parent]:
                    owner = processes[process_of[parent], P_OWNER]
                maker = thread_of[parent_tid]
                tid = parent_tid
                aux = events[at, FIELD + 2]
                if maker and threads[maker, T_PID] == parent and CLONE <= threads[maker, T_CALL] <= VFORK:
                    threads[maker, T_FORKED] = 1
                    if threads[maker, T_ARG]:
                        aux = threads[maker, T_ARG]
                if aux & CLONE_VM:
                    processes[process, P_OWNER] = owner
        elif event == -pc.COMM and f0:
            processes[process, P_GENERATION] += 1
            processes[process, P_THREADS] = 0
            processes[process, P_LEADER_GONE] = 0
            processes[process, P_OWNER] = pid
            thread = enter_thread(tid, pid, threads, thread_of, processes, process_of, state)
            threads[thread, T_EXECED] = 1
            op, owner = _EXEC, pid
        elif event == -pc.EXIT and process:
            if not stale:
                call = threads[thread, T_CALL]
                if 0 <= call < EXECVE:
                    dropped[D_NO_EXIT + call] += 1
                threads[thread, T_PID] = -1
                processes[process, P_THREADS] -= 1
            if tid == pid:
                processes[process, P_LEADER_GONE] = 1
            last = processes[process, P_THREADS] == 0 and processes[process, P_LEADER_GONE] != 0
            if events[at, FIELD + 2]:
                last = events[at, FIELD + 2] == LAST_THREAD
            if last:
                op, owner = _EXIT, pid
                processes[process, P_OWNER] = pid
        if op:
            time[n], pids[n], tids[n], cpus[n], ops[n] = now, owner, tid, events[at, CPU], op
            addrs[n], lens[n], args[n], auxs[n] = addr, length, arg, aux
            state[S_LAST_TIME] = now
            n += 1
        at += 1
    state[S_AT] = at
    state[S_ROWS] = n
    return status


class RowMaker:
    """Turns batches of events, in time order, into batches of rows.

    :param kinds: kind (``syscalls``) by number of the event in the file
    :param snapshots: pids whose mappings the recorder has read itself, so that perf's records of them are not used
    """

    def __init__(self, kinds: np.ndarray, page_size: int, snapshots: set[int], where: str) -> None:
        self.kinds, self.page_size, self.where = kinds, page_size, where
        self.snapshots = np.zeros(PID_LIMIT, np.bool_)
        self.snapshots[list(snapshots)] = True
        # Zero pages until touched: these cost what is used of them. Slot 0 means none.
        self.thread_of, self.process_of = np.zeros(PID_LIMIT, np.int32), np.zeros(PID_LIMIT, np.int32)
        self.threads, self.processes = np.zeros((64, T_WIDTH), np.int64), np.zeros((64, P_WIDTH), np.int64)
        self.counts = np.zeros(D_SIZE, np.int64)
        self.state = np.zeros(5, np.int64)
        self.tapped = False  # whether the tap has told anything: without a KVM descriptor it tells nothing
        self.state[[S_THREADS, S_PROCESSES]] = 1

    def rows(self, events: np.ndarray) -> Columns:
        """:raises FaultpathError: when an event names an address or range that cannot be"""
        if self.state[S_LAST_TIME] == 0 and len(events):
            timed = events[:, TIME] > 0
            if timed.any():  # what was there before the recording is stamped with its first event
                self.state[S_LAST_TIME] = events[int(np.argmax(timed)), TIME]
        pieces: list[Columns] = []
        at = 0
        while True:
            columns = {name: np.empty(len(events) - at, dtype) for name, dtype in COLUMNS.items()}
            status = make_rows(
                events, at, self.kinds, self.page_size, self.snapshots, self.threads, self.thread_of, self.processes,
                self.process_of, self.counts, self.state, *columns.values(),
            )  # fmt: skip
            at = int(self.state[S_AT])
            pieces.append({name: column[: self.state[S_ROWS]] for name, column in columns.items()})
            self.tapped = self.tapped or bool((pieces[-1]["op"] == Op.INVALIDATE).any())
            if status == GROW:
                self.threads = np.concatenate([self.threads, np.zeros_like(self.threads)])
                self.processes = np.concatenate([self.processes, np.zeros_like(self.processes)])
                continue
            if status < 0:
                what = (
                    "an address that is not canonical" if status == BAD_ADDRESS else "a range that is not in user space"
                )
                values = ", ".join(f"{int(v) & (1 << 64) - 1:#x}" for v in events[at, FIELD : FIELD + 3])
                when = f"{self.where}, event at {int(events[at, TIME])} ns of thread {int(events[at, TID])}"
                raise FaultpathError(f"{what} ({values})", when, "the file is damaged; record again")
            break
        return pieces[0] if len(pieces) == 1 else {name: np.concatenate([p[name] for p in pieces]) for name in COLUMNS}

    @property
    def dropped(self) -> dict[str, int]:
        """Events that gave no row, by reason."""
        reasons = {
            "failed {}": D_FAILED,
            "{} entered, exit not seen": D_NO_EXIT,
            "{} left, entry not seen": D_NO_ENTRY,
            "{} of nothing": D_EMPTY,
        }
        found = {
            text.format(name): int(self.counts[base + i])
            for text, base in reasons.items()
            for i, name in enumerate(NAMES)
        }
        found["at a kernel address"] = int(self.counts[D_KERNEL])
        found["of a task already gone"] = int(self.counts[D_NO_TASK])
        found["invalidation of nothing"] = int(self.counts[D_NO_RANGE])
        return {reason: count for reason, count in found.items() if count}

    def parents(self) -> dict[int, int]:
        """Parent (-1: unknown) of every process seen, by pid."""
        seen = self.processes[1 : self.state[S_PROCESSES]]
        return {int(row[P_PID]): int(row[P_PARENT]) for row in seen}
