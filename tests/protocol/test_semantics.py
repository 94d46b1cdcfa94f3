"""The same text means the same in machine code and in Python."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from writing import Both, module

from faultpath.engine import world
from faultpath.engine.world import BAD_ADDRESS, INDEX, STATUS, WOULD_BLOCK, Stop

NAMES = ("a", "b", "c")


def number(random: Random, depth: int) -> str:
    """An expression; the divisors and shifts are such that Python and 64 bits agree."""
    if depth == 0 or random.random() < 0.15:
        return random.choice([*NAMES, "OFFSET", str(random.randint(-9, 9))])
    x, y = number(random, depth - 1), number(random, depth - 1)
    match random.randrange(12):
        case 0 | 1:
            return f"({x} {random.choice(['+', '-'])} {y})"
        case 2:
            return f"({x} % 1009 * ({y} % 1013))"
        case 3:
            return f"({x} {random.choice(['//', '%'])} {random.choice([3, -3, 7, -8, 1, -1])})"
        case 4:
            return f"({x} {random.choice(['&', '|', '^'])} {y})"
        case 5:
            return f"(({x} & 65535) << ({y} & 7))"
        case 6:
            return f"({x} >> ({y} & 63))"
        case 7:
            return f"{random.choice(['min', 'max'])}({x}, {y})"
        case 8:
            return f"({x} if {test(random, depth - 1)} else {y})"
        case 9:
            return f"{random.choice(['-', '~'])}({x})"
        case 10:
            return f"twice({x})"
        case _:
            return f"({x} {random.choice(['==', '!=', '<', '<=', '>', '>='])} {y})"


def test(random: Random, depth: int) -> str:
    """A condition. bump() counts its calls: evaluating one too many or too few shows."""
    if depth <= 0 or random.random() < 0.3:
        return f"{number(random, 0)} {random.choice(['<', '>=', '=='])} {number(random, 1)}"
    x, y = test(random, depth - 1), test(random, depth - 1)
    return random.choice(
        [f"({x} and {y})", f"({x} or {y})", f"(not ({x}))", f"bump(1 if {x} else 0)", f"({x} and {y} or {x})"]
    )


test.__test__ = False  # type: ignore[attr-defined]

FIXED = """\
@protocol
def twice(a: int) -> int:
    return 2 * (a % 4099)
@protocol
def bump(a: int) -> int:
    count("lookups")
    return a
"""


def written(seed: int) -> str:
    random = Random(seed)
    lines = [
        FIXED,
        "@protocol\ndef inner(thing: Thing, a: int, b: int, c: int) -> int:",
        "    n = 0",
        "    while n < 12:",
        "        n += 1",
    ]
    for _ in range(random.randint(1, 5)):
        target = random.choice(NAMES)
        margin = "        "
        if locked := random.choice([[], [], ["thing.mutex"], ["thing.mutex", "Thing(thing).other"]]):
            lines.append(f"        with {', '.join(f'mutex_lock({lock})' for lock in locked)}:")
            margin = "            "
        lines += [
            margin + line
            for line in (
                f"if {test(random, 3)}:",
                f"    {target} = {number(random, 3)} % 100003",
                f"elif {random.choice([test(random, 2), f'c := {number(random, 2)} % 3'])}:",
                f"    {target} -= {number(random, 1)} % 77",
                f"    {random.choice(['continue', 'break', 'pass', 'return a - b', 'return bump(b)'])}",
                "else:",
                f"    {random.choice(['a', 'b'])} ^= n",
            )
        ]
    lines += [f"    return {number(random, 4)}", FREE, ""]
    return "\n".join(lines)


# p() ends only if inner() has given up both locks.
FREE = """\
@protocol
def p(a: int, b: int, c: int) -> int:
    thing = on_stack(Thing)
    found = inner(thing, a, b, c)
    with mutex_lock(thing.mutex), mutex_lock(thing.other):
        return found
"""


@pytest.mark.parametrize("seed", range(25))
def test_random_programs(seed: int, tmp_path: Path) -> None:
    both, random = Both(module(tmp_path, written(seed)).p), Random(seed)
    for _ in range(15):
        both(*(random.choice([0, 1, -1, random.randint(-50, 50), random.randint(-(1 << 40), 1 << 40)]) for _ in NAMES))


LEFT = {
    "at its end": ("pass", 30),
    "by return": ("return bump(thing.number)", 5),
    "by return of what was taken": ("return thing", None),
    "by break": ("break", 30),
    "by continue": ("continue", 30),
    "from a loop inside": ("while n < 9:\n                n += 1\n                break", 30),
    "from two at once": ("with mutex_lock(thing.other):\n                return bump(thing.number)", 5),
}


@pytest.mark.parametrize("way", LEFT)
def test_whatever_way_a_block_is_left_its_lock_is_given_up(way: str, tmp_path: Path) -> None:
    text, expected = LEFT[way]
    body = f"""\
