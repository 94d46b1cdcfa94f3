"""Protocols of one call each, so that tests can drive primitives in both back ends, and a world for them."""

from __future__ import annotations

import functools

from faultpath.engine import world
from faultpath.engine.native import Native
from faultpath.kernel import srcu
from faultpath.kernel.mmu_notifier import IntervalNode
from faultpath.kernel.primitives import (
    atomic,
    heap,
    itree,
    list_head,
    lists,
    locks,
    mtt,
    pagetable,
    range_tree,
    tlb,
    xarray,
)
from faultpath.protocol.language import Protocol, protocol
from faultpath.protocol.program import Program
from faultpath.protocol.struct import (
    HlistHead,
    HlistNode,
    IntervalTree,
    ListHead,
    Mutex,
    PageTable,
    RefCount,
    RwLock,
    RwSem,
    SpinLock,
    Struct,
    Work,
    XArray,
    current,
)

SCRATCH = world.SCRATCH


class Rig(Struct):
    """One of each."""

    tree: IntervalTree
    pt: PageTable
    other_pt: PageTable
    xa: XArray
    head: HlistHead
    mutex: Mutex
    spin: SpinLock
    sem: RwSem
    rw: RwLock
    srcu: srcu.Srcu
    ref: RefCount
    count: atomic.Atomic
    ring: ListHead
    tlb: PageTable


class Item(Struct):
    node: HlistNode
    work: Work
    link: ListHead


class Small(Struct):
    """A header and seven words: one class."""

    interval_bytes = 40
    a: int
    b: int
    c: int
    d: int
    e: int
    f: int
    g: int


class Large(Small):
    """One word more: two classes."""

    h: int


@protocol
def new_rig() -> Rig:
    return heap.on_stack(Rig)


@protocol
def new_node(start: int, last: int) -> IntervalNode:
    node = heap.on_stack(IntervalNode)
    node.start = start
    node.last = last
    itree.rb_clear_node(node)
    return node


@protocol
def tree_insert(rig: Rig, node: IntervalNode) -> None:
    itree.itree_insert(rig.tree, node)


@protocol
def tree_remove(rig: Rig, node: IntervalNode) -> None:
    itree.itree_remove(rig.tree, node)


@protocol
def tree_first(rig: Rig, start: int, last: int) -> int:
    return itree.itree_first(rig.tree, start, last, SCRATCH)


@protocol
def tree_next(node: IntervalNode, start: int, last: int) -> int:
    return itree.itree_next(node, start, last, SCRATCH)


@protocol
def tree_last(rig: Rig, last: int) -> int:
    return itree.itree_last(rig.tree, last, SCRATCH)


@protocol
def tree_prev(node: IntervalNode) -> int:
    return itree.itree_prev(node, SCRATCH)


@protocol
def range_find(rig: Rig, addr: int) -> int:
    return range_tree.range_tree_find(rig.tree, addr, SCRATCH)


@protocol
def hole_start(rig: Rig, addr: int, start: int) -> int:
    return range_tree.range_tree_hole_start(rig.tree, addr, start, SCRATCH)


@protocol
def hole_last(rig: Rig, addr: int, last: int) -> int:
    return range_tree.range_tree_hole_last(rig.tree, addr, last)


@protocol
def tree_outside(node: IntervalNode) -> int:
    return itree.rb_empty_node(node)


@protocol
def pt_init(rig: Rig, start: int, end: int) -> None:
    pagetable.pt_init(rig.pt, start, end)


@protocol
def pt_set(rig: Rig, addr: int, entry: int) -> None:
    pagetable.pt_set(rig.pt, addr, entry)


@protocol
def pt_get(rig: Rig, addr: int) -> int:
    return pagetable.pt_get(rig.pt, addr)


@protocol
def tlb_init(rig: Rig, start: int, end: int) -> None:
    pagetable.pt_init(rig.tlb, start, end)


@protocol
def tlb_access(rig: Rig, addr: int) -> int:
    return tlb.tlb_access(rig.tlb, rig.pt, addr)


@protocol
def tlb_flush(rig: Rig, start: int, end: int) -> int:
    return tlb.tlb_flush(rig.tlb, start, end)


@protocol
def pt_cmpxchg(rig: Rig, addr: int, old: int, new: int) -> int:
    return pagetable.pt_cmpxchg(rig.pt, addr, old, new)


@protocol
def device_cmpxchg(rig: Rig, addr: int, old: int, new: int) -> int:
    return pagetable.device_cmpxchg(rig.pt, addr, old, new)


