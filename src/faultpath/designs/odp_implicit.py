"""Fixed chunks aligned to the device's page table: mlx5's implicit on-demand paging.

The address space is cut into children of 1 GiB, a level of the device's own table. A fault finds its child with one
xarray load and makes one if there is none; VMAs do not matter. A child lives until its last page has been unmapped:
the callback that clears it queues the destruction, for an interval cannot be removed inside a callback.

It trades callbacks for simplicity: a child with one page mapped is called back for every event in its GiB and scans the
part of its table that the event covers; its tables (16 bytes per 4 KiB, 4 MiB per child) are allocated whole.

A fault names an mkey. The handler finds its MR in ``odp_mkeys`` and must keep it, and the child, from going meanwhile.
``protection=refcount`` is today's way: the xarray's lock and a reference. ``protection=srcu`` is that of January 2020:
unlocked loads, the whole fault inside an SRCU read section, destruction after a grace period; with "IB/mlx5: Fix
implicit ODP race" (de5ed007a03d, March 2020, Linux 5.6), and what the fault does with its child is as in 6.1.
An MR goes back to a cache in the end, which is to free it here.

The MR is writable, so every fault asks for write access, as in the driver: reading memory that the process itself may
only read is refused. The implicit MR and its ib_umem_odp are one object, and its mkey is the only one in ``odp_mkeys``.
MR cache, prefetch and the command that resumes the stalled queue pair are not modelled; commands do not fail.

``page_faults`` are the implicit MR's. Invalidations are counted for the child, an MR that no tool shows: what ``rdma
statistic`` prints as the implicit MR's page_invalidations stays 0.
"""

from __future__ import annotations

from faultpath.driver import *
from faultpath.kernel.primitives.mtt import mtt_zap
from faultpath.kernel.srcu import wait_srcu_gp
from faultpath.kernel.umem_odp import (
    ODP_WRITE_ALLOWED,
    Umem,
    ib_init_umem_odp,
    ib_umem_odp_map_dma_and_lock,
    ib_umem_odp_release,
)

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
def update_ksm(imr: Imr, idx: int) -> None:
    """mlx5r_umr_update_xlt(imr, idx, 1, INDIRECT): the device's entry becomes what implicit_children holds."""
    mutex_lock(imr.umem_mutex)
    count("device_commands")
    xa_store(imr.ksm, idx, xa_load(imr.children, idx, SCRATCH))
    mutex_unlock(imr.umem_mutex)


# --- protection=refcount: Linux 6.1


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
def mlx5_ib_dereg_mr(mr: Mr) -> None:
    """mlx5_ib_dereg_mr() of a child, whose mkey is not in odp_mkeys: nothing to erase there and nobody to wait for."""
    umem = mr.umem
    mutex_lock(umem.umem_mutex)
    count("device_commands")  # mlx5r_umr_revoke_mr()
    umem.private = NULL
    mutex_unlock(umem.umem_mutex)
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
    spin_lock(imr.xa_lock)
    if xa_cmpxchg(imr.children, idx, mr, NULL, SCRATCH) != mr:
        spin_unlock(imr.xa_lock)
        mlx5r_deref_odp_mkey(imr)
        return
    spin_unlock(imr.xa_lock)
    queue_work(mr.odp_destroy, free_implicit_child_mr_work, mr)


@protocol
def mlx5_ib_free_odp_mr(imr: Imr) -> None:
    """mlx5_ib_free_odp_mr(): every child still in the xarray goes."""
    idx = xa_next(imr.children, 0)
    while idx >= 0:
        mr = Mr(xa_load(imr.children, idx, SCRATCH))
        spin_lock(imr.xa_lock)
        xa_erase(imr.children, idx)
        spin_unlock(imr.xa_lock)
        mlx5_ib_dereg_mr(mr)
        idx = xa_next(imr.children, idx + 1)


@protocol
def mlx5_ib_dereg_implicit_mr(dev: Mdev, imr: Imr) -> None:
    """mlx5_ib_dereg_mr() of the parent: no more lookups, no more users, revoked in the HCA; then the children."""
    if refcount_read(imr.usecount) != 0:
        spin_lock(dev.xa_lock)
        found = xa_erase(dev.odp_mkeys, MKEY)
        spin_unlock(dev.xa_lock)
        if found:
            mlx5r_deref_wait_odp_mkey(imr)
    mutex_lock(imr.umem_mutex)
    count("device_commands")  # mlx5r_umr_revoke_mr()
    dev.mkc = NULL
    mutex_unlock(imr.umem_mutex)
    mlx5_ib_free_odp_mr(imr)
    xa_destroy(imr.ksm)
    kfree(imr)


