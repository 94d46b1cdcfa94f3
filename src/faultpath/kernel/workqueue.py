"""Work items: kernel/workqueue.c, Linux 6.1, one queue with one worker (alloc_ordered_workqueue())."""

from __future__ import annotations

from faultpath.engine.world import Words
from faultpath.kernel.primitives.debug import worker_is_caller
from faultpath.kernel.primitives.heap import off_stack, on_stack
from faultpath.kernel.primitives.lists import insert_wq_barrier, queue_work, start_work, take_work, work_object
from faultpath.kernel.primitives.wait import Completion, complete, wait_for_completion
from faultpath.protocol.language import WORK, count, hook, primitive, protocol
from faultpath.protocol.struct import Struct, Work


@hook(WORK)
def work_function(handler: int, obj: int) -> int:
    """work_struct.func, given the object that embeds the work item."""


class WqBarrier(Struct):
    """``struct wq_barrier``, on the stack of who flushes."""

    work: Work
    done: Completion


@primitive
def runs_work(w: Words) -> int:
    """Whether no worker runs beside the caller, as in a replay and while a scenario is set up."""
    return worker_is_caller(w)


@protocol
def process_one_work() -> int:
    """process_one_work(): run the oldest pending item; 0 if there is none."""
    work = take_work()
    if not work:
        return 0
    obj = work_object(work)
    count("work_items")
    work_function(start_work(work), obj)
    return 1


@protocol
def wq_barrier_func(barrier: WqBarrier) -> None:
    """wq_barrier_func(): what was to be waited for is over."""
    complete(barrier.done)


@protocol
def run_until_none() -> None:
    """In order and alone: the caller does the worker's part."""
    while process_one_work():
        pass


@protocol
def flush_work(work: Work) -> None:
    """flush_work(): once it returns, the item has run if it was pending, and is over if it was running.

    The kernel returns at once for an item that is idle; here it still waits for the one that is running, whichever.
    """
    if runs_work():
        run_until_none()
        return
    barrier = on_stack(WqBarrier)
    insert_wq_barrier(barrier.work, work, wq_barrier_func, barrier)
    wait_for_completion(barrier.done)
    off_stack(barrier)


@protocol
def flush_workqueue() -> None:
    """flush_workqueue(): once it returns, everything that was queued before has run."""
    if runs_work():
        run_until_none()
        return
    barrier = on_stack(WqBarrier)
    queue_work(barrier.work, wq_barrier_func, barrier)
    wait_for_completion(barrier.done)
    off_stack(barrier)
