"""Mutated recordings through the perf.data reader, in this process: a crash of the interpreter is a finding too.

``python tests/trace/readers/fuzz_perf_data.py COUNT [SEED]`` runs it long. The test suite runs it for a few seconds.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from faultpath.errors import FaultpathError
from faultpath.trace.readers.events import choose
from faultpath.trace.readers.perf_data import PerfData
from faultpath.trace.readers.rows import RowMaker
from faultpath.trace.schema import check_rows

DATA = Path(__file__).parent / "data"
SEEDS = [path.read_bytes() for path in sorted(DATA.glob("*.perf.data"))]
NUMBERS = [0, 1, 7, 8, 16, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 1 << 20, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 47, 1 << 56, 1 << 62]
NUMBERS += [(1 << 63) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - 4096]


def mutate(random_: random.Random, seeds: list[bytes]) -> bytes:
    """One recording with one to eight things wrong."""
    data = bytearray(random_.choice(seeds))
    for _ in range(random_.choice((1, 1, 1, 2, 3, 8))):
        if not data:
            break
        at = random_.randrange(len(data))
        # Headers are a small part of a file and decide most.
        if random_.random() < 0.3:
            at %= 700
            at %= len(data)
        kind = random_.randrange(8)
        if kind == 0:
            data[at] ^= 1 << random_.randrange(8)
        elif kind == 1:
            data[at] = random_.randrange(256)
        elif kind in (2, 3, 4):
            size = random_.choice((2, 4, 8))
            at -= at % size
            data[at : at + size] = (random_.choice(NUMBERS) & (1 << 8 * size) - 1).to_bytes(size, "little")
        elif kind == 5:
            del data[at:]
        elif kind == 6:
            del data[at : at + random_.randrange(1, 200)]
        else:
            other = random_.choice(seeds)
            start = random_.randrange(len(other))
            data[at : at + 64] = other[start : start + random_.randrange(1, 256)]
    return bytes(data)


def mutated(random_: random.Random) -> bytes:
    return mutate(random_, SEEDS)


def read(path: Path) -> bool:
    """Whether the reader took it; every row it makes must keep the rules of the schema."""

    def whole() -> None:
        recording = PerfData(path)
        wanted, kinds, _ = choose([e.name for e in recording.header.events], "fuzz")
        maker = RowMaker(kinds, 4096, set(), "fuzz")
        last = 0
        for events in recording.batches(wanted):
            rows = maker.rows(events)
            check_rows(rows, 0, last, 4096, "made from an accepted recording")
            last = int(rows["time"][-1]) if len(rows["time"]) else last

    return accepts(whole)


def accepts(read_it: Callable[[], None]) -> bool:
    """Whether ``read_it`` runs to its end instead of refusing, in one line, what it was given."""
    try:
        read_it()
    except FaultpathError as error:
        if error.where.startswith("made from"):
            raise AssertionError(str(error)) from error
        if "\n" in str(error):
            raise AssertionError("more than one line") from error
        return False
    return True


def run(
    make: Callable[[random.Random], bytes],
    read_one: Callable[[Path], bool],
    count: int,
    seed: int,
    seconds: float = float("inf"),
) -> tuple[int, int]:
    """How many were tried and how many accepted."""
    random_ = random.Random(seed)
    end = time.monotonic() + seconds
    accepted = tried = 0
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        path = Path(folder) / "recording"
        while tried < count and time.monotonic() < end:
            data = make(random_)
            path.write_bytes(data)
            try:
                accepted += read_one(path)
            except BaseException:
                kept = Path(tempfile.gettempdir()) / f"fuzz-{seed}-{tried}.recording"
                kept.write_bytes(data)
                print(f"seed {seed}, input {tried}: kept as {kept}", file=sys.stderr)
                raise
            tried += 1
            if tried % 50_000 == 0 and seconds == float("inf"):
                print(f"{tried} tried, {accepted} accepted", flush=True)
    return tried, accepted


if __name__ == "__main__":
    print(run(mutated, read, int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1))
