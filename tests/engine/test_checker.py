"""The checker on the designs that come with it: how many states, which verdicts, and that counterexamples are real."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from engine.small import ODP, check
from faultpath.engine import arena, native
from faultpath.engine import check as engine_check
from faultpath.engine.check import Verdict
from faultpath.engine.status import VIOLATIONS
from faultpath.engine.trail import trail
from oracles.explorer import Explorer

KNOWN = json.loads((Path(__file__).parent / "states.json").read_text())
ROWS = [(design, scenario) for design, scenarios in KNOWN.items() for scenario in scenarios]
VIOLATED = [(design, scenario) for design, scenario in ROWS if KNOWN[design][scenario]["reduced"][0] == "violated"]


def numbers(found: Verdict) -> list:
    return [found.verdict, found.status, found.states, found.transitions, found.depth, found.finished]


def property_of(row: list) -> str:
    return VIOLATIONS[row[1]][0] if row[1] else ""


@pytest.mark.parametrize(("design", "scenario"), ROWS)
def test_states_are_as_many_as_ever_and_the_reduction_changes_no_verdict(design, scenario):
    """states.json: verdict, status, states, transitions, depth, finished. ``REWRITE=1`` writes it anew."""
    known = KNOWN[design][scenario]
    rows = {way: numbers(check(design, scenario, reduce=way == "reduced").run()) for way in known}
    if os.environ.get("REWRITE"):
        known.update(rows)
        flat = re.compile(r"\[[^\]]*\]")
        text = flat.sub(lambda row: json.dumps(json.loads(row[0])), json.dumps(KNOWN, indent=1))
        (Path(__file__).parent / "states.json").write_text(text + "\n")
    assert rows == known
    if "full" in rows:
        reduced, full = rows["reduced"], rows["full"]
        assert (reduced[0], property_of(reduced)) == (full[0], property_of(full))
        assert reduced[2] <= full[2]
        assert reduced[4] <= full[4]
        if full[0] == "holds":
            assert 0 < reduced[5] <= full[5]  # the same ends, but for the names of pages: who had one in hand when


def test_code_is_compiled_well_when_a_search_is_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Quickly at first; a search that goes on has the same states; the next one finds the better code kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(engine_check, "_compiled", engine_check._compiled.__wrapped__)
    known = KNOWN["full-va"]["fault-vs-munmap"]["reduced"]

    def efforts(of: engine_check.Check) -> set[int]:
        return {of.native.library.effort, *(thread.library.effort for thread in of.threads)}

    short = check("full-va", "fault-vs-munmap")
    assert numbers(short.run()) == known
    assert efforts(short) == {native.QUICK}
    monkeypatch.setattr(engine_check, "WORTHWHILE", 1)
    monkeypatch.setattr(engine_check, "BUDGET", 8)
    long = check("full-va", "fault-vs-munmap")
    assert numbers(long.run()) == known
    assert efforts(long) == efforts(check("full-va", "fault-vs-munmap")) == {native.effort}


AGAIN = [(d, s) for d, s in ROWS if s in ("teardown-vs-fault", "oom-vs-fault", "fault-vs-mprotect")]


def test_a_search_gives_the_same_numbers_again_and_in_a_process_of_its_own():
    def all_of_them() -> list:
        return [[*numbers(found), found.path] for found in (check(d, s).run() for d, s in AGAIN)]

    first = all_of_them()
    assert all_of_them() == first
    found = check(*AGAIN[0])
    assert [numbers(found.run()) for _ in range(2)] == [first[0][:-1]] * 2
    text = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
from engine.test_checker import AGAIN, check, numbers
print(json.dumps([[*numbers(found), found.path] for found in (check(d, s).run() for d, s in AGAIN)]))
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"}
    out = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True, env=env).stdout
    assert json.loads(out) == json.loads(json.dumps(first))


@pytest.mark.parametrize("way", ["reduced", "full"])
@pytest.mark.parametrize(("design", "scenario"), VIOLATED)
def test_a_counterexample_taken_again_ends_where_it_says(design, scenario, way):
    if way not in KNOWN[design][scenario]:
        pytest.skip("too large")
    found = check(design, scenario, reduce=way == "reduced")
    verdict = found.run()
    steps = trail(found, verdict)
    violation = Explorer(check(design, scenario)).replay([(step.thread, step.choices) for step in steps])
    assert violation is not None
    assert violation.status == verdict.status
    stopped = VIOLATIONS[verdict.status][0] in ("lifetime", "locks", "structure") and verdict.status != arena.LEAK
    assert steps[-1].fatal or not stopped or verdict.status == arena.OVERLAP


@pytest.mark.parametrize("reduce", [True, False], ids=["reduced", "full"])
@pytest.mark.parametrize("design", ["full-va", "nouveau-v6", ODP])
@pytest.mark.parametrize("scenario", ["first-touch", "second-client", "fault-vs-cow"])
def test_pages_named_by_their_place_change_no_verdict(design, scenario, reduce):
    ways = [check(design, scenario, reduce=reduce, page_symmetry=on, memory=1 << 28).run() for on in (True, False)]
    by_place, as_they_come = ways
    if "bounded" in (by_place.verdict, as_they_come.verdict):
        pytest.skip("too large")
    assert (by_place.verdict, by_place.status, by_place.results) == (
        as_they_come.verdict,
        as_they_come.status,
        as_they_come.results,
    )
    assert by_place.states <= as_they_come.states
    if by_place.verdict == "violated" and not reduce:
        assert by_place.depth == as_they_come.depth


@pytest.mark.parametrize("reduce", [True, False], ids=["reduced", "full"])
@pytest.mark.parametrize(
    ("design", "scenario"),
    [("full-va", "two-faults-one-page"), ("nouveau-v6", "two-faults-one-page"), (ODP, "two-faults-one-page")],
)
def test_like_threads_that_change_places_change_no_verdict(design, scenario, reduce):
    ways = [check(design, scenario, reduce=reduce, symmetry=on, memory=1 << 28).run() for on in (True, False)]
    like, apart = ways
    assert (like.verdict, like.status, like.results) == (apart.verdict, apart.status, apart.results)
    assert like.states < apart.states
    if like.verdict == "violated":
        assert like.depth == apart.depth
