"""Mappings that only accesses tell of: what a recording of a device names, as the VMAs a trace begins with."""

from __future__ import annotations

import numpy as np

from faultpath.errors import FaultpathError
from faultpath.jit import jit
from faultpath.trace.ops import Op
from faultpath.trace.schema import COLUMNS, Columns

#: Bytes. Drivers handle memory in blocks of 2 MiB (nvidia-uvm's va_block; the default granularity of amdkfd's SVM
#: ranges, Linux 6.1), of which a recording names some pages: a smaller hole between two that it names is mapped, too.
HOLE = 2 << 20
#: Processes, and pieces of memory of one, that are believed: pieces are at least a hole apart, so these are 2 TiB.
MOST_PROCESSES, MOST_PIECES = 1 << 16, 1 << 20
PROT_READ_WRITE = 3
MAP_PRIVATE_ANONYMOUS = 0x22

SAID = (
    "Mappings: not recorded; what the events name, holes below 2 MiB closed, is taken for private anonymous memory "
    "that may be written and was there all the time."
)


class Extents:
    """The union of ranges ``[start, end)``, by process. Memory grows with the pieces of that union, not with the file.

    What is in it does not depend on the order or the batches in which ranges come.

    :param where: the recording, for the message
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self._pieces: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def add(self, pids: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
        """Add ranges: arrays of equal length, int64, page aligned bytes below ``ADDRESS_LIMIT``.

        :raises FaultpathError: when there are more processes or pieces than a device serves
        """
        if not len(pids):
            return
        for pid in [pids[0]] if (pids == pids[0]).all() else np.unique(pids):
            mine = pids == pid
            known = self._pieces.get(int(pid), (starts[:0], ends[:0]))
            new = mine & outside(*known, starts, ends)
            if not new.any():
                continue
            pieces = _union(np.concatenate([known[0], starts[new]]), np.concatenate([known[1], ends[new]]))
            self._pieces[int(pid)] = pieces
            if len(pieces[0]) > MOST_PIECES:
                self._refuse(f"more than {MOST_PIECES} separate pieces of memory")
        if len(self._pieces) > MOST_PROCESSES:
            self._refuse(f"more than {MOST_PROCESSES} processes")

    def _refuse(self, what: str) -> None:
        raise FaultpathError(what, self.where, "the file is damaged, or not about one machine; record it again")

    def rows(self, time: int) -> Columns:
        """A VMA row for each piece, by pid and address, all at ``time`` (ns)."""
        count = sum(len(starts) for starts, _ in self._pieces.values())
        columns = {name: np.zeros(count, dtype) for name, dtype in COLUMNS.items()}
        columns["time"][:] = time
        columns["cpu"][:] = -1
        columns["op"][:] = Op.VMA
        columns["arg"][:] = PROT_READ_WRITE
        columns["aux"][:] = MAP_PRIVATE_ANONYMOUS
        at = 0
        for pid, (starts, ends) in sorted(self._pieces.items()):
            here = slice(at, at + len(starts))
            columns["pid"][here] = columns["tid"][here] = pid
            columns["addr"][here] = starts
            columns["len"][here] = ends - starts
            at += len(starts)
        return columns


@jit
def outside(known_starts, known_ends, starts, ends):  # type: ignore[no-untyped-def]
    """Which ranges lie in none of the known pieces, those being in order and apart."""
    new = np.ones(len(starts), np.bool_)
    if not len(known_starts):
        return new
    at = 0
    for i in range(len(starts)):
        if known_starts[at] > starts[i] or known_ends[at] < ends[i]:  # not in the piece that had the last one
            at = max(np.searchsorted(known_starts, starts[i], "right") - 1, 0)
        new[i] = known_starts[at] > starts[i] or known_ends[at] < ends[i]
    return new


def _union(starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(starts, kind="stable")
    starts, reach = starts[order], np.maximum.accumulate(ends[order])
    first = np.flatnonzero(np.append(True, starts[1:] >= reach[:-1] + HOLE))
    return starts[first], reach[np.append(first[1:], len(starts)) - 1]
