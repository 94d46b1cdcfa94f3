"""The kernel's interval tree: an augmented red-black tree of ``[start, last]``, last inclusive.

The algorithms are those of lib/rbtree.c and include/linux/interval_tree_generic.h (Linux 6.1), so that a tree has the
kernel's shape and a search reads the kernel's nodes: a node counts as read when the search dereferences it, children
looked at for their ``subtree_last`` and the leftmost node included.

Words of a node (every structure kept in a tree begins with them): 1 parent << 1 | black, 2 left, 3 right, 4 start,
5 last, 6 greatest last in the subtree. A node outside any tree has its own address as parent (RB_CLEAR_NODE).
Words of a root: 0 root node, 1 leftmost node.
"""

from __future__ import annotations

from faultpath.engine.world import STATUS, STATUS_ARG, TREE, Stop, Words
from faultpath.kernel.primitives.debug import tree_changes, tree_insert_valid
from faultpath.protocol.language import helper, primitive
from faultpath.protocol.struct import IntervalTree

PARENT, LEFT, RIGHT, START, LAST, SUBTREE_LAST = 1, 2, 3, 4, 5, 6


@helper
def parent_of(w: Words, node: int) -> int:
    """The parent, or 0."""
    return w[node + PARENT] >> 1


@helper
def is_red(w: Words, node: int) -> int:
    """Whether a node that exists is red."""
    return w[node + PARENT] & 1 == 0


@helper
def set_parent(w: Words, node: int, parent: int) -> int:
    """Change the parent, keep the colour."""
    w[node + PARENT] = parent << 1 | w[node + PARENT] & 1
    return 0


@helper
def set_parent_color(w: Words, node: int, parent: int, black: int) -> int:
    """Change parent and colour."""
    w[node + PARENT] = parent << 1 | black
    return 0


@helper
def greatest_last(w: Words, node: int) -> int:
    """What ``subtree_last`` must be."""
    greatest = w[node + LAST]
    if w[node + LEFT]:
        greatest = max(greatest, w[w[node + LEFT] + SUBTREE_LAST])
    if w[node + RIGHT]:
        greatest = max(greatest, w[w[node + RIGHT] + SUBTREE_LAST])
    return greatest


@helper
def propagate(w: Words, node: int, stop: int) -> int:
    """Recompute ``subtree_last`` upwards until it is right already, or until ``stop``."""
    while node != stop:
        greatest = greatest_last(w, node)
        if w[node + SUBTREE_LAST] == greatest:
            break
        w[node + SUBTREE_LAST] = greatest
        node = parent_of(w, node)
    return 0


@helper
def change_child(w: Words, old: int, new: int, parent: int, root: int) -> int:
    """Make ``parent`` (or the root) point to ``new`` where it pointed to ``old``."""
    if parent:
        if w[parent + LEFT] == old:
            w[parent + LEFT] = new
        else:
            w[parent + RIGHT] = new
    else:
        w[root] = new
    return 0


@helper
def rotated(w: Words, old: int, new: int, root: int, black: int) -> int:
    """Finish a rotation that put ``new`` in ``old``'s place: parent, colours, ``subtree_last``."""
    parent = parent_of(w, old)
    w[new + PARENT] = w[old + PARENT]
    set_parent_color(w, old, new, black)
    change_child(w, old, new, parent, root)
    return 0


@helper
def carry_up(w: Words, old: int, new: int) -> int:
    """After a rotation ``new`` covers what ``old`` covered; ``old`` is recomputed."""
    w[new + SUBTREE_LAST] = w[old + SUBTREE_LAST]
    w[old + SUBTREE_LAST] = greatest_last(w, old)
    return 0


@helper
def insert_color(w: Words, node: int, root: int) -> int:
    """Restore the red-black rules after a red node was linked in (__rb_insert)."""
    parent = parent_of(w, node)
    while True:
        if parent == 0:
            set_parent_color(w, node, 0, 1)
            break
        if not is_red(w, parent):
            break
        gparent = parent_of(w, parent)
        near = RIGHT if parent == w[gparent + LEFT] else LEFT  # the uncle's side
        far = LEFT + RIGHT - near
        uncle = w[gparent + near]
        if uncle and is_red(w, uncle):
            set_parent_color(w, uncle, gparent, 1)
            set_parent_color(w, parent, gparent, 1)
            node = gparent
            parent = parent_of(w, node)
            set_parent_color(w, node, parent, 0)
            continue
        inner = w[parent + near]
        if node == inner:
            inner = w[node + far]
            w[parent + near] = inner
            w[node + far] = parent
            if inner:
                set_parent_color(w, inner, parent, 1)
            set_parent_color(w, parent, node, 0)
            carry_up(w, parent, node)
            parent = node
            inner = w[node + near]
        w[gparent + far] = inner
        w[parent + near] = gparent
        if inner:
            set_parent_color(w, inner, gparent, 1)
        rotated(w, gparent, parent, root, 0)
        carry_up(w, gparent, parent)
        break
    return 0


