"""The command line as scripts see it: exit statuses, one line for an error, nothing half-written."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from faultpath.designs import full_va

RECORDING = Path(__file__).resolve().parent.parent / "recordings" / "luajit.trace"
MAIN = [sys.executable, "-c", "from faultpath.cli import main; main()"]


def run(*args: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MAIN, *map(str, args)], capture_output=True, text=True, cwd=cwd, stdin=subprocess.DEVNULL, check=False
    )


def refused(*args: str | Path, cwd: Path | None = None) -> str:
    """The one line on standard error of a command that must be refused."""
    done = run(*args, cwd=cwd)
    assert done.returncode == 2, done
    assert done.stdout == ""
    # faultpath: WHAT: WHERE: MEND
    assert re.fullmatch(r"faultpath: [^\n]+: [^\n]+: [^\n]+\n", done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    "args",
    [["--help"], ["--version"], ["compare", "--help"], ["check", "--help"], ["record", "--help"]],
    ids=lambda args: " ".join(args),
)
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    script = f"import sys; sys.argv = {['faultpath', *args]!r}; from faultpath.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "click" in imported
    assert not imported & {"numpy", "pyarrow", "numba", "llvmlite", "rich", "zstandard"}


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "faultpath,")


@pytest.mark.parametrize("command", ["info", "compare", "import"])
def test_an_input_that_is_not_there_is_refused(command: str, tmp_path: Path) -> None:
    assert "nothing.trace" in refused(command, tmp_path / "nothing.trace")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["info", "compare", "import"])
def test_a_directory_an_empty_file_and_a_foreign_one_are_refused(command: str, tmp_path: Path) -> None:
    assert "directory" in refused(command, tmp_path)
    empty, foreign = tmp_path / "empty", tmp_path / "foreign"
    empty.touch()
    foreign.write_bytes(b"%PDF-1.4 " * 100)
    assert "empty" in refused(command, empty)
    assert "foreign" in refused(command, foreign)
    assert sorted(tmp_path.iterdir()) == [empty, foreign]


@pytest.mark.parametrize("command", ["info", "compare"])
def test_a_damaged_trace_is_refused(command: str, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.trace"
    data = bytearray(RECORDING.read_bytes())
    data[len(data) // 3] ^= 0xFF
    damaged.write_bytes(data)
    assert "damaged.trace" in refused(command, damaged)
    damaged.write_bytes(RECORDING.read_bytes()[:-100])
    assert "damaged.trace" in refused(command, damaged)


@pytest.mark.parametrize("lock", ["file", "folder"])
def test_an_unreadable_file_is_refused(lock: str, tmp_path: Path) -> None:
    locked = tmp_path / "folder" / "locked.trace"
    locked.parent.mkdir()
    locked.write_bytes(RECORDING.read_bytes())
    (locked if lock == "file" else locked.parent).chmod(0)
    for folder in (tmp_path, tmp_path.parent):  # pytest keeps them to its own user
        folder.chmod(0o755)
    # root may read everything, so it becomes somebody else; all is imported before, from where that one may not look.
    script = (
        "import os, sys, faultpath.cli, faultpath.trace.info, faultpath.trace.importing\n"
        "if os.geteuid() == 0:\n    os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "sys.argv = ['faultpath', 'info', 'folder/locked.trace']; faultpath.cli.main()"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(r"faultpath: [^\n]*(?:Permission denied|not readable)[^\n]*: [^\n]+\n", done.stderr), (
        done.stderr
    )


@pytest.mark.parametrize(
    ("design", "said"),
    [
        ("nonsense", "no design 'nonsense'"),
        ("odp-implicit:chidl=2M", "child"),
        ("odp-implicit:child", "child"),
        ("odp-implicit:child=", "child"),
        ("odp-implicit:child=3000", "power of two"),
        ("odp-implicit:child=-1", "child"),
        ("odp-implicit:child=99999999999999999999", "child"),
        ("odp-implicit:protection=maybe", "protection"),
        ("nowhere.py", "nowhere.py"),
        ("", "no design"),
    ],
)
def test_a_wrong_design_is_refused(design: str, said: str) -> None:
    assert said in refused("compare", RECORDING, "--design", design)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def broken(:\n", "mine.py:1"),
        ("\n\nraise ValueError('so')\n", "mine.py:3"),
        ("import nowhere_to_be_found\n", "mine.py:1"),
        ("x = 1\n", "defines no design"),
        ("design = 7\n", "defines no design"),
        ("import sys\nsys.exit(3)\n", "mine.py:2"),
        ("\x00", "mine.py"),
    ],
    ids=["syntax", "raises", "import", "empty", "not-a-design", "exits", "nul"],
)
def test_a_design_file_with_an_error_is_refused_with_its_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(text)
    assert said in refused("compare", RECORDING, "--design", "mine.py", cwd=tmp_path)
    assert said in refused("designs", "mine.py", cwd=tmp_path)


def test_a_design_file_outside_the_language_is_refused_with_its_line(tmp_path: Path) -> None:
    text = Path(full_va.__file__).read_text().replace("    return ", "    lambda: 0\n    return ", 1)
    (tmp_path / "mine.py").write_text(text)
    line = text.partition("lambda: 0")[0].count("\n") + 1
    assert f"mine.py:{line}" in refused("compare", RECORDING, "--design", "mine.py", cwd=tmp_path)


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["compare"],
        ["compare", "--nonsense", "x"],
        ["compare", "x", "--accesses", "sometimes"],
        ["compare", "x", "--pid", "one"],
        ["info"],
        ["info", "a", "b"],
        ["designs", "nonsense"],
        ["record"],
        ["--nonsense"],
    ],
    ids=" ".join,
)
def test_a_wrong_request_is_refused(args: list[str], tmp_path: Path) -> None:
    refused(*args, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_is_not_in_the_trace_is_refused() -> None:
    assert "no process 1" in refused("compare", RECORDING, "--pid", "1")


def test_a_line_stays_one_line_whatever_the_name_holds(tmp_path: Path) -> None:
    refused("info", tmp_path / "two\nlines\x1b[31m.trace")


def test_designs_can_be_listed_and_shown() -> None:
    listed = run("designs")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert all(name in listed.stdout for name in ("nouveau-v6", "odp-implicit", "full-va"))
    shown = run("designs", "full-va")
    assert shown.returncode == 0
    assert "@protocol" in shown.stdout


def test_of_a_design_built_on_another_its_own_file_is_shown() -> None:
    assert "@protocol(replaces=nouveau_v6." in run("designs", "nouveau-upstream").stdout


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = shlex.join([*MAIN, "designs", "full-va"])
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -c 1"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_ends_with_130_and_nothing_half_written(tmp_path: Path) -> None:
    # A design file that says when it runs, and takes its time, stands for any long work.
    (tmp_path / "slow.py").write_text("import time\nopen('running', 'w').close()\ntime.sleep(60)\n")
    command = [*MAIN, "compare", str(RECORDING), "--design", "slow.py", "--json"]
    started = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    _interrupt(started, tmp_path / "running")
    out, err = started.communicate(timeout=20)
    assert (started.returncode, out) == (130, b"")
    assert b"Traceback" not in err


def test_ctrl_c_during_import_leaves_no_file(tmp_path: Path) -> None:
    data = Path(__file__).parent / "trace" / "readers" / "data" / "file.perf.data"
    # The writer's last step is held up for as long as it takes to press Ctrl-C.
    script = (
        "import sys, time, faultpath.trace.schema as schema, faultpath.cli\n"
        "def finish(self, meta):\n    open('running', 'w').close()\n    time.sleep(60)\n"
        "schema.TraceWriter.finish = finish\n"
        f"sys.argv = ['faultpath', 'import', {str(data)!r}, '-o', 'out.trace']\nfaultpath.cli.main()"
    )
    started = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stderr=subprocess.PIPE)
    _interrupt(started, tmp_path / "running")
    _, err = started.communicate(timeout=20)
    assert started.returncode == 130, err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["running"]


def _interrupt(started: subprocess.Popen[bytes], sign: Path) -> None:
    """Send SIGINT as soon as a file appears."""
    deadline = time.monotonic() + 60
    while not sign.exists():
        assert started.poll() is None, started.stderr and started.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    started.send_signal(signal.SIGINT)


def test_one_number_of_traces_and_designs_at_a_glance() -> None:
    wanted = ["-c", "callbacks_empty/callbacks", "-c", "page_faults", "-c", "locks", "-c", "mmap_lock/device_accesses"]
    named = ["-d", "odp-implicit", "-d", "odp-implicit:child=2M", "-d", "full-va"]
    done = run("compare", RECORDING, *named, *wanted)
    document = json.loads(run("compare", RECORDING, *named, "--json").stdout)
    results = {r["label"]: r for r in document["traces"][0]["results"]}
    parts = done.stdout.split("\n\n")
    tables = {
        title: [line.split() for line in table.splitlines()]
        for title, table in zip(parts[::2], parts[1::2], strict=True)
    }
    expected = {
        "callbacks_empty / callbacks": lambda r: f"{r['counters']['callbacks_empty'] / r['counters']['callbacks']:.2f}",
        "page_faults": lambda r: f"{r['driver_counters']['page_faults']:,}" if r["driver_counters"] else "-",
        "locks": lambda r: f"{sum(sum(modes.values()) for modes in r['locks'].values()):,}",
        "mmap_lock / device_accesses": lambda r: (
            f"{sum(r['locks']['mmap_lock'].values()) / r['counters']['device_accesses']:.2f}"
        ),
    }
    assert tables.keys() == expected.keys()
    for title, value in expected.items():
        assert tables[title][0] == ["luajit"]
        assert tables[title][2:] == [[label, value(result)] for label, result in results.items()]


@pytest.mark.parametrize("wanted", ["callback", "callbacks/", "/callbacks", "callbacks/accesses", ""])
def test_a_counter_that_is_none_is_refused(wanted: str) -> None:
    assert "no counter" in refused("compare", RECORDING, "-c", wanted)


def test_a_kind_of_synthetic_trace_that_is_none_is_refused(tmp_path: Path) -> None:
    assert "one of static" in refused("synth", "churn", cwd=tmp_path)
    assert "directory" in refused("synth", "sweep", "-o", tmp_path)
    assert not list(tmp_path.iterdir())
    assert run("synth").stdout.splitlines()[0].startswith("static ")
