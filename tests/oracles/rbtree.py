"""The kernel's interval tree once more, as the textbook has red-black trees: node objects, a sentinel, explicit cases.

lib/rbtree.c makes the choices of Cormen et al.: equal keys go right, a node with two children is replaced by its
successor. So the shapes agree, and with them what a search reads. ``reach`` (subtree_last) is not kept but worked out
from scratch each time, by its definition.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

RED, BLACK = "red", "black"


class Node:
    """An interval ``[start, last]``, last inclusive, that carries some payload."""

    def __init__(self, start: int, last: int, payload: Any = None) -> None:
        self.start = start
        self.last = last
        self.payload = payload
        self.parent: Node = NIL
        self.left: Node = NIL
        self.right: Node = NIL
        self.colour = RED

    def __bool__(self) -> bool:
        return self is not NIL

    def reach(self) -> int:
        """The greatest ``last`` in the subtree."""
        return max([self.last, *(child.reach() for child in (self.left, self.right) if child)])

    def in_order(self) -> Iterator[Node]:
        if self:
            yield from self.left.in_order()
            yield self
            yield from self.right.in_order()


NIL: Node = object.__new__(Node)
NIL.colour = BLACK
NIL.parent = NIL.left = NIL.right = NIL


class Tree:
    """``steps`` counts the nodes read by searches, as faultpath.kernel.primitives.itree defines reading."""

    def __init__(self) -> None:
        self.root = NIL
        self.steps = 0

    def __iter__(self) -> Iterator[Node]:
        return self.root.in_order()

    def leftmost(self) -> Node:
        node = self.root
        while node.left:
            node = node.left
        return node

    # --- shape

    def replace(self, old: Node, new: Node) -> None:
        """Let ``old``'s parent point to ``new``."""
        if not old.parent:
            self.root = new
        elif old is old.parent.left:
            old.parent.left = new
        else:
            old.parent.right = new
        new.parent = old.parent  # the sentinel's too: deletion relies on it

    def rotate_left(self, x: Node) -> None:
        y = x.right
        x.right = y.left
        if y.left:
            y.left.parent = x
        self.replace(x, y)
        y.left = x
        x.parent = y

    def rotate_right(self, x: Node) -> None:
        y = x.left
        x.left = y.right
        if y.right:
            y.right.parent = x
        self.replace(x, y)
        y.right = x
        x.parent = y

    def insert(self, node: Node) -> None:
        parent, here = NIL, self.root
        while here:
            parent = here
            here = here.left if node.start < here.start else here.right
        node.parent, node.left, node.right, node.colour = parent, NIL, NIL, RED
        if not parent:
            self.root = node
        elif node.start < parent.start:
            parent.left = node
        else:
            parent.right = node
        while node.parent.colour == RED:
            grandparent = node.parent.parent
            if node.parent is grandparent.left:
                uncle = grandparent.right
                if uncle.colour == RED:
                    node.parent.colour = uncle.colour = BLACK
                    grandparent.colour = RED
                    node = grandparent
                    continue
                if node is node.parent.right:
                    node = node.parent
                    self.rotate_left(node)
                node.parent.colour = BLACK
                grandparent.colour = RED
                self.rotate_right(grandparent)
            else:
                uncle = grandparent.left
                if uncle.colour == RED:
                    node.parent.colour = uncle.colour = BLACK
                    grandparent.colour = RED
                    node = grandparent
                    continue
                if node is node.parent.left:
                    node = node.parent
                    self.rotate_right(node)
                node.parent.colour = BLACK
                grandparent.colour = RED
                self.rotate_left(grandparent)
        self.root.colour = BLACK
        NIL.parent = NIL

    def remove(self, node: Node) -> None:
        assert any(node is n for n in self), "not in this tree"
        removed_colour = node.colour
        if not node.left:
            hole = node.right
            self.replace(node, node.right)
        elif not node.right:
            hole = node.left
            self.replace(node, node.left)
        else:
            successor = node.right
            while successor.left:
                successor = successor.left
            removed_colour = successor.colour
            hole = successor.right
            if successor.parent is node:
                hole.parent = successor
            else:
                self.replace(successor, successor.right)
                successor.right = node.right
                successor.right.parent = successor
            self.replace(node, successor)
            successor.left = node.left
            successor.left.parent = successor
            successor.colour = node.colour
        if removed_colour == BLACK:
            self.repair(hole)
        node.parent = node.left = node.right = NIL
        NIL.parent = NIL

    def repair(self, x: Node) -> None:
        """``x`` stands for one black node too few."""
        while x is not self.root and x.colour == BLACK:
            if x is x.parent.left:
                sibling = x.parent.right
                if sibling.colour == RED:
                    sibling.colour, x.parent.colour = BLACK, RED
                    self.rotate_left(x.parent)
                    sibling = x.parent.right
                if sibling.left.colour == BLACK and sibling.right.colour == BLACK:
                    sibling.colour = RED
                    x = x.parent
                    continue
                if sibling.right.colour == BLACK:
                    sibling.left.colour, sibling.colour = BLACK, RED
                    self.rotate_right(sibling)
                    sibling = x.parent.right
                sibling.colour, x.parent.colour, sibling.right.colour = x.parent.colour, BLACK, BLACK
                self.rotate_left(x.parent)
            else:
                sibling = x.parent.left
                if sibling.colour == RED:
                    sibling.colour, x.parent.colour = BLACK, RED
                    self.rotate_right(x.parent)
                    sibling = x.parent.left
                if sibling.left.colour == BLACK and sibling.right.colour == BLACK:
                    sibling.colour = RED
                    x = x.parent
                    continue
                if sibling.left.colour == BLACK:
                    sibling.right.colour, sibling.colour = BLACK, RED
                    self.rotate_left(sibling)
                    sibling = x.parent.left
                sibling.colour, x.parent.colour, sibling.left.colour = x.parent.colour, BLACK, BLACK
                self.rotate_right(x.parent)
            x = self.root
        x.colour = BLACK
        NIL.colour = BLACK

    # --- searches; each node that is dereferenced is a step

    def first(self, start: int, last: int) -> Node:
        """The first node in order that meets ``[start, last]``."""
        if not self.root:
            return NIL
        self.steps += 1
        if self.root.reach() < start:
            return NIL
        if self.leftmost() is not self.root:
            self.steps += 1
        if self.leftmost().start > last:
            return NIL
        return self.search(self.root, start, last)

    def search(self, node: Node, start: int, last: int) -> Node:
        if node.left:
            self.steps += 1
            if node.left.reach() >= start:
                return self.search(node.left, start, last)
        if node.start > last:
            return NIL
        if node.last >= start:
            return node
        if node.right:
            self.steps += 1
            if node.right.reach() >= start:
                return self.search(node.right, start, last)
        return NIL

    def next(self, node: Node, start: int, last: int) -> Node:
        """The next node in order after ``node`` that meets ``[start, last]``."""
        if node.right:
            self.steps += 1
            if node.right.reach() >= start:
                return self.search(node.right, start, last)
        while True:
            came_from, node = node, node.parent
            if not node:
                return NIL
            self.steps += 1
            if came_from is node.left:
                break
        if node.start > last:
            return NIL
        if node.last >= start:
            return node
        return self.next(node, start, last)

    def overlapping(self, start: int, last: int) -> list[Node]:
        """Every node that meets ``[start, last]``, found the plain way: what first and next must agree with."""
        return [n for n in self if n.start <= last and start <= n.last]
