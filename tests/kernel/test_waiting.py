"""Completions, flushed work and unregistered notifiers, beside each other in every order."""

from __future__ import annotations

import pytest

from engine.tape import Board, Thing, design
from faultpath.engine import arena
from faultpath.engine.check import Check
from faultpath.engine.status import VIOLATIONS
from faultpath.kernel.primitives.heap import GFP_KERNEL, kfree, kmalloc, off_stack, on_stack
from faultpath.kernel.primitives.lists import queue_work
from faultpath.kernel.primitives.locks import spin_lock
from faultpath.kernel.primitives.wait import (
    Completion,
    complete,
    complete_all,
    completion_done,
    reinit_completion,
    try_wait_for_completion,
    wait_for_completion,
)
from faultpath.kernel.workqueue import flush_work, flush_workqueue
from faultpath.protocol.language import protocol, wait_until
from faultpath.protocol.struct import Struct, Work
from faultpath.scenario import DEVICE, Call, Scenario


class Done(Thing):
    completion: Completion


class Task(Struct):
    work: Work
    board: Board


@protocol
def publishes_and_waits(board: Board) -> None:
    """The one who waits frees it: allowed."""
    done = kmalloc(Done, GFP_KERNEL)
    board.thing = done
    wait_for_completion(done.completion)
    kfree(done)


@protocol
def completes(board: Board) -> None:
    wait_until(board.thing != 0)
    complete(Done(board.thing).completion)


@protocol
def completes_and_touches(board: Board) -> None:
    wait_until(board.thing != 0)
    done = Done(board.thing)
    complete(done.completion)
    done.value = 1


@protocol
def waits_spinning(board: Board) -> None:
    done = kmalloc(Done, GFP_KERNEL)
    spin_lock(board.spin)
    wait_for_completion(done.completion)


@protocol
def waits_twice(board: Board) -> None:
    done = kmalloc(Done, GFP_KERNEL)
    complete(done.completion)
    wait_for_completion(done.completion)
    wait_for_completion(done.completion)


@protocol
def waits_by_the_rules(board: Board) -> int:
    """complete() lets one go on, complete_all() everybody; 1 // 0 if not."""
    done = kmalloc(Done, GFP_KERNEL)
    complete(done.completion)
    complete(done.completion)
    wait_for_completion(done.completion)
    right = try_wait_for_completion(done.completion)
    right += 1 - completion_done(done.completion)
    right += 1 - try_wait_for_completion(done.completion)
    complete_all(done.completion)
    complete(done.completion)
    wait_for_completion(done.completion)
    wait_for_completion(done.completion)
    right += try_wait_for_completion(done.completion)
    right += completion_done(done.completion)
    reinit_completion(done.completion)
    right += 1 - completion_done(done.completion)
    kfree(done)
    return 1 if right == 6 else 1 // board.x


@protocol
def task_runs(task: Task) -> None:
    task.board.y = 1


@protocol
def flushes(board: Board) -> int:
    task = on_stack(Task)
    task.board = board
    queue_work(task.work, task_runs, task)
    flush_work(task.work)
    off_stack(task)
    return 1 // board.y


@protocol
def flushes_everything(board: Board) -> int:
    task = on_stack(Task)
    task.board = board
    other = on_stack(Task)
    other.board = board
    queue_work(task.work, task_runs, task)
    queue_work(other.work, task_runs, other)
    flush_workqueue()
    off_stack(task)
    off_stack(other)
    return 1 // board.y


@protocol
def does_not_flush(board: Board) -> None:
    task = on_stack(Task)
    task.board = board
    queue_work(task.work, task_runs, task)
    off_stack(task)


@protocol
def task_flushes(task: Task) -> None:
    flush_workqueue()


@protocol
def flushes_itself(board: Board) -> None:
    task = on_stack(Task)
    queue_work(task.work, task_flushes, task)


def verdict(*threads):
    scenario = Scenario("waiting", "", [], [Call(p.__name__, p, (DEVICE,)) for p in threads], pages=0)
    return Check(design, [], scenario).run()


@pytest.mark.parametrize(
    ("status", "threads"),
    [
        (arena.USE_AFTER_FREE, [publishes_and_waits, completes_and_touches]),
        (arena.SLEEP_IN_ATOMIC, [waits_spinning]),
        (arena.DEADLOCK, [waits_twice]),
        (arena.DEADLOCK, [flushes_itself]),
        (arena.USE_AFTER_FREE, [does_not_flush]),
    ],
    ids=lambda v: "-".join(p.__name__ for p in v) if isinstance(v, list) else str(v),
)
def test_what_goes_wrong(status, threads):
    found = verdict(*threads)
    assert (found.verdict, VIOLATIONS.get(found.status)) == ("violated", VIOLATIONS[status])


@pytest.mark.parametrize(
    "threads",
    [[publishes_and_waits, completes], [waits_by_the_rules], [flushes], [flushes_everything], [flushes, flushes]],
    ids=lambda v: "-".join(p.__name__ for p in v),
)
def test_what_does_not(threads):
    found = verdict(*threads)
    assert (found.verdict, found.status) == ("holds", 0)
