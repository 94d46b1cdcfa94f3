"""hlists and the work queue against Python lists."""

from __future__ import annotations

from random import Random

import pytest
from rig import Bench, Item

NODE = Item.fields["node"].offset


@pytest.mark.parametrize("python", [False, True], ids=["native", "python"])
def test_an_hlist_is_a_list_with_its_newest_first(python: bool) -> None:
    bench, random = Bench(python), Random(2)
    items = [bench.new_item() for _ in range(10)]
    inside: list[int] = []
    for _ in range(200):
        item = random.choice(items)
        if item in inside:
            bench.list_del(item)
            inside.remove(item)
        else:
            bench.list_add(bench.rig, item)
            inside.insert(0, item)
        found, node = [], bench.list_first(bench.rig)
        while node:
            found.append(node - NODE)
            node = bench.list_next(node - NODE)
        assert found == inside


@pytest.mark.parametrize("python", [False, True], ids=["native", "python"])
def test_work_runs_first_in_first_out_and_once_unless_it_is_cancelled(python: bool) -> None:
    bench, random = Bench(python), Random(3)
    items = [bench.new_item() for _ in range(5)]
    queued: list[int] = []
    for _ in range(200):
        if random.random() < 0.6:
            item = random.choice(items)
            assert bench.queue(item, 7) == (item not in queued)
            if item not in queued:
                queued.append(item)
        elif random.random() < 0.3:
            item = random.choice(items)
            assert bench.cancel(item) == (item in queued)
            queued = [other for other in queued if other != item]
        else:
            assert bench.take() == (queued.pop(0) if queued else 0)
