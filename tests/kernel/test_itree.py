"""The interval tree against a textbook red-black tree: the same shape, the same nodes read."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import Bench, Rig

from faultpath.engine.world import SCRATCH, TREE, Stop
from oracles.rbtree import BLACK, RED, Node, Tree

PARENT, LEFT, RIGHT, START, LAST, REACH = range(1, 7)
TREE_FIELD = Rig.fields["tree"].offset


class Both:
    """A tree in the world and one of objects, kept in step."""

    def __init__(self, python: bool) -> None:
        self.bench = Bench(python)
        self.tree = Tree()
        self.address: dict[Node, int] = {}

    def insert(self, start: int, last: int) -> Node:
        node = Node(start, last)
        self.address[node] = self.bench.new_node(start, last)
        self.tree.insert(node)
        self.bench.tree_insert(self.bench.rig, self.address[node])
        return node

    def remove(self, node: Node) -> None:
        self.tree.remove(node)
        self.bench.tree_remove(self.bench.rig, self.address[node])
        assert self.bench.tree_outside(self.address[node]) == 1

    def same_shape(self) -> None:
        """Every word of every node is what the objects say; the objects obey the red-black rules."""
        w = self.bench.w
        address = lambda node: self.address[node] if node else 0  # noqa: E731
        root = self.bench.rig + TREE_FIELD
        assert w[root] == address(self.tree.root)
        assert w[root + 1] == address(self.tree.leftmost())
        starts = []
        for node in self.tree:
            at = self.address[node]
            starts.append(node.start)
            assert w[at + PARENT] == address(node.parent) << 1 | (node.colour == BLACK)
            assert (w[at + LEFT], w[at + RIGHT]) == (address(node.left), address(node.right))
            assert (w[at + START], w[at + LAST], w[at + REACH]) == (node.start, node.last, node.reach())
            assert not (node.colour == RED and RED in (node.left.colour, node.right.colour, node.parent.colour))
        assert starts == sorted(starts)
        black_depth(self.tree.root)

    def same_search(self, start: int, last: int) -> None:
        """first and next find what meets the range, in order, and read the same nodes on the way."""
        expected = self.tree.overlapping(start, last)
        self.tree.steps = 0
        self.bench.w[SCRATCH] = 0
        node = self.tree.first(start, last)
        at = self.bench.tree_first(self.bench.rig, start, last)
        for want in expected:
            assert node is want
            assert at == self.address[want]
            assert self.bench.w[SCRATCH] == self.tree.steps
            node = self.tree.next(node, start, last)
            at = self.bench.tree_next(at, start, last)
        assert not node
        assert at == 0
        assert self.bench.w[SCRATCH] == self.tree.steps

    def same_backwards(self, last: int) -> None:
        """last and prev find whatever starts at or before a point, in reverse order."""
        at = self.bench.tree_last(self.bench.rig, last)
        for want in [node for node in self.tree if node.start <= last][::-1]:
            assert at == self.address[want]
            at = self.bench.tree_prev(at)
        assert at == 0


def black_depth(node: Node) -> int:
    """The number of black nodes on the way down, the same for every way."""
    if not node:
        return 0
    left, right = black_depth(node.left), black_depth(node.right)
    assert left == right
    return left + (node.colour == BLACK)


@pytest.mark.parametrize("python", [False, True], ids=["native", "python"])
@settings(deadline=None, max_examples=40, database=None)
@given(seed=st.integers(0, 1 << 32), width=st.sampled_from([3, 20, 1000]), grow=st.floats(0.4, 0.9))
def test_shape_and_steps_are_the_kernels(python: bool, seed: int, width: int, grow: float) -> None:
    random = Random(seed)
    both = Both(python)
    nodes: list[Node] = []
    for _ in range(random.randint(1, 70)):
        if not nodes or random.random() < grow:
            start = random.randint(0, width)  # narrow widths give equal starts
            nodes.append(both.insert(start, start + random.choice([0, 1, width // 4, width])))
        else:
            both.remove(nodes.pop(random.randrange(len(nodes))))
        both.same_shape()
        start = random.randint(-1, width)
        both.same_search(start, start + random.randint(0, width // 2))
        both.same_backwards(start)
    while nodes:
        both.remove(nodes.pop(random.randrange(len(nodes))))
        both.same_shape()


def test_equal_starts_keep_the_order_of_insertion() -> None:
    both = Both(python=False)
    nodes = [both.insert(5, 5 + i) for i in range(9)]
    assert list(both.tree) == nodes
    at, found = both.bench.tree_first(both.bench.rig, 5, 5), []
    while at:
        found.append(at)
        at = both.bench.tree_next(at, 5, 5)
    assert found == [both.address[n] for n in nodes]


def test_an_empty_tree_is_searched_for_free() -> None:
    bench = Bench()
    bench.w[SCRATCH] = 0
    assert bench.tree_first(bench.rig, 0, 100) == 0
    assert bench.w[SCRATCH] == 0


def test_what_is_in_no_tree_cannot_be_removed() -> None:
    both = Both(python=False)
    node = both.insert(1, 2)
    both.remove(node)
    with pytest.raises(Stop):
        both.bench.tree_remove(both.bench.rig, both.address[node])
    assert both.bench.status == TREE
    assert both.bench.w[2] == both.address[node]
