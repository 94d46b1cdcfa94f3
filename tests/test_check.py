"""``faultpath check`` as people and scripts see it: exit statuses, verdicts, counterexamples, tracks."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from faultpath import catalog
from faultpath import check as module
from faultpath.design import CLOSE_DURING_FAULT, PARALLEL_FAULTS
from faultpath.errors import FaultpathError
from faultpath.report import counterexample, perfetto, table, verdicts
from faultpath.scenarios import SCENARIOS

MAIN = [sys.executable, "-c", "from faultpath.cli import main; main()"]
GOLDEN = Path(__file__).parent / "golden"


def run(*args: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MAIN, "check", *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        check=False,
    )


def refused(*args: str | Path, cwd: Path | None = None) -> str:
    done = run(*args, cwd=cwd)
    assert (done.returncode, done.stdout) == (2, ""), done
    assert re.fullmatch(r"faultpath: [^\n]+: [^\n]+: [^\n]+\n", done.stderr), done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def violated() -> dict[str, Any]:
    return module.check(["nouveau-v6"], ["fault-vs-munmap"])["results"][0]


# --- exit statuses and verdict lines


def test_a_violation_ends_with_1_and_a_line_to_grep() -> None:
    done = run("nouveau-v6", "--scenario", "fault-vs-munmap")
    assert (done.returncode, done.stderr) == (1, "")
    assert re.match(
        r"nouveau-v6 fault-vs-munmap: violated: lifetime: use after free "
        r"\(states=\d+ transitions=\d+ depth=\d+ seconds=[\d.]+ states/s=\d+\)\n",
        done.stdout,
    )
    assert done.stdout.isascii()
    assert max(map(len, done.stdout.splitlines()[2:-2])) <= 100


def test_what_holds_ends_with_0_and_says_what_was_reached() -> None:
    done = run("full-va", "--scenario", "fault-vs-dontneed")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(
        r"full-va fault-vs-dontneed: holds: complete \(states=\d+ transitions=\d+ depth=\d+ seconds=[\d.]+ "
        r"states/s=\d+ collision=<\de-\d+ fault_completed=yes fault_retried=yes fault_refused=(yes|no)\)\n",
        done.stdout,
    )


def test_what_does_not_fit_proves_nothing_and_ends_with_2() -> None:
    done = run("full-va", "-s", "two-first-faults", "--no-reduction", "--memory", "1M")
    assert done.returncode == 2
    assert "full-va two-first-faults: bounded: not everything was explored (memory)" in done.stdout
    assert re.fullmatch(r"faultpath: [^\n]+: [^\n]+: [^\n]+\n", done.stderr)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "--all"),
        (["nonsense"], "no design 'nonsense'"),
        (["odp-implicit:child=3"], "child"),
        (["nouveau-v6", "-s", "nonsense"], "no scenario 'nonsense'"),
        (["nouveau-v6", "-s", ""], "no scenario ''"),
        (["nouveau-v6", "-s", "nowhere.py"], "no such file"),
        (["nouveau-v6", "-s", "nowhere.py:x"], "no such file"),
        (["nouveau-v6", "-s", "two\nlines"], "no scenario"),
        (["nouveau-v6", "-s", "two-faults-one-page"], "one worker"),
        (["full-va", "-s", "teardown-vs-fault"], "ioctl"),
        (["nouveau-v6", "--memory", ""], "''"),
        (["nouveau-v6", "--memory", "4X"], "'4X'"),
        (["nouveau-v6", "--memory", "-1"], "'-1'"),
        (["nouveau-v6", "--memory", "10"], "'10'"),
        (["nouveau-v6", "--memory", "999999T"], "999999T"),
        (["nouveau-v6", "--replay", "abc"], "name both"),
        (["nouveau-v6", "-s", "fault-vs-munmap", "--replay", "abc"], "no counterexample's id"),
        (["nouveau-v6", "-s", "fault-vs-munmap", "--replay", "ü"], "no counterexample's id"),
        (["nouveau-v6", "--perfetto", "."], "directory"),
        (["nouveau-v6", "--perfetto", "nowhere/out"], "nowhere/out"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_request_is_refused(args: list[str], said: str, tmp_path: Path) -> None:
    assert said in refused(*args, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def broken(:\n", "mine.py:1"),
        ("\n\nraise ValueError('so')\n", "mine.py:3"),
        ("x = 1\n", "sets no scenarios"),
        ("scenarios = 7\n", "sets no scenarios"),
        ("scenarios = []\n", "sets no scenarios"),
        ("scenarios = [7]\n", "int is no Scenario"),
        ("scenarios = [Scenario('a', '', [], [])]\n", "threads"),
        ("scenarios = [Scenario('a', '', [], [munmap(0, 4)] * 9)]\n", "threads"),
        ("scenarios = [Scenario('a', '', [], [munmap(0, 4)], pages=1000)]\n", "pages"),
        ("scenarios = [Scenario('a', '', [7], [munmap(0, 4)])]\n", "7 is no Call"),
        ("scenarios = [Scenario('a', '', [], [Call('x', munmap(0, 1).protocol, (MM,))])]\n", "mm_munmap takes"),
        ("scenarios = [Scenario('a', '', [], [fault(0, device='x')])]\n", "'x' is no argument"),
        ("scenarios = [Scenario('a', '', [], [munmap(0, 4)])] * 2\n", "one name"),
        ("scenarios = [Scenario('a\\n', '', [], [munmap(0, 4)])]\n", "no name"),
    ],
)
def test_a_scenario_file_with_an_error_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(f"from faultpath.scenario import *\n{text}" if "enario" in text else text)
    assert said in refused("nouveau-v6", "--scenario", "mine.py", cwd=tmp_path)


def test_a_scenario_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from faultpath.scenario import Scenario, access, fault, map_memory, munmap\n"
        "setup = [map_memory(0, 2), access(0)]\n"
        "scenarios = [Scenario('mine', 'A fault against munmap.', setup, [fault(0), munmap(0, 2)], pages=2),\n"
        "             Scenario('other', 'Nothing much.', setup, [munmap(0, 2)], pages=2)]\n"
    )
    done = run("nouveau-v6", "full-va", "-s", "mine.py:mine", cwd=tmp_path)
    assert done.returncode == 1
    assert "nouveau-v6 mine: violated: lifetime" in done.stdout
    assert "full-va mine: holds" in done.stdout
    assert "other" not in done.stdout
    assert "nothing" in refused("full-va", "-s", "mine.py:nothing", cwd=tmp_path)
    assert run("full-va", "-s", "mine.py", cwd=tmp_path).stdout.count("holds") == 2


def test_ctrl_c_ends_with_130_and_writes_no_tracks(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\nopen('running', 'w').close()\ntime.sleep(60)\n")
    started = subprocess.Popen(
        [*MAIN, "check", "full-va", "-s", "slow.py", "--perfetto", "out", "--json"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "running").exists():
        assert started.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    started.send_signal(signal.SIGINT)
    out, err = started.communicate(timeout=20)
    assert (started.returncode, out) == (130, b""), err
    assert not (tmp_path / "out").exists()


# --- the document


def test_the_document_keeps_the_contract() -> None:
    done = run("nouveau-v6", "full-va", "-s", "fault-vs-munmap", "--json")
    assert (done.returncode, done.stderr) == (1, "")
    document = json.loads(done.stdout)
    assert document["schema"] == "faultpath/check/1"
    violated, holds = document["results"]
    for result in document["results"]:
        assert {
            "design", "scenario", "verdict", "property", "message", "bounds", "states", "transitions", "depth",
            "complete", "check_seconds", "states_per_second", "counterexample",
        } <= set(result)  # fmt: skip
    assert (violated["verdict"], violated["property"], violated["complete"]) == ("violated", "lifetime", False)
    assert (holds["verdict"], holds["property"], holds["complete"]) == ("holds", None, True)
    assert holds["bounds"]["collision_probability"] == holds["states"] ** 2 / 2**65
    assert holds["counterexample"] == []
    steps = violated["counterexample"]
    assert [step["step"] for step in steps] == list(range(1, len(steps) + 1))
    assert [step["violation"] for step in steps] == [False] * (len(steps) - 1) + [True]
    assert all({"thread", "step", "function", "where", "text"} <= set(step) for step in steps)
    assert steps[-1]["function"] == "nouveau_svmm_interval_find"
    assert re.fullmatch(r"designs/nouveau_v6\.py:\d+", steps[-1]["where"])


def test_the_same_request_gives_the_same_document() -> None:
    def steady(result: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in result.items() if not k.endswith(("_seconds", "_per_second"))}

    once, again = (module.check(["nouveau-v6"], ["device-cow"])["results"][0] for _ in range(2))
    assert steady(once) == steady(again)


def test_without_reduction_the_verdict_is_the_same(violated: dict[str, Any]) -> None:
    [result] = module.check(["nouveau-v6"], ["fault-vs-munmap"], reduce=False)["results"]
    assert (result["verdict"], result["property"], result["rule"]) == ("violated", "lifetime", "use after free")
    assert result["states"] > violated["states"]


# --- counterexamples


def unnumbered(result: dict[str, Any]) -> dict[str, Any]:
    """Without the lines of source files, which move."""
    steps = [step | {"where": re.sub(r"\d+$", "1", step["where"])} for step in result["counterexample"]]
    return result | {
        "counterexample": steps,
        "message": re.sub(r"py:\d+", "py:1", result["message"]),
        "replay": None,
    }


def test_a_counterexample_reads_as_it_did(violated: dict[str, Any]) -> None:
    text = "\n".join(verdicts.explained(unnumbered(violated), 0, False)) + "\n"
    golden = GOLDEN / "nouveau-v6-fault-vs-munmap.txt"
    if "ACCEPT" in os.environ:
        golden.write_text(text)
    assert text == golden.read_text(), "if it is meant: ACCEPT=1 pytest tests/test_check.py"


@pytest.mark.parametrize("scenario", ["shrunk-interval", "teardown-vs-munmap", "device-cow", "failed-allocation"])
def test_a_counterexample_can_be_replayed_without_a_search(scenario: str) -> None:
    [found] = module.check(["nouveau-v6"], [scenario])["results"]
    [again] = module.check(["nouveau-v6"], [scenario], replay=found["replay"])["results"]
    assert again["message"] == found["message"]
    assert again["replay"] == found["replay"]
    told = [{k: v for k, v in step.items() if k != "telling"} for step in again["counterexample"]]
    assert told == [{k: v for k, v in step.items() if k != "telling"} for step in found["counterexample"]]


LIVELOCK = """
from faultpath.kernel.mmu_notifier import Mm
from faultpath.kernel.primitives.locks import spin_lock, spin_unlock
from faultpath.protocol.language import protocol
from faultpath.scenario import MM, Call, Scenario

