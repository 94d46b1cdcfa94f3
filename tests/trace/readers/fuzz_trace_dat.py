"""Mutated recordings through the trace.dat reader, as ``fuzz_perf_data`` does for perf.data.

``python tests/trace/readers/fuzz_trace_dat.py COUNT [SEED]`` runs it long. The test suite runs it for a few seconds.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from fuzz_perf_data import DATA, accepts, mutate, run
from trace_dat_builder import Made, data, extend, fault, padding, page, stamp

from faultpath.trace.readers.trace_dat_recording import TraceDatRecording
from faultpath.trace.schema import check_rows


def made() -> list[bytes]:
    """Small files: most of a real one is the text of formats."""
    first = page(10**9, data(fault(4096)), extend(1 << 30), data(fault(8192), 5, True), padding(64), lost=3)
    second = page(10**9 + 7, stamp(10**9 + 8), data(fault(1 << 40, tid=101), 9))
    two = Made({"": {0: first + second, 1: second}, "more": {}})
    tsc = Made({"": {0: first, 3: second}}, clock="tsc2nsec", options=[(14, bytes([9, 0, 0, 0, 4]) + bytes(11))])
    return [two.version_6(), two.version_7(), two.version_7("zlib"), two.version_7("zstd"), tsc.version_7()]


SEEDS = [path.read_bytes() for path in sorted(DATA.glob("*.trace.dat"))]
SMALL = made()


def mutated(random_: random.Random) -> bytes:
    return mutate(random_, random_.choice((SEEDS, SMALL)))


def read(path: Path) -> bool:
    """Whether the reader took it; every row it makes must keep the rules of the schema."""

    def whole() -> None:
        reader = TraceDatRecording(path)
        last = 0
        for rows in reader.rows():
            check_rows(rows, 0, last, reader.recording.header.page_size, "made from an accepted recording")
            last = int(rows["time"][-1]) if len(rows["time"]) else last
        reader.meta().to_json()

    return accepts(whole)


if __name__ == "__main__":
    print(run(mutated, read, int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1))
