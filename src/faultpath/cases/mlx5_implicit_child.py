"""mlx5: the child of an implicit MR is given back while its notifier is still live.

Destruction gives the child MR back to the cache, and only then releases its umem, which is where the notifier goes. An
invalidation in between finds the MR by umem_odp->private, and updates what is no MR any more.

The fix fences first: under umem_mutex the key is invalidated, everything is unmapped, and ``private`` forgotten; the
callback looks under the same lock, and at nothing if no page is mapped. It closed the other end, creation, as well:
there the notifier is live before the MR is set up.
"""

from __future__ import annotations

import dataclasses

from faultpath.cases import mirror
from faultpath.cases.case import BUGGY, FINAL_FIX, HOLDS, Case, Variant, memory
from faultpath.driver import *
from faultpath.scenario import SPAN, Scenario, close, reclaim


class Mr(Struct):
    """``struct mlx5_ib_mr``, an implicit MR's child."""

    mtt: PageTable


class UmemOdp(IntervalNotifier):
    """``struct ib_umem_odp``."""

    umem_mutex: Mutex
    private: Mr


class Imr(Device):
    """The implicit MR, and its one child."""

    odp: UmemOdp


@protocol
def mlx5_ib_invalidate_range(mni: IntervalNotifier, range: Range, cur_seq: int) -> int:
    """mlx5_ib_invalidate_range()."""
    odp = UmemOdp(mni)
    with mutex_lock(odp.umem_mutex):
        mmu_interval_set_seq(mni, cur_seq)
        if mr := odp.private:
            device_zap(mr.mtt, range.start, range.end)
    return 1


mlx5_mn_ops = Ops("mlx5_mn_ops", invalidate=mlx5_ib_invalidate_range)


@protocol
def implicit_mr_alloc(mm: Mm) -> Imr:
    """mlx5_ib_alloc_implicit_mr(), and implicit_mr_alloc() of a child over the first page."""
    imr = on_stack(Imr)
    imr.mm = mm
    mr = kmalloc(Mr, GFP_KERNEL)
    if not mr:
        return NULL
    pt_init(mr.mtt, 0, mm.task_size)
    odp = kmalloc(UmemOdp, GFP_KERNEL)
    odp.private = mr
    imr.odp = odp
    mmu_interval_notifier_insert(odp, mm, SPAN, PAGE_SIZE, mlx5_mn_ops)
    return imr


@protocol
def dma_fence_odp_mr(odp: UmemOdp) -> None:
    """Until 5.4 there was none: mlx5_mr_cache_free() stops the DMA."""
    return


@protocol(replaces=dma_fence_odp_mr)
def fence_under_umem_mutex(odp: UmemOdp) -> None:
    """dma_fence_odp_mr(), Linux 5.5."""
    with mutex_lock(odp.umem_mutex):
        device_zap(odp.private.mtt, SPAN, SPAN + PAGE_SIZE)
        odp.private = Mr(NULL)


@protocol
def free_implicit_child_mr(imr: Imr) -> None:
    """free_implicit_child_mr(): the MR goes back to the cache, then the umem goes."""
    odp = imr.odp
    mr = odp.private
    dma_fence_odp_mr(odp)
    pt_free(mr.mtt)
    kfree(mr)
    mmu_interval_notifier_remove(odp)
    kfree(odp)


@protocol
def hca_walk(imr: Imr, addr: int) -> int:
    """What the HCA finds."""
    return pt_get(imr.odp.private.mtt, addr)


BEFORE = dataclasses.replace(
    mirror.design,
    name="mlx5 child",
    open=implicit_mr_alloc,
    walk=hca_walk,
    close=free_implicit_child_mr,
    ops=[mlx5_mn_ops],
)
AFTER = dataclasses.replace(BEFORE, replaces=[*BEFORE.replaces, fence_under_umem_mutex])

SCENARIO = Scenario(
    "child-free-vs-reclaim", "A child MR is freed while kswapd takes a page of it.", memory(1), [close(), reclaim(0)]
)

case = Case(
    name="mlx5-implicit-child",
    title="RDMA/mlx5: Do not race with mlx5_ib_invalidate_range during create and destroy",
    cve="",
    property="lifetime",
    source="drivers/infiniband/hw/mlx5/odp.c:free_implicit_child_mr(), mlx5_ib_invalidate_range()",
    variants=[
        Variant(BUGGY, BEFORE, SCENARIO, "lifetime"),
        Variant(FINAL_FIX, AFTER, SCENARIO, HOLDS, version="5.5-rc1"),
    ],
    doc=__doc__,
)
