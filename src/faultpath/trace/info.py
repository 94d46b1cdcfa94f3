"""What is in a trace, as a plain dictionary for ``faultpath info``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from faultpath.trace.ops import Event, Op
from faultpath.trace.processes import Derive, survey
from faultpath.trace.schema import Columns, open_trace

# what is going on, rows done, rows in all
Progress = Callable[[str, int, int], None]


def trace_info(
    path: Path,
    name: str = "",
    pid: int | None = None,
    derive: Derive | None = None,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Read the whole trace and count.

    Counts are by lower-case name of the operation or event; ``processes`` are those with rows or a name, by pid, each
    with its rows. ``address_space`` is the summary of one process (:mod:`faultpath.trace.summary`), None without rows.

    :param name: what to call it, by default the file's name
    :param pid: the process, by default the one with most page faults
    :param derive: how invalidations that a trace does not hold are derived; without it they are not counted
    :raises FaultpathError: when it is not a valid trace, or has no such process
    """
    trace = open_trace(path)
    name = name or path.name
    ops = np.zeros(256, np.int64)
    events = np.zeros(max(Event) + 1, np.int64)
    times: list[int] = []
    done = 0

    def count(columns: Columns) -> None:
        nonlocal ops, events, done
        ops += np.bincount(columns["op"], minlength=256)
        raised = columns["op"] == Op.INVALIDATE
        events += np.bincount(columns["arg"][raised], minlength=len(events))
        times[:] = [times[0] if times else int(columns["time"][0]), int(columns["time"][-1])]
        done += len(columns["time"])
        progress(f"{name}: survey", done, trace.rows)

    found = survey(trace, count)
    first, last = times or (None, None)
    address_space = None
    if found.processes:
        process = found.busiest()[0] if pid is None else found.choose(pid, name)
        progress(f"{name}: count", 0, process.rows)
        from faultpath.trace.summary import summary  # here: it brings numba, which the rest does not need

        address_space = summary(
            trace, found, process, derive, lambda rows: progress(f"{name}: count", rows, process.rows)
        )
    described = {p["pid"]: p for p in trace.meta.processes}
    rows_of = {process.pid: process.rows for process in found.processes.values()}
    meta = asdict(trace.meta)
    meta["processes"] = [
        {
            "pid": number,
            "parent": described.get(number, {}).get("parent", -1),
            "comm": described.get(number, {}).get("comm", ""),
            "rows": rows_of.get(number, 0),
        }
        for number in sorted(described.keys() | rows_of.keys())
    ]
    return {
        "name": name,
        "rows": trace.rows,
        "bytes": path.stat().st_size,
        "start_ns": first,
        "end_ns": last,
        "duration_ns": 0 if first is None or last is None else last - first,
        "ops": {op.name.lower(): int(ops[op]) for op in Op if ops[op]},
        "invalidations": {event.name.lower(): int(events[event]) for event in Event if events[event]},
        **meta,
        "address_space": address_space,
    }
