"""The simplest on-demand paging: rxe, RDMA over Converged Ethernet in software.

The device is a kernel thread. It has no translations but the umem's list of pages (pfn_list, dma_list), and no page
fault: a request looks its pages up under umem_mutex, faults in place what is missing, and copies before it lets the
mutex go. So an invalidation, which takes the mutex, waits for the copy. MRs are explicit, and what is present when one
is registered is taken in (:mod:`faultpath.designs.region_cache` says when and what).

It trades everything for simplicity: each access of the MR takes one mutex, each event that meets the MR goes over every
page of the list that it covers, used or not; there is no test for an empty MR.

As in the kernel, rxe_check_pagefault() is content with *any* of the permissions that it asks for. A page that has been
taken in for reading, because the process may only read it as long as it shares it, is then written to: past
copy-on-write. What a request may do is therefore all that the MR may, where there is a page. ``faultpath check
rxe-odp --scenario fault-vs-cow`` shows it.

A request finds its MR by index in a pool under RCU, here under the pool's lock, and holds a reference; who deregisters
waits for a completion (up to 50 s in C, then frees it nevertheless). Atomic operations, prefetch and the responder's
queues are not modelled. rxe has no counters of its own for any of this.
"""

from __future__ import annotations

from faultpath.designs.region_cache import REGION, Region, Verbs, ibv_close_device, ibv_reg_mr, lkey_of, region_at
from faultpath.driver import *
from faultpath.kernel.umem_odp import (
    ODP_WRITE_ALLOWED,
    Umem,
    ib_umem_odp_get,
    ib_umem_odp_map_dma_and_lock,
    ib_umem_odp_map_present_and_lock,
    ib_umem_odp_release,
    ib_umem_odp_unmap_dma_pages,
)


class RxeMr(Struct):
    """``struct rxe_mr``, with its ``rxe_pool_elem``."""

    ref_cnt: RefCount
    complete: Completion
    umem: Umem


class RxeDev(Verbs):
    """``struct rxe_dev`` with its ``mr_pool``."""

    pool: XArray
    xa_lock: XaLock


@protocol
def rxe_open(mm: Mm, region: int) -> RxeDev:
    """The application opens the device; nothing is registered."""
    dev = on_stack(RxeDev)
    dev.mm = mm
    dev.region = region
    dev.ops = rxe_dev_ops
    return dev


@protocol
def rxe_ib_invalidate_range(mni: IntervalNotifier, range: Range, cur_seq: int) -> int:
    """rxe_ib_invalidate_range()."""
    umem = Umem(mni)
    if not range.blockable:
        return 0
    with mutex_lock(umem.umem_mutex):
        mmu_interval_set_seq(mni, cur_seq)
        ib_umem_odp_unmap_dma_pages(umem, range.start, range.end)
    return 1


rxe_mn_ops = Ops("rxe_mn_ops", invalidate=rxe_ib_invalidate_range)


# --- MRs


@protocol
def rxe_pool_get_index(dev: RxeDev, key: int) -> RxeMr:
    """rxe_pool_get_index(): the MR with a reference, or NULL."""
    count("lookups")
    with spin_lock(dev.xa_lock):
        mr = RxeMr(xa_load(dev.pool, key, LOOKUP_STEPS))
        if mr and not refcount_inc_not_zero(mr.ref_cnt):
            mr = RxeMr(NULL)
    return mr


@protocol
def rxe_put(mr: RxeMr) -> None:
    """rxe_put(), rxe_elem_release()."""
    if refcount_dec_and_test(mr.ref_cnt):
        complete(mr.complete)


@protocol
def rxe_dereg_mr(verbs: Verbs, region: Region) -> int:
    """rxe_dereg_mr(), __rxe_cleanup(), rxe_mr_cleanup()."""
    dev = RxeDev(verbs)
    mr = RxeMr(region.mr)
    with spin_lock(dev.xa_lock):
        xa_erase(dev.pool, region.key)
    rxe_put(mr)
    wait_for_completion(mr.complete)
    ib_umem_odp_release(mr.umem)
    kfree(mr)
    return 0