@protocol
def pt_unmap_frame(rig: Rig, addr: int, frame: int) -> int:
    return pagetable.pt_unmap_frame(rig.pt, addr, frame)


@protocol
def pt_clear(rig: Rig, start: int, end: int) -> int:
    return pagetable.pt_clear(rig.pt, start, end)


@protocol
def pt_write_protect(rig: Rig, start: int, end: int) -> int:
    return pagetable.pt_write_protect(rig.pt, start, end)


@protocol
def dma_unmap(rig: Rig, start: int, end: int) -> int:
    return mtt.dma_unmap(rig.pt, start, end)


@protocol
def pt_any(rig: Rig, start: int, end: int) -> int:
    return pagetable.pt_any(rig.pt, start, end)


@protocol
def pt_next(rig: Rig, start: int, end: int) -> int:
    return pagetable.pt_next(rig.pt, start, end)


@protocol
def pt_move(rig: Rig, old: int, new: int, size: int) -> int:
    return pagetable.pt_move(rig.pt, old, new, size)


@protocol
def pt_init_other(rig: Rig, start: int, end: int) -> None:
    pagetable.pt_init(rig.other_pt, start, end)


@protocol
def pt_copy(rig: Rig, start: int, end: int) -> int:
    return pagetable.pt_copy(rig.other_pt, rig.pt, start, end)


@protocol
def pt_get_other(rig: Rig, addr: int) -> int:
    return pagetable.pt_get(rig.other_pt, addr)


@protocol
def pt_free(rig: Rig) -> int:
    return pagetable.pt_free(rig.pt)


@protocol
def pt_zap(rig: Rig, start: int, end: int) -> int:
    return pagetable.device_zap(rig.pt, start, end)


@protocol
def mtt_zap(rig: Rig, start: int, end: int) -> int:
    return mtt.mtt_zap(rig.pt, start, end)


@protocol
def new_frame() -> int:
    return pagetable.new_frame(1 << 30)


@protocol
def xa_load(rig: Rig, index: int) -> int:
    return xarray.xa_load(rig.xa, index, SCRATCH)


@protocol
def xa_store(rig: Rig, index: int, entry: int) -> int:
    return xarray.xa_store(rig.xa, index, entry)


@protocol
def xa_cmpxchg(rig: Rig, index: int, old: int, new: int) -> int:
    return xarray.xa_cmpxchg(rig.xa, index, old, new, SCRATCH)


@protocol
def xa_erase(rig: Rig, index: int) -> int:
    return xarray.xa_erase(rig.xa, index)


@protocol
def xa_destroy(rig: Rig) -> int:
    return xarray.xa_destroy(rig.xa)


@protocol
def xa_next(rig: Rig, index: int) -> int:
    return xarray.xa_next(rig.xa, index)


@protocol
def new_small(gfp: int) -> Small:
    return heap.kmalloc(Small, gfp)


@protocol
def new_large(gfp: int) -> Large:
    return heap.kmalloc(Large, gfp)


@protocol
def free_small(obj: Small) -> int:
    return heap.kfree(obj)


@protocol
def free_large(obj: Large) -> int:
    return heap.kfree(obj)


@protocol
def new_item() -> Item:
    return heap.on_stack(Item)


@protocol
def list_add(rig: Rig, item: Item) -> None:
    lists.hlist_add_head(item.node, rig.head)


@protocol
def list_del(item: Item) -> None:
    lists.hlist_del(item.node)


@protocol
def list_first(rig: Rig) -> int:
    return lists.hlist_first(rig.head)


@protocol
def list_next(node: Item) -> int:
    return lists.hlist_next(node.node)


@protocol
def ring_add(rig: Rig, item: Item) -> None:
    list_head.list_add_tail(item.link, rig.ring)


@protocol
def ring_del(item: Item) -> None:
    list_head.list_del_init(item.link)


@protocol
def ring_poison(item: Item) -> None:
    list_head.list_del(item.link)


@protocol
def ring_first(rig: Rig) -> int:
    return list_head.list_first(rig.ring)


@protocol
def ring_next(rig: Rig, item: Item) -> int:
    return list_head.list_next(item.link, rig.ring)


@protocol
def ring_empty(rig: Rig) -> int:
    return list_head.list_empty(rig.ring)


@protocol
def ring_alone(item: Item) -> int:
    return list_head.list_empty(item.link)


@protocol
def cancel(item: Item) -> int:
    return lists.cancel_work(item.work)


@protocol
def count_up(rig: Rig) -> int:
    return atomic.atomic_inc_return(rig.count)


@protocol
def count_swap(rig: Rig, old: int, new: int) -> int:
    return atomic.atomic_cmpxchg(rig.count, old, new)


