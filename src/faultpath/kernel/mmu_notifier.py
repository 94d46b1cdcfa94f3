"""The mmu notifier core: mm/mmu_notifier.c, Linux 6.1.

One mm has one :class:`Subscriptions`: an interval tree for interval notifiers and a list of plain notifiers. The
sequence number is odd while at least one running invalidation overlaps an interval: the tree must not change then, and
inserts and removals wait on ``deferred_list`` for the last range_end.

The kernel's one ``srcu``, under which plain notifiers are called, is a member of the only mm here.
"""

from __future__ import annotations

from faultpath.engine.world import INDEX
from faultpath.kernel.errno import EAGAIN
from faultpath.kernel.primitives.atomic import Atomic, atomic_dec, atomic_inc
from faultpath.kernel.primitives.count import count_interval, zapped_so_far
from faultpath.kernel.primitives.ghost import (
    callback_begins,
    callback_ends,
    range_over,
    range_started,
    range_starting,
    walk_begins,
    walk_ends,
)
from faultpath.kernel.primitives.itree import (
    itree_first,
    itree_insert,
    itree_next,
    itree_remove,
    rb_clear_node,
    rb_empty_node,
)
from faultpath.kernel.primitives.lists import (
    hlist_add_head,
    hlist_del,
    hlist_del_init_rcu,
    hlist_first,
    hlist_for_each_entry,
    hlist_for_each_entry_safe,
    hlist_unhashed,
    queue_work,
)
from faultpath.kernel.primitives.locks import down_write, spin_lock
from faultpath.kernel.primitives.wait import wake_up
from faultpath.kernel.srcu import (
    Srcu,
    get_state_synchronize_srcu,
    srcu_read_lock,
    synchronize_srcu,
    wait_srcu_gp,
)
from faultpath.protocol.language import container_of, count, has_op, hook, protocol, wait_event
from faultpath.protocol.struct import (
    HlistHead,
    HlistNode,
    IntervalTree,
    MmapLock,
    PageTable,
    RefCount,
    RwSem,
    Struct,
    SubscriptionsLock,
    WaitQueue,
    Work,
)
from faultpath.trace.ops import Event

WALK_STEPS = INDEX["walk_steps"]
ULONG_MAX = (1 << 62) - 1  # words are signed here: this stands for ~0UL, with room to add a page

MMU_NOTIFY_UNMAP = int(Event.UNMAP)
MMU_NOTIFY_SOFT_DIRTY = int(Event.SOFT_DIRTY)
MMU_NOTIFY_RELEASE = int(Event.RELEASE)


class Subscriptions(Struct):
    """``struct mmu_notifier_subscriptions`` (``struct mmu_notifier_mm`` before 5.6)."""

    list: HlistHead
    lock: SubscriptionsLock
    invalidate_seq: int
    active_invalidate_ranges: int
    itree: IntervalTree
    deferred_list: HlistHead
    wq: WaitQueue


class Mm(Struct):
    """``struct mm_struct``, as far as mirroring it goes."""

    notifier_subscriptions: Subscriptions
    mmap_lock: MmapLock
    mm_users: RefCount
    mm_count: Atomic
    vmas: IntervalTree
    pt: PageTable
    i_mmap: RwSem  # mapping->i_mmap_rwsem: one for every file that is mapped
    task_size: int
    brk: int
    async_put_work: Work
    oom_skip: int  # MMF_OOM_SKIP
    raises: int  # who raises invalidations: RAISES_* in mm/raising.py
    version: int  # whose CPU side it is, where that matters: LINUX_* in mm/versions.py
    anon_vmas: int  # how many there have been
    files: int  # how many that are only told from others
    mappings: int  # how often a VMA has been linked
    forks: int  # while some child of an earlier fork lived
    children: int  # those that live, one bit each
    pages: int  # Pages: what else is known of them (mm/pages.py), if it is
    srcu: Srcu  # mm/mmu_notifier.c's own
    detached: HlistHead  # mmu_notifier_tracked.py's intervals of VMAs that a munmap() has taken out


class IntervalNode(Struct):
    """``struct interval_tree_node``; ``last`` is inclusive."""

    rb_parent_color: int
    rb_left: int
    rb_right: int
    start: int
    last: int
    subtree_last: int


class IntervalNotifier(IntervalNode):
    """``struct mmu_interval_notifier``."""

    ops: int
    mm: Mm
    deferred_item: HlistNode
    invalidate_seq: int
    updated_start: int  # the v6 series' fields
    updated_last: int


class Notifier(Struct):
    """``struct mmu_notifier``: a plain notifier, told of every event of the mm."""

    hlist: HlistNode
    ops: int
    mm: Mm
    rcu: Work
    gp: int  # rcu: the grace period that call_srcu() waits for


