"""Who takes pages away from a process when memory is short: mm/rmap.c and mm/oom_kill.c."""

from __future__ import annotations

from faultpath.kernel.errno import EAGAIN
from faultpath.kernel.mm.raising import CLEAR, RAISES_CALLS, UNMAP, new_range, raise_end, raise_start
from faultpath.kernel.mm.vma import MAP_PRIVATE, Vma, next_vma
from faultpath.kernel.mmu_notifier import (
    Mm,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start_nonblock,
)
from faultpath.kernel.primitives.heap import off_stack
from faultpath.kernel.primitives.locks import down_read_trylock, up_read
from faultpath.kernel.primitives.pagetable import (
    DEVICE_BITS,
    FRAME_SHIFT,
    PAGE_SIZE,
    VALID,
    pt_clear,
    pt_get,
    pt_unmap_frame,
)
from faultpath.protocol.language import NULL, count, protocol


@protocol
def mm_reclaim(mm: Mm, page: int) -> None:
    """try_to_unmap_one(), Linux 6.1: reclaim takes a mapped page away (CLEAR of it), without mmap_lock.

    Between start and the PTE lock somebody else may have: then the event was for nothing.
    """
    pte = pt_get(mm.pt, page)
    if not pte & VALID:
        return
    range = raise_start(mm, page, page + PAGE_SIZE, CLEAR, RAISES_CALLS)
    pt_unmap_frame(mm.pt, page, (pte & DEVICE_BITS) >> FRAME_SHIFT)
    raise_end(range)


@protocol
def mm_oom_reap(mm: Mm) -> int:
    """oom_reap_task_mm(), Linux 6.1: every private VMA is emptied (UNMAP) by someone who must not wait for a driver.

    A VMA whose event is refused keeps its pages, and there is no range_end. The reaper holds mm_count, not mm_users.

    :returns: 0 when all is done, -EAGAIN when it should be tried again later
    """
    if not down_read_trylock(mm.mmap_lock):
        return -EAGAIN
    ret = 0
    vma = Vma(NULL)
    if not mm.oom_skip:
        vma = next_vma(mm, 0)
    while vma:
        if vma.flags & MAP_PRIVATE:
            count("invalidations")
            range = new_range(mm, vma.start, vma.last + 1, UNMAP)
            if mmu_notifier_invalidate_range_start_nonblock(range):
                ret = -EAGAIN
            else:
                pt_clear(mm.pt, vma.start, vma.last + 1)
                mmu_notifier_invalidate_range_end(range)
            off_stack(range)
        vma = next_vma(mm, vma.last + 1)
    up_read(mm.mmap_lock)
    return ret