@protocol
def queue(item: Item, handler: int) -> int:
    return lists.queue_work(item.work, handler, item)


@protocol
def take() -> int:
    """The object of the oldest item, marked as running; 0 if none."""
    work = lists.take_work()
    if not work:
        return 0
    obj = lists.work_object(work)
    lists.start_work(work)
    return obj


@protocol
def mutex_lock(rig: Rig) -> None:
    locks.mutex_lock(rig.mutex)


@protocol
def mutex_lock_nested(rig: Rig) -> None:
    locks.mutex_lock_nested(rig.mutex)


@protocol
def mutex_trylock(rig: Rig) -> int:
    return locks.mutex_trylock(rig.mutex)


@protocol
def mutex_is_mine(rig: Rig) -> int:
    return locks.mutex_is_mine(rig.mutex)


@protocol
def mutex_unlock(rig: Rig) -> None:
    locks.mutex_unlock(rig.mutex)


@protocol
def spin_lock(rig: Rig) -> None:
    locks.spin_lock(rig.spin)


@protocol
def spin_unlock(rig: Rig) -> None:
    locks.spin_unlock(rig.spin)


@protocol
def down_read(rig: Rig) -> None:
    locks.down_read(rig.sem)


@protocol
def up_read(rig: Rig) -> None:
    locks.up_read(rig.sem)


@protocol
def spin_is_locked(rig: Rig) -> int:
    return locks.spin_is_locked(rig.spin)


@protocol
def write_locked(rig: Rig) -> int:
    return locks.rwsem_is_write_locked(rig.sem)


@protocol
def down_write(rig: Rig) -> None:
    locks.down_write(rig.sem)


@protocol
def up_write(rig: Rig) -> None:
    locks.up_write(rig.sem)


@protocol
def down_read_trylock(rig: Rig) -> int:
    return locks.down_read_trylock(rig.sem)


@protocol
def read_lock(rig: Rig) -> None:
    locks.read_lock(rig.rw)


@protocol
def read_unlock(rig: Rig) -> None:
    locks.read_unlock(rig.rw)


@protocol
def write_lock(rig: Rig) -> None:
    locks.write_lock(rig.rw)


@protocol
def write_unlock(rig: Rig) -> None:
    locks.write_unlock(rig.rw)


@protocol
def downgrade_write(rig: Rig) -> None:
    locks.downgrade_write(rig.sem)


@protocol
def srcu_lock(rig: Rig) -> int:
    return srcu.srcu_read_lock(rig.srcu)


@protocol
def srcu_unlock(rig: Rig, idx: int) -> None:
    srcu.srcu_read_unlock(rig.srcu, idx)


@protocol
def srcu_cookie(rig: Rig) -> int:
    return srcu.get_state_synchronize_srcu(rig.srcu)


@protocol
def srcu_wait(rig: Rig, cookie: int) -> None:
    srcu.wait_srcu_gp(rig.srcu, cookie)


@protocol
def srcu_sync(rig: Rig) -> None:
    srcu.synchronize_srcu(rig.srcu)


@protocol
def ref_set(rig: Rig, value: int) -> None:
    locks.refcount_set(rig.ref, value)


@protocol
def ref_inc(rig: Rig) -> None:
    locks.refcount_inc(rig.ref)


@protocol
def ref_inc_not_zero(rig: Rig) -> int:
    return locks.refcount_inc_not_zero(rig.ref)


@protocol
def ref_dec(rig: Rig) -> int:
    return locks.refcount_dec_and_test(rig.ref)


ROOTS = {name: p for name, p in list(globals().items()) if isinstance(p, Protocol)}


@functools.cache
def compiled() -> tuple[Program, Native]:
    program = Program(ROOTS.values())
    return program, Native(program)


class Bench:
    """A world with a rig in it: ``bench.pt_set(bench.rig, addr, entry)`` runs the protocol of that name.

    :param python: run it as ordinary Python instead of machine code
    """

    def __init__(self, python: bool = False, max_words: int = 1 << 22, **geometry: int) -> None:
        self.program, self.native = compiled()
        self.python = python
        self.w = world.new_world(max_words, **geometry)
        self.rig = self.new_rig()

    def __getattr__(self, name: str):
        root = ROOTS[name]

        def call(*args: int) -> int:
            if self.python:
                current.w, current.program = self.w, self.program
                return int(root(*args))
            return self.native.call(root, self.w, *args)

        return call

    def counter(self, name: str) -> int:
        return int(self.w[world.INDEX[name]])

    @property
    def status(self) -> int:
        return int(self.w[world.STATUS])
