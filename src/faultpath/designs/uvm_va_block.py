"""UVM's blocks, each with an interval of its own, and their callback: uvm_hmm.c and uvm_va_block.c, 595.45.04."""

from __future__ import annotations

from faultpath.designs.uvm_va_space import Gpu, VaSpace
from faultpath.driver import *
from faultpath.kernel.primitives.range_tree import range_tree_find, range_tree_hole_last, range_tree_hole_start
from faultpath.protocol.struct import RangeTreeNode


class VaBlock(IntervalNotifier):
    """``uvm_va_block_t``, here beginning with ``hmm.notifier``. Sizes are those of a build for Linux 6.1, x86-64."""

    interval_bytes = 2976
    va_space: VaSpace
    node: RangeTreeNode  # hmm.node
    migrate_lock: ParentMutex
    lock: Mutex
    changed: int


class VaBlockContext(Struct):
    """``uvm_va_block_context_t``: 10,496 bytes of masks, too many for the stack."""


# --- the callback


@protocol
def hmm_invalidated(va_block: VaBlock) -> None:
    """uvm_thread_context()->hmm_invalidate_seqnum++: of whatever block it is, and whatever the thread is at."""
    gpu = Gpu(va_block.va_space.gpu)
    if mutex_is_mine(gpu.service_lock):  # it is the bottom half
        gpu.hmm_invalidate_seqnum += 1


@protocol
def hmm_invalidate(mni: IntervalNotifier, range: Range, cur_seq: int) -> int:
    """hmm_invalidate(): clipped to the block; munmap_region() has but policies and device memory to clear."""
    if range.event == MMU_NOTIFY_SOFT_DIRTY or range.event == MMU_NOTIFY_RELEASE:
        return 1
    if not range.blockable:
        return 0
    context = kmalloc(VaBlockContext, GFP_NOMEMALLOC)
    if not context:
        return 1
    count("allocs", 2)  # its tracking of pages by node
    va_block = VaBlock(mni)
    node = IntervalNode(va_block.node)
    with mutex_lock(va_block.lock):
        start = max(range.start, node.start)
        end = min(range.end, node.last + 1)
        if start < end:  # always, unless the block is being split
            hmm_invalidated(va_block)
            va_block.changed += 1
            mmu_interval_set_seq(mni, cur_seq)
            if device_zap(va_block.va_space.pt, start, end):
                count("device_commands")
    kfree(context)
    return 1


@protocol
def hmm_block_owner(mni: IntervalNotifier) -> int:
    """Whose it is. UVM's blocks of one va_space do not overlap; those of two may."""
    return VaBlock(mni).va_space


uvm_hmm_notifier_ops = Ops("uvm_hmm_notifier_ops", invalidate=hmm_invalidate, owner=hmm_block_owner)


# --- blocks come and go


@protocol
def table_bytes(node: IntervalNode) -> int:
    """The states of the nodes, one here, and a pointer to it; the GPU's, and a pointer for each page's chunk there."""
    return 136 + 8 + 480 + ((node.last + 1 - node.start) >> PAGE_SHIFT << 3)


@protocol
def uvm_va_block_create(va_space: VaSpace, start: int, last: int) -> VaBlock:
    """uvm_va_block_create() and hmm_va_block_init(), with the notifier; it is not in the tree yet."""
    va_block = kmalloc(VaBlock, GFP_KERNEL)
    if not va_block:
        return NULL
    va_block.va_space = va_space
    node = IntervalNode(va_block.node)
    node.start = start
    node.last = last
    kvcalloc(table_bytes(node))
    count("allocs", 3)  # four tables, of which kvcalloc() has counted one
    mmu_interval_notifier_insert(va_block, va_space.mm, start, last + 1 - start, uvm_hmm_notifier_ops)
    return va_block


@protocol
def uvm_va_block_kill(va_block: VaBlock) -> None:
    """uvm_va_block_kill() of a block whose notifier is gone."""
    node = IntervalNode(va_block.node)
    with mutex_lock(va_block.lock):
        pt_clear(va_block.va_space.pt, node.start, node.last + 1)
    kvfree(table_bytes(node))
    kfree(va_block)


@protocol
def uvm_hmm_va_block_find_create(va_space: VaSpace, addr: int) -> int:
    """hmm_va_block_find_create(), past its look at the VMA: the block, or -errno."""
    with mutex_lock(va_space.blocks_lock):
        count("lookups")
        if found := range_tree_find(va_space.blocks, addr, LOOKUP_STEPS):
            return container_of(VaBlock, "node", found)
        count("lookups")  # uvm_range_tree_find_hole_in()
        aligned = addr & -va_space.block_size
        start = range_tree_hole_start(va_space.blocks, addr, aligned, LOOKUP_STEPS)
        last = range_tree_hole_last(va_space.blocks, addr, aligned + va_space.block_size - 1)
        va_block = uvm_va_block_create(va_space, start, last)
        if not va_block:
            return -ENOMEM
        itree_insert(va_space.blocks, va_block.node)
    return va_block


@protocol
def uvm_hmm_va_space_destroy(va_space: VaSpace) -> None:
    """uvm_hmm_va_space_destroy(), under the va_space lock for writing."""
    while node := itree_first(va_space.blocks, 0, ULONG_MAX, SCRATCH):
        va_block = container_of(VaBlock, "node", node)
        itree_remove(va_space.blocks, node)
        mmu_interval_notifier_remove(va_block)
        uvm_va_block_kill(va_block)
