"""Fixed blocks of 2 MiB, each with an interval of its own: NVIDIA's open UVM driver mirroring by HMM.

A fault finds its block in the driver's own range tree, and makes one if there is none: the whole aligned 2 MiB, VMAs
do not matter. Nothing takes a block away: munmap clears what is mapped, for an interval cannot be removed inside a
callback, and the block waits for the next mapping there, or for the file to be closed. Every callback is one block's,
and allocates before it does anything: munmap of 1 GiB that was touched is 512 of them, one after the other.

The core's sequence number serves hmm_range_fault() only. What a fault looks at afterwards, under the block's lock, is
the block's own ``changed``, read before read_begin. Invalidations that the fault raises itself, such as a break of
copy-on-write, are not to make it retry: the thread counts those that it is called back for, and compares with its own
count. It counts those of every block, and so one of another block hides one of this.

Non-blockable events are refused unseen: the OOM reaper always gives up. SOFT_DIRTY is ignored: the GPU goes on writing
where the CPU's PTEs are write protected. A callback that gets no memory says that all is done.

A fault here is a batch of one entry of the fault buffer. It finds its va_space by the channel; service_lock admits one
bottom half per GPU. The page is mapped where it is, in system memory, as the driver does with file mappings, and with
anonymous memory whose preferred location is the CPU. Not modelled: migration to the GPU, with invalidations of its own;
prefetching (uvm_perf_prefetch_enable=0), thrashing, atomics, policies; managed ranges, before which blocks give way
(docs/examples/split.py has that); the two mutexes that order the users of the va_space lock; the second look at a
fault before it is cancelled; the zero page, which UVM does not map. The block's GPU state comes with the block and not
with the first page mapped, page tables of the GPU cost nothing, and it forgets a mapping at once, where C waits for a
tracker. The two files are closed in the order that their references impose: first that which holds mm_users, and with
it the process's memory.
"""

from __future__ import annotations

from faultpath.driver import *
from faultpath.kernel.primitives.range_tree import range_tree_find, range_tree_hole_last, range_tree_hole_start
from faultpath.protocol.struct import RangeTreeNode

MORE_PROCESSING_REQUIRED = -EAGAIN  # NV_WARN_MORE_PROCESSING_REQUIRED: drop every lock, begin again
ALIVE = 1  # va_space_mm.state
RELEASED = 2


class VaSpace(Struct):
    """``uvm_va_space_t``, its va_space_mm, and its page tables on the GPU (gpu_va_space)."""

    mm: Mm
    gpu: int  # the Gpu
    lock: RwSem
    mm_lock: SpinLock  # va_space_mm.lock
    state: int
    retained_count: int
    last_retainer_wait_queue: WaitQueue
    blocks_lock: ParentMutex
    blocks: IntervalTree  # hmm.blocks, a range tree
    block_size: int
    pt: PageTable


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


class Gpu(Device):
    """``uvm_parent_gpu_t``, with one channel on it."""

    service_lock: ParentMutex  # isr.replayable_faults.service_lock
    instance_ptr_table_lock: SpinLock
    instance_ptr: VaSpace  # whose faults the channel's are, NULL once it is detached
    page_dir: VaSpace  # what the GPU translates with
    hmm_invalidate_seqnum: int  # the bottom half's uvm_thread_context(): there is one at a time


# --- blocks


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
    mutex_lock(va_block.lock)
    start = max(range.start, node.start)
    end = min(range.end, node.last + 1)
    if start < end:  # always, unless the block is being split
        hmm_invalidated(va_block)
        va_block.changed += 1
        mmu_interval_set_seq(mni, cur_seq)
        if device_zap(va_block.va_space.pt, start, end):
            count("device_commands")
    mutex_unlock(va_block.lock)
    kfree(context)
    return 1


@protocol
def hmm_block_owner(mni: IntervalNotifier) -> int:
    """Whose it is. UVM's blocks of one va_space do not overlap; those of two may."""
    return VaBlock(mni).va_space


uvm_hmm_notifier_ops = Ops("uvm_hmm_notifier_ops", invalidate=hmm_invalidate, owner=hmm_block_owner)


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
    mutex_lock(va_block.lock)
    pt_clear(va_block.va_space.pt, node.start, node.last + 1)
    mutex_unlock(va_block.lock)
    kvfree(table_bytes(node))
    kfree(va_block)


@protocol
def uvm_hmm_va_block_find_create(va_space: VaSpace, addr: int) -> int:
    """hmm_va_block_find_create(), past its look at the VMA: the block, or -errno."""
    mutex_lock(va_space.blocks_lock)
    count("lookups")
    found = range_tree_find(va_space.blocks, addr, LOOKUP_STEPS)
    if found:
        mutex_unlock(va_space.blocks_lock)
        return container_of(VaBlock, "node", found)
    count("lookups")  # uvm_range_tree_find_hole_in()
    aligned = addr & -va_space.block_size
    start = range_tree_hole_start(va_space.blocks, addr, aligned, LOOKUP_STEPS)
    last = range_tree_hole_last(va_space.blocks, addr, aligned + va_space.block_size - 1)
    va_block = uvm_va_block_create(va_space, start, last)
    if not va_block:
        mutex_unlock(va_space.blocks_lock)
        return -ENOMEM
    itree_insert(va_space.blocks, va_block.node)
    mutex_unlock(va_space.blocks_lock)
    return va_block


