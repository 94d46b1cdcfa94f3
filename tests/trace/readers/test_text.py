"""What holds for every format that is text."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import fuzzing
import pytest

from faultpath.trace.importing import import_recording
from faultpath.trace.readers import text as text_file
from faultpath.trace.schema import open_trace

DATA = Path(__file__).parent / "data"
SAMPLES = ["file.txt", "z.txt", "tasks.strace", "tasks-stderr.strace"]
IMPORT = "import sys, pathlib, faultpath.trace.importing as i; i.import_recording(*map(pathlib.Path, sys.argv[1:]));"
PEAK = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"


@pytest.mark.parametrize("name", SAMPLES)
def test_pieces_of_any_size_give_the_same(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import_recording(DATA / name, tmp_path / "whole")
    for piece, batch in ((500, 5), (1000, 7), (1 << 20, 64)):
        monkeypatch.setattr(text_file, "PIECE", piece)
        monkeypatch.setattr(text_file, "BATCH", batch)
        import_recording(DATA / name, tmp_path / "pieces")
        assert (tmp_path / "pieces").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("name", SAMPLES)
def test_interpreted_it_is_the_same(tmp_path: Path, name: str) -> None:
    """numpy checks every index: nothing is read outside an array, which compiled code would not notice."""
    import_recording(DATA / name, tmp_path / "compiled")
    arguments = [sys.executable, "-c", IMPORT, DATA / name, tmp_path / "plain"]
    subprocess.run(arguments, env={**os.environ, "FAULTPATH_NO_JIT": "1"}, check=True)
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "compiled").read_bytes()


@pytest.mark.parametrize("name", SAMPLES[1:3])
def test_a_line_of_hundreds_of_megabytes_needs_no_memory(tmp_path: Path, name: str) -> None:
    """It is passed over and counted; what comes after it is read."""
    sample = (DATA / name).read_bytes()
    with (tmp_path / "in").open("wb") as file:
        file.write(sample)
        for _ in range(300):
            file.write(b"1 (" * (1 << 18))
        file.write(b"\n" + sample)

    def peak(source: Path) -> int:
        """KiB"""
        arguments = [sys.executable, "-c", IMPORT + PEAK, source, tmp_path / "out"]
        return int(subprocess.run(arguments, capture_output=True, check=True).stdout)

    small, large = peak(DATA / name), peak(tmp_path / "in")
    trace = open_trace(tmp_path / "out")
    assert trace.meta.dropped["lines longer than 16 MiB"] == 1
    import_recording(DATA / name, tmp_path / "once")
    assert trace.rows > 1.5 * open_trace(tmp_path / "once").rows
    assert large - small < 80 << 10


@pytest.mark.parametrize("name", SAMPLES)
def test_progress_ends_at_the_whole(tmp_path: Path, name: str) -> None:
    seen: list[tuple[int, int]] = []
    import_recording(DATA / name, tmp_path / "t", lambda done, total: seen.append((done, total)))
    size = (DATA / name).stat().st_size
    assert seen[-1] == (size, size)
    assert seen == sorted(seen)


@pytest.mark.parametrize("name", ["strace", "perf script"])
def test_mutated_recordings_never_crash_the_reader(name: str) -> None:
    tried, accepted = fuzzing.run(name, 1 << 30, seed=7, seconds=8)
    assert tried > 300
    assert 0 < accepted < tried


LINES = [b" " * 60_000, b"9" * 60_000, b"a b " * 15_000, b"clone(" * 10_000, b"[pid  " * 10_000, b": a:a" * 12_000]
LINES += [
    b"# arch : " + b" " * 60_000 + b"x",
    b'execve("' + b'\\"' * 30_000,
    b"1 1 1.000000: " * 4000,
    b")   " * 15_000,
]


def test_no_line_is_gone_over_again_and_again(tmp_path: Path) -> None:
    """Expressions that backtrack would take minutes."""
    program = IMPORT.replace("sys.argv[1:]", "(word, sys.argv[1])").replace("i.import", "[i.import").rstrip(";")
    program += " for word in sys.argv[2:]]"
    paths = [tmp_path / f"{i}-{name}" for i in range(len(LINES)) for name in SAMPLES[1:]]
    for path in paths:
        number, name = path.name.split("-", 1)
        path.write_bytes(LINES[int(number)] + b"\n" + (DATA / name).read_bytes())
    subprocess.run([sys.executable, "-c", program, tmp_path / "out", *paths], check=True, timeout=60)
