"""HMM's structure, freed under the notifier walk that stands at it.

Until 5.3, mm/hmm.c kept a structure per mm with a plain notifier in it. The last mirror to go unregistered that with
mmu_notifier_unregister_no_release() and freed it. Unregistering like that is no fence: an invalidation that is going
over the list under SRCU may stand at the notifier, and goes on in freed memory.

The fix frees after a grace period (mmu_notifier_call_srcu()); a callback that comes in between sees by the reference
count that the structure is dying. What call_srcu() calls runs in a work item here.
"""

from __future__ import annotations

import dataclasses

from faultpath.cases import mirror
from faultpath.cases.case import BUGGY, FINAL_FIX, HOLDS, Case, Variant, memory
from faultpath.driver import *
from faultpath.kernel.primitives.lists import hlist_del_init_rcu
from faultpath.scenario import Scenario, close, reclaim


class Mirror(Device):
    """``struct hmm_mirror`` in a driver's structure."""

    hmm: Notifier
    pt: PageTable


class Hmm(Notifier):
    """``struct hmm``, which begins with its mmu_notifier here."""

    mirror: Mirror  # the one on the list of mirrors, or NULL
    kref: RefCount
    lock: Mutex
    rcu: Work


@protocol
def hmm_invalidate_range_start(mn: Notifier, range: Range) -> int:
    """hmm_invalidate_range_start(): the mirrors are told under hmm->lock, if the structure lives."""
    hmm = Hmm(mn)
    if not refcount_inc_not_zero(hmm.kref):
        return 0
    with mutex_lock(hmm.lock):
        if hmm.mirror:
            device_zap(hmm.mirror.pt, range.start, range.end)
    hmm_put(hmm)
    return 0


hmm_mmu_notifier_ops = Ops("hmm_mmu_notifier_ops", invalidate_range_start=hmm_invalidate_range_start)


@protocol
def hmm_mirror_register(mm: Mm) -> Mirror:
    """hmm_mirror_register() and hmm_get_or_create() of the first mirror."""
    mirror = kmalloc(Mirror, GFP_KERNEL)
    if not mirror:
        return NULL
    mirror.mm = mm
    pt_init(mirror.pt, 0, mm.task_size)
    hmm = kmalloc(Hmm, GFP_KERNEL)
    hmm.mirror = mirror
    hmm.ops = hmm_mmu_notifier_ops
    refcount_set(hmm.kref, 1)
    mirror.hmm = hmm
    mmu_notifier_register(hmm, mm)
    return mirror


@protocol
def mmu_notifier_unregister_no_release(mn: Notifier, mm: Mm) -> None:
    """mmu_notifier_unregister_no_release(), Linux 3.17 to 5.3: off the list, and no word to anybody."""
    subs = mm.notifier_subscriptions
    with spin_lock(subs.lock):
        hlist_del_init_rcu(mn.hlist)
    mmdrop(mm)


@protocol
def free_now(hmm: Hmm) -> None:
    """The end of hmm_free() until 5.2."""
    kfree(hmm)


@protocol
def hmm_free_rcu(hmm: Hmm) -> None:
    """hmm_free_rcu(), once nobody can stand at the notifier any more."""
    synchronize_srcu(hmm.mm.srcu)
    kfree(hmm)


@protocol(replaces=free_now)
def free_after_a_grace_period(hmm: Hmm) -> None:
    """mmu_notifier_call_srcu() in hmm_free() after the fix."""
    queue_work(hmm.rcu, hmm_free_rcu, hmm)


@protocol
def hmm_put(hmm: Hmm) -> None:
    """hmm_put() and hmm_free()."""
    if refcount_dec_and_test(hmm.kref):
        mmu_notifier_unregister_no_release(hmm, hmm.mm)
        free_now(hmm)


@protocol
def hmm_mirror_unregister(mirror: Mirror) -> None:
    """hmm_mirror_unregister(), and the driver frees its own."""
    hmm = Hmm(mirror.hmm)
    with mutex_lock(hmm.lock):
        hmm.mirror = Mirror(NULL)
    hmm_put(hmm)
    pt_free(mirror.pt)
    kfree(mirror)


@protocol
def mirror_walk(mirror: Mirror, addr: int) -> int:
    """What the device's MMU finds."""
    return pt_get(mirror.pt, addr)


BEFORE = dataclasses.replace(
    mirror.design,
    name="hmm_mirror",
    open=hmm_mirror_register,
    walk=mirror_walk,
    close=hmm_mirror_unregister,
    ops=[hmm_mmu_notifier_ops],
)
AFTER = dataclasses.replace(BEFORE, replaces=[*BEFORE.replaces, free_after_a_grace_period])

SCENARIO = Scenario(
    "unregister-vs-walk", "The last mirror goes while kswapd takes a page.", memory(1), [close(), reclaim(0)], pages=1
)

case = Case(
    name="hmm-struct",
    title="mm/hmm: fix use after free with struct hmm in the mmu notifiers",
    cve="",
    property="lifetime",
    source="mm/hmm.c:hmm_free(), hmm_invalidate_range_start()",
    variants=[
        Variant(BUGGY, BEFORE, SCENARIO, "lifetime"),
        Variant(FINAL_FIX, AFTER, SCENARIO, HOLDS, "6d7c3cde93c1", "5.3-rc1"),
    ],
    doc=__doc__,
)
