"""How UVM makes an interval smaller: blocks of uvm-hmm give way before an external range (uvm_hmm.c, 595.45.04)."""

from __future__ import annotations

from dataclasses import replace

from faultpath.designs import uvm_hmm
from faultpath.designs.uvm_va_block import (
    VaBlock,
    hmm_invalidate,
    uvm_hmm_notifier_ops,
    uvm_va_block_create,
    uvm_va_block_kill,
)
from faultpath.designs.uvm_va_space import Gpu, VaSpace
from faultpath.driver import *
from faultpath.scenario import DEVICE, Call, Scenario, access, address, map_memory, munmap, oom_reap, reclaim


class SplitNotifier(IntervalNotifier):
    """``hmm_split_invalidate_data_t``, on the stack."""

    existing_block: VaBlock


@protocol
def hmm_split_invalidate(mni: IntervalNotifier, range: Range, cur_seq: int) -> int:
    """hmm_split_invalidate(): the block's own callback, and what that says is ignored."""
    hmm_invalidate(SplitNotifier(mni).existing_block, range, cur_seq)
    return 1


hmm_notifier_split_ops = Ops("hmm_notifier_split_ops", invalidate=hmm_split_invalidate)


@protocol
def cover(va_block: VaBlock, last: int) -> SplitNotifier:
    """A temporary notifier over what the block keeps: until its own is back, events would go unnoticed."""
    split = on_stack(SplitNotifier)
    split.existing_block = va_block
    start = IntervalNode(va_block.node).start
    mmu_interval_notifier_insert(split, va_block.va_space.mm, start, last + 1 - start, hmm_notifier_split_ops)
    return split


@protocol
def uncover(split: SplitNotifier) -> None:
    mmu_interval_notifier_remove(split)
    off_stack(split)


@protocol
def settle(new: VaBlock) -> None:
    """What is missing between the new block's notifier and the split: nothing is done here."""


@protocol
def hmm_split_block(va_block: VaBlock, last: int) -> VaBlock:
    """hmm_split_block(): the block keeps what is up to ``last``; the rest is a new one's."""
    va_space = va_block.va_space
    node = IntervalNode(va_block.node)
    new = uvm_va_block_create(va_space, last + 1, node.last)
    settle(new)
    with mutex_lock(va_block.lock):
        itree_remove(va_space.blocks, node)  # uvm_va_block_split_locked(), uvm_hmm_va_block_split_tree()
        node.last = last
        itree_insert(va_space.blocks, node)
        itree_insert(va_space.blocks, new.node)
    split = cover(va_block, last)
    mmu_interval_notifier_remove(va_block)
    mmu_interval_notifier_insert(va_block, va_space.mm, node.start, last + 1 - node.start, uvm_hmm_notifier_ops)
    uncover(split)
    return new


@protocol
def uvm_hmm_va_block_reclaim(va_space: VaSpace, start: int, last: int) -> None:
    """uvm_hmm_va_block_reclaim(): no block is left in ``[start, last]``; what is beside it stays."""
    while found := itree_first(va_space.blocks, start, last, SCRATCH):
        va_block = VaBlock(container_of(VaBlock, "node", found))
        if IntervalNode(va_block.node).start < start:
            va_block = hmm_split_block(va_block, start - 1)
        if IntervalNode(va_block.node).last > last:
            hmm_split_block(va_block, last)
        mmu_interval_notifier_remove(va_block)
        itree_remove(va_space.blocks, va_block.node)
        uvm_va_block_kill(va_block)


@protocol
def uvm_create_external_range(gpu: Gpu, start: int, size: int) -> None:
    """uvm_create_external_range(), an ioctl: nothing is mapped there, and blocks give way."""
    va_space = gpu.page_dir
    with down_read(va_space.mm.mmap_lock), down_write(va_space.lock):
        uvm_hmm_va_block_reclaim(va_space, start, start + size - 1)


@protocol(replaces=settle)
def wait(new: VaBlock) -> None:
    """Events that began before the notifier is in the tree do not call it: let them be over."""
    mmu_interval_read_begin(new)


@protocol(replaces=cover)
def no_cover(va_block: VaBlock, last: int) -> SplitNotifier:
    """Without the temporary notifier."""
    return NULL


@protocol(replaces=uncover)
def no_uncover(split: SplitNotifier) -> None:
    pass


@protocol(replaces=hmm_split_invalidate)
def say_so(mni: IntervalNotifier, range: Range, cur_seq: int) -> int:
    """A refusal is passed on."""
    return hmm_invalidate(SplitNotifier(mni).existing_block, range, cur_seq)


MENDED = [wait, say_so]
OPS = [uvm_hmm_notifier_ops, hmm_notifier_split_ops]
design = replace(uvm_hmm.design, name="uvm-hmm-split", ops=OPS, disjoint=False)

USED = [map_memory(0, 4), access(0), access(1), access(3), munmap(1, 1)]
EXTERNAL = Call("ioctl", uvm_create_external_range, (DEVICE, address(1), 4096))
scenarios = [
    Scenario(
        "external-range",
        "A range in the middle of a block is made external, while pages left and right of it are reclaimed.",
        USED,
        [EXTERNAL, reclaim(0), reclaim(3)],
    ),
    Scenario("external-vs-oom", "The same while the OOM reaper goes over the process.", USED, [EXTERNAL, oom_reap()]),
]
