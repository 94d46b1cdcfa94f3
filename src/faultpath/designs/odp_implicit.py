"""Fixed chunks aligned to the device's page table: mlx5's implicit on-demand paging.

The address space is cut into children of 1 GiB, a level of the device's own table. A fault finds its child with one
xarray load and makes one if there is none; VMAs do not matter. A child lives until its last page has been unmapped:
the callback that clears it queues the destruction, for an interval cannot be removed inside a callback.

It trades callbacks for simplicity: a child with one page mapped is called back for every event in its GiB and scans the
part of its table that the event covers; its tables (16 bytes per 4 KiB, 4 MiB per child) are allocated whole.

``protection=refcount`` is today's lookup (xa_lock and a reference); ``protection=srcu`` is that of January 2020 (an
unlocked load, the whole fault inside an SRCU read section, destruction after a grace period).

The MR is writable, so every fault asks for write access, as in the driver: reading memory that the process itself may
only read is refused. The shadow (dma_list) and the device's MTTs are one table here, since both are written under
umem_mutex. MR cache, prefetch and the command that resumes the stalled queue pair are not modelled.
"""

from __future__ import annotations

from faultpath.design import Design, Parameter
from faultpath.engine.world import INDEX, SCRATCH
from faultpath.kernel.errno import EBUSY
from faultpath.kernel.hmm import hmm_range_fault
from faultpath.kernel.mirror import Device
from faultpath.kernel.mmu_notifier import (
    IntervalNotifier,
    Mm,
    Range,
    mmu_interval_notifier_insert,
    mmu_interval_notifier_remove,
    mmu_interval_read_begin,
    mmu_interval_read_retry,
    mmu_interval_set_seq,
)
from faultpath.kernel.primitives.heap import GFP_KERNEL, kfree, kmalloc, kvcalloc, kvfree
from faultpath.kernel.primitives.lists import queue_work
from faultpath.kernel.primitives.locks import (
    down_read,
    mutex_lock,
    mutex_unlock,
    refcount_dec_and_test,
    refcount_inc,
    refcount_inc_not_zero,
    refcount_read,
    refcount_set,
    spin_lock,
    spin_unlock,
    srcu_read_lock,
    srcu_read_unlock,
    synchronize_srcu,
    up_read,
)
from faultpath.kernel.primitives.mtt import mtt_zap
from faultpath.kernel.primitives.pagetable import (
    FRAME_SHIFT,
    PAGE_SHIFT,
    VALID,
    WRITE,
    pt_free,
    pt_get,
    pt_init,
    pt_set,
)
from faultpath.kernel.primitives.time import timed_out
from faultpath.kernel.primitives.xarray import xa_cmpxchg, xa_load, xa_next, xa_store
from faultpath.protocol.language import NULL, Ops, count, protocol, wait_event
from faultpath.protocol.struct import Mutex, PageTable, ParentMutex, RefCount, Srcu, Work, XaLock, XArray

LOOKUP_STEPS = INDEX["lookup_steps"]

ODP_WRITE_ALLOWED = 1
SRCU = 1  # protection=srcu


class Imr(Device):
    """The parent: ``struct mlx5_ib_mr`` of an implicit MR and its ``ib_umem_odp``."""

    children: XArray  # implicit_children
    xa_lock: XaLock
    usecount: RefCount  # mmkey.usecount
    umem_mutex: ParentMutex
    ksm: XArray  # what the device sees: one child per entry
    child_shift: int
    protection: int
    odp_srcu: Srcu
    num_deferred_work: int


class Umem(IntervalNotifier):
    """``struct ib_umem_odp`` of a child; 240 bytes in C, its two tables apart."""

    interval_bytes = 240
    umem_mutex: Mutex
    npages: int
    private: int  # the Mr, once there is one
    pt: PageTable  # dma_list and MTTs


class Mr(Device):
    """``struct mlx5_ib_mr`` of a child."""

    usecount: RefCount
    umem: Umem
    parent: Imr
    odp_destroy: Work


@protocol
def update_ksm(imr: Imr, idx: int) -> None:
    """mlx5r_umr_update_xlt(imr, idx, 1, INDIRECT): the device's entry becomes what implicit_children holds."""
    mutex_lock(imr.umem_mutex)
    count("device_commands")
    xa_store(imr.ksm, idx, xa_load(imr.children, idx, SCRATCH))
    mutex_unlock(imr.umem_mutex)


