"""``python -m benchmarks.replay``: our replay of the nouveau-v6 design beside a C program that does the same work.

Both process the same events, in turn; each one's own processor time counts, from the first event to the last, copying
rows into the world included. What both counted must be equal, or the benchmark fails.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from faultpath.designs.nouveau_v6 import design
from faultpath.engine.replay import Replay

from .workload import LAYOUTS, PATTERNS, Workload, make


def build(folder: Path, plain_locks: bool) -> Path:
    """Compile the C program."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        sys.exit("benchmarks.replay needs a C compiler (gcc or cc on PATH)")
    program = folder / "baseline"
    source = Path(__file__).with_name("baseline.c")
    subprocess.run(
        [compiler, "-O2", "-pthread", *(["-DPLAIN_LOCKS"] if plain_locks else []), "-o", program, source], check=True
    )
    return program


def run_c(program: Path, path: Path) -> tuple[float, dict[str, int]]:
    """Nanoseconds, and what was counted."""
    text = subprocess.run([program, path], check=True, capture_output=True, text=True).stdout
    result = {name: int(value) for name, value in (line.split() for line in text.splitlines())}
    return result.pop("ns"), result


def run_replay(work: Workload) -> tuple[float, dict[str, int]]:
    """The same of our replay, in a fresh world."""
    replay = Replay(design, [], task_size=1 << 47, raises=False)
    replay.open()
    replay.rows(work.mappings())
    start = time.thread_time_ns()
    replay.rows(work.events)
    taken = time.thread_time_ns() - start
    locks = replay.locks()
    counters = replay.counters() | {
        "lock_driver": locks["driver"]["acquired"],
        "lock_subscriptions": locks["subscriptions"]["acquired"],
        "lock_mmap_read": locks["mmap_lock"]["read"],
    }
    return taken, counters


def compare(counted: dict[str, int], ours: dict[str, int]) -> list[str]:
    """Counters that differ: what C counts must be the same, what it has no word for must be zero."""
    return [
        f"{name}: C {counted.get(name, 0)}, replay {ours.get(name, 0)}"
        for name in sorted(counted.keys() | ours.keys())
        if counted.get(name, 0) != ours.get(name, 0)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay", description=__doc__)
    parser.add_argument(
        "--accesses", type=int, default=1_000_000, help="device accesses per case (default %(default)s)"
    )
    parser.add_argument("--runs", type=int, default=5, help="runs of each side, alternating (default %(default)s)")
    parser.add_argument("--plain-locks", action="store_true", help="C without atomic instructions, as in the replay")
    options = parser.parse_args()
    print(f"{options.accesses} accesses per case, nanoseconds per event, median of {options.runs}")
    print(f"{'mappings':10}{'accesses':12}{'faults':>9}{'steps':>7}{'C':>8}{'replay':>8}{'ratio':>7}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = build(folder, options.plain_locks)
        for layout in LAYOUTS:
            for pattern in PATTERNS:
                work = make(layout, pattern, options.accesses)
                path = folder / "events"
                work.write(path)
                times = []
                for _ in range(options.runs):
                    c, counted = run_c(program, path)
                    ours, counters = run_replay(work)
                    if different := compare(counted, counters):
                        sys.exit(f"{layout}, {pattern}: not the same work\n" + "\n".join(different))
                    times.append((c, ours))
                c, ours = (statistics.median(t) / len(work.events) for t in zip(*times, strict=True))
                faults = counters["device_faults"]
                steps = counters["lookup_steps"] / counters["lookups"]
                print(f"{layout:10}{pattern:12}{faults:9}{steps:7.1f}{c:8.1f}{ours:8.1f}{ours / c:7.2f}", flush=True)


if __name__ == "__main__":
    main()
