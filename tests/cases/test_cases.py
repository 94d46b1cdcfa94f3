"""Every case: what the checker says of each variant, in how many states, and that it is the race of its story."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from faultpath import cases
from faultpath.cases import CASES, run
from faultpath.cases.case import BUGGY, FINAL_FIX, FIRST_FIX, HOLDS
from faultpath.errors import FaultpathError

GOLDEN = Path(__file__).parent.parent / "golden" / "cases.txt"

# Of each variant: its states, and what the counterexample must show in this order: a thread, a function of it, and a
# part of the step's text.
EXPECTED: dict[str, dict[str, tuple[int, list[tuple[str, str, str]]]]] = {
    "amdgpu-get-pages": {
        BUGGY: (
            413,
            [
                ("fault", "mmu_interval_read_begin", "invalidate_seq -> 1"),
                ("fault", "amdgpu_hmm_range_get_pages", "pt_set(hmm_range.hmm_pfns, 0x10000"),
                ("kswapd", "mm_reclaim", "pt_unmap_frame(mm.pt, 0x10000"),
                ("fault", "mmu_interval_read_begin", "invalidate_seq -> 3"),
                ("fault", "mmu_interval_read_retry", "invalidate_seq -> 3"),
                ("fault", "map_if_valid", "pt_set(mirror.pt, 0x10000"),
            ],
        ),
        FIRST_FIX: (
            364,
            [
                ("fault", "restore_userptr_worker", "down_read(mm.mmap_lock)"),
                ("fault", "mmu_interval_read_begin", "invalidate_seq -> 1"),
                ("kswapd", "mmu_interval_set_seq", "invalidate_seq = 3"),
                ("fault", "hmm_range_fault", "invalidate_seq -> 3"),
                ("fault", "read_once", "timed_out() -> 0"),
            ],
        ),
        FINAL_FIX: (345, []),
    },
}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return run.check_cases()


@pytest.fixture(scope="module")
def results(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(case["name"], v["variant"]): v for case in document["cases"] for v in case["variants"]}


def test_each_case_is_known_here() -> None:
    assert list(EXPECTED) == list(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_case_is_whole(name: str) -> None:
    case = cases.load(name)
    names = [variant.name for variant in case.variants]
    assert case.name == name
    assert names in ([BUGGY, FINAL_FIX], [BUGGY, FIRST_FIX, FINAL_FIX])
    assert list(EXPECTED[name]) == names
    assert case.variants[0].expected == case.property != HOLDS
    assert case.variants[-1].expected == HOLDS
    assert not case.variants[0].commit
    assert all(len(v.commit) == 12 and v.version for v in case.variants[1:])
    assert case.doc
    assert case.title


@pytest.mark.parametrize(("name", "variant"), [(name, variant) for name in EXPECTED for variant in EXPECTED[name]])
def test_the_verdict(name: str, variant: str, results: dict[tuple[str, str], dict[str, Any]]) -> None:
    found = results[name, variant]
    states, story = EXPECTED[name][variant]
    assert (found["property"] or found["verdict"]) == found["expected"]
    assert found["complete"] == (found["expected"] == HOLDS)
    assert found["states"] == states
    assert bool(story) == (found["verdict"] == "violated")
    steps = iter(found["counterexample"])
    for thread, function, text in story:
        assert any(s["thread"].endswith(thread) and s["function"] == function and text in s["text"] for s in steps), (
            f"{thread}: {function}(): {text}"
        )


@pytest.mark.parametrize(("name", "variant"), [(name, FINAL_FIX) for name in EXPECTED])
def test_what_holds_got_somewhere(name: str, variant: str, results: dict[tuple[str, str], dict[str, Any]]) -> None:
    reached = results[name, variant]["reached"]
    assert reached is None or reached["completed"]


# --- the command


def check(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "faultpath", "check", "--cases", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "100"})


def test_the_table(document: dict[str, Any]) -> None:
    done = check()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == GOLDEN.read_text(), "run: faultpath check --cases > tests/golden/cases.txt"


def test_a_case_by_name_is_shown_with_its_counterexamples() -> None:
    done = check("amdgpu-get-pages")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 cases, 3 verdicts, all as expected" in done.stdout
    assert "amdgpu-get-pages/buggy chunk-vs-reclaim: coherence: stale device PTE" in done.stdout
    assert "-- round and round from here:" in done.stdout
    again = next(line for line in done.stdout.splitlines() if line.startswith("Again: "))
    request = again.removeprefix("Again: faultpath check --cases ").split()
    assert request[:2] == ["amdgpu-get-pages/buggy", "--replay"]
    replayed = check(*request)
    assert replayed.returncode == 0
    assert "^^^^ stale device PTE" in replayed.stdout


def test_json() -> None:
    done = check("amdgpu-get-pages/first-fix", "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 0
    assert document["schema"] == "faultpath/cases/1"
    (case,) = document["cases"]
    (variant,) = case["variants"]
    assert (case["name"], case["commit"]) == ("amdgpu-get-pages", "c08972f55594, 342981fff328")
    assert (variant["variant"], variant["expected"], variant["property"]) == ("first-fix", "progress", "progress")
    assert variant["as_expected"]
    assert variant["counterexample"]


def test_a_verdict_that_is_not_as_expected_ends_with_1(document: dict[str, Any]) -> None:
    wrong = json.loads(json.dumps(document))
    wrong["cases"][0]["variants"][0]["as_expected"] = False
    assert run.status(document) == 0
    assert run.status(wrong) == 1


@pytest.mark.parametrize(
    "args", [["nonsense"], ["amdgpu-get-pages/nonsense"], ["-s", "fault-vs-fork"], ["--replay", "a"]]
)
def test_a_wrong_request_is_refused(args: list[str]) -> None:
    done = check(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("faultpath: ")
    assert done.stderr.count("\n") == 1


def test_no_case_is_imported_before_it_is_wanted() -> None:
    code = "import sys, faultpath.cases; sys.exit(any(m.startswith('faultpath.cases.') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_case_is_named() -> None:
    with pytest.raises(FaultpathError, match="no case 'x'"):
        cases.load("x")