@protocol
def mlx5_ib_dereg_mr(mr: Mr) -> None:
    """mlx5_ib_dereg_mr() and ib_umem_odp_release(): unmap, remove the interval, free."""
    umem = mr.umem
    mutex_lock(umem.umem_mutex)
    pt_free(umem.pt)
    umem.npages = 0
    mutex_unlock(umem.umem_mutex)
    mmu_interval_notifier_remove(umem)
    entries = (umem.last + 1 - umem.start) >> PAGE_SHIFT
    kvfree(8 * entries)
    kvfree(8 * entries)
    kfree(umem)
    kfree(mr)


@protocol
def free_implicit_child_mr_work(mr: Mr) -> None:
    """free_implicit_child_mr_work(): the child may have got pages again from a fault that held it."""
    imr = mr.parent
    if imr.protection == SRCU:
        synchronize_srcu(imr.odp_srcu)  # the grace period that call_srcu() waited for before it queued the work
    else:
        refcount_dec_and_test(mr.usecount)
        wait_event(refcount_read(mr.usecount) == 0)
    update_ksm(imr, mr.umem.start >> imr.child_shift)
    mlx5_ib_dereg_mr(mr)
    if imr.protection == SRCU:
        imr.num_deferred_work -= 1
    else:
        refcount_dec_and_test(imr.usecount)


@protocol
def destroy_unused_implicit_child_mr(mr: Mr) -> None:
    """destroy_unused_implicit_child_mr(): out of the xarray now, freed later; called under the child's umem_mutex."""
    imr = mr.parent
    if imr.protection != SRCU and not refcount_inc_not_zero(imr.usecount):
        return
    idx = mr.umem.start >> imr.child_shift
    spin_lock(imr.xa_lock)
    found = xa_cmpxchg(imr.children, idx, mr, NULL, SCRATCH)
    if found == mr and imr.protection == SRCU:
        imr.num_deferred_work += 1
    spin_unlock(imr.xa_lock)
    if found == mr:
        queue_work(mr.odp_destroy, free_implicit_child_mr_work, mr)
    elif imr.protection != SRCU:
        refcount_dec_and_test(imr.usecount)


@protocol
def mlx5_ib_invalidate_range(mni: IntervalNotifier, range: Range, cur_seq: int) -> int:
    """mlx5_ib_invalidate_range(): the same for every event; clipped to the child."""
    if not range.blockable:
        return 0
    umem = Umem(mni)
    mutex_lock(umem.umem_mutex)
    mmu_interval_set_seq(mni, cur_seq)
    mr = Mr(umem.private)
    if umem.npages and mr:
        start = max(umem.start, range.start)
        end = min(umem.last + 1, range.end)
        umem.npages -= mtt_zap(umem.pt, start, end)
        if not umem.npages:
            destroy_unused_implicit_child_mr(mr)
    mutex_unlock(umem.umem_mutex)
    return 1


mlx5_mn_ops = Ops("mlx5_mn_ops", invalidate=mlx5_ib_invalidate_range)


@protocol
def mlx5_ib_alloc_implicit_mr(mm: Mm, child: int, protection: int) -> Imr:
    """mlx5_ib_alloc_implicit_mr(): a parent without notifier and without tables."""
    imr = kmalloc(Imr, GFP_KERNEL)
    imr.mm = mm
    imr.protection = protection
    while 1 << imr.child_shift < child:
        imr.child_shift += 1
    refcount_set(imr.usecount, 1)
    count("device_commands")
    return imr


@protocol
def implicit_get_child_mr(imr: Imr, idx: int) -> Mr:
    """implicit_get_child_mr(): build a child, then see whether somebody else was faster."""
    mm = imr.mm
    umem = kmalloc(Umem, GFP_KERNEL)
    size = 1 << imr.child_shift
    start = idx << imr.child_shift
    kvcalloc(8 * (size >> PAGE_SHIFT))  # pfn_list
    kvcalloc(8 * (size >> PAGE_SHIFT))  # dma_list
    pt_init(umem.pt, start, start + size)
    mmu_interval_notifier_insert(umem, mm, start, size, mlx5_mn_ops)
    mr = kmalloc(Mr, GFP_KERNEL)
    mr.mm = mm
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
    if found:
        mlx5_ib_dereg_mr(mr)
        return found
    return mr


