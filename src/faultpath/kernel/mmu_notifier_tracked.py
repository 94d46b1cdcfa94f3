"""Intervals that the core keeps, one for each VMA that a device uses: the third way, which nobody has written.

In January 2020 the series' author and the maintainer of the notifiers argued whether a driver should keep intervals
that follow VMAs. If so, the latter said, much of that logic should be the core's and not the driver's. It stayed a
sentence; this is what it comes to. A driver registers a *mirror* of an mm and keeps no intervals. On a fault it asks
for the one at an address; the functions that change VMAs tell this file; a driver is only ever called back to
invalidate.

**Where an interval comes from.** The first mirrored fault in a VMA makes it, over the whole VMA, as the first
anonymous page makes an anon_vma. At registration would mean one for each of hundreds of VMAs, and one more for each
mmap().

**Where it is found.** On a list in the VMA, one node for each mirror. A fault holds mmap_lock for reading anyway, for
hmm_range_fault(): whoever changes that list holds mmap_lock for writing, except a first fault, which adds to it under
the core's spinlock. So the lookup takes no lock of its own ("it looks very expensive on the fault path"): where the
series' find() searches the interval tree under the spinlock that all invalidations of the mm share, this looks up the
VMA, which hmm_range_fault() does once more. Those are about as many nodes in a red-black tree of VMAs, as there was in
2020: what is saved is the spinlock, not the search, unless the VMA is handed on.

**Its life.** The lookup returns a reference. "If the returned value is on the deferred list it could be freed at any
moment" is so where the tree may be ahead of the list one looks in; here an interval leaves the VMA's list first, under
mmap_lock for writing, the tree later, and memory with the last reference. The tree's goes by the series' own ``put``
and ``release``; they and the deferred list with its updates are taken from the series as they are, for their defects
are those of ``find`` and of drivers that put twice.

**VMAs that change.** *Split*: the upper half gets an interval before the lower one's shrinks. *Merge*, and a boundary
that moves: who gains grows first (or gets one, if it had none), the other goes or shrinks afterwards. In between the
two overlap and nothing is uncovered. *Growth* updates at once: lazily would leave a fault to compare bounds. *munmap*:
VMAs leave the mm before UNMAP is raised, so their intervals wait on ``mm.detached`` until it has been, still called
back; there is one such munmap at a time, since it does not let go of mmap_lock. *mremap* is a new VMA and a munmap:
nothing is moved. *exit*: with its VMAs. *fork*: a copied VMA's list is empty. Memory is GFP_KERNEL, for none of this
is a callback: what fails is the split, as it does without memory for a VMA. (Here it never fails.) Nothing waits:
while an invalidation walks the tree, changes to it are deferred, under the write lock, too.

**Sequence numbers.** One per interval, as before, and a rule: a number belongs to bounds. Whoever changes an
interval's bounds or retires it moves its number, since from then on other intervals will be called back for what it
covered. That takes no driver's lock: a fault that has passed its check holds that lock until it has mapped, and the
first callback that concerns the page, of whichever interval, waits for it. While no invalidation runs, moving one
interval's number is an epoch that concerned it alone (the mm's number goes on by two). Growth counts as an insertion:
what runs may concern what is new. ``read_begin`` and ``read_retry`` are unchanged; read_begin comes under mmap_lock,
between lookup and walk, so a number is always one of the bounds that the VMA has (and its wait lengthens mmap_lock's
hold).

**Who must not block** is called back as ever, and never meets this file: the OOM reaper changes no VMA.

**Teardown.** Unregistering takes mmap_lock for writing, marks the mirror dead, so that a fault that has it finds
nothing more, takes its intervals off all VMAs and waits until faults and intervals have let go of the mirror.

It trades: a pointer in each VMA, a test of it in every VMA operation, and an update of the tree in those that change
one a device uses, where v6 did as much on munmap only; a walk over all VMAs at close.
"""

from __future__ import annotations

from faultpath.kernel.errno import EFAULT, ENOENT, ENOMEM
from faultpath.kernel.mm import vma as vmas
from faultpath.kernel.mm.vma import Vma, find_vma, next_vma
from faultpath.kernel.mmu_notifier import (
    IntervalNotifier,
    Mm,
    Range,
    Subscriptions,
    mmdrop,
    mmgrab,
    mn_itree_is_invalidating,
)
from faultpath.kernel.mmu_notifier_v6 import mmu_interval_notifier_put, mn_itree_inv_end
from faultpath.kernel.primitives.count import count_interval
from faultpath.kernel.primitives.heap import GFP_KERNEL, kfree, kmalloc
from faultpath.kernel.primitives.itree import itree_insert, itree_remove, rb_clear_node, rb_empty_node
from faultpath.kernel.primitives.lists import (
    hlist_add_head,
    hlist_del,
    hlist_first,
    hlist_for_each_entry,
    hlist_next,
    hlist_unhashed,
)
from faultpath.kernel.primitives.locks import (
    down_write,
    refcount_dec_and_test,
    refcount_inc,
    refcount_set,
    rwsem_is_write_locked,
    spin_is_locked,
    spin_lock,
)
from faultpath.kernel.primitives.wait import Completion, complete, wait_for_completion
from faultpath.protocol.language import NULL, Ops, container_of, count, hook, protocol
from faultpath.protocol.struct import HlistNode, RefCount, Struct

