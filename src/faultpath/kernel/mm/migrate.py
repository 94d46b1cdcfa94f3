"""Pages that move to other memory, and how it is found out which should: mm/rmap.c, mm/migrate.c, mm/mempolicy.c."""

from __future__ import annotations

from faultpath.kernel.mm.raising import CLEAR, PROTECTION_VMA, RAISES_CALLS, raise_end, raise_start
from faultpath.kernel.mm.vma import next_vma
from faultpath.kernel.mmu_notifier import Mm
from faultpath.kernel.primitives.locks import down_read
from faultpath.kernel.primitives.pagetable import (
    DEVICE_BITS,
    FRAME_SHIFT,
    PAGE_SIZE,
    VALID,
    new_frame,
    pt_cmpxchg,
    pt_get,
    pt_unmap_frame,
)
from faultpath.protocol.language import protocol


@protocol
def mm_migrate(mm: Mm, page: int) -> None:
    """try_to_migrate_one() and remove_migration_pte(), Linux 6.18, of one page (CLEAR), without mmap_lock.

    Who touches the page in between waits in the kernel (migration_entry_wait()); here it gets one of its own.
    """
    pte = pt_get(mm.pt, page)
    if not pte & VALID:
        return
    range = raise_start(mm, page, page + PAGE_SIZE, CLEAR, RAISES_CALLS)
    taken = pt_unmap_frame(mm.pt, page, (pte & DEVICE_BITS) >> FRAME_SHIFT)
    raise_end(range)
    if taken:
        pt_cmpxchg(mm.pt, page, 0, taken & ~(DEVICE_BITS & -(1 << FRAME_SHIFT)) | new_frame(page))


@protocol
def mm_numa_hinting(mm: Mm, start: int, size: int) -> None:
    """task_numa_work() and change_prot_numa(), Linux 6.18: PROTECTION_VMA of each VMA's part, mmap_lock for reading.

    The entries keep their pages, and whoever meets one faults once and finds it: that is not modelled.
    """
    with down_read(mm.mmap_lock):
        vma = next_vma(mm, start)
        while vma and vma.start < start + size:
            first = max(vma.start, start)
            raise_end(raise_start(mm, first, min(vma.last + 1, start + size), PROTECTION_VMA, RAISES_CALLS))
            vma = next_vma(mm, vma.last + 1)
