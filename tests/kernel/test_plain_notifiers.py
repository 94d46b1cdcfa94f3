"""Plain notifiers beside interval notifiers: told of every event, after the intervals, and of exit."""

from __future__ import annotations

from dataclasses import replace

from faultpath.designs import full_va
from faultpath.designs.full_va import Dmirror, dmirror_fops_open
from faultpath.engine import world
from faultpath.engine.native import Native
from faultpath.kernel.errno import EAGAIN
from faultpath.kernel.mirror import run_work
from faultpath.kernel.mm.fork import mm_init
from faultpath.kernel.mm.versions import LINUX_6_18
from faultpath.kernel.mmu_notifier import (
    Mm,
    Notifier,
    Range,
    mmu_notifier_put,
    mmu_notifier_register,
    notify_range_start,
)
from faultpath.kernel.primitives.atomic import atomic_read
from faultpath.kernel.primitives.count import zapped_so_far
from faultpath.kernel.primitives.heap import on_stack
from faultpath.kernel.srcu import srcu_read_lock, srcu_read_unlock
from faultpath.protocol.language import Ops, count, protocol
from faultpath.protocol.program import Program
from faultpath.trace.ops import Event, Op
from oracles.running import Run, table

AT = 1 << 30
PAGE = 4096


@protocol
def plain_start(sub: Notifier, range: Range) -> int:  # noqa: A002 - the kernel's name
    """Notes what has been cleared by the time it is called: the interval notifiers' work."""
    count("fault_retries", zapped_so_far())
    return 0


@protocol
def plain_end(sub: Notifier, range: Range) -> int:  # noqa: A002 - the kernel's name
    count("lookups")
    return 0


@protocol
def plain_release(sub: Notifier, mm: Mm) -> int:
    count("deferred_ops")
    return 0


plain_ops = Ops(
    "plain_ops", invalidate_range_start=plain_start, invalidate_range_end=plain_end, mm_release=plain_release
)


@protocol
def open_with_plain(mm: Mm) -> Dmirror:
    plain = on_stack(Notifier)
    plain.ops = plain_ops
    mmu_notifier_register(plain, mm)
    return dmirror_fops_open(mm)


design = replace(full_va.design, name="with-plain", open=open_with_plain, ops=[*full_va.design.ops, plain_ops])


def test_plain_notifiers_come_after_the_intervals_and_hear_everything() -> None:
    run = Run(design, [], raises=False, accesses=1)
    run.open()
    rows = [
        (Op.MMAP, AT, 4 * PAGE, 3, 0x22),
        (Op.FAULT, AT, 0, 6, 0),
        (Op.INVALIDATE, AT, PAGE, int(Event.CLEAR), int(Op.FAULT)),
    ]
    run.rows(table(rows))
    counters = run.counters()
    assert counters["callbacks"] == 2  # the interval's and the plain one's
    assert counters["callbacks_empty"] == 1  # the second found nothing left
    assert counters["fault_retries"] == 1  # the page was cleared before the plain one was called
    assert counters["lookups"] == 1


@protocol
def refuse(sub: Notifier, range: Range) -> int:  # noqa: A002 - the kernel's name
    return -EAGAIN


refusing_ops = Ops("refusing_ops", invalidate_range_start=refuse)


@protocol
def ask_without_blocking(mm: Mm) -> int:
    refusing = on_stack(Notifier)
    refusing.ops = refusing_ops
    mmu_notifier_register(refusing, mm)
    plain = on_stack(Notifier)
    plain.ops = plain_ops
    mmu_notifier_register(plain, mm)
    event = on_stack(Range)
    event.mm = mm
    event.end = PAGE
    return notify_range_start(event)


def test_when_one_refuses_those_that_have_begun_are_told_the_end() -> None:
    native = Native(Program([mm_init, ask_without_blocking], [plain_ops, refusing_ops]))
    w = world.new_world(1 << 21)
    mm = native.call(mm_init, w, 1 << 47, 0, LINUX_6_18)
    assert native.call(ask_without_blocking, w, mm) == -EAGAIN
    assert w[world.INDEX["callbacks"]] == 2
    assert w[world.INDEX["lookups"]] == 1  # one end


def test_plain_notifiers_are_released_and_forgotten_at_exit() -> None:
    run = Run(design, [], raises=False, accesses=1)
    run.open()
    run.rows(table([(Op.MMAP, AT, 4 * PAGE, 3, 0x22), (Op.FAULT, AT, 0, 6, 0), (Op.EXIT, 0, 0, 0, 0)]))
    # RELEASE and then UNMAP reach the interval; the plain one is off the list before the UNMAP.
    assert run.exit_counters == {"exit_callbacks": 2, "exit_ptes_zapped": 1}


@protocol
def plain_free(sub: Notifier) -> None:
    count("intervals_removed")


put_ops = Ops("put_ops", invalidate_range_start=plain_start, free_notifier=plain_free)


@protocol
def heard(mm: Mm) -> int:
    event = on_stack(Range)
    event.mm = mm
    event.end = PAGE
    event.blockable = 1
    return notify_range_start(event)


@protocol
def holds(mm: Mm) -> int:
    return atomic_read(mm.mm_count)


@protocol
def register_and_put(mm: Mm) -> Notifier:
    plain = on_stack(Notifier)
    plain.ops = put_ops
    mmu_notifier_register(plain, mm)
    idx = srcu_read_lock(mm.srcu)
    mmu_notifier_put(plain)
    srcu_read_unlock(mm.srcu, idx)
    return plain


def test_one_that_is_put_hears_no_more_and_is_freed_by_a_work_item() -> None:
    native = Native(Program([mm_init, register_and_put, run_work, heard, holds], [put_ops]))
    w = world.new_world(1 << 21)
    mm = native.call(mm_init, w, 1 << 47, 0, LINUX_6_18)
    native.call(register_and_put, w, mm)
    native.call(heard, w, mm)
    freed = world.INDEX["intervals_removed"]
    assert (w[world.INDEX["callbacks"]], w[freed]) == (0, 0)
    native.call(run_work, w)
    assert (w[freed], w[world.INDEX["work_items"]]) == (1, 1)
    assert native.call(holds, w, mm) == 0
