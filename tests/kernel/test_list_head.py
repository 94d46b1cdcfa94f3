"""struct list_head against Python lists."""

from __future__ import annotations

from random import Random

import pytest
from rig import Bench, Item

LINK = Item.fields["link"].offset

BACK_ENDS = pytest.mark.parametrize("python", [False, True], ids=["native", "python"])


def inside(bench: Bench) -> list[int]:
    found, node = [], bench.ring_first(bench.rig)
    while node:
        found.append(node - LINK)
        node = bench.ring_next(bench.rig, node - LINK)
    return found


@BACK_ENDS
def test_a_list_has_its_oldest_first(python: bool) -> None:
    bench, random = Bench(python), Random(2)
    items = [bench.new_item() for _ in range(6)]
    expected: list[int] = []
    for _ in range(200):
        item = random.choice(items)
        assert bench.ring_alone(item) == (item not in expected)
        if item in expected:
            bench.ring_del(item)
            expected.remove(item)
        else:
            bench.ring_add(bench.rig, item)
            expected.append(item)
        assert inside(bench) == expected
        assert bench.ring_empty(bench.rig) == (not expected)


@BACK_ENDS
def test_taking_out_what_is_in_no_list_changes_nothing(python: bool) -> None:
    bench = Bench(python)
    first, second = bench.new_item(), bench.new_item()
    bench.ring_add(bench.rig, first)
    bench.ring_del(second)
    assert inside(bench) == [first]


@BACK_ENDS
def test_who_stands_at_a_node_that_is_taken_out_stays_there(python: bool) -> None:
    """list_del_init() makes it point to itself: an endless loop in C, for who goes over the list without the lock."""
    bench = Bench(python)
    first, second = bench.new_item(), bench.new_item()
    bench.ring_add(bench.rig, first)
    bench.ring_add(bench.rig, second)
    bench.ring_del(first)
    assert bench.ring_next(bench.rig, first) == first + LINK


@BACK_ENDS
def test_what_list_del_has_taken_out_does_not_look_so_until_it_is_added_again(python: bool) -> None:
    bench = Bench(python)
    items = [bench.new_item() for _ in range(3)]
    for item in items:
        bench.ring_add(bench.rig, item)
    bench.ring_poison(items[1])
    assert inside(bench) == [items[0], items[2]]
    assert not bench.ring_alone(items[1])
    bench.ring_add(bench.rig, items[1])
    assert inside(bench) == [items[0], items[2], items[1]]
    for item in items:
        bench.ring_poison(item)
    assert bench.ring_empty(bench.rig)