__all__ = ["mn_itree_inv_end"]  # the series' takes the place of mainline's


class Mirror(Struct):
    """A driver's mirror of an mm; it begins its own structure with it."""

    mm: Mm
    ops: int
    users: RefCount  # one for being registered, one for each interval, one for each fault
    dead: int
    gone: Completion


class TrackedInterval(IntervalNotifier):
    """104 bytes of the series' mmu_interval_notifier, a list node, a pointer and a reference count."""

    interval_bytes = 136
    mirror: Mirror
    vma_item: HlistNode
    refs: RefCount  # one for the tree and the VMA, one for each fault


@hook("mirror_invalidate")
def ops_mirror_invalidate(ops: int, mirror: Mirror, sub: TrackedInterval, range: Range, cur_seq: int) -> int:
    """mmu_mirror_ops.invalidate: as mmu_interval_notifier_ops.invalidate."""


@protocol
def mmu_mirror_get(mirror: Mirror) -> None:
    """kref_get()."""
    refcount_inc(mirror.users)


@protocol
def mmu_mirror_put(mirror: Mirror) -> None:
    """kref_put()."""
    if refcount_dec_and_test(mirror.users):
        complete(mirror.gone)


@protocol
def mmu_tracked_put(sub: TrackedInterval) -> None:
    """kref_put()."""
    mirror = sub.mirror
    if refcount_dec_and_test(sub.refs):
        kfree(sub)
        mmu_mirror_put(mirror)


@protocol
def tracked_invalidate(sub: IntervalNotifier, range: Range, cur_seq: int) -> int:
    """The driver is told whose it is."""
    mirror = TrackedInterval(sub).mirror
    return ops_mirror_invalidate(mirror.ops, mirror, TrackedInterval(sub), range, cur_seq)


@protocol
def tracked_release(sub: IntervalNotifier) -> None:
    """The tree's reference goes."""
    mmu_tracked_put(TrackedInterval(sub))


mmu_tracked_ops = Ops("mmu_tracked_ops", invalidate=tracked_invalidate, release=tracked_release)


# --- intervals and their numbers


@protocol
def tracked_of(vma: Vma, mirror: Mirror) -> TrackedInterval:
    """A mirror's interval on the list of a VMA, or NULL."""
    for sub in hlist_for_each_entry(TrackedInterval, "vma_item", vma.tracked):
        count("lookup_steps")
        if sub.mirror == mirror:
            return sub
    return NULL


@protocol
def move_seq(subs: Subscriptions, sub: TrackedInterval) -> None:
    """A number that nobody holds, under the lock: this epoch's, or that of an empty one."""
    if mn_itree_is_invalidating(subs):
        sub.invalidate_seq = subs.invalidate_seq
    else:
        subs.invalidate_seq += 2
        sub.invalidate_seq = subs.invalidate_seq - 1


@protocol
def change_bounds(subs: Subscriptions, sub: TrackedInterval, start: int, last: int) -> None:
    """An interval covers ``[start, last]`` from now on, or from the last range_end on, under the lock."""
    was_start = sub.start
    was_last = sub.last
    if sub.updated_last:
        was_start = sub.updated_start
        was_last = sub.updated_last
    if start == was_start and last == was_last:
        return
    if was_last:
        count("intervals_updated")
    if (start < was_start or last > was_last) and subs.active_invalidate_ranges:
        subs.invalidate_seq = subs.invalidate_seq | 1  # as __mmu_interval_notifier_insert()
    move_seq(subs, sub)
    if mn_itree_is_invalidating(subs):
        if hlist_unhashed(sub.deferred_item):
            hlist_add_head(sub.deferred_item, subs.deferred_list)
            count("deferred_ops")
        if not rb_empty_node(sub):
            sub.updated_start = start
            sub.updated_last = last
            return
    elif not rb_empty_node(sub):
        itree_remove(subs.itree, sub)
    sub.start = start
    sub.last = last
    if not mn_itree_is_invalidating(subs):
        itree_insert(subs.itree, sub)


@protocol
def track(mm: Mm, vma: Vma, mirror: Mirror, start: int, last: int) -> TrackedInterval:
    """A mirror's interval on a VMA, made if there is none, covers ``[start, last]``; NULL without memory.

    Like anon_vma_prepare(): allocated before the lock is taken, looked for again under it.
    """
    subs = mm.notifier_subscriptions
    new = TrackedInterval(NULL)
    if not tracked_of(vma, mirror):
        new = kmalloc(TrackedInterval, GFP_KERNEL)
        if not new:
            return NULL
        new.mm = mm
        new.ops = mmu_tracked_ops
        new.mirror = mirror
        new.start = 1  # empty
        rb_clear_node(new)
        refcount_set(new.refs, 1)
    with spin_lock(subs.lock):
        sub = tracked_of(vma, mirror)
        if not sub:
            sub = new
        change_bounds(subs, sub, start, last)
        if sub == new:
            mmu_mirror_get(mirror)
            mmgrab(mm)
            count("intervals_created")
            count_interval()
            hlist_add_head(new.vma_item, vma.tracked)
    if new and sub != new:
        kfree(new)
    return sub


