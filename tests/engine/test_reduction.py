"""Steps taken together hide nothing: random programs, explored with and without the reduction."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.tape import OPS, PER_WORD, Exploration, Explored, explore, scenario

WORDS = ["r=x", "r=y", "r=z", "x=r", "y=r", "z=r", "r+=1", "r=0", "inc", "dec", "r=atomic"]
OBJECTS = ["publish", "hide", "get", "set", "publish other", "store"]
OTHER_OBJECTS = ["new", "new atomic", "find", "find other", "push", "follow", "drop", "first", "load"]
RARE = ["sleep", "wake", "wait", "free", "add", "delete", "erase", "synchronize", "time", "ref", "unref"]
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


def compare(threads: list[tuple[list[str], list[str]]], failures: int, learn: bool) -> Exploration | None:
    """Both ways; None where there is too much to explore."""
    reduced = explore(threads, reduce=True, learn=learn, failures=failures)
    full = explore(threads, reduce=False, failures=failures)
    if "bounded" in (reduced.verdict, full.verdict):
        return None
    assert reduced.verdict == full.verdict, (reduced.status, full.status)
    if full.verdict == "holds":
        assert reduced.states <= full.states
        assert reduced.outcomes == full.outcomes
        assert reduced.results == full.results
        assert reduced.seen == full.seen
    return full


# Each would go wrong if one particular thing that others can tell were taken for one that they cannot.
SITUATIONS = {
    "written after it was published": ("new set publish r+=1 set", "find get"),
    "published through another": ("new set push publish follow r+=1 set", "find follow get"),
    "published in a list": ("new set add r+=1 set", "first get"),
    "published in an xarray": ("new set store r+=1 set", "r+=1 load get"),
    "written under a read lock": ("read r+=1 x=r r+=1 x=r unread", "read r=x unread"),
    "written without a lock": ("r+=1 x=r r+=1 x=r", "lock r=x unlock"),
    "read without a lock": ("lock r+=1 x=r r+=1 x=r unlock", "r=x"),
    "two locks in turn": ("lock r+=1 x=r unlock lock second r+=1 x=r unlock second", "lock second r=x unlock second"),
    "the same lock again": ("lock r+=1 x=r unlock lock r+=1 x=r unlock", "lock r=x unlock"),
    "a lock that is tried": ("lock unlock lock second unlock second", "trylock skip unless r unlock"),
    "a lock tried for reading": ("write unwrite lock unlock", "tryread skip unless r unread"),
    "a lock that is downgraded": ("write downgrade r+=1 x=r unread", "tryread skip unless r unread"),
    "readers let in": ("write r+=1 x=r downgrade y=r r+=1 x=r unread", "read r=x unread"),
    "freed after a look": ("new publish hide free", "find get"),
    "freed under a lock": ("new set publish lock hide free unlock", "lock find get unlock"),
    "freed after a grace period": ("new set publish hide synchronize free", "srcu find get unsrcu"),
    "freed too early": ("new publish hide free synchronize", "srcu find get unsrcu"),
    "a freed lock is tried": ("new publish hide free", "find trylock it skip unless r unlock it"),
    "a freed lock is taken": ("new publish hide free", "find lock it unlock it"),
    "waited for": ("r+=1 z=r r+=1 z=r", "wait r=z"),
    "waited for in vain": ("inc dec", "wait"),
    "slept for": ("r+=1 x=r r+=1 x=r wake", "sleep r=x"),
    "slept for in vain": ("r+=1 x=r r=0 x=r wake", "sleep r=x"),
    "a waking that is forgotten": ("r+=1 x=r", "sleep"),
    "a waking that comes too early": ("wake r+=1 x=r", "sleep"),
    "one waking for two": ("r+=1 x=r wake y=r", "sleep r=y", "sleep r=y"),
    "slept for under its lock": ("lock sleep unlock", "lock r+=1 x=r wake unlock"),
    "slept for while spinning": ("spin sleep unspin", "r+=1 x=r wake"),
    "counted": ("inc dec inc", "r=atomic y=r", "wait r=atomic"),
    "one allocation fails": ("new atomic x=r new atomic y=r", "new atomic z=r"),
    "time runs out": ("time x=r time y=r", "r=x"),
}


@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize("name", SITUATIONS)
def test_what_others_can_tell_is_not_taken_together(name, learn):
    def ops(text: str) -> list[str]:
        """Operations by their names, the longest that fits first."""
        words, out = text.split(), []
        while words:
            size = next(n for n in (3, 2, 1) if " ".join(words[:n]) in OPS)
            out.append(" ".join(words[:size]))
            words = words[size:]
        return out

    full = compare([(ops(text), []) for text in SITUATIONS[name]], 1, learn)
    assert full is not None
    assert full.verdict == "violated" or len(full.outcomes) > 1


@pytest.mark.parametrize("reduce", [True, False])
def test_a_path_knows_every_answer_however_many_were_asked_for(reduce):
    threads = scenario([(["r=0"], []), (["time"] * 13 + ["skip unless r", "unlock"], [])])
    found = Explored(threads, reduce=reduce, learn=True).run()
    assert {number for number, _ in found.path} <= {0, 1}
    assert sum(choices.bit_count() for _, choices in found.path) == 1  # the last time only
    assert all(choices < 1 << 12 for _, choices in found.path)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(programs(), st.integers(0, 1), st.booleans())
def test_random_programs_come_to_the_same_with_and_without(threads, failures, learn):
    compare(threads, failures, learn)
