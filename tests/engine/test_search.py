"""The search's pieces: fingerprints, the log, the queue, the table, the bound of memory."""

from __future__ import annotations

import random
from functools import cache

import numpy as np
import pytest

from engine.small import ODP, check
from faultpath.engine import arena, search, world
from faultpath.engine.native import Native
from faultpath.engine.thread import PC
from faultpath.protocol.native import STOPPED
from faultpath.protocol.program import Program

CASES = [("full-va", "fault-munmap"), ("nouveau-v6", "fault-close"), (f"{ODP},protection=srcu", "fault-close")]


@cache
def pieces() -> Native:
    return Native(Program([search.undo_hashed, search.search, search.rehash, search.seek]))


def whole(found) -> np.ndarray:
    """Every word of the state."""
    named = [found.w[word] for word in range(64) if arena.is_state(word)]
    return np.concatenate([named, found.w[arena.ARENA : arena.STATE_END]])


def fingerprint(words: np.ndarray) -> int:
    """The sum over all words, from nothing."""
    places = [word for word in range(64) if arena.is_state(word)]
    places = np.concatenate([places, np.arange(arena.ARENA, arena.STATE_END)]).astype(np.uint64)
    with np.errstate(over="ignore"):
        x = words.astype(np.int64).view(np.uint64) + places * np.uint64(-7046029254386353131 % 2**64)
        x = (x ^ (x >> np.uint64(30) & np.uint64(0x3FFFFFFFF))) * np.uint64(-4658895280553007687 % 2**64)
        x = (x ^ (x >> np.uint64(27) & np.uint64(0x1FFFFFFFFF))) * np.uint64(-7723592293110705685 % 2**64)
        return int((x ^ (x >> np.uint64(31) & np.uint64(0x1FFFFFFFF))).sum(dtype=np.uint64))


@pytest.mark.parametrize("reduce", [True, False], ids=["reduced", "full"])
@pytest.mark.parametrize(("design", "scenario"), CASES)
def test_a_step_changes_the_fingerprint_as_it_changes_the_words_and_is_undone_whole(design, scenario, reduce):
    found, draw = check(design, scenario, reduce=reduce), random.Random(7)
    w, call = found.w, pieces().call_raw
    steps, first = 0, fingerprint(whole_first(found))
    while steps < 250:
        found.reset()
        w[search.HASH] = start = fingerprint(whole(found)) - (1 << 63)
        alive = list(range(len(found.threads)))
        while alive:
            number = draw.choice(alive)
            before = whole(found)
            result = found.step(number, draw.getrandbits(4))
            if result == STOPPED:
                break
            after = whole(found)
            hashed = call(search.undo_hashed, w, arena.LOG)
            assert np.array_equal(whole(found), before)
            if result == 1:
                alive.remove(number)
                continue
            steps += 1
            assert (hashed - start) % 2**64 == (fingerprint(after) - first) % 2**64
            put_back(found, after)
            w[search.HASH] = hashed
            alive = [n for n, record in enumerate(found.records) if w[record + PC] != -1]


def put_back(found, words: np.ndarray) -> None:
    """Make a state that was copied the one in the arena."""
    named = [word for word in range(64) if arena.is_state(word)]
    found.w[named] = words[: len(named)]
    found.w[arena.ARENA : arena.STATE_END] = words[len(named) :]


def whole_first(found) -> np.ndarray:
    """The words of the first state."""
    named, words = found.first
    return np.concatenate([[named[word] for word in range(64) if arena.is_state(word)], words])


@pytest.mark.parametrize("reduce", [True, False], ids=["reduced", "full"])
@pytest.mark.parametrize(("design", "scenario"), [("full-va", "close-reclaim"), (CASES[2])])
def test_states_come_out_of_the_queue_as_they_went_in(design, scenario, reduce):
    found = check(design, scenario, reduce=reduce)
    expected = found.run()
    w, states = found.w, []
    real = search.search

    # One state at a time: when it has been expanded, the arena is that state.
    def expand(root, world_, *args):
        if root is not real:
            return native(root, world_, *args)
        before = int(w[search.EXPANDED])
        why = native(root, world_, 1)
        if w[search.EXPANDED] > before:
            states.append(whole(found))
        return why

    searcher = search_functions()
    native = searcher.call_raw
    searcher.call_raw = expand
    try:
        again = found.run()
    finally:
        searcher.call_raw = native
    assert (again.states, again.path) == (expected.states, expected.path)
    states = states[-int(w[search.EXPANDED]) :]
    assert len({state.tobytes() for state in states}) == len(states) == expected.states
    assert np.array_equal(states[0], whole_first(found))
    for number in range(1, len(states)):
        entry = int(w[int(w[search.PARENTS]) + number])
        parent = states[entry >> 16]
        put_back(found, parent)
        assert found.step(entry >> 12 & 15, entry & 0xFFF) != STOPPED
        assert np.array_equal(whole(found), states[number])


def search_functions() -> Native:
    """The checker's own."""
    from faultpath.engine import check as module

    return module._searcher()


def test_a_table_that_grows_forgets_nothing():
    w = world.new_world()
    call = pieces().call_raw
    draw = random.Random(3)
    # Fingerprints that want the same place, and any others.
    prints = [(n << 40 | 5) - (1 << 62) for n in range(1, 200)] + [
        draw.getrandbits(64) - (1 << 63) for _ in range(9000)
    ]
    entries, table = 16, 1 << 25
    w[search.TABLE], w[search.MASK] = table, entries - 1
    numbers: dict[int, int] = {}
    for number, value in enumerate(prints):
        if len(numbers) * 3 > entries * 2:
            table, entries = table + 2 * entries, 2 * entries
            call(search.rehash, w, table, entries - 1)
            for known, at in numbers.items():
                entry = call(search.seek, w, known)
                assert (w[entry], w[entry + 1]) == (known, at)
        entry = call(search.seek, w, value)
        assert w[entry] == 0
        w[entry], w[entry + 1] = value, number
        numbers[value] = number
    assert entries == 1 << 14
    used = w[table : table + 2 * entries : 2]
    assert np.count_nonzero(used) == len(prints)


def test_a_search_that_needs_more_memory_says_so():
    found = check("full-va", "two-clients-hole", reduce=False, memory=1 << 21).run()
    assert (found.verdict, found.bound) == ("bounded", "memory")
    assert found.states > 30_000
    assert found.path == []


@pytest.mark.parametrize("reduce", [True, False], ids=["reduced", "full"])
def test_progress_is_told_and_tables_grow_on_the_way(reduce):
    told = []
    found = check("full-va", "two-first-faults", reduce=reduce)
    verdict = found.run(lambda done, known: told.append((done, known)))
    assert verdict.verdict == "holds"
    assert told == sorted(told)
    if not reduce:
        assert verdict.states > (1 << 17) * 2 // 3  # more than the first table holds, twice


def test_a_queue_that_is_widened_keeps_what_is_in_it():
    w = world.new_world()
    native = Native(Program([search.push, search.pop, search.widen]))
    call = native.call_raw
    w[search.QUEUE], w[search.QUEUE_WORDS] = 1 << 25, 16
    put, taken = 0, []
    for burst in (12, 10, 30, 9):
        while w[search.WRITTEN_AT] - w[search.READ_AT] + burst > w[search.QUEUE_WORDS]:
            call(search.widen, w)
        for _ in range(burst):
            call(search.push, w, put)
            put += 1
        taken += [call(search.pop, w) for _ in range(burst // 2)]
    taken += [call(search.pop, w) for _ in range(put - len(taken))]
    assert taken == list(range(put))
    assert w[search.QUEUE_WORDS] == 64
