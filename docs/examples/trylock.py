"""An interval notifier's callback under a mutex: how=trylock, or lock even where it must not sleep."""

from dataclasses import replace

from faultpath.designs import full_va
from faultpath.driver import *


@protocol
def sleeping_invalidate(mni: IntervalNotifier, range: Range, cur_seq: int) -> int:
    """full-va's callback tries the lock where range.blockable is 0 (the OOM reaper). This one sleeps."""
    dmirror = container_of(full_va.Dmirror, "notifier", mni)
    with mutex_lock(dmirror.mutex):
        mmu_interval_set_seq(mni, cur_seq)
        device_zap(dmirror.pt, range.start, range.end)
    return 1


sleeping_ops = Ops("sleeping_ops", invalidate=sleeping_invalidate)


@protocol
def sleeping_open(mm: Mm, how: int) -> full_va.Dmirror:
    dmirror = full_va.dmirror_fops_open(mm)
    if dmirror and how:
        dmirror.notifier.ops = sleeping_ops
    return dmirror


design = replace(
    full_va.design,
    name="gpu-trylock",
    open=sleeping_open,
    ops=[*full_va.design.ops, sleeping_ops],
    parameters=[Parameter("how", "trylock", "what the callback does", choices=("trylock", "lock"))],
)
