"""What readers of recorded kernel events share: which events make rows, and what is said of those that are missing."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np

from faultpath.errors import FaultpathError
from faultpath.trace.formats import record_command
from faultpath.trace.readers.syscalls import FAULT, SYSCALLS, TAP, kind_of


def choose(
    events: Sequence[str], where: str, command: str = ""
) -> tuple[dict[int, tuple[str, ...]], np.ndarray, set[str]]:
    """Which of the recorded events, ``system:name`` each, make rows: their fields and kinds by number, and their names.

    :param command: what makes a complete recording, when it is not ``perf record``
    :raises FaultpathError: when page faults are not among them
    """
    wanted: dict[int, tuple[str, ...]] = {}
    kinds = np.zeros(len(events), np.int64)
    names: set[str] = set()
    recorded = set(events)
    for number, event in enumerate(events):
        if (found := kind_of(event)) and usable(event, recorded):
            kinds[number], wanted[number] = found
            names.add(event)
    if FAULT not in names:
        has = sorted(recorded)
        close = difflib.get_close_matches(FAULT, has, n=3, cutoff=0.4) or has[:5]
        raise FaultpathError(
            f"the recording has no {FAULT} (closest: {', '.join(close)})",
            where,
            f"record with: {command or record_command()}",
        )
    return wanted, kinds, names


def usable(name: str, recorded: set[str]) -> bool:
    """Whether an event's other half was recorded: inside a call that never ends, everything would get a wrong type.

    exit_group has no exit, and the exit of execve tells by itself that it happened.
    """
    if name.startswith("syscalls:sys_exit_execve") or name == "syscalls:sys_enter_exit_group":
        return True
    return {name.replace("sys_exit_", "sys_enter_"), name.replace("sys_enter_", "sys_exit_")} <= recorded


def processes(parents: dict[int, int], comms: dict[int, str]) -> list[dict[str, Any]]:
    """A process that was never named has its parent's name, as fork leaves it. Parents appear before their children."""
    for pid, parent in parents.items():
        comms.setdefault(pid, comms.get(parent, ""))
    return [{"pid": pid, "parent": parents[pid], "comm": comms[pid]} for pid in sorted(parents)]


def missing(names: set[str], snapshots: bool, seen: bool = False, clone3_flags: bool = False) -> list[str]:
    """One sentence for each thing that was not recorded, and why.

    :param snapshots: whether the recorder has read the processes' mappings itself
    :param seen: whether ``names`` are those that occur: of others it is not known whether they were recorded
    :param clone3_flags: whether an event tells them
    """
    reason = "recorded, or did not occur" if seen else "recorded"
    said = []
    calls = [c.name for c in SYSCALLS if not {f"syscalls:sys_enter_{c.name}", f"syscalls:sys_exit_{c.name}"} & names]
    if calls:
        said.append(f"System calls {', '.join(calls)}: their events were not {reason}.")
    if TAP not in names:
        said.append(
            f"Notifier invalidations: {TAP} was not {reason}, or told nothing, as without a KVM descriptor; they are"
            " derived from the calls and faults."
        )
    else:
        said.append(
            "Invalidations of a process that holds no KVM descriptor: the kernel reports only those of one that does."
        )
    if not snapshots:
        said.append(
            "Mappings that are not executable and older than the recording or made by exec: perf does not record them."
        )
    if "syscalls:sys_enter_clone3" in names and not clone3_flags:
        said.append(
            "Flags of clone3: the kernel reads them from memory; a child is taken to have its own address space."
        )
    return said
