"""XArray (lib/xarray.c, Linux 6.1): a radix tree of 64-slot nodes, as deep as its highest index needs.

Root words: 0 head (a node, or the entry of index 0 when the height is 0), 1 height in nodes. Node words: header, 64
slots, number of slots in use. A load reads the nodes on its way. A node whose last entry goes is freed
(xas_delete_node), and a head of which only slot 0 is in use gives way to it (xas_shrink).
"""

from __future__ import annotations

from faultpath.engine.world import SCRATCH, Words
from faultpath.kernel.primitives.debug import table_alive, table_changes
from faultpath.kernel.primitives.heap import give_back, take
from faultpath.protocol.language import helper, primitive
from faultpath.protocol.struct import XArray

SHIFT = 6
SLOTS = 1 << SHIFT
USED = 1 + SLOTS
NODE_CLASS = (USED + 8) >> 3


@helper
def load(w: Words, xa: int, index: int, steps: int) -> int:
    """The entry at an index, or 0; nodes read add to word ``steps``."""
    table_alive(w, xa)
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
def set_slot(w: Words, node: int, slot: int, entry: int) -> int:
    """Store into a node's slot and keep its count of slots in use."""
    w[node + USED] += (1 if entry else 0) - (1 if w[node + 1 + slot] else 0)
    w[node + 1 + slot] = entry
    return 0


@helper
def expand(w: Words, xa: int, index: int) -> int:
    """Deepen the tree until it reaches an index (xas_expand)."""
    while index >> (SHIFT * w[xa + 1]):
        if w[xa]:
            node = take(w, NODE_CLASS, 0, 0)
            set_slot(w, node, 0, w[xa])
            w[xa] = node
        w[xa + 1] += 1
    return 0


@helper
def store(w: Words, xa: int, index: int, entry: int) -> int:
    """Set the entry at an index; nodes are made on the way (xas_create)."""
    table_changes(w, xa)
    expand(w, xa, index)
    height = w[xa + 1]
    if height == 0:
        w[xa] = entry
        return 0
    if w[xa] == 0:
        w[xa] = take(w, NODE_CLASS, 0, 0)
    node = w[xa]
    while height > 1:
        height -= 1
        slot = index >> (SHIFT * height) & (SLOTS - 1)
        if w[node + 1 + slot] == 0:
            set_slot(w, node, slot, take(w, NODE_CLASS, 0, 0))
        node = w[node + 1 + slot]
    return set_slot(w, node, index & (SLOTS - 1), entry)


@helper
def prune(w: Words, link: int, height: int, index: int) -> int:
    """Free the nodes on the way to an index that hold nothing any more, lowest first; 1 if ``link``'s went."""
    node = w[link]
    if height == 0 or node == 0:
        return 0
    slot = index >> (SHIFT * (height - 1)) & (SLOTS - 1)
    if height > 1 and prune(w, node + 1 + slot, height - 1, index):
        w[node + USED] -= 1
    if w[node + USED]:
        return 0
    give_back(w, node)
    w[link] = 0
    return 1


@helper
def shrink(w: Words, xa: int) -> int:
    """Let go of heads of which only slot 0 is in use."""
    if w[xa] == 0:
        w[xa + 1] = 0
    while w[xa + 1] and w[w[xa] + USED] == 1 and w[w[xa] + 1]:
        head = w[xa]
        w[xa] = w[head + 1]
        w[xa + 1] -= 1
        give_back(w, head)
    return 0


@helper
def erase(w: Words, xa: int, index: int) -> int:
    """Remove the entry at an index, and the nodes that then hold nothing."""
    if load(w, xa, index, SCRATCH) == 0:
        return 0
    store(w, xa, index, 0)
    prune(w, xa, w[xa + 1], index)
    return shrink(w, xa)


@helper
def free_nodes(w: Words, node: int, height: int) -> int:
    """Free a node and those below it."""
    if height > 1:
        for slot in range(SLOTS):
            if w[node + 1 + slot]:
                free_nodes(w, w[node + 1 + slot], height - 1)
    return give_back(w, node)


@helper
def replace(w: Words, xa: int, index: int, entry: int) -> int:
    """Store an entry, or erase with 0."""
    return store(w, xa, index, entry) if entry else erase(w, xa, index)


@primitive
def xa_load(w: Words, xa: XArray, index: int, steps: int) -> int:
    """The entry at ``index``, or 0."""
    return load(w, xa, index, steps)


@primitive
def xa_cmpxchg(w: Words, xa: XArray, index: int, old: int, new: int, steps: int) -> int:
    """Replace ``old`` by ``new`` at ``index`` if it is there; returns what was there."""
    found = load(w, xa, index, steps)
    if found == old:
        replace(w, xa, index, new)
    return found


@primitive
def xa_store(w: Words, xa: XArray, index: int, entry: int) -> int:
    """Set the entry at ``index``; 0 erases it."""
    return replace(w, xa, index, entry)


@primitive
def xa_erase(w: Words, xa: XArray, index: int) -> int:
    """Remove the entry at ``index``; returns what was there."""
    found = load(w, xa, index, SCRATCH)
    erase(w, xa, index)
    return found


@primitive
def xa_destroy(w: Words, xa: XArray) -> int:
    """Forget every entry and free the nodes."""
    if w[xa] and w[xa + 1]:
        free_nodes(w, w[xa], w[xa + 1])
    w[xa] = 0
    w[xa + 1] = 0
    return 0


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