# --- protection=srcu: v5.6


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
        srcu_key = srcu_read_lock(dev.odp_srcu)
        update_ksm(imr, umem.start >> imr.child_shift)
        srcu_read_unlock(dev.odp_srcu, srcu_key)
    mutex_lock(umem.umem_mutex)  # dma_fence_odp_mr()
    if umem.npages:
        count("device_commands")  # mlx5_mr_cache_invalidate()
        pt_clear(umem.pt, umem.start, umem.last + 1)
        umem.npages = 0
    umem.private = NULL
    mutex_unlock(umem.umem_mutex)
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
    spin_lock(imr.xa_lock)
    if xa_cmpxchg(imr.children, idx, mr, NULL, SCRATCH) == mr:
        atomic_inc(imr.num_deferred_work)
        mr.rcu = get_state_synchronize_srcu(Mdev(imr.dev).odp_srcu)  # call_srcu()
        queue_work(mr.odp_destroy, free_implicit_child_mr_srcu_work, mr)
    spin_unlock(imr.xa_lock)


@protocol
def mlx5_ib_free_implicit_mr(dev: Mdev, imr: Imr) -> None:
    """mlx5_ib_free_implicit_mr(), v5.6: no more lookups, no more faults, no more children to destroy; then the rest."""
    spin_lock(dev.xa_lock)
    xa_erase(dev.odp_mkeys, MKEY)
    spin_unlock(dev.xa_lock)
    synchronize_srcu(dev.odp_srcu)
    destroy_list = Mr(NULL)
    spin_lock(imr.xa_lock)
    idx = xa_next(imr.children, 0)
    while idx >= 0:
        mr = Mr(xa_erase(imr.children, idx))
        mr.elm = destroy_list
        destroy_list = mr
        idx = xa_next(imr.children, idx + 1)
    spin_unlock(imr.xa_lock)
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


# --- both


@protocol
def mlx5_ib_invalidate_range(mni: IntervalNotifier, range: Range, cur_seq: int) -> int:
    """mlx5_ib_invalidate_range(): the same for every event; clipped to the umem."""
    umem = Umem(mni)
    if not range.blockable:
        return 0
    mutex_lock(umem.umem_mutex)
    mmu_interval_set_seq(mni, cur_seq)
    if not umem.npages:
        mutex_unlock(umem.umem_mutex)
        return 1
    mr = Mr(umem.private)
    if not mr:
        mutex_unlock(umem.umem_mutex)
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
    mutex_unlock(umem.umem_mutex)
    return 1


mlx5_mn_ops = Ops("mlx5_mn_ops", invalidate=mlx5_ib_invalidate_range)


@protocol
def mlx5_ib_alloc_implicit_mr(mm: Mm, child: int, protection: int) -> Mdev:
    """mlx5_ib_alloc_implicit_mr(), and the device: a parent without notifier and without tables, known by its mkey."""
    dev = on_stack(Mdev)
    dev.mm = mm
    dev.protection = protection
    imr = kmalloc(Imr, GFP_KERNEL)
    if not imr:
        off_stack(dev)
        return NULL
    imr.mm = mm
    imr.dev = dev
    imr.protection = protection
    while 1 << imr.child_shift < child:
        imr.child_shift += 1
    count("device_commands")
    dev.mkc = imr
    dev.mr = imr
    refcount_set(imr.usecount, 1)  # mlx5r_store_odp_mkey()
    spin_lock(dev.xa_lock)
    xa_store(dev.odp_mkeys, MKEY, imr)
    spin_unlock(dev.xa_lock)
    return dev


@protocol
def ib_umem_odp_alloc_child(imr: Imr, idx: int) -> int:
    """ib_umem_odp_alloc_child(): a umem that is called back from now on, or -errno."""
    umem = kmalloc(Umem, GFP_KERNEL)
    if not umem:
        return -ENOMEM
    if not mmget_not_zero(imr.mm):
        kfree(umem)
        return -EFAULT
    ret = ib_init_umem_odp(umem, imr.mm, idx << imr.child_shift, 1 << imr.child_shift, mlx5_mn_ops)
    if ret:
        kfree(umem)
        umem = Umem(ret)
    mmput(imr.mm)
    return umem