@protocol
def inner(thing: Thing, a: int, b: int, c: int) -> int:
    n = 0
    thing.number = 5
    while n < 3:
        n += 1
        thing.inner = Inner(thing)
        with mutex_lock(Thing(thing.inner).mutex):
            thing.inner = Inner(NULL)
            count("lookups")
            {text}
    return 30
"""
    found = Both(module(tmp_path, FIXED + body + FREE).p)(1, 2, 3)
    assert found == expected or expected is None


def test_what_a_lock_returns_goes_to_who_undoes_it(tmp_path: Path) -> None:
    text = """\
class Reader(Struct):
    srcu: Srcu
@protocol
def p(n: int) -> int:
    reader = on_stack(Reader)
    with srcu_read_lock(reader.srcu):
        srcu_gp_start(reader.srcu)
        with srcu_read_lock(reader.srcu):
            count("lookups")
    synchronize_srcu(reader.srcu)
    return n
"""
    assert Both(module(tmp_path, text).p)(4) == 4


def test_what_blocks_inside_a_block_gives_nothing_up(tmp_path: Path) -> None:
    text = """\
@protocol
def p(n: int) -> int:
    thing = on_stack(Thing)
    with mutex_lock(thing.mutex):
        mutex_lock(thing.mutex)
    return 1
"""
    both = Both(module(tmp_path, text).p)
    for run in (both.machine, both.python):
        with pytest.raises(Stop):
            run(0)
    assert (world.state(both.worlds[0]) == world.state(both.worlds[1])).all()


def test_a_loop_may_test_what_it_finds(tmp_path: Path) -> None:
    text = FIXED + (
        "@protocol\ndef p(a: int) -> int:\n    n = 0\n    while found := bump(a - n):\n        n += 1\n"
        "        if found == 3:\n            continue\n        if rest := found % 4:\n            n += rest * 10\n"
        "            break\n    return n\n"
    )
    both = Both(module(tmp_path, text).p)
    assert [both(a) for a in range(6)] == [0, 11, 21, 22, 23, 11]


def test_division_rounds_down_as_in_python(tmp_path: Path) -> None:
    text = "@protocol\ndef p(a: int, b: int) -> int:\n    return a // b * 1000 + a % b\n"
    both = Both(module(tmp_path, text).p)
    for a in (-7, -6, -1, 0, 1, 6, 7, 1 << 40, -(1 << 40)):
        for b in (-3, -1, 1, 2, 3, 1 << 20):
            assert both(a, b) == a // b * 1000 + a % b


def test_and_or_stop_as_soon_as_they_know(tmp_path: Path) -> None:
    text = FIXED + (
        "@protocol\ndef p(a: int, b: int) -> int:\n    n = 0\n"
        "    if bump(a) and bump(b):\n        n = 1\n"
        "    if bump(a) or bump(b):\n        n += 2\n    return n * 10\n"
    )
    both = Both(module(tmp_path, text).p)
    for a, b, calls in ((0, 0, 3), (0, 1, 3), (1, 0, 3), (1, 1, 3)):
        before = int(both.worlds[0][INDEX["lookups"]])
        both(a, b)
        assert int(both.worlds[0][INDEX["lookups"]]) - before == calls


def test_structures_are_words(tmp_path: Path) -> None:
    text = """\
@protocol
def p(n: int) -> int:
    thing = kmalloc(Thing, GFP_KERNEL)
    thing.number = n
    thing.number += 5
    inner = on_stack(Inner)
    inner.value = thing.number * 2
    thing.inner = inner
    thing.inner.value -= 1
    same = container_of(Thing, "node", thing.node)
    result = same.inner.value
    mutex_lock(thing.mutex)
    mutex_unlock(thing.mutex)
    kfree(thing)
    return result
"""
    both = Both(module(tmp_path, text).p)
    assert [both(n) for n in (0, 1, -9)] == [9, 11, -9]


def test_a_structure_embeds_another(tmp_path: Path) -> None:
    text = """\
class Outer(Struct):
    first: int
    thing: Member[Thing]
    again: Member[Thing]
    last: int
class Around(Outer):
    outer: Member[Outer]
@protocol
def p(n: int) -> int:
    around = kmalloc(Around, GFP_KERNEL)
    around.first = 1
    around.last = 2
    around.outer.last = 3
    around.outer.again.number = n
    around.outer.again.inner = Inner(around.outer.thing)
    again = around.outer.again
    outer = container_of(Outer, "again", again)
    with mutex_lock(outer.again.mutex), mutex_lock(around.again.mutex):
        outer.thing.number = again.number + outer.last
    found = Thing(again.inner).number * 100 + around.first * 10 + around.last
    if container_of(Around, "outer", outer) != around:
        found = -1
    kfree(container_of(Around, "outer", container_of(Outer, "again", again)))
    return found
