"""What is done to a process by way of /proc: fs/proc/task_mmu.c, Linux 6.18."""

from __future__ import annotations

from faultpath.kernel.mm.raising import RAISES_CALLS, SOFT_DIRTY, raise_end, raise_start
from faultpath.kernel.mmu_notifier import ULONG_MAX, Mm
from faultpath.kernel.primitives.locks import down_write
from faultpath.kernel.primitives.pagetable import pt_write_protect
from faultpath.protocol.language import protocol


@protocol
def mm_clear_soft_dirty(mm: Mm) -> None:
    """clear_refs_write(), CLEAR_REFS_SOFT_DIRTY: everything is write-protected, mmap_lock held for writing."""
    with down_write(mm.mmap_lock):
        range = raise_start(mm, 0, ULONG_MAX, SOFT_DIRTY, RAISES_CALLS)
        pt_write_protect(mm.pt, 0, ULONG_MAX)
        raise_end(range)
