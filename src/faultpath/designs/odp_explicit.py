"""Intervals that the application asks for: mlx5's explicit on-demand paging, one user MR after the other.

An MR is an interval over the range it was registered for, whatever is or will be mapped there: munmap clears it and
leaves it, a new mapping at the same place is mirrored again. Nothing is made, grown or dropped behind the application's
back. Registering takes in all that the process has mapped there already, without faulting (a snapshot), so only what
comes later faults; a fault finds its MR by the mkey that the request names, in one xarray load.

It trades all bookkeeping for the application's: what it registers (:mod:`faultpath.designs.region_cache`) is what is
called back, and what its tables cost, 16 bytes for each page of the MR, used or not. An MR of more than 1 TiB cannot be
had. Every event in an MR with a page mapped scans the part of its table that it covers, and the MR stays when the last
page has gone.

The rest is odp-implicit's ``protection=refcount``: the same fault on the MR, the same callback, the same mkeys, and the
same last user who wakes a waiter in memory that this one may have freed. The MR is writable, and every fault asks for
write access. mkeys are numbered as they come. MR cache, prefetch, huge page MRs (IB_ACCESS_HUGETLB) and what a mailbox
command costs more than a UMR are not modelled.
"""

from __future__ import annotations

from faultpath.designs.mlx5_ib import Mr, mlx5r_deref_odp_mkey, mlx5r_deref_wait_odp_mkey
from faultpath.designs.mlx5_odp import mlx5_mn_ops, pagefault_real_mr
from faultpath.designs.region_cache import REGION, Region, Verbs, ibv_close_device, ibv_reg_mr, lkey_of, region_at
from faultpath.driver import *
from faultpath.kernel.umem_odp import Umem, ib_umem_odp_get, ib_umem_odp_map_present_and_lock, ib_umem_odp_release


class Mdev(Verbs):
    """``struct mlx5_ib_dev``, and what the HCA itself knows."""

    odp_mkeys: XArray
    xa_lock: XaLock
    mkc: XArray  # the HCA's mkey contexts


@protocol
def mlx5_ib_dev_open(mm: Mm, region: int) -> Mdev:
    """The application opens the device; nothing is registered."""
    dev = on_stack(Mdev)
    dev.mm = mm
    dev.region = region
    dev.ops = mlx5_ib_dev_ops
    return dev


@protocol
def dereg_user_mr(dev: Mdev, key: int, mr: Mr) -> None:
    """mlx5_ib_dereg_mr() of a user MR: no more lookups, no more users, revoked in the HCA, freed."""
    with spin_lock(dev.xa_lock):
        xa_erase(dev.odp_mkeys, key)
    mlx5r_deref_wait_odp_mkey(mr)
    umem = mr.umem
    with mutex_lock(umem.umem_mutex):
        count("device_commands")  # mlx5r_umr_revoke_mr()
        xa_erase(dev.mkc, key)
        umem.private = 0
    ib_umem_odp_release(umem)
    kfree(mr)


@protocol
def mlx5_ib_dereg_mr(dev: Verbs, region: Region) -> int:
    """mlx5_ib_dereg_mr(), by the handle."""
    dereg_user_mr(Mdev(dev), region.key, Mr(region.mr))
    return 0


@protocol
def create_user_odp_mr(dev: Mdev, region: Region) -> int:
    """create_user_odp_mr(): known by its mkey before mlx5_ib_init_odp_mr() fills and enables it; the MR, or -errno."""
    odp = ib_umem_odp_get(dev.mm, region.start, region.last + 1 - region.start, mlx5_mn_ops)
    if odp < 0:
        return odp
    umem = Umem(odp)
    mr = kmalloc(Mr, GFP_KERNEL)  # alloc_cacheable_mr()
    if not mr:
        ib_umem_odp_release(umem)
        return -ENOMEM
    mr.umem = umem
    umem.private = mr
    refcount_set(mr.usecount, 1)  # mlx5r_store_odp_mkey()
    with spin_lock(dev.xa_lock):
        xa_store(dev.odp_mkeys, region.key, mr)
    ret = ib_umem_odp_map_present_and_lock(umem)  # pagefault_real_mr(MLX5_PF_FLAGS_SNAPSHOT | MLX5_PF_FLAGS_ENABLE)
    if ret < 0:
        dereg_user_mr(dev, region.key, mr)
        return ret
    count("device_commands")
    xa_store(dev.mkc, region.key, mr)
    mutex_unlock(umem.umem_mutex)
    return mr


@protocol
def mlx5_ib_reg_user_mr(dev: Verbs, region: Region) -> int:
    """mlx5_ib_reg_user_mr() with IB_ACCESS_ON_DEMAND."""
    return create_user_odp_mr(Mdev(dev), region)


mlx5_ib_dev_ops = Ops("mlx5_ib_dev_ops", reg_user_mr=mlx5_ib_reg_user_mr, dereg_mr=mlx5_ib_dereg_mr)


@protocol
def pagefault_single_data_segment(dev: Mdev, key: int, addr: int) -> int:
    """pagefault_single_data_segment() and pagefault_mr() for one page.

    Without an MR, C reports success and leaves it to the HCA to find the mkey gone: -EFAULT here.
    """
    count("lookups")
    with spin_lock(dev.xa_lock):
        mr = Mr(xa_load(dev.odp_mkeys, key, LOOKUP_STEPS))
        if not mr:
            return -EFAULT
        refcount_inc(mr.usecount)
    ret = pagefault_real_mr(mr, addr)
    mlx5r_deref_odp_mkey(mr)
    return ret


@protocol
def hca_walk(dev: Mdev, addr: int) -> int:
    """What the HCA finds for a request: the mkey's context, then its MTT."""
    region = region_at(dev, addr)
    if not region:
        return 0
    mr = Mr(xa_load(dev.mkc, region.key, SCRATCH))
    if not mr:
        return 0
    return pt_get(mr.umem.pt, addr)


@protocol
def request(dev: Mdev, addr: int, write: int) -> int:
    """A request of the application's that the HCA could not do: no MR yet, or a page fault."""
    key = lkey_of(dev, addr)
    if key < 0:
        key = ibv_reg_mr(dev, addr)
        if key < 0:
            return key
        with down_read(dev.rcache):
            entry = hca_walk(dev, addr)
        if entry & VALID and (entry & WRITE or not write):
            return 0
    return pagefault_single_data_segment(dev, key, addr)


@protocol
def mlx5_ib_dev_close(dev: Mdev) -> None:
    """The application closes the device."""
    ibv_close_device(dev)
    xa_destroy(dev.odp_mkeys)
    xa_destroy(dev.mkc)


design = Design(
    name="odp-explicit",
    title="intervals that the application registers",
    source="drivers/infiniband/hw/mlx5/odp.c and mr.c, drivers/infiniband/core/umem_odp.c, Linux 6.1",
    open=mlx5_ib_dev_open,
    fault=request,
    walk=hca_walk,
    close=mlx5_ib_dev_close,
    ops=[mlx5_mn_ops, mlx5_ib_dev_ops],
    parameters=[REGION],
    counters=["page_faults", "page_invalidations"],
    doc=__doc__,
)
