"""From a trace to what a replay runs: the rows of one address space, in the order in which they took effect.

A recorded page fault is stamped at its entry, before the invalidation that it may itself raise (copy-on-write break):
the row is moved behind that invalidation, for the page is in only then.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from faultpath.trace.ops import Op

Column = NDArray[np.int64]

@dataclass
class Rows:
    """Columns of equal length: operation, address, bytes, and the two arguments (see Op)."""

    ops: Column
    addrs: Column
    sizes: Column
    args: Column
    auxs: Column

    def __len__(self) -> int:
        return self.ops.size

    def part(self, first: int, end: int) -> Rows:
        """Rows ``[first, end)``, as views."""
        return Rows(*(column[first:end] for column in (self.ops, self.addrs, self.sizes, self.args, self.auxs)))

    def write(self, table: NDArray[np.int64]) -> None:
        """Store into Row structures: one table row each, its header word left alone."""
        for i, column in enumerate((self.ops, self.addrs, self.sizes, self.args, self.auxs), start=1):
            table[:, i] = column


def order(ops: Column, tids: Column, addrs: Column, sizes: Column, auxs: Column) -> Column:
    """The order in which rows take effect, as indices.

    Each fault moves behind the invalidation that is the next row of its thread, if that was raised in no system call
    and covers the faulting address.
    """
    n = ops.size
    position = np.arange(n, dtype=np.int64) * 2
    by_thread = np.argsort(tids, kind="stable")
    first, second = by_thread[:-1], by_thread[1:]
    raised = (
        (tids[first] == tids[second])
        & (ops[first] == Op.FAULT)
        & (ops[second] == Op.INVALIDATE)
        & (auxs[second] == Op.FAULT)
        & (addrs[second] <= addrs[first])
        & (addrs[first] < addrs[second] + sizes[second])
    )
    position[first[raised]] = position[second[raised]] + 1
    return np.argsort(position, kind="stable")
