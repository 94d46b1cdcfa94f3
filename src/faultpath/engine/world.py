"""The whole state of a modelled machine: one flat int64 array.

Word indices serve as pointers; 0 is NULL. The array begins with the words named here and goes on with a heap. An
object's first word is its header: ``tag << 8 | class << 1 | alive``, class counting units of eight words. A freed
object keeps its header with ``alive`` cleared, so that a late access can be told. All state that matters lies
in ``w[:w[BRK]]``: copy, compare or hash that and nothing else.
"""

from __future__ import annotations

import contextlib
import mmap
import sys

import numpy as np
from numpy.typing import NDArray

from faultpath.engine.counters import COUNTERS, DRIVER_COUNTERS, GAUGES

Words = NDArray[np.int64]

STATUS = 1  # why a run stopped, a Status below
STATUS_ARG = 2  # the word or value it stopped at
BRK = 3  # first word the heap has not used yet
TID = 4  # the thread that runs now
WORK_HEAD = 5  # queued work items, first in first out
WORK_TAIL = 6
LEAF_BITS = 7  # page-table geometry: log2 of entries per leaf and per directory
DIR_BITS = 8
MM = 9  # the process's mm and the device that mirrors it, for the schedulers
DEVICE = 10
NEXT_FRAME = 11  # the last frame number given to a page
CAPACITY = 13  # words in all: where the heap must stop

FREE = 16  # free lists, by class
N_CLASSES = 72
COUNTER = FREE + N_CLASSES
LOCK = COUNTER + 128  # two words per lock role: acquired for reading, acquired for writing (or acquired)
N_LOCKS = 16
SCRATCH = LOCK - 1  # tree nodes read that no counter wants
ROWS_WORDS = 1 << 20  # above the heap: rows of a trace on their way in, no part of the state
HEAP = LOCK + 2 * N_LOCKS + 8 & ~7

# Python names the flag from 3.13 on. Without it, worlds that lie side by side become one VMA that is accounted for, and
# once it is larger than the machine's memory, fork() is refused.
NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)

INDEX: dict[str, int] = {name: COUNTER + i for i, name in enumerate([*COUNTERS, *GAUGES, *DRIVER_COUNTERS])}
assert len(INDEX) < LOCK - COUNTER
LOOKUP_STEPS = INDEX["lookup_steps"]  # tree nodes read by a driver that looks something up

# Statuses. Jitted code stores one and raises Stop; engine.errors words it.
OK = 0
WOULD_BLOCK = 1
OUT_OF_MEMORY = 2
BAD_ADDRESS = 3
DOUBLE_FREE = 4
REFCOUNT = 5
TREE = 6
DIVISION = 7


class Stop(Exception):
    """Unwinds a run; the reason is in the world's STATUS word."""


def new_world(max_words: int = 1 << 32, leaf_bits: int = 9, dir_bits: int = 9) -> Words:
    """A fresh world. Memory is reserved, not used: pages cost nothing until the heap grows into them.

    :param max_words: most words the heap may grow to; halved until the system grants it
    :param leaf_bits: log2 of the pages per page-table leaf (9 on x86-64: a leaf covers 2 MiB)
    :param dir_bits: log2 of the entries per page-table directory
    """
    words = max_words
    while True:
        try:
            memory = mmap.mmap(-1, words * 8, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
            break
        except (OSError, ValueError, OverflowError):
            if words <= 1 << 20:
                raise MemoryError("no memory for a world of 8 MiB") from None
            words //= 2
    with contextlib.suppress(AttributeError, OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)  # a tenth faster: replay jumps about in megabytes
    w: Words = np.frombuffer(memory, dtype=np.int64)
    w[BRK] = HEAP
    w[CAPACITY] = words - ROWS_WORDS
    w[LEAF_BITS] = leaf_bits
    w[DIR_BITS] = dir_bits
    return w


def forget(w: Words, first: int, words: int) -> None:
    """Zero words that may be many, and give their memory back to the system."""
    base = w.base
    page = mmap.PAGESIZE // 8
    start, end = -(-first // page) * page, (first + words) // page * page
    if not isinstance(base, mmap.mmap) or start >= end:
        w[first : first + words] = 0
        return
    w[first:start] = 0
    w[end : first + words] = 0
    base.madvise(mmap.MADV_DONTNEED, start * 8, (end - start) * 8)


def state(w: Words) -> Words:
    """The words that make up the state, as a view."""
    return w[: w[BRK]]


def restore(w: Words, saved: Words) -> None:
    """Set the world to a state taken with ``state(w).copy()``; words the heap used since then are zeroed."""
    brk = int(w[BRK])
    w[: saved.size] = saved
    w[saved.size : brk] = 0
