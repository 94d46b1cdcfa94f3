"""A recording in, a trace out."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import numpy as np

from faultpath.errors import FaultpathError
from faultpath.trace.formats import Progress, recognise, record_command
from faultpath.trace.readers import perf_columns as pc
from faultpath.trace.readers.perf_data import PerfData, row_width
from faultpath.trace.readers.rows import SNAPSHOT, RowMaker
from faultpath.trace.readers.syscalls import FAULT, SYSCALLS, TAP, kind_of
from faultpath.trace.schema import Columns, TraceMeta, TraceWriter


def import_recording(
    source: Path, output: Path, progress: Progress | None = None, extra_rows: Columns | None = None
) -> TraceMeta:
    """Read ``source`` and write the trace ``output``, which appears only when complete.

    :param progress: called with bytes done and bytes in all
    :param extra_rows: VMA rows the recorder took itself (``/proc/PID/maps``), columns of the schema, times in the
        recording's clock; for their processes perf's own records of mappings are not used
    :raises FaultpathError: when ``source`` cannot be imported; nothing is written then
    """
    if recognise(source) == "trace":
        raise FaultpathError("already a trace", str(source), "use it as it is")

    if output.exists() and output.samefile(source):
        raise FaultpathError("the trace would overwrite the recording", str(output), "name another file with -o")
    recording = PerfData(source)
    wanted, kinds, names = choose(recording, str(source))
    header = recording.header
    page_size = header.tracing.page_size if header.tracing else 4096
    snapshots = set() if extra_rows is None else {int(p) for p in extra_rows["pid"]}
    maker = RowMaker(kinds, page_size, snapshots, str(source))
    with TraceWriter(output) as writer:
        for events in recording.batches(wanted, _snapshot_events(extra_rows, row_width(wanted)), progress):
            writer.write(maker.rows(events))
        meta = TraceMeta(
            format="perf.data",
            source=source.name,
            kernel=header.kernel,
            arch=header.arch,
            page_size=page_size,
            clock=header.clock,
            lost_events=recording.lost_events,
            lost_samples=recording.lost_samples,
            invalidations_from="tap" if TAP in names else "model",
            missing=_missing(names, recording.finished, snapshots),
            dropped={**recording.dropped, **maker.dropped},
            processes=_processes(maker.parents(), {pid: comm for pid, (_, comm) in recording.comms.items()}),
            command=header.command,
        )
        writer.finish(meta)
    return meta


def choose(recording: PerfData, where: str) -> tuple[dict[int, tuple[str, ...]], np.ndarray, set[str]]:
    """Which of the recording's events make rows: their fields and kinds by number, and their names."""
    events = recording.header.events
    wanted: dict[int, tuple[str, ...]] = {}
    kinds = np.zeros(len(events), np.int64)
    names: set[str] = set()
    recorded = {event.name for event in events}
    for number, event in enumerate(events):
        if (found := kind_of(event.name)) and _usable(event.name, recorded):
            kinds[number], wanted[number] = found
            names.add(event.name)
    if FAULT not in names:
        has = sorted(recorded)
        close = difflib.get_close_matches(FAULT, has, n=3, cutoff=0.4) or has[:5]
        raise FaultpathError(
            f"the recording has no {FAULT} (closest: {', '.join(close)})", where, f"record with: {record_command()}"
        )
    return wanted, kinds, names


def _usable(name: str, recorded: set[str]) -> bool:
    """Whether an event's other half was recorded: inside a call that never ends, everything would get a wrong type.

    exit_group has no exit, and the exit of execve tells by itself that it happened.
    """
    if name.startswith("syscalls:sys_exit_execve") or name == "syscalls:sys_enter_exit_group":
        return True
    return {name.replace("sys_exit_", "sys_enter_"), name.replace("sys_enter_", "sys_exit_")} <= recorded


def _snapshot_events(rows: Columns | None, width: int) -> np.ndarray | None:

    if rows is None:
        return None
    events = np.zeros((len(rows["time"]), width), np.int64)
    fields = range(pc.FIELD, pc.FIELD + 4)
    for name, column in zip(("time", "pid", "tid", "cpu"), (pc.TIME, pc.PID, pc.TID, pc.CPU), strict=True):
        events[:, column] = rows[name]
    for name, column in zip(("addr", "len", "arg", "aux"), fields, strict=True):
        events[:, column] = rows[name].astype(np.int64)
    events[:, pc.EVENT] = SNAPSHOT
    return events


def _processes(parents: dict[int, int], comms: dict[int, str]) -> list[dict[str, Any]]:
    """A process that was never named has its parent's name, as fork leaves it. Parents appear before their children."""
    for pid, parent in parents.items():
        comms.setdefault(pid, comms.get(parent, ""))
    return [{"pid": pid, "parent": parents[pid], "comm": comms[pid]} for pid in sorted(parents)]


def _missing(names: set[str], finished: bool, snapshots: set[int]) -> list[str]:
    """One sentence for each thing that was not recorded, and why."""

    said = []
    calls = [c.name for c in SYSCALLS if not {f"syscalls:sys_enter_{c.name}", f"syscalls:sys_exit_{c.name}"} & names]
    if calls:
        said.append(f"System calls {', '.join(calls)}: their events were not recorded.")
    if TAP not in names:
        said.append(f"Notifier invalidations: {TAP} was not recorded; they are derived from the system calls.")
    else:
        said.append(
            "Invalidations of a process that holds no KVM descriptor: the kernel reports only those of one that does."
        )
    if not snapshots:
        said.append(
            "Mappings that are not executable and older than the recording or made by exec: perf does not record them."
        )
    if "syscalls:sys_enter_clone3" in names:
        said.append(
            "Flags of clone3: the kernel reads them from memory; a child is taken to have its own address space."
        )
    if not finished:
        said.append("Perhaps the end: the recording does not end with a finished round, as when perf is killed.")
    return said
