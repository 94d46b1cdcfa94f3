"""Linking: hooks find their targets, a core takes another's place, work handlers are met, recursion is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from writing import Both, module

from faultpath.engine.world import BAD_ADDRESS, INDEX, STATUS, Stop
from faultpath.errors import FaultpathError
from faultpath.protocol.program import Program

HOOKS = """\
@hook("act")
def act(ops: int, n: int) -> int:
    \"\"\"What a table does.\"\"\"
@protocol
def one(n: int) -> int:
    return n + 1
@protocol
def two(n: int) -> int:
    return n + 2
@protocol
def other(n: int) -> int:
    return n + 3
first = Ops("first", act=one)
second = Ops("second", act=two)
without = Ops("without", unused=other)
@protocol
def p(ops: int, n: int) -> int:
    if not has_op(ops, "act"):
        return -1
    return act(ops, n)
@protocol
def blind(ops: int, n: int) -> int:
    return act(ops, n)
"""


def test_a_hook_calls_what_the_table_names(tmp_path: Path) -> None:
    m = module(tmp_path, HOOKS)
    both = Both(m.p, [m.first, m.second, m.without])
    assert both(int(m.first), 10) == 11
    assert both(int(m.second), 10) == 12
    assert both(int(m.without), 10) == both(0, 10) == -1


def test_only_what_the_program_was_given_is_compiled(tmp_path: Path) -> None:
    m = module(tmp_path, HOOKS)
    program = Program([m.p], [m.first])
    assert m.one in program.functions
    assert m.two not in program.functions


def test_a_table_without_the_slot_stops_the_run(tmp_path: Path) -> None:
    m = module(tmp_path, HOOKS)
    both = Both(m.blind, [m.first])
    assert both(int(m.first), 1) == 2
    with pytest.raises(Stop):
        both.machine(12345, 1)
    assert both.worlds[0][STATUS] == BAD_ADDRESS


CORE = """\
@protocol
def deep(n: int) -> int:
    return n * 10
@protocol
def shallow(n: int) -> int:
    return deep(n) + 1
@protocol
def p(n: int) -> int:
    return shallow(n)
@protocol(replaces=deep)
def mine(n: int) -> int:
    return n * 100
@protocol(replaces=p)
def root(n: int) -> int:
    return shallow(n) + 5
"""


def test_a_core_takes_the_place_of_what_it_replaces(tmp_path: Path) -> None:
    m = module(tmp_path, CORE)
    assert Both(m.p)(3) == 31
    assert Both(m.p, core=[m.mine])(3) == 301
    assert Both(m.p, core=[m.mine, m.root])(3) == 306
    assert Both(m.p, core=[m.shallow])(3) == 31  # replaces nothing


def test_a_replaced_target_of_a_hook_is_replaced(tmp_path: Path) -> None:
    m = module(tmp_path, HOOKS + "@protocol(replaces=one)\ndef better(n: int) -> int:\n    return n + 100\n")
    assert Both(m.p, [m.first], [m.better])(int(m.first), 1) == 101


@pytest.mark.parametrize(
    ("text", "cycle"),
    [
        ("@protocol\ndef p(n: int) -> int:\n    return p(n - 1)\n", "p -> p"),
        (
            "@protocol\ndef q(n: int) -> int:\n    return r(n)\n@protocol\ndef r(n: int) -> int:\n    return q(n)\n"
            "@protocol\ndef p(n: int) -> int:\n    return q(n)\n",
            "q -> r -> q",
        ),
    ],
)
def test_recursion_is_refused(text: str, cycle: str, tmp_path: Path) -> None:
    with pytest.raises(FaultpathError, match="recursion") as refused:
        Program([module(tmp_path, text).p])
    assert refused.value.where == cycle


def test_recursion_through_a_hook_is_refused(tmp_path: Path) -> None:
    text = HOOKS + "@protocol\ndef again(n: int) -> int:\n    return act(n, n)\nloop = Ops('loop', act=again)\n"
    m = module(tmp_path, text)
    with pytest.raises(FaultpathError, match="recursion"):
        Program([m.again], [m.loop])


def test_two_functions_of_one_name_stay_apart(tmp_path: Path) -> None:
    inner = module(tmp_path, "@protocol\ndef same(n: int) -> int:\n    return n + 1\n")
    m = module(tmp_path, "@protocol\ndef same(n: int) -> int:\n    return theirs(n) * 2\n")
    m.theirs = inner.same
    assert Both(m.same)(4) == 10


def test_numbers_do_not_depend_on_the_order_of_definition(tmp_path: Path) -> None:
    ahead = module(tmp_path, HOOKS)
    turned = module(tmp_path, "second = Ops('second')\nfirst = Ops('first')\n")
    assert (int(ahead.first), int(ahead.second)) == (int(turned.first), int(turned.second))


WORK = """\
from faultpath.kernel.primitives.lists import queue_work
from faultpath.kernel.workqueue import process_one_work
from faultpath.protocol.struct import Work
class Job(Struct):
    work: Work
    done: int
@protocol
def finish(job: Job) -> None:
    job.done = 1
    count("lookups")
@protocol
def p(n: int) -> int:
    job = on_stack(Job)
    if n:
        queue_work(job.work, finish, job)
        queue_work(job.work, finish, job)
    while process_one_work():
        pass
    return job.done
"""


def test_work_handlers_are_met_where_they_are_named(tmp_path: Path) -> None:
    both = Both(module(tmp_path, WORK).p)
    assert both(0) == 0
    assert both(1) == 1
    w = both.worlds[0]
    assert (w[INDEX["work_items"]], w[INDEX["lookups"]]) == (1, 1)
