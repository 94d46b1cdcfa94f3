"""Page faults and zaps: what the kernel keeps in mm/memory.c, with the invalidations they raise, in its order.

A CPU page table changes between range_start and range_end, except where a fault only adds to it. What the kernel does
under the PTE lock is one step; whoever decided by an earlier look at an entry says what it saw, and does nothing if
that is gone (pte_same). A zap is one step over its whole range: the kernel drops the lock every 2 MiB.

The upper byte of a CPU's PTE says what page it maps. ANON: an anonymous one, EXCLUSIVE if it is this mm's alone
(PageAnonExclusive, Linux 5.19); of one that was shared by a fork, how many forks came before it (birth). ZERO: the zero
page. Neither: a file's.
"""

from __future__ import annotations

from faultpath.kernel.address_space.vma import (
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_WRITE,
    AddressSpace,
    Vma,
    anon_vma_prepare,
    vma_at,
)
from faultpath.kernel.errno import EFAULT
from faultpath.kernel.memory import CLEAR, RAISES_CALLS, raise_end, raise_start
from faultpath.kernel.primitives.locks import down_read, up_read
from faultpath.kernel.primitives.pagetable import (
    PAGE_SHIFT,
    PAGE_SIZE,
    VALID,
    WRITE,
    new_frame,
    pt_alloc,
    pt_cmpxchg,
    pt_get,
    pt_set,
)
from faultpath.protocol.language import protocol
from faultpath.protocol.struct import PageTable, Struct

ANON = 1 << 8
EXCLUSIVE = 1 << 9
ZERO = 1 << 10
BIRTH_SHIFT = 11
MAX_FORKS = 14  # later forks count as the last

FAULT_AROUND_PAGES = 16  # fault_around_bytes: 64 KiB
LEAF_PAGES = 512


class File(Struct):
    """A file whose page cache is known: its size in pages, and what is in the cache."""

    size: int
    cache: PageTable


@protocol
def new_anon_page(mm: AddressSpace, page: int) -> int:
    """The PTE, WRITE aside, of an anonymous page that is the mm's alone."""
    return new_frame(page) | VALID | ANON | EXCLUSIVE | mm.forks << BIRTH_SHIFT


@protocol
def shared_with_a_child(mm: AddressSpace, pte: int) -> int:
    """Whether an anonymous page that is not EXCLUSIVE is mapped by a child that still lives (folio_ref_count() > 1)."""
    return mm.children >> ((pte >> BIRTH_SHIFT) + 1) != 0


@protocol
def wp_page_copy(mm: AddressSpace, vma: Vma, page: int, pte: int, since: int) -> None:
    """wp_page_copy(), Linux 6.1: a copy takes the place of what ``pte`` maps, if that is still there after start."""
    anon_vma_prepare(mm, vma)
    entry = new_anon_page(mm, page)
    range = raise_start(mm, page, page + PAGE_SIZE, CLEAR, since)
    pt_cmpxchg(mm.pt, page, pte, entry | WRITE)
    raise_end(range)


@protocol
def do_wp_page(mm: AddressSpace, vma: Vma, page: int, pte: int, since: int) -> None:
    """do_wp_page(), Linux 6.1: without an event a shared mapping's page (wp_page_shared) or one's own becomes writable.

    wp_can_reuse_anon_folio(): a page that a fork shared is one's own again once the children that had it are gone.
    """
    if vma.flags & MAP_SHARED:
        pt_cmpxchg(mm.pt, page, pte, pte | WRITE)
    elif pte & ANON and (pte & EXCLUSIVE or not shared_with_a_child(mm, pte)):
        pt_cmpxchg(mm.pt, page, pte, pte | WRITE | EXCLUSIVE)
    else:
        wp_page_copy(mm, vma, page, pte, since)


# --- files


