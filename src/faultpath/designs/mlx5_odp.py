"""What happens to mlx5's MRs, implicit or explicit: a fault, an event, destruction; odp.c and mr.c, Linux 6.1.

An event that leaves a child without pages queues its destruction, for an interval cannot be removed in a callback.
Nothing is destroyed before its last user has let go of it (``protection=refcount``); with ``protection=srcu`` it is
:mod:`faultpath.designs.mlx5_odp_srcu` that destroys.
"""

from __future__ import annotations

from faultpath.designs.mlx5_ib import (
    MKEY,
    SRCU,
    Imr,
    Mdev,
    Mr,
    mlx5r_deref_odp_mkey,
    mlx5r_deref_wait_odp_mkey,
    update_ksm,
)
from faultpath.designs.mlx5_odp_srcu import destroy_unused_implicit_child_mr_srcu
from faultpath.driver import *
from faultpath.kernel.primitives.mtt import mtt_zap
from faultpath.kernel.umem_odp import ODP_WRITE_ALLOWED, Umem, ib_umem_odp_map_dma_and_lock, ib_umem_odp_release

# --- destruction, protection=refcount


@protocol
def mlx5_ib_dereg_mr(mr: Mr) -> None:
    """mlx5_ib_dereg_mr() of a child, whose mkey is not in odp_mkeys: nothing to erase there and nobody to wait for."""
    umem = mr.umem
    with mutex_lock(umem.umem_mutex):
        count("device_commands")  # mlx5r_umr_revoke_mr()
        umem.private = NULL
    ib_umem_odp_release(umem)
    kfree(mr)


@protocol
def free_implicit_child_mr_work(mr: Mr) -> None:
    """free_implicit_child_mr_work(): the child may have got pages again from a fault that held it."""
    imr = mr.parent
    mlx5r_deref_wait_odp_mkey(mr)
    update_ksm(imr, mr.umem.start >> imr.child_shift)
    mlx5_ib_dereg_mr(mr)
    mlx5r_deref_odp_mkey(imr)


@protocol
def destroy_unused_implicit_child_mr(mr: Mr) -> None:
    """destroy_unused_implicit_child_mr(): out of the xarray now, freed later; called under the child's umem_mutex."""
    idx = mr.umem.start >> mr.parent.child_shift
    imr = mr.parent
    if not refcount_inc_not_zero(imr.usecount):
        return
    with spin_lock(imr.xa_lock):
        found = xa_cmpxchg(imr.children, idx, mr, NULL, SCRATCH)
    if found == mr:
        queue_work(mr.odp_destroy, free_implicit_child_mr_work, mr)
    else:
        mlx5r_deref_odp_mkey(imr)


@protocol
def mlx5_ib_free_odp_mr(imr: Imr) -> None:
    """mlx5_ib_free_odp_mr(): every child still in the xarray goes."""
    idx = xa_next(imr.children, 0)
    while idx >= 0:
        mr = Mr(xa_load(imr.children, idx, SCRATCH))
        with spin_lock(imr.xa_lock):
            xa_erase(imr.children, idx)
        mlx5_ib_dereg_mr(mr)
        idx = xa_next(imr.children, idx + 1)


@protocol
def mlx5_ib_dereg_implicit_mr(dev: Mdev, imr: Imr) -> None:
    """mlx5_ib_dereg_mr() of the parent: no more lookups, no more users, revoked in the HCA; then the children."""
    if refcount_read(imr.usecount) != 0:
        with spin_lock(dev.xa_lock):
            found = xa_erase(dev.odp_mkeys, MKEY)
        if found:
            mlx5r_deref_wait_odp_mkey(imr)
    with mutex_lock(imr.umem_mutex):
        count("device_commands")  # mlx5r_umr_revoke_mr()
        dev.mkc = NULL
    mlx5_ib_free_odp_mr(imr)
    xa_destroy(imr.ksm)
    kfree(imr)


# --- an event


@protocol
def mlx5_ib_invalidate_range(mni: IntervalNotifier, range: Range, cur_seq: int) -> int:
    """mlx5_ib_invalidate_range(): the same for every event; clipped to the umem."""
    umem = Umem(mni)
    if not range.blockable:
        return 0
    with mutex_lock(umem.umem_mutex):
        mmu_interval_set_seq(mni, cur_seq)
        if not umem.npages:
            return 1
        mr = Mr(umem.private)
        if not mr:
            return 1
        start = max(umem.start, range.start)
        end = min(umem.last + 1, range.end)
        umem.npages -= mtt_zap(umem.pt, start, end)
        if not umem.npages:
            parent = mr.parent
            if parent and parent.protection == SRCU:
                destroy_unused_implicit_child_mr_srcu(mr)
            elif parent:
                destroy_unused_implicit_child_mr(mr)
    return 1


mlx5_mn_ops = Ops("mlx5_mn_ops", invalidate=mlx5_ib_invalidate_range)


# --- a fault


@protocol
def pagefault_real_mr(mr: Mr, addr: int) -> int:
    """pagefault_real_mr(): map the page, then tell the device under the same mutex (one UMR).

    What it returns is added to page_faults of the MR that the mkey named, by the caller.
    """
    umem = mr.umem
    ret = ib_umem_odp_map_dma_and_lock(umem, addr, ODP_WRITE_ALLOWED)
    if ret < 0:
        return ret
    count("device_commands")
    count("page_faults")
    mutex_unlock(umem.umem_mutex)
    return 0