@protocol
def uvm_hmm_va_space_destroy(va_space: VaSpace) -> None:
    """uvm_hmm_va_space_destroy(), under the va_space lock for writing."""
    node = itree_first(va_space.blocks, 0, ULONG_MAX, SCRATCH)
    while node:
        va_block = container_of(VaBlock, "node", node)
        itree_remove(va_space.blocks, node)
        mmu_interval_notifier_remove(va_block)
        uvm_va_block_kill(va_block)
        node = itree_first(va_space.blocks, 0, ULONG_MAX, SCRATCH)


# --- faults


@protocol
def hmm_va_block_cpu_page_populate(va_block: VaBlock, addr: int) -> None:
    """hmm_va_block_cpu_page_populate(): a chunk for the page, allocated under the block's lock."""
    count("allocs")


@protocol
def hmm_make_resident_cpu(va_block: VaBlock, vma: Vma, addr: int) -> int:
    """hmm_make_resident_cpu() for one page: the CPU's PTE, writable wherever the VMA is. It drops va_block.lock."""
    va_space = va_block.va_space
    gpu = Gpu(va_space.gpu)
    gpu.hmm_invalidate_seqnum = va_block.changed  # hmm_range_fault_begin()
    mutex_unlock(va_block.lock)
    seq = mmu_interval_read_begin(va_block)
    pfn = hmm_range_fault(va_space.mm, va_block, seq, addr, vma.prot & PROT_WRITE != 0)
    mutex_lock(va_block.lock)
    if pfn == -EBUSY:
        return MORE_PROCESSING_REQUIRED
    if pfn < 0:
        return pfn
    if gpu.hmm_invalidate_seqnum != va_block.changed:  # hmm_range_fault_retry()
        return MORE_PROCESSING_REQUIRED
    return pfn


@protocol
def service_fault_batch_block_locked(va_block: VaBlock, vma: Vma, addr: int, write: int) -> int:
    """service_fault_batch_block_locked(), uvm_hmm_va_block_service_locked() and what they call, for one page."""
    if write and not vma.prot & PROT_WRITE:
        return -EACCES
    pt = va_block.va_space.pt
    entry = pt_get(pt, addr)
    if entry & VALID and (entry & WRITE or not write):  # uvm_va_block_page_is_gpu_authorized()
        return 0
    pfn = hmm_make_resident_cpu(va_block, vma, addr)
    if pfn < 0:
        return pfn
    hmm_va_block_cpu_page_populate(va_block, addr)
    count("device_commands")
    pt_set(pt, addr, pfn)
    return 0


@protocol
def service_fault_batch_block(va_block: VaBlock, vma: Vma, addr: int, write: int) -> int:
    """service_fault_batch_block(): migrate_lock keeps others that fault on the block out, also while it is unlocked."""
    mutex_lock(va_block.migrate_lock)
    mutex_lock(va_block.lock)
    ret = service_fault_batch_block_locked(va_block, vma, addr, write)
    mutex_unlock(va_block.lock)
    mutex_unlock(va_block.migrate_lock)
    return ret


@protocol
def service_fault_batch_dispatch(va_space: VaSpace, mm: Mm, addr: int, write: int) -> int:
    """service_fault_batch_dispatch(): without an mm, or a readable VMA, the fault is fatal."""
    count("replayable_faults")  # update_stats_fault_cb(): once each time
    if not mm:
        return -EFAULT
    vma = find_vma(mm, addr)
    if not vma or addr < vma.start or not vma.prot & PROT_READ:  # uvm_hmm_vma_is_valid()
        return -EFAULT
    found = uvm_hmm_va_block_find_create(va_space, addr)
    if found < 0:
        return found
    return service_fault_batch_block(VaBlock(found), vma, addr, write)


@protocol
def uvm_va_space_mm_retain_lock(va_space: VaSpace) -> Mm:
    """uvm_va_space_mm_retain_lock(): mm_users is held by the file, and retainers are waited for before it drops it."""
    mm = Mm(NULL)
    spin_lock(va_space.mm_lock)
    if va_space.state == ALIVE:
        va_space.retained_count += 1
        mm = va_space.mm
    spin_unlock(va_space.mm_lock)
    if mm:
        down_read(mm.mmap_lock)
    return mm