@protocol
def rxe_reg_user_mr(verbs: Verbs, region: Region) -> int:
    """rxe_reg_user_mr(), rxe_odp_mr_init_user(): the MR, found from rxe_finalize() on; or -errno."""
    dev = RxeDev(verbs)
    mr = kmalloc(RxeMr, GFP_KERNEL)
    if not mr:
        return -ENOMEM
    refcount_set(mr.ref_cnt, 1)
    odp = ib_umem_odp_get(dev.mm, region.start, region.last + 1 - region.start, rxe_mn_ops)
    if odp < 0:
        kfree(mr)
        return odp
    umem = Umem(odp)
    umem.private = mr
    mr.umem = umem
    ret = ib_umem_odp_map_present_and_lock(umem)  # rxe_odp_init_pages()
    if ret < 0:
        ib_umem_odp_release(umem)
        kfree(mr)
        return ret
    mutex_unlock(umem.umem_mutex)
    with spin_lock(dev.xa_lock):
        xa_store(dev.pool, region.key, mr)
    return mr


rxe_dev_ops = Ops("rxe_dev_ops", reg_user_mr=rxe_reg_user_mr, dereg_mr=rxe_dereg_mr)


# --- requests


@protocol
def rxe_check_pagefault(umem: Umem, addr: int) -> int:
    """rxe_check_pagefault() for one page: ``!(dma_list[idx] & perm)``, so any permission will do."""
    return pt_get(umem.pt, addr) & VALID == 0


@protocol
def rxe_odp_map_range_and_lock(mr: RxeMr, addr: int, write: int) -> int:
    """rxe_odp_map_range_and_lock() for one page: 0 with umem_mutex held, or -errno; the last leaves it held, too."""
    umem = mr.umem
    mutex_lock(umem.umem_mutex)
    if rxe_check_pagefault(umem, addr):
        mutex_unlock(umem.umem_mutex)
        access = 0
        if write:
            access = ODP_WRITE_ALLOWED
        err = ib_umem_odp_map_dma_and_lock(umem, addr, access)
        if err < 0:
            return err
        if rxe_check_pagefault(umem, addr):
            return -EFAULT
    return 0


@protocol
def rxe_odp_mr_copy(mr: RxeMr, addr: int, write: int) -> int:
    """rxe_odp_mr_copy() for one page; the copy itself is nothing here."""
    if err := rxe_odp_map_range_and_lock(mr, addr, write):
        return err
    mutex_unlock(mr.umem.umem_mutex)
    return 0


@protocol
def rxe_request(dev: RxeDev, addr: int, write: int) -> int:
    """A request of the application's for a page that is not in the list, or in no MR yet."""
    key = lkey_of(dev, addr)
    if key < 0:
        key = ibv_reg_mr(dev, addr)
        if key < 0:
            return key
    mr = rxe_pool_get_index(dev, key)
    if not mr:
        return -EFAULT
    ret = rxe_odp_mr_copy(mr, addr, write)
    rxe_put(mr)
    return ret


@protocol
def rxe_walk(dev: RxeDev, addr: int) -> int:
    """What a request that comes now does without a fault: where there is a page, all that the MR may."""
    region = region_at(dev, addr)
    if not region:
        return 0
    mr = RxeMr(xa_load(dev.pool, region.key, SCRATCH))
    if not mr:
        return 0
    entry = pt_get(mr.umem.pt, addr)
    if entry & VALID:
        return entry | WRITE
    return 0


@protocol
def rxe_close(dev: RxeDev) -> None:
    """The application closes the device."""
    ibv_close_device(dev)
    xa_destroy(dev.pool)


design = Design(
    name="rxe-odp",
    title="a list of pages under one mutex",
    source="drivers/infiniband/sw/rxe/rxe_odp.c, Linux 6.15; drivers/infiniband/core/umem_odp.c",
    open=rxe_open,
    fault=rxe_request,
    walk=rxe_walk,
    close=rxe_close,
    ops=[rxe_mn_ops, rxe_dev_ops],
    parameters=[REGION],
    doc=__doc__,
)
