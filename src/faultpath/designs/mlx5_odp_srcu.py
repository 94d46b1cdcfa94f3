"""How mlx5's implicit MR and its children went under SRCU: odp.c and mr.c, v5.6 (``protection=srcu``).

Lookups are unlocked and the whole fault is an SRCU read section: what has been taken out of the xarray is destroyed
after a grace period. With "IB/mlx5: Fix implicit ODP race" (de5ed007a03d, March 2020).
"""

from __future__ import annotations

from faultpath.designs.mlx5_ib import MKEY, Imr, Mdev, Mr, update_ksm
from faultpath.driver import *
from faultpath.kernel.srcu import wait_srcu_gp
from faultpath.kernel.umem_odp import ib_umem_odp_release


@protocol
def deferred_work_done(imr: Imr) -> None:
    """The end of free_implicit_child_mr(), v5.6: as in 6.1, the last one wakes by a queue in what the waiter frees."""
    if atomic_dec_and_test(imr.num_deferred_work):
        wake_up(imr.q_deferred_work)


@protocol
def free_implicit_child_mr(dev: Mdev, mr: Mr, need_imr_xlt: int) -> None:
    """free_implicit_child_mr(), v5.6: the child is out of the xarray, and SRCU has been waited for."""
    imr = mr.parent
    umem = mr.umem
    if need_imr_xlt:
        with srcu_read_lock(dev.odp_srcu):
            update_ksm(imr, umem.start >> imr.child_shift)
    with mutex_lock(umem.umem_mutex):  # dma_fence_odp_mr()
        if umem.npages:
            count("device_commands")  # mlx5_mr_cache_invalidate()
            pt_clear(umem.pt, umem.start, umem.last + 1)
            umem.npages = 0
        umem.private = NULL
    count("device_commands")  # mlx5_mr_cache_free()
    kfree(mr)
    ib_umem_odp_release(umem)
    deferred_work_done(imr)


@protocol
def free_implicit_child_mr_srcu_work(mr: Mr) -> None:
    """free_implicit_child_mr_rcu() and free_implicit_child_mr_work(), v5.6: call_srcu()'s wait is the work's here."""
    dev = Mdev(mr.parent.dev)
    wait_srcu_gp(dev.odp_srcu, mr.rcu)
    free_implicit_child_mr(dev, mr, 1)


@protocol
def destroy_unused_implicit_child_mr_srcu(mr: Mr) -> None:
    """destroy_unused_implicit_child_mr(), v5.6: the first to reach the xa_lock destroys the child."""
    idx = mr.umem.start >> mr.parent.child_shift
    imr = mr.parent
    with spin_lock(imr.xa_lock):
        if xa_cmpxchg(imr.children, idx, mr, NULL, SCRATCH) == mr:
            atomic_inc(imr.num_deferred_work)
            mr.rcu = get_state_synchronize_srcu(Mdev(imr.dev).odp_srcu)  # call_srcu()
            queue_work(mr.odp_destroy, free_implicit_child_mr_srcu_work, mr)


@protocol
def mlx5_ib_free_implicit_mr(dev: Mdev, imr: Imr) -> None:
    """mlx5_ib_free_implicit_mr(), v5.6: no more lookups, no more faults, no more children to destroy; then the rest."""
    with spin_lock(dev.xa_lock):
        xa_erase(dev.odp_mkeys, MKEY)
    synchronize_srcu(dev.odp_srcu)
    destroy_list = Mr(NULL)
    with spin_lock(imr.xa_lock):
        idx = xa_next(imr.children, 0)
        while idx >= 0:
            mr = Mr(xa_erase(imr.children, idx))
            mr.elm = destroy_list
            destroy_list = mr
            idx = xa_next(imr.children, idx + 1)
    synchronize_srcu(dev.odp_srcu)
    wait_event(imr.q_deferred_work, atomic_read(imr.num_deferred_work) == 0)
    count("device_commands")  # mlx5_mr_cache_invalidate()
    dev.mkc = NULL
    while destroy_list:
        mr = destroy_list
        destroy_list = Mr(mr.elm)
        free_implicit_child_mr(dev, mr, 0)
    count("device_commands")  # mlx5_mr_cache_free()
    xa_destroy(imr.ksm)
    kfree(imr)