class Range(Struct):
    """``struct mmu_notifier_range``: ``[start, end)``; and what mn_itree_inv_start_range returns by reference."""

    mm: Mm
    start: int
    end: int
    event: int
    blockable: int
    cur_seq: int


@hook("invalidate")
def ops_invalidate(ops: int, sub: IntervalNotifier, range: Range, cur_seq: int) -> int:
    """mmu_interval_notifier_ops.invalidate: false only if it would have to sleep and must not."""


@hook("owner")
def ops_owner(ops: int, sub: IntervalNotifier) -> int:
    """Whose interval it is, where a driver has several clients. Linux's core does not ask."""


@hook("invalidate_range_start")
def ops_invalidate_range_start(ops: int, sub: Notifier, range: Range) -> int:
    """mmu_notifier_ops.invalidate_range_start: 0 or -EAGAIN."""


@hook("invalidate_range_end")
def ops_invalidate_range_end(ops: int, sub: Notifier, range: Range) -> int:
    """mmu_notifier_ops.invalidate_range_end."""


@hook("mm_release")
def ops_mm_release(ops: int, sub: Notifier, mm: Mm) -> int:
    """mmu_notifier_ops.release."""


@hook("free_notifier")
def ops_free_notifier(ops: int, sub: Notifier) -> int:
    """mmu_notifier_ops.free_notifier."""


@protocol
def mmgrab(mm: Mm) -> None:
    """mmgrab()."""
    atomic_inc(mm.mm_count)


@protocol
def mmdrop(mm: Mm) -> None:
    """mmdrop(). The structure itself stays: there is only one."""
    atomic_dec(mm.mm_count)


@protocol
def invoke_invalidate(sub: IntervalNotifier, range: Range, cur_seq: int) -> int:
    """Call a driver back, and see whether it found anything (the counters' business, not the kernel's)."""
    before = zapped_so_far()
    count("callbacks")
    callback_begins(range.blockable)
    ret = ops_invalidate(sub.ops, sub, range, cur_seq)
    callback_ends(range.blockable)
    if zapped_so_far() == before:
        count("callbacks_empty")
    return ret


@protocol
def mn_itree_is_invalidating(subs: Subscriptions) -> int:
    """mn_itree_is_invalidating()."""
    return subs.invalidate_seq & 1


@protocol
def mn_itree_inv_start_range(subs: Subscriptions, range: Range) -> IntervalNotifier:
    """mn_itree_inv_start_range(): begin an invalidation; the first interval it concerns, or NULL."""
    with spin_lock(subs.lock):
        subs.active_invalidate_ranges += 1
        if first := IntervalNotifier(itree_first(subs.itree, range.start, range.end - 1, WALK_STEPS)):
            subs.invalidate_seq = subs.invalidate_seq | 1
        range.cur_seq = subs.invalidate_seq
    return first


@protocol
def mn_itree_inv_next(sub: IntervalNotifier, range: Range) -> IntervalNotifier:
    """mn_itree_inv_next(): without the lock, for an odd sequence number freezes the tree."""
    return IntervalNotifier(itree_next(sub, range.start, range.end - 1, WALK_STEPS))


@protocol
def mn_itree_inv_end(subs: Subscriptions) -> None:
    """mn_itree_inv_end(): the last end of an epoch makes the number even and does what was deferred."""
    with spin_lock(subs.lock):
        subs.active_invalidate_ranges -= 1
        if subs.active_invalidate_ranges or not mn_itree_is_invalidating(subs):
            return
        subs.invalidate_seq += 1
        for sub in hlist_for_each_entry_safe(IntervalNotifier, "deferred_item", subs.deferred_list):
            if rb_empty_node(sub):
                itree_insert(subs.itree, sub)
            else:
                itree_remove(subs.itree, sub)
            hlist_del(sub.deferred_item)
    wake_up(subs.wq)


@protocol
def mmu_interval_read_begin(sub: IntervalNotifier) -> int:
    """mmu_interval_read_begin(): the number to hand to read_retry; waits out an invalidation in progress."""
    subs = sub.mm.notifier_subscriptions
    with spin_lock(subs.lock):
        seq = sub.invalidate_seq
        is_invalidating = seq == subs.invalidate_seq
    if is_invalidating:
        wait_event(subs.wq, subs.invalidate_seq != seq)
    return seq


@protocol
def mmu_interval_read_retry(sub: IntervalNotifier, seq: int) -> int:
    """mmu_interval_read_retry(): under the driver's lock, whether an invalidation came since read_begin."""
    return sub.invalidate_seq != seq


@protocol
def mmu_interval_set_seq(sub: IntervalNotifier, cur_seq: int) -> None:
    """mmu_interval_set_seq(): in the callback, under the driver's lock."""
    sub.invalidate_seq = cur_seq