@protocol
def ib_umem_odp_map_dma_and_lock(umem: Umem, addr: int, access: int) -> int:
    """ib_umem_odp_map_dma_and_lock() for one page: 0 with umem_mutex held, or -errno."""
    mm = umem.mm
    tries = 0
    while True:
        if tries:
            count("fault_retries")
        tries += 1
        seq = mmu_interval_read_begin(umem)
        down_read(mm.mmap_lock)
        pfn = hmm_range_fault(mm, umem, seq, addr, access & ODP_WRITE_ALLOWED)
        up_read(mm.mmap_lock)
        if pfn == -EBUSY and not timed_out():
            continue
        if pfn < 0:
            return pfn
        mutex_lock(umem.umem_mutex)
        if mmu_interval_read_retry(umem, seq):
            mutex_unlock(umem.umem_mutex)
            continue
        if not pt_get(umem.pt, addr) & VALID:
            umem.npages += 1
        entry = VALID | pfn >> FRAME_SHIFT << FRAME_SHIFT
        if access & ODP_WRITE_ALLOWED:
            entry = entry | WRITE
        pt_set(umem.pt, addr, entry)
        return 0


@protocol
def pagefault_real_mr(mr: Mr, addr: int) -> int:
    """pagefault_real_mr(): map the page, then tell the device under the same mutex (one UMR)."""
    umem = mr.umem
    ret = ib_umem_odp_map_dma_and_lock(umem, addr, ODP_WRITE_ALLOWED)
    if ret < 0:
        return ret
    count("device_commands")
    mutex_unlock(umem.umem_mutex)
    return 0


@protocol
def pagefault_implicit_mr(imr: Imr, addr: int, write: int) -> int:
    """pagefault_implicit_mr() for one page. ``write`` changes nothing: the MR's own access flags decide."""
    idx = addr >> imr.child_shift
    created = 0
    count("lookups")
    if imr.protection == SRCU:
        srcu_read_lock(imr.odp_srcu)
        mr = Mr(xa_load(imr.children, idx, LOOKUP_STEPS))
    else:
        spin_lock(imr.xa_lock)
        mr = Mr(xa_load(imr.children, idx, LOOKUP_STEPS))
        if mr:
            refcount_inc(mr.usecount)
        spin_unlock(imr.xa_lock)
    if not mr:
        mr = implicit_get_child_mr(imr, idx)
        created = 1
    ret = pagefault_real_mr(mr, addr)
    if imr.protection != SRCU:
        refcount_dec_and_test(mr.usecount)  # mlx5r_deref_odp_mkey()
    if created:
        update_ksm(imr, idx)
    if imr.protection == SRCU:
        srcu_read_unlock(imr.odp_srcu)
    return ret


@protocol
def hca_walk(imr: Imr, addr: int) -> int:
    """What the HCA finds: the KSM entry, then that child's MTT."""
    mr = Mr(xa_load(imr.ksm, addr >> imr.child_shift, SCRATCH))
    if not mr:
        return 0
    return pt_get(mr.umem.pt, addr)


@protocol
def mlx5_ib_free_odp_mr(imr: Imr) -> None:
    """mlx5_ib_dereg_mr() of the parent and mlx5_ib_free_odp_mr(): every child still in the xarray goes."""
    refcount_dec_and_test(imr.usecount)
    wait_event(refcount_read(imr.usecount) == 0 and imr.num_deferred_work == 0)
    idx = xa_next(imr.children, 0)
    while idx >= 0:
        mr = Mr(xa_load(imr.children, idx, SCRATCH))
        xa_store(imr.children, idx, NULL)
        mlx5_ib_dereg_mr(mr)
        idx = xa_next(imr.children, idx + 1)
    kfree(imr)


design = Design(
    name="odp-implicit",
    title="fixed chunks aligned to the device's page table",
    source="drivers/infiniband/hw/mlx5/odp.c, drivers/infiniband/core/umem_odp.c, Linux 6.1; srcu: v5.5",
    open=mlx5_ib_alloc_implicit_mr,
    fault=pagefault_implicit_mr,
    walk=hca_walk,
    close=mlx5_ib_free_odp_mr,
    ops=[mlx5_mn_ops],
    parameters=[
        Parameter(
            "child", 1 << 30, "size of a child (MLX5_IMR_MTT_SIZE)", unit="bytes", minimum=4096, power_of_two=True
        ),
        Parameter("protection", "refcount", "how a lookup keeps its child alive", choices=("refcount", "srcu")),
    ],
    doc=__doc__,
)
