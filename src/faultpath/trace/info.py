"""What is in a trace, as a plain dictionary for ``faultpath info``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from faultpath.trace.ops import Event, Op
from faultpath.trace.schema import open_trace


def trace_info(path: Path) -> dict[str, Any]:
    """Read the whole trace and count.

    Counts are by lower-case name of the operation or event; ``processes`` are those with rows or a name, by pid, each
    with its rows.

    :raises FaultpathError: when it is not a valid trace
    """
    trace = open_trace(path)
    ops = np.zeros(256, np.int64)
    events = np.zeros(max(Event) + 1, np.int64)
    rows_of: dict[int, int] = {}
    first = last = None
    for columns in trace.batches():
        ops += np.bincount(columns["op"], minlength=256)
        raised = columns["op"] == Op.INVALIDATE
        events += np.bincount(columns["arg"][raised], minlength=len(events))
        for pid, count in zip(*np.unique(columns["pid"], return_counts=True), strict=True):
            rows_of[int(pid)] = rows_of.get(int(pid), 0) + int(count)
        first = int(columns["time"][0]) if first is None else first
        last = int(columns["time"][-1])
    described = {p["pid"]: p for p in trace.meta.processes}
    meta = asdict(trace.meta)
    meta["processes"] = [
        {
            "pid": pid,
            "parent": described.get(pid, {}).get("parent", -1),
            "comm": described.get(pid, {}).get("comm", ""),
            "rows": rows_of.get(pid, 0),
        }
        for pid in sorted(described.keys() | rows_of.keys())
    ]
    return {
        "name": path.name,
        "rows": trace.rows,
        "bytes": path.stat().st_size,
        "start_ns": first,
        "end_ns": last,
        "duration_ns": 0 if first is None or last is None else last - first,
        "ops": {op.name.lower(): int(ops[op]) for op in Op if ops[op]},
        "invalidations": {event.name.lower(): int(events[event]) for event in Event if events[event]},
        **meta,
    }