@protocol
def mn_itree_invalidate(subs: Subscriptions, range: Range) -> int:
    """mn_itree_invalidate(): every interval that overlaps, in order of start, one after the other."""
    sub = mn_itree_inv_start_range(subs, range)
    cur_seq = range.cur_seq
    if sub:
        walk_begins()
    while sub:
        if not invoke_invalidate(sub, range, cur_seq) and not range.blockable:
            walk_ends()
            # The caller must not call range_end after -EAGAIN.
            mn_itree_inv_end(subs)
            return -EAGAIN
        sub = mn_itree_inv_next(sub, range)
    walk_ends()
    return 0


@protocol
def mn_hlist_end_all(subs: Subscriptions, range: Range) -> None:
    """The loop of mn_hlist_invalidate_end(); by a failed range_start it is run inside its own section."""
    for sub in hlist_for_each_entry(Notifier, "hlist", subs.list):
        if has_op(sub.ops, "invalidate_range_end"):
            callback_begins(range.blockable)
            ops_invalidate_range_end(sub.ops, sub, range)
            callback_ends(range.blockable)


@protocol
def mn_hlist_invalidate_end(subs: Subscriptions, range: Range) -> None:
    """mn_hlist_invalidate_end()."""
    with srcu_read_lock(range.mm.srcu):
        mn_hlist_end_all(subs, range)


@protocol
def mn_hlist_invalidate_range_start(subs: Subscriptions, range: Range) -> int:
    """mn_hlist_invalidate_range_start(): every plain notifier; if one refuses, the end follows at once."""
    ret = 0
    with srcu_read_lock(range.mm.srcu):
        for sub in hlist_for_each_entry(Notifier, "hlist", subs.list):
            if has_op(sub.ops, "invalidate_range_start"):
                before = zapped_so_far()
                count("callbacks")
                callback_begins(range.blockable)
                if ops_invalidate_range_start(sub.ops, sub, range) and not range.blockable:
                    ret = -EAGAIN
                callback_ends(range.blockable)
                if zapped_so_far() == before:
                    count("callbacks_empty")
        if ret:
            mn_hlist_end_all(subs, range)
    return ret


@protocol
def notify_range_start(range: Range) -> int:
    """__mmu_notifier_invalidate_range_start(): interval notifiers first, then the plain ones.

    When a plain one refuses, the intervals' epoch stays open, in the kernel as here: its caller calls no range_end.
    """
    subs = range.mm.notifier_subscriptions
    if not subs:
        return 0
    ret = mn_itree_invalidate(subs, range)
    if not ret and hlist_first(subs.list):
        ret = mn_hlist_invalidate_range_start(subs, range)
    return ret


@protocol
def mmu_notifier_invalidate_range_start(range: Range) -> None:
    """mmu_notifier_invalidate_range_start(): may sleep, cannot be refused."""
    range.blockable = 1
    range_starting(range)
    notify_range_start(range)
    range_started(range)


@protocol
def mmu_notifier_invalidate_range_start_nonblock(range: Range) -> int:
    """mmu_notifier_invalidate_range_start_nonblock(): 0, or -EAGAIN, and then the range is over."""
    range.blockable = 0
    range_starting(range)
    if ret := notify_range_start(range):
        range_over(range)
    else:
        range_started(range)
    return ret


@protocol
def mmu_notifier_invalidate_range_end(range: Range) -> None:
    """mmu_notifier_invalidate_range_end()."""
    range_over(range)
    subs = range.mm.notifier_subscriptions
    if not subs:
        return
    mn_itree_inv_end(subs)
    if hlist_first(subs.list):
        mn_hlist_invalidate_end(subs, range)


@protocol
def mn_itree_release(subs: Subscriptions, range: Range) -> None:
    """mn_itree_release(): at exit every interval is told RELEASE over the whole address space; it stays registered."""
    sub = mn_itree_inv_start_range(subs, range)
    cur_seq = range.cur_seq
    if sub:
        walk_begins()
    while sub:
        invoke_invalidate(sub, range, cur_seq)
        sub = mn_itree_inv_next(sub, range)
    walk_ends()
    mn_itree_inv_end(subs)


@protocol
def mn_hlist_release(subs: Subscriptions, mm: Mm) -> None:
    """mn_hlist_release(): tell the plain notifiers, then take them off the list."""
    with srcu_read_lock(mm.srcu):
        for sub in hlist_for_each_entry(Notifier, "hlist", subs.list):
            if has_op(sub.ops, "mm_release"):
                ops_mm_release(sub.ops, sub, mm)
        with spin_lock(subs.lock):
            while hlist_first(subs.list):
                hlist_del_init_rcu(container_of(Notifier, "hlist", hlist_first(subs.list)).hlist)
    synchronize_srcu(mm.srcu)


