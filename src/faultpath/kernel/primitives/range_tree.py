"""A driver's own tree of ranges that do not overlap: nvidia-uvm's uvm_range_tree.c. It changes as any rbtree does."""

from __future__ import annotations

from faultpath.engine.world import Words
from faultpath.kernel.primitives.itree import LAST, LEFT, RIGHT, START
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