@primitive
def itree_insert(w: Words, root: IntervalTree, node: int) -> int:
    """interval_tree_insert(): the node's START and LAST are set already. Equal starts go to the right."""
    tree_changes(w, root)
    tree_insert_valid(w, node)
    start = w[node + START]
    last = w[node + LAST]
    link = root
    parent = 0
    leftmost = True
    while w[link]:
        parent = w[link]
        if w[parent + SUBTREE_LAST] < last:
            w[parent + SUBTREE_LAST] = last
        if start < w[parent + START]:
            link = parent + LEFT
        else:
            link = parent + RIGHT
            leftmost = False
    w[node + SUBTREE_LAST] = last
    w[node + LEFT] = 0
    w[node + RIGHT] = 0
    w[node + PARENT] = parent << 1
    w[link] = node
    if leftmost:
        w[root + 1] = node
    return insert_color(w, node, root)


@helper
def erase_color(w: Words, parent: int, root: int) -> int:
    """Restore the red-black rules after a black node below ``parent`` went away (____rb_erase_color)."""
    node = 0
    while True:
        near = RIGHT if node != w[parent + RIGHT] else LEFT  # the sibling's side
        far = LEFT + RIGHT - near
        sibling = w[parent + near]
        if is_red(w, sibling):
            inner = w[sibling + far]
            w[parent + near] = inner
            w[sibling + far] = parent
            set_parent_color(w, inner, parent, 1)
            rotated(w, parent, sibling, root, 0)
            carry_up(w, parent, sibling)
            sibling = inner
        outer = w[sibling + near]
        if outer == 0 or not is_red(w, outer):
            inner = w[sibling + far]
            if inner == 0 or not is_red(w, inner):
                set_parent_color(w, sibling, parent, 0)
                if is_red(w, parent):
                    w[parent + PARENT] |= 1
                else:
                    node = parent
                    parent = parent_of(w, node)
                    if parent:
                        continue
                break
            beyond = w[inner + near]
            w[sibling + far] = beyond
            w[inner + near] = sibling
            w[parent + near] = inner
            if beyond:
                set_parent_color(w, beyond, sibling, 1)
            carry_up(w, sibling, inner)
            outer = sibling
            sibling = inner
        inner = w[sibling + far]
        w[parent + near] = inner
        w[sibling + far] = parent
        set_parent_color(w, outer, sibling, 1)
        if inner:
            set_parent(w, inner, parent)
        rotated(w, parent, sibling, root, 1)
        carry_up(w, parent, sibling)
        break
    return 0


@helper
def leftmost_after(w: Words, node: int) -> int:
    """The next node in order (rb_next) of the leftmost one."""
    if w[node + RIGHT]:
        node = w[node + RIGHT]
        while w[node + LEFT]:
            node = w[node + LEFT]
        return node
    return parent_of(w, node)


@primitive
def itree_remove(w: Words, root: IntervalTree, node: int) -> int:
    """interval_tree_remove(): unlink and rebalance (__rb_erase_augmented); the node stays marked as outside a tree."""
    tree_changes(w, root)
    if itree_is_empty_node(w, node):
        w[STATUS] = TREE
        w[STATUS_ARG] = node
        raise Stop
    if w[root + 1] == node:
        w[root + 1] = leftmost_after(w, node)
    child = w[node + RIGHT]
    left = w[node + LEFT]
    rebalance = 0
    if left == 0 or child == 0:
        only = child if left == 0 else left
        parent_color = w[node + PARENT]
        parent = parent_color >> 1
        change_child(w, node, only, parent, root)
        if only:
            w[only + PARENT] = parent_color
        elif parent_color & 1:
            rebalance = parent
        stop_at = parent
    else:
        successor = child
        if w[child + LEFT] == 0:
            parent = successor
            orphan = w[successor + RIGHT]
            w[successor + SUBTREE_LAST] = w[node + SUBTREE_LAST]
        else:
            parent = successor
            while w[successor + LEFT]:
                parent = successor
                successor = w[successor + LEFT]
            orphan = w[successor + RIGHT]
            w[parent + LEFT] = orphan
            w[successor + RIGHT] = child
            set_parent(w, child, successor)
            w[successor + SUBTREE_LAST] = w[node + SUBTREE_LAST]
            propagate(w, parent, successor)
        w[successor + LEFT] = left
        set_parent(w, left, successor)
        change_child(w, node, successor, parent_of(w, node), root)
        if orphan:
            w[successor + PARENT] = w[node + PARENT]
            set_parent_color(w, orphan, parent, 1)
        else:
            was_black = w[successor + PARENT] & 1
            w[successor + PARENT] = w[node + PARENT]
            rebalance = parent if was_black else 0
        stop_at = successor
    if stop_at:
        propagate(w, stop_at, 0)
    if rebalance:
        erase_color(w, rebalance, root)
    w[node + PARENT] = node << 1
    return 0


