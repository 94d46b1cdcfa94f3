"""Steps taken together hide nothing: random programs, explored with and without the reduction."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.tape import PER_WORD, explore

WORDS = ["r=x", "r=y", "r=z", "x=r", "y=r", "z=r", "r+=1", "r=0", "inc", "dec", "r=atomic"]
OBJECTS = ["publish", "hide", "get", "set", "publish other", "store"]
OTHER_OBJECTS = ["new", "new atomic", "find", "find other", "push", "follow", "drop", "first", "load"]
RARE = ["wait x", "wait atomic", "wait both", "free", "add", "delete", "erase", "synchronize", "time", "ref", "unref"]
LOCKS = [("lock", "unlock"), ("lock second", "unlock second"), ("spin", "unspin"), ("read", "unread"),
         ("write", "unwrite"), ("srcu", "unsrcu"), ("lock it", "unlock it")]  # fmt: skip
TRIES = [("trylock", "unlock"), ("trylock second", "unlock second"), ("tryread", "unread"), ("trylock it", "unlock it")]


def one(*names: list[str]) -> st.SearchStrategy[list[str]]:
    return st.sampled_from([name for group in names for name in group]).map(lambda op: [op])


def joined(parts: list[list[str]]) -> list[str]:
    return [op for part in parts for op in part]


conditional = st.tuples(
    st.sampled_from(["skip if r", "skip unless r"]),
    st.sampled_from(["seen 0", "seen 1", "seen 2", "seen 3", "r+=1", "x=r"]),
).map(list)
kept = st.one_of(one(WORDS), one(WORDS), one(OBJECTS), conditional)  # the object at hand stays the same
free = st.one_of(kept, kept, one(OTHER_OBJECTS), one(OTHER_OBJECTS, RARE))


@st.composite
def section(draw: st.DrawFn) -> list[str]:
    """Something under a lock, or under two."""
    first, last = draw(st.sampled_from(LOCKS))
    inner = joined(draw(st.lists(kept if first == "lock it" else free, min_size=1, max_size=4)))
    if draw(st.integers(0, 5)) == 0:
        second, end = draw(st.sampled_from(LOCKS[:6]))
        if second != first:
            inner = [second, *inner, end]
    if first == "write" and draw(st.booleans()):
        return ["write", *inner, "downgrade", *joined(draw(st.lists(kept, max_size=2))), "unread"]
    return [first, *inner, last]


@st.composite
def attempt(draw: st.DrawFn) -> list[str]:
    """Something under a lock, if nobody has it."""
    first, last = draw(st.sampled_from(TRIES))
    inner = draw(st.lists(st.sampled_from(["x=r", "y=r", "set", "seen 1"]), max_size=2))
    return ["r=0", first, *joined([["skip unless r", op] for op in [*inner, last]])]


@st.composite
def thread(draw: st.DrawFn, limit: int) -> tuple[list[str], list[str]]:
    out: list[str] = []
    for part in draw(st.lists(st.one_of(section(), section(), attempt(), free), min_size=1, max_size=6)):
        if len(out) + len(part) < limit:
            out += part
    again = joined(draw(st.one_of(st.just([]), st.lists(one(WORDS, OBJECTS, OTHER_OBJECTS), max_size=4))))
    return ([*out, "again"], again) if again else (out or ["r=0"], [])


@st.composite
def programs(draw: st.DrawFn) -> list[tuple[list[str], list[str]]]:
    count = draw(st.sampled_from([2, 2, 3]))
    return [draw(thread(2 * PER_WORD if count == 2 else PER_WORD)) for _ in range(count)]


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(programs(), st.integers(0, 1), st.booleans())
def test_random_programs_come_to_the_same_with_and_without(threads, failures, learn):
    reduced = explore(threads, reduce=True, learn=learn, failures=failures)
    full = explore(threads, reduce=False, failures=failures)
    if "bounded" in (reduced.verdict, full.verdict):
        return
    assert reduced.verdict == full.verdict, (reduced.status, full.status)
    assert reduced.states <= full.states or full.verdict == "violated"
    if full.verdict == "holds":
        assert reduced.outcomes == full.outcomes
        assert reduced.results == full.results
        assert reduced.seen == full.seen
