"""``compare``: traces through designs, as the document that ``--json`` prints (schema ``faultpath/compare/1``)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faultpath
from faultpath import catalog
from faultpath.design import Design
from faultpath.engine import feed
from faultpath.engine.replay import ACCESSES_RESIDENT, ACCESSES_TOUCHED, Replay
from faultpath.kernel.mm.versions import version_of
from faultpath.trace.formats import each_as_trace, recognise
from faultpath.trace.processes import Process, Survey, survey
from faultpath.trace.schema import Trace, open_trace

SCHEMA = "faultpath/compare/1"

# what is going on, steps done, steps in all
Progress = Callable[[str, int, int], None]


def compare(
    sources: Sequence[Path],
    requests: Sequence[str],
    *,
    accesses: str = "touched",
    pid: int | None = None,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Replay each source through each design and count.

    :param sources: traces, or recordings that can be imported
    :param requests: designs as :func:`faultpath.catalog.find` takes them
    :param accesses: ``touched`` or ``resident``; a trace with device accesses of its own uses those
    :param pid: the process, by default the one with most page faults
    :raises FaultpathError: a wrong request or input
    """
    designs = []
    for request in requests:
        design, values = catalog.find(request)
        designs.append((catalog.label(request, design, values), design, values))
    traces = []
    for source, path in each_as_trace(sources, progress):
        traces.append(_trace(open_trace(path), source.name, recognise(source), designs, accesses, pid, progress))
    return {"schema": SCHEMA, "version": faultpath.__version__, "traces": traces}


def _trace(
    trace: Trace,
    name: str,
    kind: str,
    designs: Sequence[tuple[str, Design, dict[str, int | str]]],
    accesses: str,
    pid: int | None,
    progress: Progress,
) -> dict[str, Any]:
    found = survey(trace)
    process = found.choose(pid, name)
    if process.accesses:
        accesses = "recorded"
    comms = {p["pid"]: p["comm"] for p in trace.meta.processes}
    results = []
    for index, (label, design, values) in enumerate(designs):

        def step(rows: int, index: int = index, label: str = label) -> None:
            progress(f"{name}: {label}", index * process.rows + rows, len(designs) * process.rows)

        said = catalog.settings(design.parameters, values)
        result = _result(trace, found, process, design, values, accesses, step)
        results.append({"design": design.name, "label": label, "parameters": values, "settings": said} | result)
    return {
        "name": name,
        "format": kind,
        "kernel": trace.meta.kernel,
        "events": found.rows,
        "lost_events": trace.meta.lost_events,
        "pid": process.pid,
        "comm": comms.get(process.pid, ""),
        "process_events": process.rows,
        "duration_ns": process.last_ns - process.first_ns,
        "invalidations_from": trace.meta.invalidations_from,
        "missing": trace.meta.missing,
        "accesses": accesses,
        "results": results,
    }


def _result(
    trace: Trace,
    found: Survey,
    process: Process,
    design: Design,
    values: dict[str, int | str],
    accesses: str,
    step: Callable[[int], None],
) -> dict[str, Any]:
    bits = {"recorded": 0, "touched": ACCESSES_TOUCHED, "resident": ACCESSES_TOUCHED | ACCESSES_RESIDENT}
    step(0)
    replay = Replay(
        design,
        catalog.integers(design, values),
        task_size=feed.task_size(process),
        raises=trace.meta.invalidations_from == "model",
        accesses=bits[accesses],
        version=version_of(trace.meta.kernel),
    )
    begin = time.perf_counter()
    for rows in feed.inherited(trace, found, process.pid):
        replay.rows(rows)
    replay.open()
    done = 0
    for rows in feed.batches(trace, process.pid, resident=accesses == "resident"):
        done += len(rows)
        if not replay.rows(rows):
            break
        step(done)
    seconds = time.perf_counter() - begin
    return {
        "counters": replay.counters(),
        "driver_counters": replay.driver_counters(),
        "locks": replay.locks(),
        "replay_seconds": round(seconds, 6),
        "events_per_second": round(done / seconds, 1) if seconds else 0.0,
    }
