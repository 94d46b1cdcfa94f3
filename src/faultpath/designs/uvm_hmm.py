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

Faults are here, ``uvm_va_block`` has the blocks and their callback, ``uvm_va_space`` the va_space and its mm.
"""

from __future__ import annotations

from faultpath.designs.uvm_va_block import (
    VaBlock,
    uvm_hmm_notifier_ops,
    uvm_hmm_va_block_find_create,
    uvm_hmm_va_space_destroy,
)
from faultpath.designs.uvm_va_space import (
    Gpu,
    VaSpace,
    uvm_va_space_create,
    uvm_va_space_mm_release_unlock,
    uvm_va_space_mm_retain_lock,
    uvm_va_space_mm_shutdown,
)
from faultpath.driver import *

MORE_PROCESSING_REQUIRED = -EAGAIN  # NV_WARN_MORE_PROCESSING_REQUIRED: drop every lock, begin again


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
    with mutex_lock(va_block.migrate_lock), mutex_lock(va_block.lock):
        return service_fault_batch_block_locked(va_block, vma, addr, write)


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
def service_fault_batch(va_space: VaSpace, addr: int, write: int) -> int:
    """service_fault_batch(): there is no limit to its retries."""
    while True:
        mm = uvm_va_space_mm_retain_lock(va_space)
        with down_read(va_space.lock):
            ret = service_fault_batch_dispatch(va_space, mm, addr, write)
        uvm_va_space_mm_release_unlock(va_space, mm)
        if ret != MORE_PROCESSING_REQUIRED:
            return ret
        count("fault_retries")


@protocol
def uvm_parent_gpu_service_replayable_faults(gpu: Gpu, addr: int, write: int) -> int:
    """replayable_faults_isr_bottom_half() and what it calls, replay policy BATCH_FLUSH: a batch, then a replay."""
    with mutex_lock(gpu.service_lock):
        count("replayable_faults_bh")
        with spin_lock(gpu.instance_ptr_table_lock):
            va_space = gpu.instance_ptr  # uvm_parent_gpu_fault_entry_to_va_space()
        ret = -EFAULT
        if va_space:
            ret = service_fault_batch(va_space, addr, write)
        count("replays_start")
    return ret


@protocol
def gmmu_walk(gpu: Gpu, addr: int) -> int:
    """What the GPU finds in the page tables that it runs on."""
    va_space = gpu.page_dir
    if not va_space:
        return 0
    return pt_get(va_space.pt, addr)


@protocol
def uvm_release(gpu: Gpu) -> None:
    """uvm_release_mm(), then uvm_release_va_space()."""
    va_space = gpu.page_dir
    mm = va_space.mm
    uvm_va_space_mm_shutdown(va_space)
    mmdrop(mm)
    mmput(mm)
    with down_write(va_space.lock):  # uvm_va_space_destroy()
        uvm_hmm_va_space_destroy(va_space)
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