@protocol
def polite(mm: Mm) -> None:
    while True:
        spin_lock(mm.notifier_subscriptions.lock)
        mm.brk = mm.brk ^ 1
        spin_unlock(mm.notifier_subscriptions.lock)

scenarios = [Scenario("polite", "", [], [Call("a", polite, (MM,)), Call("b", polite, (MM,))])]
"""


def test_a_livelock_is_told_as_a_loop_and_can_be_replayed(tmp_path: Path) -> None:
    (tmp_path / "polite.py").write_text(LIVELOCK)
    [found] = module.check(["full-va"], [f"{tmp_path}/polite.py"])["results"]
    assert (found["verdict"], found["property"]) == ("violated", "progress")
    assert [step["loop"] for step in found["counterexample"]][-1]
    [again] = module.check(["full-va"], [f"{tmp_path}/polite.py"], replay=found["replay"])["results"]
    assert again["counterexample"] == found["counterexample"]
    assert found["scenario_request"] == f"{tmp_path}/polite.py:polite"
    lines = counterexample.lines(found)
    assert sum("spin_lock(subscriptions.lock)" in line for line in lines) == 2
    assert lines.count("-- round and round from here:") == 1
    assert "livelock" in lines[-1] or "livelock" in lines[-2]


def test_an_id_is_good_for_its_own_scenario_only(violated: dict[str, Any]) -> None:
    with pytest.raises(FaultpathError, match="another design or scenario"):
        module.check(["nouveau-v6"], ["fault-vs-fork"], replay=violated["replay"])
    with pytest.raises(FaultpathError, match="no counterexample's id"):
        module.check(["nouveau-v6"], ["fault-vs-munmap"], replay=violated["replay"][:-1] + "7")


def test_an_execution_that_breaks_nothing_is_no_counterexample(violated: dict[str, Any]) -> None:
    seal = module._seal("nouveau-v6", SCENARIOS[0])
    path, _ = module.decode(violated["replay"], seal)
    for wrong in (path[:-1], [(1, 0)] * 5000, [(7, 0)], [(0, 0)] * 3):
        steps = [type("Step", (), {"thread": thread, "choices": choices, "loop": False}) for thread, choices in wrong]
        with pytest.raises(FaultpathError, match="breaks no rule"):
            module.check(["nouveau-v6"], ["fault-vs-munmap"], replay=module.encode(steps, seal))  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [1, 20, 45, 73, 74, 75, 80, 100, 0])
@pytest.mark.parametrize("full", [False, True])
def test_columns_fit_the_terminal(violated: dict[str, Any], width: int, full: bool) -> None:
    lines = counterexample.lines(violated, width, full)
    assert max(map(len, lines)) <= max(width or 100, 44)  # no name is longer
    assert "".join(lines).isascii()
    assert "^^^^ use after free" in lines[-1]


def test_full_shows_every_access(violated: dict[str, Any]) -> None:
    full = counterexample.lines(violated, 0, full=True)
    assert len(full) > len(violated["counterexample"]) > len(counterexample.lines(violated))


def test_narrow_terminals_get_one_column(violated: dict[str, Any]) -> None:
    done = run("nouveau-v6", "-s", "fault-vs-munmap", COLUMNS="50")
    assert done.returncode == 1
    assert "\nCPU1 munmap\n  mm_munmap()" in done.stdout


def test_the_state_that_is_wrong_is_described() -> None:
    [result] = module.check(["nouveau-v6"], ["device-cow"])["results"]
    assert "page 0x11000: device 1 PTE V W frame" in result["message"]
    assert "invalidation 0x11000-0x12000 of CPU0 fault under way" in result["message"]


# --- the matrix, and what applies


def test_what_cannot_happen_with_a_driver_is_not_tried() -> None:
    needs = {scenario.name: scenario.needs for scenario in SCENARIOS}
    assert needs["two-faults-one-page"] == {PARALLEL_FAULTS}
    assert needs["teardown-vs-both"] == {CLOSE_DURING_FAULT}
    assert needs["two-clients-hole"] == needs["device-cow"] == needs["exit-vs-teardown"] == set()
    for name in catalog.BUILT_IN:
        assert set(catalog.load(name).never) <= {PARALLEL_FAULTS, CLOSE_DURING_FAULT}


def test_small_worlds_have_small_parameters_and_say_so() -> None:
    design, values = catalog.find("odp-implicit", small=True)
    assert values["child"] == 16384
    assert catalog.label("odp-implicit", design, values) == "odp-implicit:child=16K"
    assert catalog.label("odp-implicit:child=1G", *catalog.find("odp-implicit:child=1G", small=True)) == "odp-implicit"


def results(*designs: str) -> list[dict[str, Any]]:
    reached = {"completed": True, "retried": True, "refused": False}
    return [
        {"label": d, "design": d, "scenario": s.name, "verdict": "violated", "states": 12_345_678, "reached": reached}
        for d in designs
        for s in SCENARIOS
    ]


@pytest.mark.parametrize("width", [80, 100, 200])
@pytest.mark.parametrize("designs", [1, 3, 8])
def test_the_matrix_fits_the_terminal(width: int, designs: int) -> None:
    found = results(*(f"odp-implicit:child={n}K" for n in range(designs)))
    lines = table.matrix(found, width)
    body = lines[: -len(table.LEGEND) - 1]
    assert max(map(len, body)) <= width
    assert sum(line.count("violated 12M cr.") for line in body) == len(found)


def test_the_matrix_has_designs_down_when_that_fits(capsys: pytest.CaptureFixture[str]) -> None:
    document = module.check(["nouveau-v6", "full-va"], ["fault-vs-fork", "oom-vs-munmap"], memory=1 << 30)
    verdicts.checked(document, True, False, True)
    parts = capsys.readouterr().out.split("\n\n")
    head, _, *rows = parts[0].strip().splitlines()
    assert head.split() == ["fault-vs-fork", "oom-vs-munmap"]
    assert [row.split()[0] for row in rows] == ["nouveau-v6", "full-va"]
    columns, _, *rows = parts[-1].rstrip().splitlines()
    assert columns.split() == ["holds"]
    assert [row.split() for row in rows] == [["nouveau-v6", "2"], ["full-va", "2"]]


# --- tracks: read back by a decoder of its own


def fields(data: bytes) -> list[tuple[int, Any]]:
    """A protobuf message's fields: numbers, and bytes for what is nested."""
    found, at = [], 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            found.append((key >> 3, varint()))
        else:
            assert key & 7 == 2
            size = varint()
            found.append((key >> 3, data[at : at + size]))
            at += size
    assert at == len(data)
    return found