@protocol
def mmu_notifier_release(mm: Mm, range: Range) -> None:
    """__mmu_notifier_release(), with the RELEASE range that mn_itree_release builds."""
    subs = mm.notifier_subscriptions
    mn_itree_release(subs, range)
    if hlist_first(subs.list):
        mn_hlist_release(subs, mm)


@protocol
def __mmu_notifier_register(sub: Notifier, mm: Mm) -> int:
    """__mmu_notifier_register() of a plain notifier, by a driver that holds mmap_lock for writing, as it must."""
    subs = mm.notifier_subscriptions
    sub.mm = mm
    mmgrab(mm)
    with spin_lock(subs.lock):
        hlist_add_head(sub.hlist, subs.list)
    return 0


@protocol
def mmu_notifier_register(sub: Notifier, mm: Mm) -> int:
    """mmu_notifier_register(): takes mmap_lock for it."""
    with down_write(mm.mmap_lock):
        return __mmu_notifier_register(sub, mm)


@protocol
def mmu_notifier_unregister(sub: Notifier, mm: Mm) -> None:
    """mmu_notifier_unregister(): release is called unless exit has done so; no callback runs once it returns."""
    subs = mm.notifier_subscriptions
    if not hlist_unhashed(sub.hlist):
        with srcu_read_lock(mm.srcu):
            if has_op(sub.ops, "mm_release"):
                ops_mm_release(sub.ops, sub, mm)
        with spin_lock(subs.lock):
            if not hlist_unhashed(sub.hlist):  # hlist_del_init_rcu() asks by itself
                hlist_del_init_rcu(sub.hlist)
    synchronize_srcu(mm.srcu)
    mmdrop(mm)


@protocol
def mmu_notifier_free_rcu(sub: Notifier) -> None:
    """mmu_notifier_free_rcu(): call_srcu()'s wait is the work's here."""
    mm = sub.mm
    wait_srcu_gp(mm.srcu, sub.gp)
    ops_free_notifier(sub.ops, sub)
    mmdrop(mm)


@protocol
def mmu_notifier_put(sub: Notifier) -> None:
    """mmu_notifier_put() of the only reference: no release, and free_notifier once the callbacks that run are over."""
    subs = sub.mm.notifier_subscriptions
    with spin_lock(subs.lock):
        if not hlist_unhashed(sub.hlist):  # hlist_del_init_rcu() asks by itself
            hlist_del_init_rcu(sub.hlist)
    sub.gp = get_state_synchronize_srcu(sub.mm.srcu)
    queue_work(sub.rcu, mmu_notifier_free_rcu, sub)


@protocol
def mmu_interval_notifier_insert(sub: IntervalNotifier, mm: Mm, start: int, length: int, ops: int) -> int:
    """__mmu_interval_notifier_insert(): during an invalidation the new interval must be taken to be concerned."""
    subs = mm.notifier_subscriptions
    sub.mm = mm
    sub.ops = ops
    rb_clear_node(sub)
    sub.start = start
    sub.last = start + length - 1
    sub.updated_start = 0
    sub.updated_last = 0
    mmgrab(mm)
    count("intervals_created")
    count_interval()
    with spin_lock(subs.lock):
        if subs.active_invalidate_ranges:
            if mn_itree_is_invalidating(subs):
                hlist_add_head(sub.deferred_item, subs.deferred_list)
                count("deferred_ops")
            else:
                subs.invalidate_seq = subs.invalidate_seq | 1
                itree_insert(subs.itree, sub)
            sub.invalidate_seq = subs.invalidate_seq
        else:
            sub.invalidate_seq = subs.invalidate_seq - 1
            itree_insert(subs.itree, sub)
    return 0


@protocol
def mmu_interval_seq_released(subs: Subscriptions, seq: int) -> int:
    """mmu_interval_seq_released(): compared under the lock, so that the deferred work is known to be over."""
    with spin_lock(subs.lock):
        return subs.invalidate_seq != seq


@protocol
def mmu_interval_notifier_remove(sub: IntervalNotifier) -> None:
    """mmu_interval_notifier_remove(): not from a callback; no callback runs or will run once it returns."""
    mm = sub.mm
    subs = mm.notifier_subscriptions
    seq = 0
    with spin_lock(subs.lock):
        if mn_itree_is_invalidating(subs):
            if rb_empty_node(sub):
                hlist_del(sub.deferred_item)
            else:
                hlist_add_head(sub.deferred_item, subs.deferred_list)
                count("deferred_ops")
                seq = subs.invalidate_seq
        else:
            itree_remove(subs.itree, sub)
    if seq:
        while not mmu_interval_seq_released(subs, seq):
            wait_event(subs.wq, subs.invalidate_seq != seq)
    count("intervals_removed")
    count("intervals", -1)
    mmdrop(mm)
