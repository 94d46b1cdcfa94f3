"""A tree of ranges that do not overlap, against a list of them and the textbook's tree."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import Bench

from faultpath.engine.world import SCRATCH
from oracles.rbtree import Node, Tree

WIDTH = 100


def steps_to(tree: Tree, addr: int) -> int:
    """Nodes between the root and the one that holds an address, or the end of the way to it."""
    steps, here = 0, tree.root
    while here:
        steps += 1
        if here.start <= addr <= here.last:
            break
        here = here.left if addr < here.start else here.right
    return steps


@pytest.mark.parametrize("python", [False, True], ids=["native", "python"])
@settings(deadline=None, max_examples=40, database=None)
@given(seed=st.integers(0, 1 << 32))
def test_what_is_found_and_where_holes_are(python: bool, seed: int) -> None:
    random = Random(seed)
    bench, tree = Bench(python), Tree()
    ranges: dict[tuple[int, int], int] = {}
    for _ in range(12):
        start = random.randrange(WIDTH)
        last = start + random.randrange(8)
        if not any(a <= last and start <= b for a, b in ranges):
            ranges[start, last] = bench.new_node(start, last)
            bench.tree_insert(bench.rig, ranges[start, last])
            tree.insert(Node(start, last))
    for addr in range(-1, WIDTH + 9):
        held = [node for (a, b), node in ranges.items() if a <= addr <= b]
        bench.w[SCRATCH] = 0
        assert bench.range_find(bench.rig, addr) == (held[0] if held else 0)
        assert bench.w[SCRATCH] == steps_to(tree, addr)
        if not held:
            bench.w[SCRATCH] = 0
            before = [b + 1 for _, b in ranges if b < addr]
            after = [a - 1 for a, _ in ranges if a > addr]
            assert bench.hole_start(bench.rig, addr, addr - 5) == max([addr - 5, *before])
            assert bench.w[SCRATCH] == steps_to(tree, addr)
            assert bench.hole_last(bench.rig, addr, addr + 5) == min([addr + 5, *after])
