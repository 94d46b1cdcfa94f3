"""`faultpath import` against `perf script` or `trace-cmd report` on the same recordings: a median each, and the ratio.

``python benchmarks/import.py [RECORDING...]``. Without recordings it makes one of about a million events and one of
about ten million, with perf and with trace-cmd where it is installed (a C compiler and the right to record are needed;
ten million take a gigabyte in the temporary directory).

Three lines a recording: ``decode`` is events to sorted columns in a running process; ``import`` is a whole
``faultpath import`` from the start of the interpreter, Parquet included; both against the recorder's own tool writing
its text to a file.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from faultpath.trace.formats import recognise, record_command, trace_cmd_command
from faultpath.trace.readers.events import choose
from faultpath.trace.readers.perf_data import PerfData
from faultpath.trace.readers.trace_dat_recording import TraceDatRecording

ROUNDS = 5
EVENTS_PER_ROUND = 135  # of STORM: two threads, 64 faults each, and their calls
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


def median(work: Callable[[], object]) -> float:
    work()
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def decode_perf(path: Path) -> int:
    recording = PerfData(path)
    return sum(
        len(batch) for batch in recording.batches(choose([e.name for e in recording.header.events], str(path))[0])
    )


def decode_trace_dat(path: Path) -> int:
    reader = TraceDatRecording(path)
    return sum(len(batch) for batch in reader.recording.batches(reader.wanted))


#: What decodes a format, and the command that writes it as text.
FORMATS = {
    "perf.data": (decode_perf, ["perf", "script", "-F", "comm,pid,tid,cpu,time,event,trace", "--ns", "-i"]),
    "trace.dat": (decode_trace_dat, ["trace-cmd", "report", "-i"]),
}


def write_text(command: list[str], path: Path, text: Path) -> None:
    with text.open("wb") as out:
        subprocess.run([*command, path], stdout=out, stderr=subprocess.DEVNULL, check=True)


def whole(path: Path, output: Path) -> None:
    run = "import sys; from faultpath.cli import main; sys.exit(main())"
    subprocess.run([sys.executable, "-c", run, "import", path, "-o", output], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = [Path(word) for word in sys.argv[1:]]
        for path in given or [path for events in (1_000_000, 10_000_000) for path in make(folder, events)]:
            decode, command = FORMATS[recognise(path)]
            events, peer = decode(path), " ".join(command[:2])
            theirs = median(lambda command=command, path=path: write_text(command, path, folder / "text"))  # type: ignore[misc]
            print(f"{path.name}: {events} events; {peer} {theirs:.2f} s, {events / theirs / 1e6:.2f} M events/s")
            for what, ours in (
                ("decode", median(lambda decode=decode, path=path: decode(path))),  # type: ignore[misc]
                ("import", median(lambda path=path: whole(path, folder / "out.trace"))),  # type: ignore[misc]
            ):
                rate = events / ours / 1e6
                print(f"  {what} {ours:.2f} s, {rate:.2f} M events/s: {theirs / ours:.1f} times {peer}")


if __name__ == "__main__":
    main()