"""
    written = module(tmp_path, text)
    assert Both(written.p)(4) == 712
    assert (written.Outer.words, written.Around.words) == (
        3 + 2 * written.Thing.words,
        6 + 4 * written.Thing.words,
    )


@pytest.mark.parametrize("field", ["Member[int]", "Member[Mutex]", "str", "Notifier"])
def test_a_field_is_a_number_a_structure_or_embedded(field: str, tmp_path: Path) -> None:
    with pytest.raises((TypeError, NameError), match=r"a field is an int|Notifier"):
        module(tmp_path, f"class Wrong(Struct):\n    field: {field}\n")


LISTS = {
    "list": ("link", "links", "list_add_tail", "list_del"),
    "hlist": ("node", "head", "hlist_add_head", "hlist_del"),
}


@pytest.mark.parametrize("safe", ["", "_safe"])
@pytest.mark.parametrize("kind", LISTS)
def test_lists_are_gone_over_as_in_c(kind: str, safe: str, tmp_path: Path) -> None:
    member, head, add, delete = LISTS[kind]
    text = f"""\
@protocol
def p(n: int, ends: int, takes: int) -> int:
    owner = on_stack(Thing)
    owner.inner = Inner(owner)
    i = 0
    while i < n:
        i += 1
        thing = kmalloc(Thing, GFP_KERNEL)
        thing.number = i
        {add}(thing.{member}, owner.{head})
    found = 0
    for thing in {kind}_for_each_entry{safe}(Thing, "{member}", Thing(owner.inner).{head}):
        owner.inner = Inner(NULL)
        with mutex_lock(thing.mutex):
            if thing.number == 2:
                continue
            if thing.number == ends:
                break
            if ends < 0 and thing.number == -ends:
                return 1000 + found
            found = found * 10 + thing.number
        if takes:
            {delete}(thing.{member})
            kfree(thing)
    return found
"""
    both = Both(module(tmp_path, text).p)
    backwards = kind == "hlist"
    assert both(0, 0, 0) == 0
    assert both(4, 0, 0) == (431 if backwards else 134)
    assert both(4, 3, 0) == (4 if backwards else 1)
    assert both(4, -3, 0) == (1004 if backwards else 1001)
    if safe:
        assert both(4, 0, 1) == (431 if backwards else 134)


def test_a_range_goes_on(tmp_path: Path) -> None:
    text = """\
@primitive
def r(w, n: int) -> int:
    found = 0
    for i in range(n):
        if i % 3 == 1:
            continue
        found = found * 10 + i
    return found
@protocol
def p(n: int) -> int:
    return r(n)
"""
    assert Both(module(tmp_path, text).p)(7) == 2356


def test_primitives_have_the_world_and_loops(tmp_path: Path) -> None:
    text = """\
@helper
def add(w, at, n):
    w[at] += n
    return w[at]
@primitive
def total(w, n: int) -> int:
    w[SCRATCH] = 0
    for i in range(n):
        for k in range(i, 10, 3):
            if k == 8:
                break
            add(w, SCRATCH, k)
    return w[SCRATCH]
@protocol
def p(n: int) -> int:
    return total(n)
"""
    both = Both(module(tmp_path, text).p)
    for n in range(6):
        expected = 0
        for i in range(n):
            for k in range(i, 10, 3):
                if k == 8:
                    break
                expected += k
        assert both(n) == expected


@pytest.mark.parametrize("where", ["machine", "python"])
def test_what_cannot_go_on_stops_everything_above_it(where: str, tmp_path: Path) -> None:
    text = """\
@protocol
def inner(thing: Thing) -> None:
    mutex_lock(thing.mutex)
    mutex_lock(thing.mutex)
    count("lookups")
@protocol
def p(n: int) -> int:
    thing = on_stack(Thing)
    if n == 1:
        wait_until(thing.number == 1)
    elif n == 2:
        mutex_unlock(thing.mutex)
    else:
        inner(thing)
    count("lookups")
    return 7
"""
    both = Both(module(tmp_path, text).p)
    run, w = (both.machine, both.worlds[0]) if where == "machine" else (both.python, both.worlds[1])
    for n, status in ((0, WOULD_BLOCK), (1, WOULD_BLOCK), (2, BAD_ADDRESS)):
        with pytest.raises(Stop):
            run(n)
        assert w[STATUS] == status
    assert w[INDEX["lookups"]] == 0


@pytest.mark.parametrize("name", ["w", "stopped", "größe"])
def test_any_name_will_do_for_a_parameter(name: str, tmp_path: Path) -> None:
    assert Both(module(tmp_path, f"@protocol\ndef p({name}: int) -> int:\n    return {name} + 1\n").p)(4) == 5
