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

Children are made here, and faults begin here. ``mlx5_odp`` has the callback and the fault of a page, which explicit MRs
have as well, and today's destruction, ``mlx5_odp_srcu`` that of v5.6, ``mlx5_ib`` the structures.
"""

from __future__ import annotations

from faultpath.designs.mlx5_ib import MKEY, SRCU, Imr, Mdev, Mr, mlx5r_deref_odp_mkey, update_ksm
from faultpath.designs.mlx5_odp import mlx5_ib_dereg_implicit_mr, mlx5_ib_dereg_mr, mlx5_mn_ops, pagefault_real_mr
from faultpath.designs.mlx5_odp_srcu import mlx5_ib_free_implicit_mr
from faultpath.driver import *
from faultpath.kernel.umem_odp import Umem, ib_init_umem_odp, ib_umem_odp_release


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
    with spin_lock(dev.xa_lock):
        xa_store(dev.odp_mkeys, MKEY, imr)
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
    if ret := ib_init_umem_odp(umem, imr.mm, idx << imr.child_shift, 1 << imr.child_shift, mlx5_mn_ops):
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
    with spin_lock(imr.xa_lock):
        found = Mr(xa_cmpxchg(imr.children, idx, NULL, mr, SCRATCH))
        if found and imr.protection != SRCU:
            refcount_inc(found.usecount)
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
def pagefault_implicit_mr(imr: Imr, addr: int) -> int:
    """pagefault_implicit_mr() for one page."""
    idx = addr >> imr.child_shift
    created = 0
    count("lookups")
    if imr.protection == SRCU:
        found = xa_load(imr.children, idx, LOOKUP_STEPS)
    else:
        with spin_lock(imr.xa_lock):
            if found := xa_load(imr.children, idx, LOOKUP_STEPS):
                refcount_inc(Mr(found).usecount)
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
        with srcu_read_lock(dev.odp_srcu):
            imr = Imr(xa_load(dev.odp_mkeys, MKEY, SCRATCH))
            if not imr:
                return -EFAULT
            return pagefault_implicit_mr(imr, addr)
    with spin_lock(dev.xa_lock):
        imr = Imr(xa_load(dev.odp_mkeys, MKEY, SCRATCH))
        if not imr:
            return -EFAULT
        refcount_inc(imr.usecount)
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
