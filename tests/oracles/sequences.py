"""Random rows that a kernel could have let happen: short ranges around borders of tables and children.

Hypothesis gives a seed and a length. Lists of drawn rows stay too short to reach most of a design's bookkeeping, so the
rows come from a plain generator; a failing trace is made small here, by leaving out what is not needed.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from hypothesis import strategies as st

from faultpath.trace.ops import Event, Op
from oracles.address_space import DONTUNMAP, PAGE
from oracles.core import CHILD_COPIES, CHILD_ENDS, REACCESS, Machine, Row

GIB = 1 << 30
# A border of 1 GiB, one of 2 MiB, one of neither. The first GiB has index 0 and thus no xarray node.
ANCHORS = (GIB, GIB + (2 << 20), GIB + (5 << 20) + 7 * PAGE)
PROTS = (3, 3, 3, 3, 1, 0, 5, 2)
KINDS = (0x22, 0x22, 0x22, 0x02, 0x01, 0x21, 0x122, 0x32, 0x4022, 0x20022, 0x12)


class Rows:
    """A stream of random rows."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)

    def address(self) -> int:
        if self.random.random() < 0.01:
            return self.random.choice([0, 15, 16]) * PAGE  # around mmap_min_addr
        return self.random.choice(ANCHORS) + self.random.randint(-12, 12) * PAGE

    def size(self) -> int:
        pages = self.random.choice([self.random.randint(1, 5), self.random.randint(1, 25), 512, 700])
        return pages * PAGE

    def small(self) -> int:
        return self.random.randint(1, 8) * PAGE

    def call(self) -> Row:
        choice = self.random.choice
        address, size = self.address(), self.size()
        op = choice([Op.MMAP, Op.MMAP, Op.VMA, Op.MUNMAP, Op.MUNMAP, Op.MPROTECT, Op.MADVISE, Op.MREMAP, Op.MREMAP,
                     Op.BRK, Op.FORK, Op.MBIND, CHILD_ENDS, CHILD_COPIES])  # fmt: skip
        if op in (Op.MMAP, Op.VMA):
            return op, address, size, choice(PROTS), choice(KINDS)
        if op == Op.MUNMAP:
            return op, address, self.small(), 0, 0
        if op == Op.MPROTECT:
            return op, address, self.small(), choice(PROTS), 0
        if op == Op.MADVISE:
            return op, address, self.small(), choice([4, 4, 8, 9, *range(10, 20), 24, 3]), 0
        if op == Op.MREMAP:
            flags = choice([0, 0, 1, 3, DONTUNMAP])
            old_size = choice([0, *[self.small() for _ in range(9)]])  # 0 duplicates a shared mapping
            return op, address, old_size, choice([address, self.address()]), self.small() | flags
        if op == Op.BRK:
            return op, address + self.random.randint(0, PAGE - 1), 0, 0, 0
        if op == Op.FORK:
            return op, 0, 0, 77, choice([0x11, 0x11, 0x100])
        if op == CHILD_ENDS:
            return op, 0, 0, self.random.randint(1, 4), 0
        return op, address, size, 0, 0

    def burst(self) -> list[Row]:
        """Faults or device accesses on some pages in a row."""
        start, write = self.address(), self.random.random() < 0.6
        op = self.random.choice([Op.FAULT, Op.FAULT, Op.FAULT, Op.ACCESS])
        arg = (4 | 2 * write | (self.random.random() < 0.2)) if op == Op.FAULT else int(write)
        pages = [p for p in range(self.random.randint(1, 12)) if self.random.random() < 0.8]
        return [(op, start + p * PAGE + self.random.randint(0, PAGE - 1), 0, arg, 0) for p in pages]

    def some(self) -> list[Row]:
        dice = self.random.random()
        if dice < 0.55:
            return self.burst()
        if dice < 0.85:
            return [self.call()]
        if dice < 0.93:
            event = self.random.choice([*Event, Event.UNMAP, Event.UNMAP, Event.CLEAR])
            return [(Op.INVALIDATE, self.address(), self.small(), event, 0)]
        if dice < 0.98:
            return [(REACCESS, self.address(), self.size(), 0, 0)]
        return [(self.random.choice([Op.EXEC, Op.EXEC, Op.EXIT]), 0, 0, 0, 0)]


def make(seed: int, length: int) -> list[Row]:
    stream = Rows(seed)
    rows: list[Row] = [(Op.MMAP, a - 8 * PAGE, 16 * PAGE, 3, stream.random.choice(KINDS)) for a in ANCHORS]
    while len(rows) < length:
        rows += stream.some()
    return [tuple(map(int, row)) for row in rows]  # type: ignore[misc]


seeds = st.integers(0, 1 << 32)
lengths = st.integers(10, 150)


def possible(machine: Machine, row: Row) -> bool:
    """Whether the kernel could have answered this call with success, as far as the process is known."""
    op, addr, size, arg, aux = row
    space = machine.space
    if op == Op.BRK and space.brk:
        old, new = (-(-b // PAGE) * PAGE for b in (space.brk, addr))
        return new <= old or not space.overlapping(old, new)
    if op == Op.MREMAP:
        new_size = aux // PAGE * PAGE
        if arg == addr:
            free = not space.overlapping(addr + size, addr + new_size)
            return size > 0 and not aux & DONTUNMAP and (new_size <= size or free)
        return addr + size <= arg or arg + new_size <= addr
    return True


def smallest(rows: list[Row], fails: Callable[[list[Row]], object]) -> list[Row]:
    """A part of the rows that still fails, and does not when any one more row is left out."""
    step = len(rows) // 2
    while step:
        i = 0
        while i < len(rows):
            fewer = rows[:i] + rows[i + step :]
            if fails(fewer):
                rows = fewer
            else:
                i += step
        step //= 2
    return rows
