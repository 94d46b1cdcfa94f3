"""Random walks where the checker says that nothing can go wrong: a million steps, and nothing does."""

from __future__ import annotations

from functools import cache

import pytest

from engine.small import ODP, check
from faultpath.engine import arena, search
from faultpath.engine.check import EDGES
from faultpath.engine.native import Native
from faultpath.engine.sanitizer import undo_to
from faultpath.engine.search import nobody_moves, run_thread
from faultpath.engine.thread import PC
from faultpath.engine.world import STATUS, Words
from faultpath.protocol.language import call_native, helper
from faultpath.protocol.native import STOPPED
from faultpath.protocol.program import Program

JOURNAL = EDGES  # what the walk has changed, to begin again
ENDS = (1 << 24) + 2000  # walks that came to an end


@helper(raw=True)
def walk(w: Words, seed: int, steps: int) -> int:
    """Random steps of random threads, from the first state again and again; 0, or the status of a broken rule."""
    top = JOURNAL
    number = 0
    stuck = 0
    everybody = (1 << w[arena.THREADS]) - 1
    while steps > 0:
        seed = seed ^ (seed << 13)
        seed = seed ^ (seed >> 7 & 0x1FFFFFFFFFFFFFF)
        seed = seed ^ (seed << 17)
        if seed >> 8 & 3 == 0 or stuck >> number & 1:
            number = (seed >> 16 & 0xFFFF) % w[arena.THREADS]
        if w[w[arena.RECORD + number] + PC] == -1:
            stuck = stuck | 1 << number
        else:
            result = run_thread(w, number, seed >> 32 & seed >> 40 & 0xFF)
            if result == STOPPED:
                return w[STATUS]
            if result == 1:
                undo_to(w, arena.LOG)
                stuck = stuck | 1 << number
            else:
                stuck = 0
                steps -= 1
                for entry in range(arena.LOG, w[arena.LOG_TOP]):
                    w[top] = w[entry]
                    top += 1
                broken = call_native(w[search.INVARIANTS], w)
                if broken:
                    return broken
        if stuck == everybody:
            if nobody_moves(w, 0):
                return w[STATUS]
            w[ENDS] += 1
            stuck = 0
            while top > JOURNAL:
                top -= 2
                w[w[top]] = w[top + 1]
    return 0


@cache
def walker() -> Native:
    return Native(Program([walk]))


HOLDS = [
    *(
        (design, scenario)
        for design in ("full-va", "nouveau-v6")
        for scenario in ("two-faults-one-page", "exit-vs-fault")
    ),
    ("full-va", "background"),
    ("full-va", "device-cow"),
    ("nouveau-v6", "two-clients-hole"),
    ("nouveau-v6", "oom-vs-munmap"),
    (ODP, "two-clients-hole"),
    (ODP, "oom-vs-fault"),
    (f"{ODP},protection=srcu", "teardown-vs-both"),
    (f"{ODP},protection=srcu", "two-clients"),
]


@pytest.mark.parametrize("reduce", [True, False], ids=["reduced", "full"])
@pytest.mark.parametrize(("design", "scenario"), HOLDS)
def test_a_random_walk_breaks_nothing_and_always_ends(design, scenario, reduce):
    found = check(design, scenario, reduce=reduce)
    found.reset()
    found.w[ENDS] = 0
    assert walker().call_raw(walk, found.w, 88172645463325252, 45_000) == 0
    assert found.w[ENDS] > 30


def test_a_random_walk_finds_what_can_go_wrong():
    found = check("nouveau-v6", "fault-vs-munmap", reduce=False)
    found.reset()
    assert walker().call_raw(walk, found.w, 88172645463325252, 1_000_000) == found.run().status
