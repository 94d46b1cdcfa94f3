"""mlx5: an MR's memory key is revoked while an invalidation posts an update of it; and the lock that mends it.

Deregistration frees the key in hardware without the lock that the callback takes. The callback then posts a UMR update
for a key that is free, which ends in a completion with an error, and the queue pair in error state.

The first fix holds umem_mutex over all of it, and takes the MR away from the callback before it lets go. But "all of
it" includes putting the key into the cache, under the cache's rb_lock; and whoever allocates under rb_lock may end in
reclaim, in the notifier, in this very callback, which wants umem_mutex. The second holds it over the revocation alone.

A key in hardware is an object here, which revoking frees. One page is mapped from the start.
"""

from __future__ import annotations

import dataclasses

from faultpath.cases import mirror
from faultpath.cases.case import BUGGY, FINAL_FIX, FIRST_FIX, HOLDS, Case, Variant, memory
from faultpath.driver import *
from faultpath.kernel.mm.reclaim import mm_reclaim
from faultpath.scenario import DEVICE, SPAN, Call, Scenario, address, close


class Mkey(Struct):
    """A memory key in hardware."""

    updates: int


class Mr(Struct):
    """``struct mlx5_ib_mr``, and its umem_odp."""

    mkey: Mkey
    dev: int  # the Mdev
    odp: Member[IntervalNotifier]  # umem_odp->notifier
    umem_mutex: Mutex
    private: int  # umem_odp->private: the MR, or NULL


class Mdev(Device):
    """``struct mlx5_ib_dev``, and the one MR on it."""

    mr: Mr
    rb_lock: ParentMutex  # dev->cache.rb_lock
    cached: int  # keys in the cache
    pt: PageTable


@protocol
def mlx5r_umr_update_xlt(dev: Mdev, mr: Mr, start: int, end: int) -> None:
    """mlx5r_umr_update_xlt() with MLX5_IB_UPD_XLT_ZAP: hardware looks at the key."""
    mkey = mr.mkey
    mkey.updates = mkey.updates ^ 1
    device_zap(dev.pt, start, end)


@protocol
def mlx5_ib_invalidate_range(mni: IntervalNotifier, range: Range, cur_seq: int) -> int:
    """mlx5_ib_invalidate_range()."""
    mr = container_of(Mr, "odp", mni)
    with mutex_lock(mr.umem_mutex):
        mmu_interval_set_seq(mni, cur_seq)
        if mr.private:
            mlx5r_umr_update_xlt(Mdev(mr.dev), mr, range.start, range.end)
    return 1


mlx5_mn_ops = Ops("mlx5_mn_ops", invalidate=mlx5_ib_invalidate_range)


@protocol
def mlx5_ib_reg_user_mr(mm: Mm) -> Mdev:
    """The device, and mlx5_ib_reg_user_mr() of an ODP MR."""
    dev = on_stack(Mdev)
    dev.mm = mm
    pt_init(dev.pt, 0, mm.task_size)
    mr = kmalloc(Mr, GFP_KERNEL)
    if not mr:
        return NULL
    mr.mkey = kmalloc(Mkey, GFP_KERNEL)
    mr.private = mr
    mr.dev = dev
    dev.mr = mr
    mmu_interval_notifier_insert(mr.odp, mm, SPAN, PAGE_SIZE, mlx5_mn_ops)
    return dev


@protocol
def mlx5r_umr_revoke_mr(mr: Mr) -> None:
    """mlx5r_umr_revoke_mr(): the key is free in hardware."""
    kfree(mr.mkey)


@protocol
def cache_ent_find_and_store(dev: Mdev) -> None:
    """cache_ent_find_and_store()."""
    with mutex_lock(dev.rb_lock):
        dev.cached += 1


@protocol
def mlx5_revoke_mr(dev: Mdev, mr: Mr) -> None:
    """mlx5_revoke_mr(), Linux 5.13 to 6.13."""
    mlx5r_umr_revoke_mr(mr)
    cache_ent_find_and_store(dev)


@protocol(replaces=mlx5_revoke_mr)
def revoke_under_umem_mutex(dev: Mdev, mr: Mr) -> None:
    """mlx5_revoke_mr() after abb604a1a9c8."""
    with mutex_lock(mr.umem_mutex):
        mlx5r_umr_revoke_mr(mr)
        cache_ent_find_and_store(dev)
        mr.private = NULL


@protocol(replaces=mlx5_revoke_mr)
def revoke_then_store(dev: Mdev, mr: Mr) -> None:
    """mlx5r_handle_mkey_cleanup() and mlx5_umr_revoke_mr_with_lock()."""
    with mutex_lock(mr.umem_mutex):
        mlx5r_umr_revoke_mr(mr)
        mr.private = NULL
    cache_ent_find_and_store(dev)


@protocol
def mlx5_ib_dereg_mr(dev: Mdev) -> None:
    """__mlx5_ib_dereg_mr(): stop DMA, release the umem, free."""
    mr = dev.mr
    mlx5_revoke_mr(dev, mr)
    mmu_interval_notifier_remove(mr.odp)
    pt_free(dev.pt)
    kfree(mr)


@protocol
def mlx5r_cache_create_ent(dev: Mdev, page: int) -> None:
    """mlx5r_cache_create_ent_locked(): an allocation under rb_lock, which ends in direct reclaim."""
    with mutex_lock(dev.rb_lock):
        mm_reclaim(dev.mm, page)


BEFORE = dataclasses.replace(
    mirror.design, name="mlx5 MR", open=mlx5_ib_reg_user_mr, close=mlx5_ib_dereg_mr, ops=[mlx5_mn_ops]
)
FIRST = dataclasses.replace(BEFORE, replaces=[*BEFORE.replaces, revoke_under_umem_mutex])
FINAL = dataclasses.replace(BEFORE, replaces=[*BEFORE.replaces, revoke_then_store])

SCENARIO = Scenario(
    "dereg-vs-reclaim",
    "An MR is deregistered while another task's allocation, under the cache's lock, reclaims a page of it.",
    memory(1),
    [close(), Call("reclaim", mlx5r_cache_create_ent, (DEVICE, address(0)))],
    pages=1,
)

case = Case(
    name="mlx5-dereg",
    title="RDMA/mlx5: Fix a race for an ODP MR which leads to CQE with error",
    cve="CVE-2025-21732",
    property="lifetime",
    source="drivers/infiniband/hw/mlx5/mr.c:mlx5_revoke_mr(), odp.c:mlx5_ib_invalidate_range()",
    variants=[
        Variant(BUGGY, BEFORE, SCENARIO, "lifetime"),
        Variant(FIRST_FIX, FIRST, SCENARIO, "locks", "abb604a1a9c8", "6.14-rc1"),
        Variant(FINAL_FIX, FINAL, SCENARIO, HOLDS, "2ed25aa7f771", "6.16"),
    ],
    doc=__doc__,
)
