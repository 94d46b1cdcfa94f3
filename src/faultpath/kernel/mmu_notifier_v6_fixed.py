"""What the core of the v6 series needs so that ``find`` can be used: everything else is as in mmu_notifier_v6.

Each change says which counterexample of plain nouveau-v6 forced it (``faultpath check nouveau-v6 --scenario NAME``) and
why less did not do. docs/nouveau-v6.md has them drawn.
"""

from __future__ import annotations

from faultpath.kernel.errno import EAGAIN
from faultpath.kernel.mmu_notifier import IntervalNotifier, Mm, Subscriptions, mn_itree_is_invalidating, ops_owner
from faultpath.kernel.mmu_notifier_v6 import LOOKUP_STEPS
from faultpath.kernel.primitives.itree import itree_first, itree_last, itree_next, itree_prev
from faultpath.kernel.primitives.locks import spin_lock
from faultpath.protocol.language import count, protocol, wait_event


@protocol
def tree_is_behind(subs: Subscriptions) -> int:
    """Change 1: ``find`` gives no answer while the tree may differ from what its drivers asked for.

    Forced by teardown-vs-munmap: fini's loop finds, again and again, an interval whose removal is deferred. And by
    fault-vs-munmap: one that is about to be released is found under the driver's mutex and freed under the reader's
    hand, for a release takes no driver's lock; a reference taken after ``find`` comes too late (change 4 alone does not
    do). To skip what is on the deferred list would mend the second, but then fini finds nothing while pieces of its own
    still wait to be inserted, and frees the svmm that their callbacks use.
    """
    return mn_itree_is_invalidating(subs)


@protocol
def is_of(sub: IntervalNotifier, ops: int, owner: int) -> int:
    """Change 2: ``find`` is told whose intervals it is to find. In C a void pointer in struct mmu_interval_notifier.

    Forced by two-clients and device-cow: intervals of every client of a driver have the same ops, so a client's fault
    takes its sequence number from another's interval, which is locked by another's mutex, and no interval of its own
    covers what it maps.
    """
    if sub.ops != ops:
        return 0
    return ops_owner(ops, sub) == owner


@protocol
def mmu_interval_notifier_find(mm: Mm, ops: int, owner: int, start: int, last: int) -> int:
    """The first interval of an owner's that meets ``[start, last]``, or NULL; -EAGAIN: wait, and look again."""
    subs = mm.notifier_subscriptions
    count("lookups")
    with spin_lock(subs.lock):
        if tree_is_behind(subs):
            return -EAGAIN
        sub = IntervalNotifier(itree_first(subs.itree, start, last, LOOKUP_STEPS))
        while sub:
            if is_of(sub, ops, owner):
                break
            sub = IntervalNotifier(itree_next(sub, start, last, LOOKUP_STEPS))
    return sub


@protocol
def mmu_interval_notifier_find_last(mm: Mm, ops: int, owner: int, last: int) -> int:
    """Change 3: of an owner's intervals that start at or before ``last`` the one that starts last: the nearest.

    Forced by grown-mapping: ``find`` returns the lowest, behind which a new interval overlaps all others. To go on from
    there with more ``find`` reads every interval of the mapping: four times the nodes on git-repack.trace.
    """
    subs = mm.notifier_subscriptions
    count("lookups")
    with spin_lock(subs.lock):
        if tree_is_behind(subs):
            return -EAGAIN
        sub = IntervalNotifier(itree_last(subs.itree, last, LOOKUP_STEPS))
        while sub:
            if is_of(sub, ops, owner):
                break
            sub = IntervalNotifier(itree_prev(sub, LOOKUP_STEPS))
    return sub


@protocol
def mmu_interval_notifier_synchronize(mm: Mm) -> None:
    """Wait for the range_end that does what is deferred. Part of change 1: what -EAGAIN asks for.

    As read_begin's, its wait ends with the epoch; no lock may be held that a callback takes.
    """
    subs = mm.notifier_subscriptions
    with spin_lock(subs.lock):
        seq = subs.invalidate_seq
    if seq & 1:
        wait_event(subs.wq, subs.invalidate_seq != seq)
