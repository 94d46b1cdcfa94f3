"""Anonymous memory that MADV_PAGEOUT sends to swap, and its way back: mm/memory.c, mm/swapfile.c, Linux 6.18.

What takes the place of the rest's functions in a program that has swap on a device that answers at once
(SWP_SYNCHRONOUS_IO: zram), nothing is read ahead. Its entry in the page table is not VALID: it says ANON, and EXCLUSIVE
as a page's does. ``Pages.swapped`` says which children have the same entry. For programs of calls alone (mm/pages.py).
"""

from __future__ import annotations

from faultpath.kernel.mm import fault, lazyfree, madvise
from faultpath.kernel.mm.fault import ANON, EXCLUSIVE, do_wp_page, new_anon_page
from faultpath.kernel.mm.huge import DATA
from faultpath.kernel.mm.pages import LARGE, ZEROES, Pages, child_has_swap_entry, holders, is_all_zeroes
from faultpath.kernel.mm.vma import PROT_WRITE, Vma
from faultpath.kernel.mmu_notifier import Mm
from faultpath.kernel.primitives.pagetable import VALID, WRITE, pt_cmpxchg, pt_set
from faultpath.kernel.primitives.pmd import FRAME_BITS
from faultpath.protocol.language import protocol


@protocol(replaces=madvise.total_swap_pages)
def total_swap_pages(mm: Mm) -> int:
    """There is, and enough of it."""
    return 1


@protocol(replaces=lazyfree.swap_out)
def swap_out(mm: Mm, page: int, pte: int) -> None:
    """try_to_unmap_one(), Linux 6.18: a swap entry takes the place of a page, which leaves the swap cache as well."""
    known = is_all_zeroes(mm, page, pte)
    if pte & (LARGE | DATA) == LARGE:
        known = ZEROES
    if not pte & EXCLUSIVE:
        known = known | holders(mm, page, pte)
    pt_set(Pages(mm.pages).swapped, page, VALID | pte & FRAME_BITS | known)
    pt_set(mm.pt, page, pte & (FRAME_BITS | EXCLUSIVE) | ANON)


@protocol(replaces=fault.do_swap_page)
def do_swap_page(mm: Mm, vma: Vma, page: int, pte: int, write: int, since: int) -> None:
    """do_swap_page(), Linux 6.18: what no child has is the mm's alone again, and writable, even if it was only read.

    What one has comes into the swap cache, and a write to it copies it.
    """
    entry = new_anon_page(mm, page)
    swapped = Pages(mm.pages).swapped
    zeroes = is_all_zeroes(mm, page, pte)
    if write:
        zeroes = 0
    if child_has_swap_entry(mm, page, pte):
        entry = entry & ~EXCLUSIVE
        pt_set(swapped, page, VALID | entry & FRAME_BITS | zeroes | holders(mm, page, pte))
        pt_cmpxchg(mm.pt, page, pte, entry)
        if write:
            do_wp_page(mm, vma, page, entry, since)
    else:
        if vma.prot & PROT_WRITE:
            entry = entry | WRITE
        pt_set(swapped, page, entry & FRAME_BITS | zeroes)
        pt_cmpxchg(mm.pt, page, pte, entry)


SWAP = [total_swap_pages, swap_out, do_swap_page]
