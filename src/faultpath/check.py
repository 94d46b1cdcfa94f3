"""``check``: designs in scenarios, every interleaving, as the document of ``--json`` (schema ``faultpath/check/1``)."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import faultpath
from faultpath import catalog
from faultpath.design import Design
from faultpath.engine import arena, blame, world
from faultpath.engine.check import Check, Verdict
from faultpath.engine.names import Names
from faultpath.engine.status import VIOLATIONS
from faultpath.engine.trail import Astray, Step, follow, over, retrace, stuck, telling, thread_names
from faultpath.errors import FaultpathError
from faultpath.kernel.invariants import check_final, check_state
from faultpath.kernel.mirror import device_access
from faultpath.kernel.threads import faulting
from faultpath.protocol.native import STOPPED
from faultpath.scenario import Scenario
from faultpath.varint import varint, varints

SCHEMA = "faultpath/check/1"
FINGERPRINT_BITS = 64
COMPLETED, REFUSED = 1, 2  # bits of Verdict.results

Document = dict[str, Any]
Progress = Callable[[str, int, int], None]  # what is going on, steps done, steps in all
Found = Callable[[Document], None]


def check(
    requests: Sequence[str],
    scenarios: Sequence[str] = (),
    *,
    memory: int = 4 << 30,
    reduce: bool = True,
    symmetry: bool = True,
    page_symmetry: bool = True,
    replay: str = "",
    progress: Progress = lambda what, done, total: None,
    found: Found = lambda result: None,
) -> Document:
    """Check each design in each scenario that applies to it.

    :param requests: designs as :func:`faultpath.catalog.find` takes them
    :param scenarios: scenarios as :func:`faultpath.catalog.scenarios` takes them; none: the built-in ones
    :param memory: bytes that the table of states may take
    :param reduce: take steps together that other threads cannot tell apart
    :param symmetry: take states for one in which like threads have changed places
    :param page_symmetry: take states for one that differ only in the order in which pages came in at different places
    :param replay: id of a counterexample of the one design in the one scenario: follow it instead of searching
    :param found: is told each result as soon as it is there
    :raises FaultpathError: a wrong request
    """
    designs = [(request, *catalog.find(request, small=True)) for request in requests]
    wanted = [(_named(request, s), s) for request in scenarios for s in catalog.scenarios(request)]
    wanted = wanted or [(s.name, s) for s in _built_in()]
    if replay and (len(designs), len(wanted)) != (1, 1):
        raise FaultpathError("a counterexample is of one design in one scenario", "--replay", "name both")
    cells = [(catalog.label(request, d, v), d, v, named, s) for request, d, v in designs for named, s in wanted]
    results: list[Document] = []
    refused: list[FaultpathError] = []
    for number, (name, design, values, named, scenario) in enumerate(cells):

        def step(states: int, number: int = number, name: str = name, scenario: Scenario = scenario) -> None:
            progress(f"{name} {scenario.name}: {states:,} states", number, len(cells))

        step(0)
        if why := inapplicable(design, scenario):
            refused.append(FaultpathError(f"{scenario.name} cannot happen with {name}", "--scenario", why))
            continue
        checked = Check(
            design,
            catalog.integers(design, values),
            scenario,
            reduce=reduce,
            symmetry=symmetry,
            page_symmetry=page_symmetry,
            memory=memory,
        )
        result = examined(checked, name, replay, lambda done, states: step(states))
        where = {"design": design.name, "label": name, "parameters": values}
        results.append(where | {"scenario": scenario.name, "scenario_request": named} | result)
        found(results[-1])
    if not results:
        raise refused[0]
    return {"schema": SCHEMA, "version": faultpath.__version__, "results": results}


def status(document: Document) -> int:
    """The exit status: 0 all hold, 1 something is violated, 2 neither."""
    said = {result["verdict"] for result in document["results"]}
    return 1 if "violated" in said else 2 if "bounded" in said else 0


def inapplicable(design: Design, scenario: Scenario) -> str:
    """Why a scenario cannot happen with a design, or ""."""
    return "; ".join(f"{need}: {design.never[need]}" for need in sorted(scenario.needs) if need in design.never)


def _named(request: str, scenario: Scenario) -> str:
    """How one of the scenarios of a request is requested."""
    return f"{request}:{scenario.name}" if request.endswith(".py") else request


def _built_in() -> list[Scenario]:
    from faultpath.scenarios import SCENARIOS

    return SCENARIOS


# --- one design in one scenario


def examined(checked: Check, name: str, replay: str, show: Callable[[int, int], None]) -> Document:
    """What a search found, or where the counterexample of an id leads."""
    if replay:
        return _replayed(checked, name, replay)
    return _searched(checked, name, checked.run(show))


def _searched(checked: Check, name: str, verdict: Verdict) -> Document:
    """What a search found."""
    broken = verdict.verdict == "violated" and verdict.status in VIOLATIONS
    limit = verdict.bound or None
    if verdict.verdict == "violated" and not broken:
        limit = "arena"  # of the model, not of the machine
    result = _result(checked, "bounded" if limit else verdict.verdict, verdict, limit)
    if broken:
        steps, names = follow(checked, verdict)
        status, arg = verdict.status, verdict.arg
        if steps[-1:] and steps[-1].fatal:  # it knows the very word
            status, arg = int(checked.w[world.STATUS]), int(checked.w[world.STATUS_ARG])
        result |= _counterexample(checked, name, steps, names, status, arg)
    return result


def _result(checked: Check, said: str, verdict: Verdict, limit: str | None) -> Document:
    scenario = checked.scenario
    message = {
        "holds": "every property holds in every state",
        "bounded": f"nothing violated so far; not everything was explored: {limit}",
    }.get(said, "")
    return {
        "verdict": said,
        "property": None,
        "rule": None,
        "message": message,
        "bounds": {
            "limit": limit,
            "memory_bytes": checked.memory,
            "pages": scenario.pages,
            "devices": scenario.devices,
            "threads": len(scenario.threads),
            "allocation_failures": scenario.failures,
            "reduction": checked.reduce,
            "symmetry": checked.symmetry,
            "page_symmetry": checked.page_symmetry,
            "fingerprint_bits": FINGERPRINT_BITS,
            # That two of n states have one fingerprint, and one of them was taken for known.
            "collision_probability": verdict.states**2 / 2 ** (FINGERPRINT_BITS + 1),
        },
        "states": verdict.states,
        "transitions": verdict.transitions,
        "depth": verdict.depth,
        "complete": said == "holds",
        "reached": _reached(checked, verdict),
        "check_seconds": round(verdict.seconds, 6),
        "states_per_second": round(verdict.states / verdict.seconds, 1) if verdict.seconds else 0.0,
        "threads": thread_names(checked),
        "replayed": False,
        "replay": None,
        "counterexample": [],
    }


def _reached(checked: Check, verdict: Verdict) -> dict[str, bool] | None:
    """Whether what the scenario is about was reached: a fault that completed, went round again, was refused."""
    faults = [n for n, call in enumerate(checked.calls) if call.protocol in (faulting, device_access)]
    if not faults or not verdict.results:
        return None
    results = 0
    for number in faults:
        results |= verdict.results[number]
    return {
        "completed": bool(results & COMPLETED),
        "retried": "fault_retries" in verdict.seen,
        "refused": bool(results & REFUSED),
    }


def _counterexample(checked: Check, name: str, steps: Sequence[Step], names: Names, status: int, arg: int) -> Document:
    threads = thread_names(checked)
    return {
        "property": VIOLATIONS[status][0],
        "rule": VIOLATIONS[status][1],
        "message": blame.message(checked, names, steps, status, arg),
        "replay": None if status == arena.SPINS else encode(steps, _seal(name, checked.scenario)),
        "counterexample": [
            {
                "thread": threads[step.thread],
                "step": number,
                "function": step.frames[-1][0],
                "where": blame.place(*step.frames[-1][1:]),
                "text": step.text,
                "kind": step.kind,
                "changes": [list(change) for change in step.changes],
                "telling": tells,
                "loop": step.loop,
                "violation": number == len(steps),
            }
            for number, (step, tells) in enumerate(zip(steps, telling(steps, arg), strict=True), 1)
        ],
    }


# --- replay: an execution as a short text

LOOP = bytes([0])  # what follows can go round for ever


def _seal(name: str, scenario: Scenario) -> bytes:
    """Two bytes that tell one design in one scenario from others."""
    return (zlib.crc32(f"{name} {scenario.name}".encode()) & 0xFFFF).to_bytes(2, "big")


def encode(steps: Sequence[Step], seal: bytes) -> str:
    """An execution as an id: runs of accesses of one thread, as bytes, as letters and digits."""
    runs: list[tuple[int, int, int, bool]] = []
    for step in steps:
        run = (step.thread, step.choices, step.loop)
        if runs and (*runs[-1][:2], runs[-1][3]) == run:
            runs[-1] = (*run[:2], runs[-1][2] + 1, step.loop)
        else:
            runs.append((*run[:2], 1, step.loop))
    body, looping = b"", False
    for thread, choices, count, loop in runs:
        body += LOOP if loop and not looping else b""
        body += varint(count << 4 | bool(choices) << 3 | thread) + (varint(choices) if choices else b"")
        looping = loop
    sum_ = zlib.crc32(seal + body) & 0xFF
    return base64.b32encode(seal + bytes([sum_]) + body).decode().rstrip("=").lower()


def decode(text: str, seal: bytes) -> tuple[list[tuple[int, int]], int]:
    """The execution an id stands for, as :func:`faultpath.engine.trail.retrace` takes it.

    :raises FaultpathError: it is no id, or of something else
    """
    try:
        data = base64.b32decode(text.upper() + "=" * (-len(text) % 8))
    except (binascii.Error, ValueError):
        data = b""
    whole = text == base64.b32encode(data).decode().rstrip("=").lower()
    if not whole or len(data) < 4 or zlib.crc32(data[:2] + data[3:]) & 0xFF != data[2]:
        raise FaultpathError(f"'{text}' is no counterexample's id", "--replay", "copy it whole")
    if data[:2] != seal:
        raise FaultpathError(f"'{text}' is of another design or scenario", "--replay", "give the same as in its search")
    path: list[tuple[int, int]] = []
    loop = -1
    numbers = varints(data[3:])
    for head in numbers:
        if head == LOOP[0]:
            loop = len(path)
            continue
        choices = next(numbers, 0) if head & 8 else 0
        path += [(head & 7, choices)] * min(head >> 4, 1 << 16)
    return path, loop if loop >= 0 else len(path)


def _replayed(checked: Check, name: str, text: str) -> Document:
    """A counterexample by its id."""
    path, loop = decode(text, _seal(name, checked.scenario))
    status = 0
    try:
        steps, names = retrace(checked, path, loop)
        status, arg = (arena.LIVELOCK, 0) if loop < len(path) else _broken(checked, steps)
    except Astray:
        pass
    if status not in VIOLATIONS:
        raise FaultpathError(f"'{text}' breaks no rule any more", "--replay", "the model has changed: search again")
    verdict = Verdict("violated", status, arg, len(steps), len(steps), len(steps))
    result = _result(checked, "violated", verdict, None) | {"replayed": True}
    return result | _counterexample(checked, name, steps, names, status, arg)


def _broken(checked: Check, steps: Sequence[Step]) -> tuple[int, int]:
    """Which rule is broken where an execution ends: status and argument; status 0 if none is."""
    w = checked.w
    if steps and steps[-1].fatal:
        return int(w[world.STATUS]), int(w[world.STATUS_ARG])
    rules = [check_state, check_final] if over(checked) else [check_state]
    for rule in rules:
        w[world.STATUS] = 0
        if broken := checked.native.call_raw(rule, w):
            return int(w[world.STATUS]) if broken == STOPPED else broken, int(w[world.STATUS_ARG])
    return (arena.DEADLOCK, 0) if stuck(checked) and not over(checked) else (0, 0)