@protocol
def implicit_get_child_mr(imr: Imr, idx: int) -> int:
    """implicit_get_child_mr(): build a child, then see whether somebody else was faster; it, or -errno."""
    odp = ib_umem_odp_alloc_child(imr, idx)
    if odp < 0:
        return odp
    umem = Umem(odp)
    mr = kmalloc(Mr, GFP_KERNEL)  # mlx5_mr_cache_alloc()
    if not mr:
        ib_umem_odp_release(umem)
        return -ENOMEM
    mr.umem = umem
    mr.parent = imr
    umem.private = mr
    refcount_set(mr.usecount, 2)  # the xarray's and the caller's
    count("device_commands")
    spin_lock(imr.xa_lock)
    found = Mr(xa_cmpxchg(imr.children, idx, NULL, mr, SCRATCH))
    if found and imr.protection != SRCU:
        refcount_inc(found.usecount)
    spin_unlock(imr.xa_lock)
    if not found:
        return mr
    if imr.protection == SRCU:
        count("device_commands")  # mlx5_mr_cache_free()
        kfree(mr)
        ib_umem_odp_release(umem)
    else:
        mlx5_ib_dereg_mr(mr)
    return found


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


@protocol
def pagefault_implicit_mr(imr: Imr, addr: int) -> int:
    """pagefault_implicit_mr() for one page."""
    idx = addr >> imr.child_shift
    created = 0
    count("lookups")
    if imr.protection == SRCU:
        found = xa_load(imr.children, idx, LOOKUP_STEPS)
    else:
        spin_lock(imr.xa_lock)
        found = xa_load(imr.children, idx, LOOKUP_STEPS)
        if found:
            refcount_inc(Mr(found).usecount)
        spin_unlock(imr.xa_lock)
    if not found:
        found = implicit_get_child_mr(imr, idx)
        if found < 0:
            return found
        created = 1
    mr = Mr(found)
    ret = pagefault_real_mr(mr, addr)
    if imr.protection != SRCU:
        mlx5r_deref_odp_mkey(mr)
    if created:
        update_ksm(imr, idx)
    return ret


@protocol
def pagefault_single_data_segment(dev: Mdev, addr: int, write: int) -> int:
    """pagefault_single_data_segment() for one page. ``write`` changes nothing: the MR's own access flags decide.

    Without an MR, C reports success and leaves it to the HCA to find the mkey gone: -EFAULT here.
    """
    if dev.protection == SRCU:
        srcu_key = srcu_read_lock(dev.odp_srcu)
        imr = Imr(xa_load(dev.odp_mkeys, MKEY, SCRATCH))
        ret = -EFAULT
        if imr:
            ret = pagefault_implicit_mr(imr, addr)
        srcu_read_unlock(dev.odp_srcu, srcu_key)
        return ret
    spin_lock(dev.xa_lock)
    imr = Imr(xa_load(dev.odp_mkeys, MKEY, SCRATCH))
    if not imr:
        spin_unlock(dev.xa_lock)
        return -EFAULT
    refcount_inc(imr.usecount)
    spin_unlock(dev.xa_lock)
    ret = pagefault_implicit_mr(imr, addr)
    mlx5r_deref_odp_mkey(imr)
    return ret


@protocol
def hca_walk(dev: Mdev, addr: int) -> int:
    """What the HCA finds: the mkey, its KSM entry, then that child's MTT."""
    imr = dev.mkc
    if not imr:
        return 0
    mr = Mr(xa_load(imr.ksm, addr >> imr.child_shift, SCRATCH))
    if not mr:
        return 0
    return pt_get(mr.umem.pt, addr)


@protocol
def mlx5_ib_dereg_user_mr(dev: Mdev) -> None:
    """The application's MR is destroyed, or its file closed."""
    imr = dev.mr
    if dev.protection == SRCU:
        mlx5_ib_free_implicit_mr(dev, imr)
    else:
        mlx5_ib_dereg_implicit_mr(dev, imr)
    dev.mr = Imr(NULL)


design = Design(
    name="odp-implicit",
    title="fixed chunks aligned to the device's page table",
    source="drivers/infiniband/hw/mlx5/odp.c, drivers/infiniband/core/umem_odp.c, Linux 6.1; srcu: v5.6",
    open=mlx5_ib_alloc_implicit_mr,
    fault=pagefault_single_data_segment,
    walk=hca_walk,
    close=mlx5_ib_dereg_user_mr,
    ops=[mlx5_mn_ops],
    parameters=[
        Parameter(
            "child",
            1 << 30,
            "size of a child (MLX5_IMR_MTT_SIZE)",
            unit="bytes",
            minimum=4096,
            power_of_two=True,
            small=16 << 10,
        ),
        Parameter("protection", "refcount", "how a lookup keeps its child alive", choices=("refcount", "srcu")),
    ],
    counters=["page_faults"],
    doc=__doc__,
)
