"""mlx5's structures, how an mkey is held, and how an HCA hears of a child: mlx5_ib.h and umr.c, Linux 6.1."""

from __future__ import annotations

from faultpath.driver import *
from faultpath.kernel.umem_odp import Umem

MKEY = 0  # mlx5_base_mkey() of the implicit MR's key, by which the application's requests name it
SRCU = 1  # protection=srcu


class Mkey(Struct):
    """``struct mlx5_ib_mkey``, with which an MR begins."""

    usecount: RefCount
    wait: WaitQueue


class Imr(Mkey):
    """The parent: ``struct mlx5_ib_mr`` of an implicit MR, its ``ib_umem_odp``, and the table behind its mkey."""

    dev: int  # the Mdev
    mm: Mm  # umem.owning_mm
    children: XArray  # implicit_children
    xa_lock: XaLock
    umem_mutex: ParentMutex
    ksm: XArray  # what the device sees: one child per entry
    child_shift: int
    protection: int
    num_deferred_work: Atomic
    q_deferred_work: WaitQueue


class Mr(Mkey):
    """``struct mlx5_ib_mr`` of a child, or of an explicit MR."""

    umem: Umem
    parent: Imr  # NULL: explicit
    odp_destroy: Work
    rcu: int  # odp_destroy.rcu: the grace period that call_srcu() waits for
    elm: int  # odp_destroy.elm: the next on the list


class Mdev(Device):
    """``struct mlx5_ib_dev``, one per HCA, and what there is on it."""

    odp_mkeys: XArray
    xa_lock: XaLock
    odp_srcu: Srcu
    protection: int
    mr: Imr  # the application's handle
    mkc: Imr  # what the HCA itself has under the mkey, NULL once it is revoked


@protocol
def mlx5r_deref_odp_mkey(mkey: Mkey) -> None:
    """mlx5r_deref_odp_mkey(): who sees zero wakes the one who waits for it, by a queue in the object he will free."""
    if refcount_dec_and_test(mkey.usecount):
        wake_up(mkey.wait)


@protocol
def mlx5r_deref_wait_odp_mkey(mkey: Mkey) -> None:
    """mlx5r_deref_wait_odp_mkey()."""
    mlx5r_deref_odp_mkey(mkey)
    wait_event(mkey.wait, refcount_read(mkey.usecount) == 0)


@protocol
def update_ksm(imr: Imr, idx: int) -> None:
    """mlx5r_umr_update_xlt(imr, idx, 1, INDIRECT): the device's entry becomes what implicit_children holds."""
    with mutex_lock(imr.umem_mutex):
        count("device_commands")
        xa_store(imr.ksm, idx, xa_load(imr.children, idx, SCRATCH))