@protocol
def uvm_va_space_mm_release_unlock(va_space: VaSpace, mm: Mm) -> None:
    """uvm_va_space_mm_release_unlock()."""
    if not mm:
        return
    up_read(mm.mmap_lock)
    spin_lock(va_space.mm_lock)
    va_space.retained_count -= 1
    last = va_space.retained_count == 0 and va_space.state == RELEASED
    spin_unlock(va_space.mm_lock)
    if last:
        wake_up(va_space.last_retainer_wait_queue)


@protocol
def service_fault_batch(va_space: VaSpace, addr: int, write: int) -> int:
    """service_fault_batch(): there is no limit to its retries."""
    while True:
        mm = uvm_va_space_mm_retain_lock(va_space)
        down_read(va_space.lock)
        ret = service_fault_batch_dispatch(va_space, mm, addr, write)
        up_read(va_space.lock)
        uvm_va_space_mm_release_unlock(va_space, mm)
        if ret != MORE_PROCESSING_REQUIRED:
            return ret
        count("fault_retries")


@protocol
def uvm_parent_gpu_service_replayable_faults(gpu: Gpu, addr: int, write: int) -> int:
    """replayable_faults_isr_bottom_half() and what it calls, replay policy BATCH_FLUSH: a batch, then a replay."""
    mutex_lock(gpu.service_lock)
    count("replayable_faults_bh")
    spin_lock(gpu.instance_ptr_table_lock)
    va_space = gpu.instance_ptr  # uvm_parent_gpu_fault_entry_to_va_space()
    spin_unlock(gpu.instance_ptr_table_lock)
    ret = -EFAULT
    if va_space:
        ret = service_fault_batch(va_space, addr, write)
    count("replays_start")
    mutex_unlock(gpu.service_lock)
    return ret


@protocol
def gmmu_walk(gpu: Gpu, addr: int) -> int:
    """What the GPU finds in the page tables that it runs on."""
    va_space = gpu.page_dir
    if not va_space:
        return 0
    return pt_get(va_space.pt, addr)


# --- files


@protocol
def uvm_va_space_create(mm: Mm, block: int) -> Gpu:
    """uvm_va_space_create(), uvm_api_mm_initialize(), and what follows: a GPU, its page tables, a channel."""
    va_space = kmalloc(VaSpace, GFP_KERNEL)
    if not va_space:
        return NULL
    mmgrab(mm)  # uvm_va_space_mm_register()
    va_space.mm = mm
    va_space.block_size = block
    pt_init(va_space.pt, 0, mm.task_size)
    mmget(mm)
    va_space.state = ALIVE
    gpu = on_stack(Gpu)
    gpu.mm = mm
    va_space.gpu = gpu
    gpu.page_dir = va_space
    gpu.instance_ptr = va_space
    return gpu


@protocol
def uvm_va_space_mm_shutdown(va_space: VaSpace) -> None:
    """uvm_va_space_mm_shutdown(): channels are stopped and detached, bottom halves and retainers waited for."""
    gpu = Gpu(va_space.gpu)
    down_write(va_space.lock)
    spin_lock(gpu.instance_ptr_table_lock)
    gpu.instance_ptr = VaSpace(NULL)  # uvm_va_space_detach_all_user_channels()
    spin_unlock(gpu.instance_ptr_table_lock)
    up_write(va_space.lock)
    mutex_lock(gpu.service_lock)  # uvm_gpu_replayable_buffer_flush()
    mutex_unlock(gpu.service_lock)
    gpu.page_dir = VaSpace(NULL)  # uvm_gpu_va_space_unset_page_dir()
    spin_lock(va_space.mm_lock)
    va_space.state = RELEASED
    spin_unlock(va_space.mm_lock)
    wait_event(va_space.last_retainer_wait_queue, va_space.retained_count == 0)


@protocol
def uvm_release(gpu: Gpu) -> None:
    """uvm_release_mm(), then uvm_release_va_space()."""
    va_space = gpu.page_dir
    mm = va_space.mm
    uvm_va_space_mm_shutdown(va_space)
    mmdrop(mm)
    mmput(mm)
    down_write(va_space.lock)  # uvm_va_space_destroy()
    uvm_hmm_va_space_destroy(va_space)
    up_write(va_space.lock)
    pt_free(va_space.pt)
    kfree(va_space)


design = Design(
    name="uvm-hmm",
    title="fixed blocks of 2 MiB, each with its own interval",
    source="kernel-open/nvidia-uvm of NVIDIA's open-gpu-kernel-modules, 595.45.04",
    open=uvm_va_space_create,
    fault=uvm_parent_gpu_service_replayable_faults,
    walk=gmmu_walk,
    close=uvm_release,
    ops=[uvm_hmm_notifier_ops],
    parameters=[
        Parameter(
            "block",
            2 << 20,
            "size of a block (UVM_VA_BLOCK_SIZE)",
            unit="bytes",
            minimum=4096,
            power_of_two=True,
            small=16 << 10,
        ),
    ],
    counters=["replayable_faults", "replayable_faults_bh", "replays_start"],
    disjoint=True,
    doc=__doc__,
)