@protocol
def filemap_map_pages(mm: AddressSpace, vma: Vma, page: int, file: File) -> None:
    """do_fault_around() and filemap_map_pages(), Linux 6.1: what is in the cache around a read is mapped with it.

    Sixteen pages, aligned, of one VMA and one PTE table.
    """
    at = (page >> PAGE_SHIFT) & (LEAF_PAGES - 1)
    first = max(at & -FAULT_AROUND_PAGES, at - min(at, (page - vma.start) >> PAGE_SHIFT))
    addr = page - (at - first) * PAGE_SIZE
    end = min(page + (min(first + FAULT_AROUND_PAGES, LEAF_PAGES) - at) * PAGE_SIZE, vma.last + 1)
    while addr < end:
        offset = vma.pgoff + ((addr - vma.start) >> PAGE_SHIFT)
        if offset < file.size and pt_get(file.cache, offset << PAGE_SHIFT) and not pt_get(mm.pt, addr):
            map_file_page(mm, vma, addr)
        addr += PAGE_SIZE


@protocol
def map_file_page(mm: AddressSpace, vma: Vma, page: int) -> None:
    """do_set_pte() of a read: writable if the VMA's page protection says so, which it does for shared memory."""
    entry = new_frame(page) | VALID
    if vma.flags & MAP_SHARED and vma.prot & PROT_WRITE:
        entry = entry | WRITE
    pt_cmpxchg(mm.pt, page, 0, entry)


@protocol
def do_fault(mm: AddressSpace, vma: Vma, page: int, write: int) -> int:
    """do_fault(), Linux 6.1, of a file in memory (shmem); -EFAULT beyond its end (SIGBUS)."""
    file = File(vma.file)
    offset = vma.pgoff + ((page - vma.start) >> PAGE_SHIFT)
    if write and vma.flags & MAP_PRIVATE:
        anon_vma_prepare(mm, vma)
    if not write:
        filemap_map_pages(mm, vma, page, file)
        if pt_get(mm.pt, page):
            return 0
    if offset >= file.size:
        pt_alloc(mm.pt, page)  # it had got that far
        return -EFAULT
    pt_set(file.cache, offset << PAGE_SHIFT, VALID)
    if write and vma.flags & MAP_PRIVATE:
        pt_cmpxchg(mm.pt, page, 0, new_anon_page(mm, page) | WRITE)
    else:
        map_file_page(mm, vma, page)
    return 0


@protocol
def handle_mm_fault(mm: AddressSpace, vma: Vma, page: int, write: int, since: int) -> int:
    """handle_mm_fault() and handle_pte_fault(), Linux 6.1, where the VMA allows the access; mmap_lock is held.

    The first touch of a page raises nothing, and nothing is done where there is nothing to do. The caller looks at the
    PTE again: who changes it meanwhile wins.

    :param since: from which ``mm.raises`` on a broken copy-on-write raises its CLEAR
    :returns: 0, or -EFAULT
    """
    pte = pt_get(mm.pt, page)
    if not pte & VALID:
        if vma.file:
            return do_fault(mm, vma, page, write)
        if write:
            anon_vma_prepare(mm, vma)
            pt_cmpxchg(mm.pt, page, pte, new_anon_page(mm, page) | WRITE)
        else:
            pt_cmpxchg(mm.pt, page, pte, new_frame(page) | VALID | ZERO)
    elif write and not pte & WRITE:
        do_wp_page(mm, vma, page, pte, since)
    return 0


@protocol
def mm_cpu_fault(mm: AddressSpace, addr: int, write: int) -> int:
    """do_user_addr_fault(), Linux 6.18: the process accesses a page, mmap_lock held for reading.

    :returns: 0, or -EFAULT: the process gets a signal
    """
    page = addr & -PAGE_SIZE
    ret = -EFAULT
    down_read(mm.mmap_lock)
    vma = vma_at(mm, page)
    if vma and ((write and vma.prot & PROT_WRITE) or (not write and vma.prot)):
        ret = handle_mm_fault(mm, vma, page, write, RAISES_CALLS)
    up_read(mm.mmap_lock)
    return ret
