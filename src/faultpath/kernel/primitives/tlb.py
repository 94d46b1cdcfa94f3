"""A TLB of a device's: it keeps what a walk has found until it is told to forget."""

from __future__ import annotations

from faultpath.engine.world import Words
from faultpath.kernel.primitives.pagetable import DEVICE_BITS, KEEP_NONE, VALID, edit, get, put
from faultpath.protocol.language import primitive
from faultpath.protocol.struct import PageTable


@primitive
def tlb_access(w: Words, tlb: PageTable, pt: PageTable, addr: int) -> int:
    """What the MMU finds for an address: in the TLB, or by a walk of the page table, which the TLB keeps if valid.

    One step: whoever changes an entry flushes after that, and hardware drops a walk under way with the flush.
    """
    entry = get(w, tlb, addr)
    if entry & VALID == 0:
        entry = get(w, pt, addr) & DEVICE_BITS
        if entry & VALID:
            put(w, tlb, addr, entry)
    return entry


@primitive
def tlb_flush(w: Words, tlb: PageTable, start: int, end: int) -> int:
    """Forget ``[start, end)``; how many entries there were."""
    return edit(w, tlb, start, end, KEEP_NONE)
