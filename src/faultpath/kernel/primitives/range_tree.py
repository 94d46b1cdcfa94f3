"""A driver's own tree of ranges that do not overlap: nvidia-uvm's uvm_range_tree.c. It changes as any rbtree does."""

from __future__ import annotations

from faultpath.engine.world import Words
from faultpath.kernel.primitives.itree import LAST, LEFT, RIGHT, START, starting_before
from faultpath.protocol.language import primitive
from faultpath.protocol.struct import IntervalTree


@primitive
def range_tree_find(w: Words, root: IntervalTree, addr: int, steps: int) -> int:
    """uvm_range_tree_find(): the node whose range holds an address, or 0; ``steps`` counts nodes read."""
    read = 0
    node = w[root]
    while node:
        read += 1
        if addr < w[node + START]:
            node = w[node + LEFT]
        elif addr > w[node + LAST]:
            node = w[node + RIGHT]
        else:
            break
    w[steps] += read
    return node


@primitive
def range_tree_hole_start(w: Words, root: IntervalTree, addr: int, start: int, steps: int) -> int:
    """uvm_range_tree_find_hole_in(), ``*start``: where the hole around an address begins, ``start`` if before that.

    ``steps`` counts nodes read; in C the hole's other end is found on the same way down.
    """
    before = starting_before(w, w[root], addr, steps)
    return max(start, w[before + LAST] + 1) if before else start


@primitive
def range_tree_hole_last(w: Words, root: IntervalTree, addr: int, last: int) -> int:
    """uvm_range_tree_find_hole_in(), ``*end``, inclusive."""
    node = w[root]
    while node:
        if addr < w[node + START]:
            last = min(last, w[node + START] - 1)
            node = w[node + LEFT]
        else:
            node = w[node + RIGHT]
    return last
