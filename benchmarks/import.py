"""`faultpath import` against other ways of reading the same recordings: a median each, and the ratio.

``python benchmarks/import.py [RECORDING...]``. Without recordings it makes some of about a million and of
about ten million events, with perf and where it is installed with trace-cmd, the text of the first, and one of about
half a million lines with strace (perf, strace, a C compiler and the right to record are needed; ten million events take
a gigabyte in the temporary directory).

The peer of a perf.data or a trace.dat is the recorder's own tool writing its text to a file; that of a text is a loop
in Python over its lines, with a regular expression or two and ``int`` on what they find, which keeps nothing. Two lines
a recording: ``decode`` is from the file to columns in a running process (sorted events, or a text's rows); ``import``
is a whole ``faultpath import`` from the start of the interpreter, Parquet included.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from faultpath.trace.formats import recognise, record_command, trace_cmd_command
from faultpath.trace.readers.events import choose
from faultpath.trace.readers.perf_data import PerfData
from faultpath.trace.readers.perf_text import PerfText
from faultpath.trace.readers.strace import StraceRecording
from faultpath.trace.readers.trace_dat_recording import TraceDatRecording
from timing import median

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


TRACE_CMD_BUFFER = "faultpath-benchmark"


def make(folder: Path, events: int) -> list[Path]:
    """The same program recorded by perf and, where there is one, by trace-cmd."""
    program = folder / "storm"
    (folder / "storm.c").write_text(STORM)
    subprocess.run(["cc", "-O1", "-pthread", "-o", program, folder / "storm.c"], check=True)
    run = [program, str(events // EVENTS_PER_ROUND)]
    made = [folder / f"{events}.perf.data"]
    names = record_command().split()[3]
    subprocess.run(["perf", "record", "-q", "-m", "16M", "-o", made[0], "-e", names, "--", *run], check=True)
    if shutil.which("trace-cmd"):
        made.append(folder / f"{events}.trace.dat")
        # A ring buffer of its own; -d and -k leave alone what a container may not write, the function tracer.
        how = [
            "-q",
            "-d",
            "-k",
            "-B",
            TRACE_CMD_BUFFER,
            "-b",
            "65536",
            "-o",
            made[1],
            *trace_cmd_command().split()[4:-1],
        ]
        subprocess.run(["trace-cmd", "record", *how, *run], check=True)
        Path("/sys/kernel/tracing/instances", TRACE_CMD_BUFFER).rmdir()
    return made


def make_strace(folder: Path, lines: int) -> Path:
    """Of the same program, which makes four calls in sixteen rounds beside its madvise, and a line or two of each."""
    path = folder / f"{lines}.strace"
    rounds = str(lines // LINES_PER_ROUND)
    subprocess.run(["strace", "-f", "-ttt", "-T", "-o", path, folder / "storm", rounds], check=True)
    return path


def decode_perf(path: Path) -> int:
    recording = PerfData(path)
    wanted, _, _ = choose([event.name for event in recording.header.events], str(path))
    return sum(len(batch) for batch in recording.batches(wanted))


def decode_trace_dat(path: Path) -> int:
    reader = TraceDatRecording(path)
    return sum(len(batch) for batch in reader.recording.batches(reader.wanted))


def decode_text(reader: PerfText | StraceRecording) -> int:
    return sum(len(rows["time"]) for rows in reader.rows())


PERF_SCRIPT = ["perf", "script", "-F", "comm,pid,tid,cpu,time,event,trace", "--ns", "-i"]


def write_text(command: list[str], path: Path, text: Path) -> None:
    with text.open("wb") as out:
        subprocess.run([*command, path], stdout=out, stderr=subprocess.DEVNULL, check=True)


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


@dataclass
class Way:
    """What decodes a format, and what else goes over all of it; the two take the recording's path."""

    decode: Callable[[Path], int]
    peer: str
    others: Callable[[Path, Path], object]  # its second argument is a file to write
    unit: str


WAYS = {
    "perf.data": Way(decode_perf, "perf script", lambda path, out: write_text(PERF_SCRIPT, path, out), "events"),
    "trace.dat": Way(
        decode_trace_dat,
        "trace-cmd report",
        lambda path, out: write_text(["trace-cmd", "report", "-i"], path, out),
        "events",
    ),
    "perf script": Way(
        lambda path: decode_text(PerfText(path)), "the loop in Python", lambda path, _: perf_text_loop(path), "lines"
    ),
    "strace": Way(
        lambda path: decode_text(StraceRecording(path)),
        "the loop in Python",
        lambda path, _: strace_loop(path),
        "lines",
    ),
}


def measure(path: Path, folder: Path) -> None:
    way = WAYS[recognise(path)]
    count = lines(path) if way.unit == "lines" else way.decode(path)
    theirs = median(lambda: way.others(path, folder / "text"), ROUNDS)
    print(
        f"{path.name}: {count} {way.unit}; {way.peer} {theirs:.2f} s, {count / theirs / 1e6:.2f} M {way.unit}/s",
        flush=True,
    )
    for what, seconds in (
        ("decode", median(lambda: way.decode(path), ROUNDS)),
        ("import", median(lambda: whole(path, folder / "out.trace"), ROUNDS)),
    ):
        rate = count / seconds / 1e6
        print(
            f"  {what} {seconds:.2f} s, {rate:.2f} M {way.unit}/s: {theirs / seconds:.1f} times {way.peer}", flush=True
        )


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = [Path(word) for word in sys.argv[1:]]
        if not given:
            million = make(folder, 1_000_000)
            text = folder / "1000000.perf.txt"
            write_text(PERF_SCRIPT, million[0], text)
            given = [*million, text, make_strace(folder, 500_000), *make(folder, 10_000_000)]
        for path in given:
            measure(path, folder)


if __name__ == "__main__":
    main()
