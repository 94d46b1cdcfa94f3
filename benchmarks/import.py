"""`faultpath import` against other ways of reading the same recordings: a median each, and the ratio.

``python benchmarks/import.py [RECORDING...]``. Without recordings it makes two with perf, of about a million events and
about ten million, the text of the first, and one of about half a million lines with strace (perf, strace, a C compiler
and the right to record are needed; ten million events take a gigabyte in the temporary directory).

The peer of a perf.data is ``perf script`` writing its text to a file; that of a text is a loop in Python over its
lines, with a regular expression or two and ``int`` on what they find, which keeps nothing. Two lines a recording:
``decode`` is from the file to columns in a running process (a perf.data's sorted events, a text's rows); ``import`` is
a whole ``faultpath import`` from the start of the interpreter, Parquet included.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from faultpath.trace.formats import recognise, record_command
from faultpath.trace.readers.events import choose
from faultpath.trace.readers.perf_data import PerfData
from faultpath.trace.readers.perf_text import PerfText
from faultpath.trace.readers.strace import StraceRecording

ROUNDS = 5
EVENTS_PER_ROUND = 135  # of STORM: two threads, 64 faults each, and their calls
LINES_PER_ROUND = 4  # of strace, nearly: two threads, a call and an eighth each, half of them in two lines
PERF_TEXT = re.compile(rb" *.*? (-?\d+)/(-?\d+) +\[(\d+)\] +(\d+)\.(\d{9}): +([a-z0-9_]+:[a-z0-9_]+): ?(.*)")
HEX = re.compile(rb"0x([0-9a-f]+)")
STRACE = re.compile(rb"(\d+) +(\d+)\.(\d{6}) (.*)")
RESUMED = re.compile(rb"<\.\.\. \w+ resumed>(.*)")
CALL = re.compile(rb"(\w+)\((.*\) += (?:0x[0-9a-f]+|-?\d+))")
NUMBER = re.compile(rb"0x[0-9a-f]+|-?\d+")
STORM = r"""
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
static long rounds;
static void *work(void *unused)
{
	long pages = 64, i, r;
	char *p = mmap(0, pages * 4096, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (r = 0; r < rounds; r++) {
		for (i = 0; i < pages; i++)
			p[i * 4096] = 1;
		if (r % 16 == 0) {
			mprotect(p, 4096 * 8, 1);
			mprotect(p, 4096 * 8, 3);
		}
		madvise(p, pages * 4096, MADV_DONTNEED);
	}
	return unused;
}
int main(int argc, char **argv)
{
	pthread_t other;
	rounds = atol(argv[1]);
	pthread_create(&other, 0, work, 0);
	work(0);
	pthread_join(other, 0);
	return argc != 2;
}
"""


def make(folder: Path, events: int) -> Path:
    program, path = folder / "storm", folder / f"{events}.perf.data"
    (folder / "storm.c").write_text(STORM)
    subprocess.run(["cc", "-O1", "-pthread", "-o", program, folder / "storm.c"], check=True)
    rounds = str(events // EVENTS_PER_ROUND)
    names = record_command().split()[3]
    subprocess.run(["perf", "record", "-q", "-m", "16M", "-o", path, "-e", names, "--", program, rounds], check=True)
    return path


def make_strace(folder: Path, lines: int) -> Path:
    """Of the same program, which makes four calls in sixteen rounds beside its madvise, and a line or two of each."""
    path = folder / f"{lines}.strace"
    rounds = str(lines // LINES_PER_ROUND)
    subprocess.run(["strace", "-f", "-ttt", "-T", "-o", path, folder / "storm", rounds], check=True)
    return path


def median(work: Callable[[], object]) -> float:
    work()
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def decode(path: Path) -> int:
    recording = PerfData(path)
    return sum(
        len(batch) for batch in recording.batches(choose([e.name for e in recording.header.events], str(path))[0])
    )


def script(path: Path, text: Path) -> None:
    with text.open("wb") as out:
        fields = "comm,pid,tid,cpu,time,event,trace"
        command = ["perf", "script", "-i", path, "-F", fields, "--ns"]
        subprocess.run(command, stdout=out, stderr=subprocess.DEVNULL, check=True)


def whole(path: Path, output: Path) -> None:
    run = "import sys; from faultpath.cli import main; sys.exit(main())"
    subprocess.run([sys.executable, "-c", run, "import", path, "-o", output], check=True, stdout=subprocess.DEVNULL)


def perf_text_loop(path: Path) -> None:
    with path.open("rb") as file:
        for line in file:
            if found := PERF_TEXT.match(line):
                pid, tid, cpu, seconds, ns, _, values = found.groups()
                _ = (int(pid), int(tid), int(cpu), int(seconds) * 10**9 + int(ns))
                _ = [int(value, 16) for value in HEX.findall(values)]


def strace_loop(path: Path) -> None:
    """Calls in one line and in two; their numbers, but not the names of their flags."""
    unfinished: dict[bytes, bytes] = {}
    with path.open("rb") as file:
        for line in file:
            if not (found := STRACE.match(line)):
                continue
            tid, seconds, fraction, call = found.groups()
            _ = (int(tid), int(seconds) * 10**9 + int(fraction) * 1000)
            if call.endswith(b"<unfinished ...>"):
                unfinished[tid] = call[:-16]
                continue
            if resumed := RESUMED.match(call):
                call = unfinished.pop(tid, b"") + resumed[1]
            if parts := CALL.match(call):
                _ = [int(word, 16 if word[:2] == b"0x" else 10) for word in NUMBER.findall(parts[2])]


def lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def rows(path: Path, kind: str) -> None:
    for _ in (PerfText if kind == "perf script" else StraceRecording)(path).rows():
        pass


def measure(path: Path, folder: Path) -> None:
    kind = recognise(path)
    if kind == "perf.data":
        count, name, unit = decode(path), "perf script", "events"
        theirs = median(lambda: script(path, folder / "text"))
    else:
        count, name, unit = lines(path), "the loop in Python", "lines"
        theirs = median(lambda: (perf_text_loop if kind == "perf script" else strace_loop)(path))
    print(f"{path.name}: {count} {unit}; {name} {theirs:.2f} s, {count / theirs / 1e6:.2f} M {unit}/s", flush=True)
    for what, seconds in (
        ("decode", median(lambda: decode(path) if kind == "perf.data" else rows(path, kind))),
        ("import", median(lambda: whole(path, folder / "out.trace"))),
    ):
        rate = count / seconds / 1e6
        print(f"  {what} {seconds:.2f} s, {rate:.2f} M {unit}/s: {theirs / seconds:.1f} times {name}", flush=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = [Path(word) for word in sys.argv[1:]]
        if not given:
            million = make(folder, 1_000_000)
            script(million, folder / "1000000.perf.txt")
            strace = make_strace(folder, 500_000)
            given = [million, folder / "1000000.perf.txt", strace, make(folder, 10_000_000)]
        for path in given:
            measure(path, folder)


if __name__ == "__main__":
    main()
