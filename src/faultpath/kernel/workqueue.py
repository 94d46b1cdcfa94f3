"""Work items: kernel/workqueue.c, one worker."""

from __future__ import annotations

from faultpath.kernel.primitives.lists import start_work, take_work, work_object
from faultpath.protocol.language import count, hook, protocol


@hook("work")
def work_function(handler: int, obj: int) -> int:
    """work_struct.func, given the object that embeds the work item."""


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
