"""Mutated recordings through a reader, in this process: a crash of the interpreter is a finding too.

``python tests/trace/readers/fuzzing.py FORMAT COUNT [SEED]`` runs it long. The test suite runs it for a few seconds.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from faultpath.errors import FaultpathError
from faultpath.trace.importing import READERS
from faultpath.trace.schema import check_rows

DATA = Path(__file__).parent / "data"
SEEDS = {"perf.data": "*.perf.data", "trace.dat": "*.trace.dat", "perf script": "*.txt", "strace": "*.strace"}
NUMBERS = [0, 1, 7, 8, 16, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 1 << 20, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 47, 1 << 56, 1 << 62]
NUMBERS += [(1 << 63) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - 4096]
WORDS = [b"<unfinished ...>", b" resumed>", b"<... ", b"[pid ", b"PERF_RECORD_", b"strace: Process 7 attached", b"\r\n"]
WORDS += [
    b"\n",
    b"\0",
    b"\xff\xfe",
    b'"',
    b"\\",
    b"(",
    b")",
    b"{",
    b"]",
    b" = ",
    b" /* ",
    b"*/",
    b"|",
    b"<<",
    b"<",
    b">",
]
WORDS += [
    b"-",
    b"0x",
    b": ",
    b".",
    b",",
    b"\t",
    b" " * 70,
    b"a" * 70,
    b"9" * 21,
    b"?",
    b"NULL",
    b"CLONE_THREAD",
    b"clone(",
]

Mutate = Callable[[random.Random, list[bytes]], bytes]


def binary(random_: random.Random, seeds: list[bytes]) -> bytes:
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
        if kind in (2, 3, 4):
            size = random_.choice((2, 4, 8))
            at -= at % size
            data[at : at + size] = (random_.choice(NUMBERS) & (1 << 8 * size) - 1).to_bytes(size, "little")
        else:
            damage(random_, data, at, kind, seeds)
    return bytes(data)


def text(random_: random.Random, seeds: list[bytes]) -> bytes:
    """The same for text: a piece of one, with lines moved, words put in and numbers changed."""
    lines = random_.choice(seeds).splitlines(keepends=True)
    start = random_.choice((0, random_.randrange(len(lines))))
    data = bytearray(b"".join(lines[start : start + random_.choice((3, 30, 1000))]))
    for _ in range(random_.choice((1, 1, 2, 3, 8, 30))):
        if not data:
            break
        at = random_.randrange(len(data))
        kind = random_.randrange(9)
        if kind in (2, 3):
            data[at:at] = random_.choice(WORDS)
        elif kind == 4:
            number = random_.choice(NUMBERS)
            data[at : at + random_.randrange(12)] = random_.choice((b"%d", b"%#x", b"-%d")) % number
        elif kind == 8:
            moved = data[at : data.find(b"\n", at) + 1]
            to = data.find(b"\n", random_.randrange(len(data))) + 1
            data[to:to] = moved
        else:
            damage(random_, data, at, kind, seeds)
    return bytes(data)


def damage(random_: random.Random, data: bytearray, at: int, kind: int, seeds: list[bytes]) -> None:
    """A bit or a byte changed, the end or a piece taken out, a piece of another recording put in."""
    if kind == 0:
        data[at] ^= 1 << random_.randrange(8)
    elif kind == 1:
        data[at] = random_.randrange(256)
    elif kind == 5:
        del data[at:]
    elif kind == 6:
        del data[at : at + random_.randrange(1, 200)]
    else:
        other = random_.choice(seeds)
        start = random_.randrange(len(other))
        data[at : at + 64] = other[start : start + random_.randrange(1, 256)]


def read(name: str, path: Path) -> bool:
    """Whether the format's reader took it; every row it makes must keep the rules of the schema."""
    module, kind = READERS[name].split(":")
    try:
        reader = getattr(import_module(f"faultpath.trace.readers.{module}"), kind)(path)
        last = 0
        for rows in reader.rows():
            check_rows(rows, 0, last, 4096, "made from an accepted recording")
            last = int(rows["time"][-1]) if len(rows["time"]) else last
        reader.meta().to_json()
    except FaultpathError as error:
        if error.where.startswith("made from"):
            raise AssertionError(str(error)) from error
        if "\n" in str(error):
            raise AssertionError("more than one line") from error
        return False
    return True


def run(
    name: str, count: int, seed: int, seconds: float = float("inf"), seeds: list[bytes] | None = None
) -> tuple[int, int]:
    """How many were tried and how many accepted.

    :param seeds: what is mutated; by default the format's samples in data/
    """
    mutate: Mutate = text if name in ("perf script", "strace") else binary
    seeds = seeds or [path.read_bytes() for path in sorted(DATA.glob(SEEDS[name]))]
    random_ = random.Random(seed)
    end = time.monotonic() + seconds
    accepted = tried = 0
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        path = Path(folder) / "recording"
        while tried < count and time.monotonic() < end:
            data = mutate(random_, seeds)
            path.write_bytes(data)
            try:
                accepted += read(name, path)
            except BaseException:
                kept = Path(tempfile.gettempdir()) / f"fuzz-{seed}-{tried}"
                kept.write_bytes(data)
                print(f"seed {seed}, input {tried}: kept as {kept}", file=sys.stderr)
                raise
            tried += 1
            if tried % 50_000 == 0 and seconds == float("inf"):
                print(f"{tried} tried, {accepted} accepted", flush=True)
    return tried, accepted


if __name__ == "__main__":
    print(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1))
