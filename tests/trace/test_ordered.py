"""The ordered table against a sorted list."""

from __future__ import annotations

import random
from bisect import bisect_right, insort

from faultpath.trace import ordered


def row(t: ordered.Table, place: int) -> list[int]:
    return [ordered.get(t, place, word) for word in range(5)]


def walk(t: ordered.Table) -> list[list[int]]:
    found, place = [], ordered.following(t, ordered.NONE)
    while place != ordered.NONE:
        found.append(row(t, place))
        place = ordered.following(t, place)
    return found


def test_it_holds_what_a_sorted_list_holds() -> None:
    for seed in range(30):
        chance = random.Random(seed)
        t, keys = ordered.table(5), []
        growing = 0.9
        for step in range(1500):
            if step % 300 == 0:
                growing = chance.choice([0.1, 0.5, 0.9])
            if ordered.lacks(t, 1):
                t = ordered.grown(t)
            key = chance.randrange(-5, 4000)
            at = bisect_right(keys, key) - 1
            place = ordered.floor(t, key)
            assert (place == ordered.NONE) == (at < 0)
            if at >= 0:
                assert row(t, place) == [keys[at], 7 * keys[at], 0, 0, 0]
            if (at < 0 or keys[at] != key) and chance.random() < growing:
                ordered.put(t, ordered.insert(t, key), 1, 7 * key)
                insort(keys, key)
            elif at >= 0 and chance.random() < 0.5:
                after = ordered.remove(t, place)
                del keys[at]
                assert (after == ordered.NONE) == (at == len(keys))
                if after != ordered.NONE:
                    assert ordered.get(t, after, 0) == keys[at]
            elif at >= 0:
                upper = keys[at + 1] if at + 1 < len(keys) else keys[at] + 9
                keys[at] = chance.randrange(keys[at], upper)
                ordered.put(t, place, 0, keys[at])
                ordered.put(t, place, 1, 7 * keys[at])
        assert walk(t) == [[key, 7 * key, 0, 0, 0] for key in keys] == ordered.rows(t).tolist()


def test_places_run_out_only_when_said() -> None:
    for step in (1, -1, 7919):  # rising, falling, all over the place
        t, key = ordered.table(5), 0
        while not ordered.lacks(t, 1):
            ordered.insert(t, key)
            key = (key + step) % 1_000_003
        assert not ordered.lacks(ordered.grown(t), 1)
        rows = ordered.rows(t)[:, 0]
        assert sorted(rows) == rows.tolist()