@protocol
def retire(sub: TrackedInterval) -> None:
    """An interval that is on no list any more will be called back no more."""
    subs = sub.mm.notifier_subscriptions
    with spin_lock(subs.lock):
        move_seq(subs, sub)
    mmu_interval_notifier_put(sub)


# --- what the functions that change VMAs tell


@protocol(replaces=vmas.vma_gains)
def vma_gains(mm: Mm, vma: Vma, start: int, last: int, donor: Vma) -> None:
    """Every mirror that has an interval on the donor has one on the gainer, over all of what that will map."""
    for sub in hlist_for_each_entry(TrackedInterval, "vma_item", donor.tracked):
        track(mm, vma, sub.mirror, start, last)


@protocol(replaces=vmas.vma_resized)
def vma_resized(mm: Mm, vma: Vma) -> None:
    """Its intervals follow; those that vma_gains() has grown already stay as they are."""
    subs = mm.notifier_subscriptions
    for sub in hlist_for_each_entry(TrackedInterval, "vma_item", vma.tracked):
        with spin_lock(subs.lock):
            change_bounds(subs, sub, vma.start, vma.last)


@protocol(replaces=vmas.vma_detached)
def vma_detached(mm: Mm, vma: Vma) -> None:
    """Its intervals can be found no more, and are called back until vmas_unmapped()."""
    while item := hlist_first(vma.tracked):
        hlist_del(container_of(TrackedInterval, "vma_item", item).vma_item)
        hlist_add_head(container_of(TrackedInterval, "vma_item", item).vma_item, mm.detached)


@protocol
def retire_all(first: int) -> None:
    """Every interval of a list, given its first node."""
    while first:
        sub = container_of(TrackedInterval, "vma_item", first)
        first = hlist_next(sub.vma_item)
        hlist_del(sub.vma_item)
        retire(sub)


@protocol(replaces=vmas.vmas_unmapped)
def vmas_unmapped(mm: Mm) -> None:
    """The device has nothing left there, and no fault finds a VMA."""
    retire_all(hlist_first(mm.detached))


@protocol(replaces=vmas.vma_dropped)
def vma_dropped(mm: Mm, vma: Vma) -> None:
    """Taken in by a neighbour, which covers it by now; or at exit. After a munmap() there is nothing on it."""
    retire_all(hlist_first(vma.tracked))


# --- what drivers call


@protocol
def mmu_mirror_register(mirror: Mirror, mm: Mm, ops: int) -> None:
    """The driver's lock for its mirror is held, or nobody knows of it yet."""
    mmgrab(mm)
    mirror.mm = mm
    mirror.ops = ops
    refcount_set(mirror.users, 1)


@protocol
def mmu_mirror_unregister(mirror: Mirror) -> None:
    """No callback runs or will run, no fault has the mirror, and all its intervals are gone when it returns.

    Not under a lock that a callback or a fault takes. Whoever asks for an interval from now on gets -ENOENT.
    """
    mm = mirror.mm
    with down_write(mm.mmap_lock):
        mirror.dead = 1
        vma = next_vma(mm, 0)
        while vma:
            if sub := tracked_of(vma, mirror):
                hlist_del(sub.vma_item)
                retire(sub)
            vma = next_vma(mm, vma.last + 1)
    mmu_mirror_put(mirror)
    wait_for_completion(mirror.gone)
    mmdrop(mm)


@protocol
def mmu_mirror_find(mirror: Mirror, addr: int) -> int:
    """The interval of the VMA at an address, with a reference, mmap_lock being held for reading; or -errno."""
    if mirror.dead:
        return -ENOENT
    count("lookups")
    vma = find_vma(mirror.mm, addr)
    if not vma or addr < vma.start:
        return -EFAULT
    sub = tracked_of(vma, mirror)
    if not sub:
        sub = track(mirror.mm, vma, mirror, vma.start, vma.last)
        if not sub:
            return -ENOMEM
    refcount_inc(sub.refs)
    return sub


@protocol
def follows_vmas(mm: Mm) -> int:
    """The rule that check holds it to, while nobody is in the middle of a change: 0, or 1 where it is broken.

    An interval on a VMA's list covers that VMA, no more and no less, from the last range_end on; a mirror has one.
    """
    if rwsem_is_write_locked(mm.mmap_lock) or spin_is_locked(mm.notifier_subscriptions.lock):
        return 0
    vma = next_vma(mm, 0)
    while vma:
        for sub in hlist_for_each_entry(TrackedInterval, "vma_item", vma.tracked):
            start = sub.start
            last = sub.last
            if sub.updated_last:
                start = sub.updated_start
                last = sub.updated_last
            if start != vma.start or last != vma.last or tracked_of(vma, sub.mirror) != sub:
                return 1
        vma = next_vma(mm, vma.last + 1)
    return 0