def test_tracks_hold_every_step(violated: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out.pftrace"
    perfetto.write(out, {"results": [violated]})
    assert list(tmp_path.iterdir()) == [out]
    packets = [dict(fields(body)) for number, body in fields(out.read_bytes()) if number == 1]
    assert all(packet[10] == 1 for packet in packets)  # trusted_packet_sequence_id
    assert packets[0][13] == 1  # SEQ_INCREMENTAL_STATE_CLEARED
    tracks = [dict(fields(packet[60])) for packet in packets if 60 in packet]
    process = dict(fields(tracks[0][3]))
    assert process[6].decode().startswith("nouveau-v6 fault-vs-munmap: use after free")
    threads = {track[1]: dict(fields(track[4]))[5].decode() for track in tracks[1:]}
    assert list(threads.values()) == ["CPU0 fault", "CPU1 munmap"]
    assert all(track[5] == tracks[0][1] for track in tracks[1:])
    events = [(packet[8], dict(fields(packet[11]))) for packet in packets if 11 in packet]
    begins = [(at, e) for at, e in events if e[9] == 1]
    ends = [(at, e) for at, e in events if e[9] == 2]
    steps = violated["counterexample"]
    assert [e[23].decode() for _, e in begins] == [step["text"] for step in steps]
    assert [threads[e[11]] for _, e in begins] == [step["thread"] for step in steps]
    assert [at // 1000 for at, _ in begins] == [step["step"] for step in steps]
    assert [e[11] for _, e in ends] == [e[11] for _, e in begins]
    notes = [dict(fields(note)) for number, note in fields(packets[-2][11]) if number == 4]
    assert {note[10]: note[6] for note in notes}[b"function"] == b"nouveau_svmm_interval_find"


def test_tracks_that_cannot_be_written_leave_nothing(violated: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "there"
    out.mkdir()
    with pytest.raises(FaultpathError, match="cannot write"):
        perfetto.write(out, {"results": [violated]})
    assert list(tmp_path.iterdir()) == [out]


def test_help_says_what_the_exit_statuses_are() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "bounded" in done.stdout
