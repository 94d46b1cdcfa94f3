"""`faultpath import` against `perf script` on the same recordings: a median each, and the ratio.

``python benchmarks/import.py [RECORDING...]``. Without recordings it makes one of about a million events and one of
about ten million (perf, a C compiler and the right to record are needed; ten million take a gigabyte in the temporary
directory).

Three lines a recording: ``decode`` is events to sorted columns in a running process; ``import`` is a whole
``faultpath import`` from the start of the interpreter, Parquet included; both against ``perf script`` writing its text
to a file.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from faultpath.trace.formats import record_command
from faultpath.trace.readers.events import choose
from faultpath.trace.readers.perf_data import PerfData

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


def make(folder: Path, events: int) -> Path:
    program, path = folder / "storm", folder / f"{events}.perf.data"
    (folder / "storm.c").write_text(STORM)
    subprocess.run(["cc", "-O1", "-pthread", "-o", program, folder / "storm.c"], check=True)
    rounds = str(events // EVENTS_PER_ROUND)
    names = record_command().split()[3]
    subprocess.run(["perf", "record", "-q", "-m", "16M", "-o", path, "-e", names, "--", program, rounds], check=True)
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


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = [Path(word) for word in sys.argv[1:]] or [make(folder, 1_000_000), make(folder, 10_000_000)]
        for path in given:
            events = decode(path)
            theirs = median(lambda path=path: script(path, folder / "text"))  # type: ignore[misc]
            print(f"{path.name}: {events} events; perf script {theirs:.2f} s, {events / theirs / 1e6:.2f} M events/s")
            for what, ours in (
                ("decode", median(lambda path=path: decode(path))),  # type: ignore[misc]
                ("import", median(lambda path=path: whole(path, folder / "out.trace"))),  # type: ignore[misc]
            ):
                rate = events / ours / 1e6
                print(f"  {what} {ours:.2f} s, {rate:.2f} M events/s: {theirs / ours:.1f} times perf script")


if __name__ == "__main__":
    main()
