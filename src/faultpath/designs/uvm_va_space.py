"""UVM's va_space, what holds its mm, and a GPU in it: uvm_va_space.c and uvm_va_space_mm.c, 595.45.04.

The file that is open holds mm_users. A bottom half, which belongs to no process, retains the mm while it uses it;
shutdown waits for those that do before the file lets go.
"""

from __future__ import annotations

from faultpath.driver import *

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


class Gpu(Device):
    """``uvm_parent_gpu_t``, with one channel on it."""

    service_lock: ParentMutex  # isr.replayable_faults.service_lock
    instance_ptr_table_lock: SpinLock
    instance_ptr: VaSpace  # whose faults the channel's are, NULL once it is detached
    page_dir: VaSpace  # what the GPU translates with
    hmm_invalidate_seqnum: int  # the bottom half's uvm_thread_context(): there is one at a time


# --- the mm, for those who come without one


@protocol
def uvm_va_space_mm_retain_lock(va_space: VaSpace) -> Mm:
    """uvm_va_space_mm_retain_lock(): mm_users is held by the file, and retainers are waited for before it drops it."""
    with spin_lock(va_space.mm_lock):
        if va_space.state != ALIVE:
            return NULL
        va_space.retained_count += 1
        mm = va_space.mm
    down_read(mm.mmap_lock)
    return mm


@protocol
def uvm_va_space_mm_release_unlock(va_space: VaSpace, mm: Mm) -> None:
    """uvm_va_space_mm_release_unlock()."""
    if not mm:
        return
    up_read(mm.mmap_lock)
    with spin_lock(va_space.mm_lock):
        va_space.retained_count -= 1
        last = va_space.retained_count == 0 and va_space.state == RELEASED
    if last:
        wake_up(va_space.last_retainer_wait_queue)


# --- open and close


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
    with down_write(va_space.lock), spin_lock(gpu.instance_ptr_table_lock):
        gpu.instance_ptr = VaSpace(NULL)  # uvm_va_space_detach_all_user_channels()
    mutex_lock(gpu.service_lock)  # uvm_gpu_replayable_buffer_flush()
    mutex_unlock(gpu.service_lock)
    gpu.page_dir = VaSpace(NULL)  # uvm_gpu_va_space_unset_page_dir()
    with spin_lock(va_space.mm_lock):
        va_space.state = RELEASED
    wait_event(va_space.last_retainer_wait_queue, va_space.retained_count == 0)
