"""Synthetic extremes: traces of one process that does a single thing, for what no recording shows alone.

Everything is drawn from a generator with a fixed seed: a kind is the same trace, byte for byte, wherever it is made.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from faultpath.trace.ops import PF_PROT, PF_WRITE, Op
from faultpath.trace.schema import COLUMNS, TraceMeta, TraceWriter

KERNEL = "6.18"  # whose rules the replay derives invalidations by
PAGE = 4096
PID = 1000
TICK = 1000  # ns between rows: who comes first, not how long anything takes
AT = 0x10_0000_0000

READ, READ_WRITE, READ_EXEC = 1, 3, 5
PRIVATE_ANONYMOUS = 0x22
NORESERVE = 0x4000
MADV_DONTNEED = 4
PF_USER = 4
FIRST_WRITE = PF_USER | PF_WRITE
COPY_ON_WRITE = PF_USER | PF_WRITE | PF_PROT


class Rows:
    """Rows of a trace in the making: pieces of ``(pid, op, addr, len, arg, aux)``."""

    def __init__(self) -> None:
        self.pieces: list[NDArray[np.int64]] = []

    def add(self, op: Op, addr: int, size: int = 0, arg: int = 0, aux: int = 0, pid: int = PID) -> None:
        self.pieces.append(np.array([[pid, op, addr, size, arg, aux]], np.int64))

    def map(self, addr: int, size: int, flags: int = PRIVATE_ANONYMOUS) -> None:
        self.add(Op.MMAP, addr, size, READ_WRITE, flags)

    def touch(self, addrs: NDArray[np.int64], error: int = FIRST_WRITE) -> None:
        """The process writes to each address: a page fault each."""
        rows = np.zeros((len(addrs), 6), np.int64)
        rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 4] = PID, Op.FAULT, addrs, error
        self.pieces.append(rows)

    def columns(self) -> dict[str, np.ndarray]:
        rows = np.concatenate(self.pieces)
        pid, op, addr, size, arg, aux = rows.T
        given = {"pid": pid, "tid": pid, "op": op, "addr": addr, "len": size, "arg": arg, "aux": aux}
        given |= {"time": np.arange(1, len(rows) + 1) * TICK, "cpu": np.zeros(len(rows), np.int64)}
        return {name: np.ascontiguousarray(given[name]).astype(dtype) for name, dtype in COLUMNS.items()}


def pages(start: int, count: int) -> NDArray[np.int64]:
    """Addresses of consecutive pages."""
    return start + np.arange(count, dtype=np.int64) * PAGE


def static(rows: Rows, random: np.random.Generator) -> None:
    """One mapping of 64 GiB, of which 200,000 pages are touched in no order; nothing is ever undone."""
    size = 64 << 30
    rows.map(AT, size)
    rows.touch(AT + random.permutation(size // PAGE)[:200_000] * PAGE)


def many_vmas(rows: Rows, random: np.random.Generator) -> None:
    """100,000 mappings of one to four pages, a page apart; all are touched, in no order, then a tenth is unmapped."""
    sizes = random.integers(1, 5, 100_000)
    starts = AT + (np.cumsum(sizes + 1) - sizes - 1) * PAGE
    for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
        rows.map(start, size * PAGE)
    rows.touch(random.permutation(starts))
    for which in random.permutation(len(sizes))[:10_000].tolist():
        rows.add(Op.MUNMAP, int(starts[which]), int(sizes[which]) * PAGE)


def malloc_churn(rows: Rows, random: np.random.Generator) -> None:
    """10,000 large allocations, each a mapping of its own, of which at most 64 live; their first pages are touched."""
    slot = 2 << 20
    live: dict[int, int] = {}
    for _ in range(10_000):
        place = int(random.integers(64))
        start = AT + place * slot
        if place in live:
            rows.add(Op.MUNMAP, start, live.pop(place))
        count = int(random.integers(4, 257))
        live[place] = count * PAGE
        rows.map(start, count * PAGE)
        rows.touch(pages(start, count)[: int(random.integers(1, 33))])


def fork_storm(rows: Rows, random: np.random.Generator) -> None:
    """16 MiB in use, and 500 forks: after each the process writes to 64 pages, the child ends."""
    count = 4096
    rows.map(AT, count * PAGE)
    rows.touch(pages(AT, count))
    for child in range(PID + 1, PID + 501):
        rows.add(Op.FORK, 0, arg=child)
        rows.touch(AT + random.permutation(count)[:64] * PAGE, COPY_ON_WRITE)
        rows.add(Op.EXIT, 0, pid=child)


def mprotect_storm(rows: Rows, random: np.random.Generator) -> None:
    """64 MiB of compiled code: 10,000 times some pages become writable, are written, and become executable again."""
    count = 16_384
    rows.map(AT, count * PAGE)
    rows.touch(pages(AT, count))
    rows.add(Op.MPROTECT, AT, count * PAGE, READ_EXEC)
    for _ in range(10_000):
        size = int(random.integers(1, 17))
        start = AT + int(random.integers(count - size)) * PAGE
        rows.add(Op.MPROTECT, start, size * PAGE, READ_WRITE)
        rows.touch(pages(start, size), COPY_ON_WRITE)
        rows.add(Op.MPROTECT, start, size * PAGE, READ_EXEC)


def sparse(rows: Rows, random: np.random.Generator) -> None:
    """8 TiB reserved, of which 50,000 pages are touched anywhere; each tenth touch, an earlier page is given back."""
    size = 8 << 40
    rows.map(AT, size, PRIVATE_ANONYMOUS | NORESERVE)
    touched = AT + random.integers(0, size // PAGE, 50_000) * PAGE
    for some in touched.reshape(-1, 10):
        rows.touch(some)
        rows.add(Op.MADVISE, int(random.choice(some)), PAGE, MADV_DONTNEED)


def sweep(rows: Rows, random: np.random.Generator) -> None:
    """A stream through 256 MiB, twice: page by page in order, and every 2 MiB what lies 32 MiB back is given up."""
    block, behind = 2 << 20, 16
    rows.map(AT, 128 * block)
    for step in range(256):
        start = AT + step % 128 * block
        rows.touch(pages(start, block // PAGE))
        rows.add(Op.MADVISE, AT + (step - behind) % 128 * block, block, MADV_DONTNEED)


KINDS: dict[str, Callable[[Rows, np.random.Generator], None]] = {
    kind.__name__.replace("_", "-"): kind
    for kind in (static, many_vmas, malloc_churn, fork_storm, mprotect_storm, sparse, sweep)
}


def synthesize(kind: str, output: Path) -> None:
    """Write the trace of one of ``KINDS``.

    :raises FaultpathError: when it cannot be written
    """
    rows = Rows()
    KINDS[kind](rows, np.random.default_rng(1))
    rows.add(Op.EXIT, 0)
    with TraceWriter(output) as writer:
        writer.write(rows.columns())
        writer.finish(
            TraceMeta(
                format="synthetic",
                source=kind,
                kernel=KERNEL,
                arch="x86_64",
                processes=[{"pid": PID, "parent": 0, "comm": kind}],
                missing=["everything else that a process does: this trace was made, not recorded"],
            )
        )
