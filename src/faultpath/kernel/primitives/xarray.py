"""XArray (lib/xarray.c, Linux 6.1): a radix tree of 64-slot nodes, as deep as its highest index needs.

Root words: 0 head (a node, or the entry of index 0 when the height is 0), 1 height in nodes. A load reads ``height``
nodes; nodes that become empty are not freed until the array is dropped, which shortens no later load.
"""

from __future__ import annotations

from faultpath.engine.world import Words
from faultpath.kernel.primitives.heap import take
from faultpath.protocol.language import helper, primitive
from faultpath.protocol.struct import XArray

SHIFT = 6
SLOTS = 1 << SHIFT


@helper
def load(w: Words, xa: int, index: int, steps: int) -> int:
    """The entry at an index, or 0; nodes read add to word ``steps``."""
    height = w[xa + 1]
    node = w[xa]
    if index >> (SHIFT * height):
        return 0
    while height > 0 and node:
        w[steps] += 1
        height -= 1
        node = w[node + 1 + (index >> (SHIFT * height) & (SLOTS - 1))]
    return node


@helper
def store(w: Words, xa: int, index: int, entry: int) -> int:
    """Set the entry at an index, deepening the tree as needed (xas_expand, xas_create)."""
    while index >> (SHIFT * w[xa + 1]):
        if w[xa]:
            node = take(w, (SLOTS + 8) >> 3, 0)
            w[node + 1] = w[xa]
            w[xa] = node
        w[xa + 1] += 1
    link = xa
    height = w[xa + 1]
    while height > 0:
        if w[link] == 0:
            w[link] = take(w, (SLOTS + 8) >> 3, 0)
        height -= 1
        link = w[link] + 1 + (index >> (SHIFT * height) & (SLOTS - 1))
    w[link] = entry
    return 0


@primitive
def xa_load(w: Words, xa: XArray, index: int, steps: int) -> int:
    """The entry at ``index``, or 0."""
    return load(w, xa, index, steps)


@primitive
def xa_cmpxchg(w: Words, xa: XArray, index: int, old: int, new: int, steps: int) -> int:
    """Replace ``old`` by ``new`` at ``index`` if it is there; returns what was there."""
    found = load(w, xa, index, steps)
    if found == old:
        store(w, xa, index, new)
    return found


@primitive
def xa_store(w: Words, xa: XArray, index: int, entry: int) -> int:
    """Set the entry at ``index``; 0 erases it."""
    return store(w, xa, index, entry)


@primitive
def xa_next(w: Words, xa: XArray, index: int) -> int:
    """The lowest index at or above ``index`` that has an entry, or -1 (xa_find)."""
    limit = 1 << (SHIFT * w[xa + 1])
    while index < limit:
        height = w[xa + 1]
        node = w[xa]
        while height > 0 and node:
            height -= 1
            node = w[node + 1 + (index >> (SHIFT * height) & (SLOTS - 1))]
        if node:
            return index
        index = ((index >> (SHIFT * height)) + 1) << (SHIFT * height)
    return -1
