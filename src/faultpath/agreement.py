"""``agreement``: the invalidations that a trace's calls and faults make the model raise, beside those that the tap saw.

Both are told by the call or the fault they were raised in, and by start, end and type; nothing else counts as
agreement. Schema ``faultpath/agreement/1``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import faultpath
from faultpath.engine.derive import Derivation, derivation
from faultpath.engine.feed import Rows, as_rows, with_children
from faultpath.errors import FaultpathError
from faultpath.trace.formats import each_as_trace
from faultpath.trace.ops import Event, Op
from faultpath.trace.processes import ancestors, survey
from faultpath.trace.schema import Trace, open_trace

SCHEMA = "faultpath/agreement/1"
OUTSIDE = "outside any recorded call or fault"
EXECUTES = "exec"

Progress = Callable[[str, int, int], None]
Raised = tuple[int, int, int]  # start, end, Event


@dataclass
class Tally:
    """How often, by event and by what it was raised in."""

    tapped: Counter[tuple[int, str]] = field(default_factory=Counter)
    derived: Counter[tuple[int, str]] = field(default_factory=Counter)
    agreed: Counter[tuple[int, str]] = field(default_factory=Counter)

    def compare(self, where: str, tapped: Sequence[Raised], derived: Sequence[Raised]) -> None:
        """Of one call or fault."""
        ours, theirs = Counter(derived), Counter(tapped)
        for counter, found in ((self.tapped, theirs), (self.derived, ours), (self.agreed, ours & theirs)):
            for (_, _, event), count in found.items():
                counter[event, where] += count


def agreement(
    sources: Sequence[Path], pid: int | None = None, progress: Progress = lambda what, done, total: None
) -> dict[str, Any]:
    """Derive the invalidations of each source that holds the tap's, and compare.

    A child is under the tap from its exec on: what it does before is not compared.

    :param pid: the process, by default the one with most page faults
    :raises FaultpathError: a wrong request or input, or a recording without the tap
    """
    traces = []
    for source, path in each_as_trace(sources, progress):
        traces.append(_trace(open_trace(path), source.name, pid, progress))
    return {"schema": SCHEMA, "version": faultpath.__version__, "traces": traces}


def _trace(trace: Trace, name: str, pid: int | None, progress: Progress) -> dict[str, Any]:
    if trace.meta.invalidations_from != "tap":
        raise FaultpathError(
            "a trace without the tap: there is nothing to compare with", name, "record on a machine with /dev/kvm"
        )
    found = survey(trace)
    process = found.choose(pid, name)
    tally = Tally()
    deriving = derivation(trace, found, process)
    pending: dict[int, list[tuple[int, Raised]]] = {}
    done = 0
    watched = not ancestors(trace, found, process.pid)
    for columns in with_children(trace, process.pid):
        rows = as_rows(columns)
        for where, tapped, derived in _by_row(deriving, rows, columns["tid"], pending):
            if watched:
                tally.compare(where, tapped, derived)
            watched = watched or where == EXECUTES
        done += len(rows)
        progress(name, done, process.rows)
    for raised in pending.values():
        tally.compare(OUTSIDE, [what for _, what in raised], [])
    comms = {p["pid"]: p["comm"] for p in trace.meta.processes}
    return {
        "name": name,
        "kernel": trace.meta.kernel,
        "pid": process.pid,
        "comm": comms.get(process.pid, ""),
        "lost_events": trace.meta.lost_events,
        "events": [_event(tally, event) for event in Event if any(e == event for e, _ in tally.tapped | tally.derived)],
        "all": _rates(*(sum(c.values()) for c in (tally.tapped, tally.derived, tally.agreed))),
        "missed": _rest(tally.tapped - tally.agreed),
        "extra": _rest(tally.derived - tally.agreed),
    }


def _by_row(
    deriving: Derivation, rows: Rows, tids: NDArray[np.int32], pending: dict[int, list[tuple[int, Raised]]]
) -> Iterator[tuple[str, list[Raised], list[Raised]]]:
    """For each call or fault that raised anything, in the recording or here: what it is, and both.

    What a thread raises comes before the row of the call or fault it is raised in; ``pending`` keeps it until then.
    """
    derived = {i: [(start, end, event) for start, end, event in raised.tolist()] for i, raised in deriving.rows(rows)}
    for i, (op, tid) in enumerate(zip(rows.ops.tolist(), tids.tolist(), strict=True)):
        if op == Op.INVALIDATE:
            start = int(rows.addrs[i])
            what = start, start + int(rows.sizes[i]), int(rows.args[i])
            pending.setdefault(tid, []).append((int(rows.auxs[i]), what))
        elif i in derived or tid in pending:
            waiting = pending.pop(tid, [])
            mine = [what for within, what in waiting if _belongs(within, what, op, int(rows.addrs[i]))]
            others = [what for within, what in waiting if not _belongs(within, what, op, int(rows.addrs[i]))]
            if op not in (Op.EXEC, Op.EXIT):  # all goes, whatever there was
                yield _name(op), mine, derived.get(i, [])
                yield OUTSIDE, others, []
        if op == Op.EXEC:
            yield EXECUTES, [], []


def _belongs(within: int, what: Raised, op: int, addr: int) -> bool:
    """Whether it was raised in the call or the fault of a row."""
    return within == op and (op != Op.FAULT or what[0] <= addr < what[1])


def _name(op: int) -> str:
    return Op(op).name.lower() if op in list(Op) else "fork"


def _event(tally: Tally, event: Event) -> dict[str, Any]:
    counts = (sum(n for (e, _), n in c.items() if e == event) for c in (tally.tapped, tally.derived, tally.agreed))
    return {"event": event.name.lower(), **_rates(*counts)}


def _rates(tapped: int, derived: int, agreed: int) -> dict[str, Any]:
    """``precision`` is the part of the derived that was seen, ``recall`` the part of the seen that is derived."""
    return {
        "tapped": tapped,
        "derived": derived,
        "agreed": agreed,
        "precision": round(agreed / derived, 4) if derived else None,
        "recall": round(agreed / tapped, 4) if tapped else None,
    }


def _rest(counts: Counter[tuple[int, str]]) -> list[dict[str, Any]]:
    return [
        {"event": Event(event).name.lower(), "within": where, "count": n}
        for (event, where), n in sorted(counts.items())
    ]