@helper
def itree_is_empty_node(w: Words, node: int) -> int:
    """RB_EMPTY_NODE()."""
    return w[node + PARENT] == node << 1


@primitive
def rb_clear_node(w: Words, node: int) -> int:
    """RB_CLEAR_NODE(): mark a node as outside any tree."""
    w[node + PARENT] = node << 1
    return 0


@primitive
def rb_empty_node(w: Words, node: int) -> int:
    """RB_EMPTY_NODE(): 1 if the node is outside any tree."""
    return 1 if itree_is_empty_node(w, node) else 0


@helper
def subtree_search(w: Words, node: int, start: int, last: int, steps: int) -> int:
    """Leftmost node of the subtree that meets ``[start, last]``, or 0; the subtree reaches ``start``."""
    read = 0
    while True:
        left = w[node + LEFT]
        if left:
            read += 1
            if start <= w[left + SUBTREE_LAST]:
                node = left
                continue
        if w[node + START] <= last:
            if start <= w[node + LAST]:
                break
            node = w[node + RIGHT]
            if node:
                read += 1
                if start <= w[node + SUBTREE_LAST]:
                    continue
        node = 0
        break
    w[steps] += read
    return node


@primitive
def itree_first(w: Words, root: IntervalTree, start: int, last: int, steps: int) -> int:
    """interval_tree_iter_first(): leftmost node that meets ``[start, last]``, or 0; ``steps`` counts nodes read."""
    node = w[root]
    if node == 0:
        return 0
    w[steps] += 1
    if w[node + SUBTREE_LAST] < start:
        return 0
    leftmost = w[root + 1]
    if leftmost != node:
        w[steps] += 1
    if w[leftmost + START] > last:
        return 0
    return subtree_search(w, node, start, last, steps)


@primitive
def itree_next(w: Words, node: int, start: int, last: int, steps: int) -> int:
    """interval_tree_iter_next(): the next node in order of start that meets ``[start, last]``, or 0."""
    right = w[node + RIGHT]
    while True:
        if right:
            w[steps] += 1
            if start <= w[right + SUBTREE_LAST]:
                return subtree_search(w, right, start, last, steps)
        while True:
            came_from = node
            node = parent_of(w, node)
            if node == 0:
                return 0
            w[steps] += 1
            right = w[node + RIGHT]
            if came_from != right:
                break
        if last < w[node + START]:
            return 0
        if start <= w[node + LAST]:
            return node


@helper
def starting_before(w: Words, node: int, last: int, steps: int) -> int:
    """The last node of the subtree that starts at or before ``last``, or 0: a walk down by start."""
    found = 0
    read = 0
    while node:
        read += 1
        if w[node + START] <= last:
            found = node
            node = w[node + RIGHT]
        else:
            node = w[node + LEFT]
    w[steps] += read
    return found


@primitive
def itree_last(w: Words, root: IntervalTree, last: int, steps: int) -> int:
    """The last node in order that starts at or before ``last``, or 0. The kernel has no such."""
    return starting_before(w, w[root], last, steps)


@primitive
def itree_prev(w: Words, node: int, steps: int) -> int:
    """rb_prev(): the node before this one in order, or 0."""
    read = 0
    before = w[node + LEFT]
    if before:
        read += 1
        while w[before + RIGHT]:
            before = w[before + RIGHT]
            read += 1
    else:
        before = parent_of(w, node)
        while before and w[before + LEFT] == node:
            read += 1
            node = before
            before = parent_of(w, node)
        if before:
            read += 1
    w[steps] += read
    return before
