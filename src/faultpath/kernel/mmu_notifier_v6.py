"""What "[PATCH v6 1-4/6] mm/mmu_notifier" (Ralph Campbell, 2020-01-13, on v5.5-rc) adds to the core and changes in it.

Defects included. A design built on the series names this module as its core; what is not here is as in
:mod:`faultpath.kernel.mmu_notifier`. The series never reached mainline.
"""

from __future__ import annotations

from faultpath.engine.world import LOOKUP_STEPS
from faultpath.kernel import mmu_notifier
from faultpath.kernel.errno import EINVAL
from faultpath.kernel.mmu_notifier import IntervalNotifier, Mm, Subscriptions, mmdrop, mn_itree_is_invalidating
from faultpath.kernel.primitives.itree import itree_first, itree_insert, itree_next, itree_remove, rb_empty_node
from faultpath.kernel.primitives.lists import hlist_add_head, hlist_del, hlist_for_each_entry_safe
from faultpath.kernel.primitives.locks import spin_lock
from faultpath.kernel.primitives.wait import wake_up
from faultpath.protocol.language import NULL, count, has_op, hook, protocol, wait_event


@hook("release")
def ops_release(ops: int, sub: IntervalNotifier) -> int:
    """mmu_interval_notifier_ops.release (new in 2/6): the core is done with the interval."""


@protocol
def released(sub: IntervalNotifier, mm: Mm) -> None:
    """What follows the removal of an interval whose driver asked for it with put."""
    count("intervals_removed")
    count("intervals", -1)
    ops_release(sub.ops, sub)
    mmdrop(mm)


@protocol(replaces=mmu_notifier.mn_itree_inv_end)
def mn_itree_inv_end(subs: Subscriptions) -> None:
    """mn_itree_inv_end(), 2/6 and 3/6: deferred inserts, updates and removals; releases run outside the lock.

    The sequence number is even, so that waiters may go on, before the releases have run.
    """
    with spin_lock(subs.lock):
        subs.active_invalidate_ranges -= 1
        if subs.active_invalidate_ranges or not mn_itree_is_invalidating(subs):
            return
        subs.invalidate_seq += 1
        removed = IntervalNotifier(NULL)  # hlist_head removed_list, on the stack: chained through updated_start
        for sub in hlist_for_each_entry_safe(IntervalNotifier, "deferred_item", subs.deferred_list):
            hlist_del(sub.deferred_item)
            if rb_empty_node(sub):
                itree_insert(subs.itree, sub)
            else:
                itree_remove(subs.itree, sub)
                if sub.updated_last:
                    sub.start = sub.updated_start
                    sub.last = sub.updated_last
                    sub.updated_start = 0
                    sub.updated_last = 0
                    itree_insert(subs.itree, sub)
                elif has_op(sub.ops, "release"):
                    sub.updated_start = removed
                    removed = sub
    while removed:
        sub = removed
        removed = IntervalNotifier(sub.updated_start)
        released(sub, sub.mm)
    wake_up(subs.wq)


@protocol
def mmu_interval_notifier_insert_safe(sub: IntervalNotifier, mm: Mm, start: int, length: int, ops: int) -> int:
    """mmu_interval_notifier_insert_safe(), 1/6: may be called from a callback, for it never takes mmap_sem."""
    if not mm.notifier_subscriptions:
        return -EINVAL
    return mmu_notifier.mmu_interval_notifier_insert(sub, mm, start, length, ops)


@protocol
def mmu_interval_notifier_put_locked(sub: IntervalNotifier) -> int:
    """__mmu_interval_notifier_put(), 2/6 and 3/6: the sequence number to wait for, or 0 if it is out already."""
    subs = sub.mm.notifier_subscriptions
    seq = 0
    with spin_lock(subs.lock):
        if mn_itree_is_invalidating(subs):
            if rb_empty_node(sub):
                hlist_del(sub.deferred_item)
            else:
                if sub.updated_last:
                    # Already on the deferred list for an update: forgetting the bounds makes that a removal.
                    sub.updated_start = 0
                    sub.updated_last = 0
                else:
                    hlist_add_head(sub.deferred_item, subs.deferred_list)
                    count("deferred_ops")
                seq = subs.invalidate_seq
        else:
            itree_remove(subs.itree, sub)
    return seq


@protocol
def mmu_interval_notifier_put(sub: IntervalNotifier) -> None:
    """mmu_interval_notifier_put(), 2/6: removal from within a callback; release follows, at once or later."""
    mm = sub.mm
    if not mmu_interval_notifier_put_locked(sub):
        released(sub, mm)


@protocol(replaces=mmu_notifier.mmu_interval_notifier_remove)
def mmu_interval_notifier_remove(sub: IntervalNotifier) -> None:
    """mmu_interval_notifier_remove() as 2/6 leaves it."""
    mm = sub.mm
    subs = mm.notifier_subscriptions
    if seq := mmu_interval_notifier_put_locked(sub):
        wait_event(subs.wq, subs.invalidate_seq != seq)
    count("intervals_removed")
    count("intervals", -1)
    if not has_op(sub.ops, "release"):
        mmdrop(mm)


@protocol
def mmu_interval_notifier_update(sub: IntervalNotifier, start: int, last: int) -> None:
    """mmu_interval_notifier_update(), 3/6: new bounds, now or at the last range_end."""
    subs = sub.mm.notifier_subscriptions
    if start >= last:
        return  # WARN_ON: the old bounds stay
    count("intervals_updated")
    with spin_lock(subs.lock):
        if mn_itree_is_invalidating(subs):
            if rb_empty_node(sub):
                sub.start = start
                sub.last = last
            else:
                if not sub.updated_last:
                    hlist_add_head(sub.deferred_item, subs.deferred_list)
                    count("deferred_ops")
                sub.updated_start = start
                sub.updated_last = last
        else:
            itree_remove(subs.itree, sub)
            sub.start = start
            sub.last = last
            itree_insert(subs.itree, sub)


@protocol
def mmu_interval_notifier_find(mm: Mm, ops: int, start: int, last: int) -> IntervalNotifier:
    """mmu_interval_notifier_find(), 4/6: the first interval of these ops that meets ``[start, last]``, or NULL.

    By the bounds in the tree, never by pending ones, and without taking a reference.
    """
    subs = mm.notifier_subscriptions
    count("lookups")
    with spin_lock(subs.lock):
        sub = IntervalNotifier(itree_first(subs.itree, start, last, LOOKUP_STEPS))
        while sub:
            if sub.ops == ops:
                break
            sub = IntervalNotifier(itree_next(sub, start, last, LOOKUP_STEPS))
    return sub
