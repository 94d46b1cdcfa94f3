"""The workload: device accesses over 16 GiB of virtual addresses, and after every hundred of them one invalidation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from faultpath.engine.feed import Rows
from faultpath.trace.ops import Event, Op

Column = NDArray[np.int64]

PAGE = 4096
VA_BYTES = 16 << 30
BASE = 0x7000_0000_0000
PROT_READ_WRITE = 3
MAP_PRIVATE = 2  # of a file: neighbours do not merge
ACCESSES_PER_INVALIDATION = 100
INVALIDATED = 16 * PAGE  # bytes, aligned to their size

LAYOUTS = ("2 MiB", "VMA-like")
PATTERNS = ("random", "sequential", "skewed")

# How many mappings of 2^n to 2^(n+1) bytes, from n = 12 on: those of a Python process with numpy, pyarrow and numba
# loaded (up to 64 MiB), and one each of 128 MiB to 1 GiB for its data.
MAPPINGS_BY_SIZE = (157, 74, 52, 22, 15, 21, 15, 13, 14, 14, 5, 5, 2, 1, 3, 1, 1, 1, 1)


@dataclass
class Workload:
    """Mappings, and then accesses and invalidations."""

    starts: Column
    sizes: Column
    events: Rows

    def mappings(self) -> Rows:
        """The mmap calls that come first."""
        n = self.starts.size
        return Rows(np.full(n, Op.MMAP), self.starts, self.sizes, np.full(n, PROT_READ_WRITE), np.full(n, MAP_PRIVATE))

    def write(self, path: Path) -> None:
        """For the C program, in the form that it documents."""
        e = self.events
        prot = np.full(self.starts.size, PROT_READ_WRITE)
        with open(path, "wb") as out:
            np.array([self.starts.size, len(e)], dtype=np.int64).tofile(out)
            np.stack([self.starts, self.sizes, prot, np.zeros_like(prot)], axis=1).tofile(out)
            np.stack([e.ops, e.addrs, e.sizes, e.args], axis=1).tofile(out)


def mapping_sizes(layout: str, rng: np.random.Generator) -> Column:
    """Sizes that add up to VA_BYTES."""
    if layout == "2 MiB":
        return np.full(VA_BYTES >> 21, 2 << 20)
    weights = np.array(MAPPINGS_BY_SIZE)
    exponents = 12 + rng.choice(weights.size, size=1 << 16, p=weights / weights.sum())
    sizes = (2.0**exponents * rng.uniform(1, 2, exponents.size)).astype(np.int64) // PAGE * PAGE
    n = int(np.searchsorted(np.cumsum(sizes), VA_BYTES))
    sizes = sizes[: n + 1]
    sizes[n] -= sizes.sum() - VA_BYTES
    return sizes


def page_numbers(pattern: str, n: int, rng: np.random.Generator) -> Column:
    """Which of the mapped pages is accessed, n times."""
    pages = VA_BYTES // PAGE
    if pattern == "random":
        return rng.integers(0, pages, n)
    if pattern == "sequential":
        return np.arange(n) % pages
    # Self-similar, 80 % of the accesses to 20 % of the pages and so on within these; the hot pages lie scattered.
    rank = (pages * rng.random(n) ** (np.log(0.2) / np.log(0.8))).astype(np.int64)
    return rank * 2654435761 % pages


def make(layout: str, pattern: str, n: int, seed: int = 1) -> Workload:
    """A workload of n accesses, every second one a write.

    A page lies between two mappings of the VMA-like layout. Each invalidation is a CLEAR around a page that was
    accessed before it.
    """
    rng = np.random.default_rng(seed)
    sizes = mapping_sizes(layout, rng)
    before = np.cumsum(sizes) - sizes  # mapped bytes below each mapping
    starts = BASE + before + (0 if layout == "2 MiB" else PAGE * np.arange(sizes.size))
    accessed = page_numbers(pattern, n, rng) * PAGE
    which = np.searchsorted(before, accessed, side="right") - 1
    accessed += (starts - before)[which]

    at = np.arange(ACCESSES_PER_INVALIDATION, n + 1, ACCESSES_PER_INVALIDATION)
    invalidated = accessed[(at * rng.random(at.size)).astype(np.int64)] // INVALIDATED * INVALIDATED
    events = Rows(
        np.insert(np.full(n, Op.ACCESS), at, Op.INVALIDATE),
        np.insert(accessed, at, invalidated),
        np.insert(np.zeros(n, dtype=np.int64), at, INVALIDATED),
        np.insert(rng.integers(0, 2, n), at, Event.CLEAR),
        np.zeros(n + at.size, dtype=np.int64),
    )
    return Workload(starts, sizes, events)
