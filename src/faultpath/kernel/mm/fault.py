"""Page faults and zaps: what the kernel keeps in mm/memory.c, with the invalidations they raise, in its order.

A CPU page table changes between range_start and range_end, except where a fault only adds to it. What the kernel does
under the PTE lock is one step; whoever decided by an earlier look at an entry says what it saw, and does nothing if
that is gone (pte_same). A zap is one step over its whole range: the kernel drops the lock every 2 MiB.

The upper byte of a CPU's PTE says what page it maps. ANON: an anonymous one; ZERO: the zero page; neither: a file's.
EXCLUSIVE: no fork has given it to a child (of an anonymous one PageAnonExclusive, Linux 5.19); of others is known how
many forks came before them (birth).
"""

from __future__ import annotations

from faultpath.kernel.errno import EFAULT
from faultpath.kernel.mm.raising import CLEAR, RAISES_CALLS, raise_end, raise_start
from faultpath.kernel.mm.vma import (
    MAP_GROWSDOWN,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_WRITE,
    UNKNOWN,
    Vma,
    anon_vma_prepare,
    linear_page_index,
    next_vma,
    resize_vma,
)
from faultpath.kernel.mmu_notifier import Mm
from faultpath.kernel.primitives.locks import down_read, down_write, downgrade_write, up_read, up_write
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
from faultpath.protocol.language import NULL, protocol
from faultpath.protocol.struct import PageTable, Struct

ANON = 1 << 8
EXCLUSIVE = 1 << 9
ZERO = 1 << 10
BIRTH_SHIFT = 11
MAX_FORKS = 14  # later forks count as the last
NO_BIRTH = 15  # all of its bits

STACK_LIMIT = 8 << 20  # RLIMIT_STACK's usual soft limit: how far a stack VMA may grow
STACK_GUARD_GAP = 256 * PAGE_SIZE
FAULT_AROUND_PAGES = 16  # fault_around_bytes: 64 KiB
LEAF_PAGES = 512


class File(Struct):
    """A file whose page cache is known: its size in pages, and what is in the cache."""

    size: int
    cache: PageTable
    folios: PageTable  # how large are those that pages are of (shmem.py)
    huge: int  # whether faults make huge pages of it where a mapping asks for them (tmpfs: huge=advise)


@protocol
def new_anon_page(mm: Mm, page: int) -> int:
    """The PTE, WRITE aside, of an anonymous page that is the mm's alone."""
    return new_frame(page) | VALID | ANON | EXCLUSIVE | mm.forks << BIRTH_SHIFT


@protocol
def shared_with_a_child(mm: Mm, page: int, pte: int) -> int:
    """Whether an anonymous page that is not EXCLUSIVE is mapped by a child that still lives (folio_ref_count() > 1)."""
    return mm.children >> ((pte >> BIRTH_SHIFT) + 1) != 0


@protocol
def wp_page_copy(mm: Mm, vma: Vma, page: int, pte: int, since: int) -> None:
    """wp_page_copy(), Linux 6.1: a copy takes the place of what ``pte`` maps, if that is still there after start."""
    anon_vma_prepare(mm, vma)
    entry = new_anon_page(mm, page)
    range = raise_start(mm, page, page + PAGE_SIZE, CLEAR, since)
    pt_cmpxchg(mm.pt, page, pte, entry | WRITE)
    raise_end(range)


@protocol
def do_wp_page(mm: Mm, vma: Vma, page: int, pte: int, since: int) -> None:
    """do_wp_page(), Linux 6.1: without an event a shared mapping's page (wp_page_shared) or one's own becomes writable.

    wp_can_reuse_anon_folio(): a page that a fork shared is one's own again once the children that had it are gone.
    """
    if vma.flags & MAP_SHARED:
        pt_cmpxchg(mm.pt, page, pte, pte | WRITE)
    elif pte & ANON and (pte & EXCLUSIVE or not shared_with_a_child(mm, page, pte)):
        pt_cmpxchg(mm.pt, page, pte, pte | WRITE | EXCLUSIVE)
    else:
        wp_page_copy(mm, vma, page, pte, since)


# --- files


@protocol
def filemap_map_pmd(mm: Mm, vma: Vma, start: int, end: int, file: File) -> int:
    """Whether a huge page was mapped: shmem.py's can be."""
    return 0


@protocol
def map_cached_page(mm: Mm, vma: Vma, page: int) -> None:
    """filemap_map_order0_folio(). shmem.py's may map all of a large folio."""
    if not pt_get(mm.pt, page):
        map_file_page(mm, vma, page)


@protocol
def filemap_map_pages(mm: Mm, vma: Vma, page: int, file: File) -> None:
    """do_fault_around() and filemap_map_pages(), Linux 6.1: what is in the cache around a read is mapped with it.

    Sixteen pages, aligned, of one VMA and one PTE table.
    """
    at = (page >> PAGE_SHIFT) & (LEAF_PAGES - 1)
    first = max(at & -FAULT_AROUND_PAGES, at - min(at, (page - vma.start) >> PAGE_SHIFT))
    addr = page - (at - first) * PAGE_SIZE
    end = min(page + (min(first + FAULT_AROUND_PAGES, LEAF_PAGES) - at) * PAGE_SIZE, vma.last + 1)
    if filemap_map_pmd(mm, vma, addr, end, file):
        return
    while addr < end:
        offset = linear_page_index(vma, addr)
        if offset < file.size and pt_get(file.cache, offset << PAGE_SHIFT):
            map_cached_page(mm, vma, addr)
        addr += PAGE_SIZE


@protocol
def map_file_page(mm: Mm, vma: Vma, page: int) -> None:
    """do_set_pte() of a read: writable if the VMA's page protection says so, which it does for shared memory."""
    entry = new_frame(page) | VALID | EXCLUSIVE | mm.forks << BIRTH_SHIFT
    if vma.flags & MAP_SHARED and vma.prot & PROT_WRITE:
        entry = entry | WRITE
    pt_cmpxchg(mm.pt, page, 0, entry)


@protocol
def shmem_add_folio(vma: Vma, page: int, index: int, file: File) -> None:
    """shmem_alloc_and_add_folio(): a page comes into the cache. shmem.py's may be a huge one."""
    pt_set(file.cache, index << PAGE_SHIFT, VALID)


@protocol
def finish_fault(mm: Mm, vma: Vma, page: int, write: int) -> None:
    """finish_fault(), Linux 6.1, of what is not copied. shmem.py's may map all of a large folio."""
    map_file_page(mm, vma, page)


@protocol
def read_from_file(mm: Mm, vma: Vma, page: int, write: int, file: File) -> int:
    """do_fault_around() and __do_fault(): the page is in the cache afterwards; -EFAULT beyond the file's end."""
    offset = linear_page_index(vma, page)
    if not write:
        filemap_map_pages(mm, vma, page, file)
        if pt_get(mm.pt, page):
            return 0
    if offset >= file.size:
        pt_alloc(mm.pt, page)  # it had got that far
        return -EFAULT
    if not pt_get(file.cache, offset << PAGE_SHIFT):
        shmem_add_folio(vma, page, offset, file)
    return 0


@protocol
def do_fault(mm: Mm, vma: Vma, page: int, write: int) -> int:
    """do_fault(), Linux 6.1, of a file in memory (shmem); -EFAULT beyond its end (SIGBUS)."""
    if write and vma.flags & MAP_PRIVATE:
        anon_vma_prepare(mm, vma)
    if not vma.file & UNKNOWN:
        ret = read_from_file(mm, vma, page, write, File(vma.file))
        if ret or pt_get(mm.pt, page):
            return ret
    if write and vma.flags & MAP_PRIVATE:
        pt_cmpxchg(mm.pt, page, 0, new_anon_page(mm, page) | WRITE)
    else:
        finish_fault(mm, vma, page, write)
    return 0


@protocol
def huge_fault(mm: Mm, vma: Vma, page: int, write: int, since: int) -> int:
    """Without huge pages: nothing is done, all is left to do. huge.py's takes its place where there are some."""
    return 0


@protocol
def hugetlb_fault(mm: Mm, vma: Vma, page: int, write: int, since: int) -> int:
    """Whether it was one: hugetlb.py's can be."""
    return 0


@protocol
def do_swap_page(mm: Mm, vma: Vma, page: int, pte: int, write: int, since: int) -> None:
    """Without swap there is no entry that is neither empty nor valid: swap.py's takes the place of this."""


@protocol
def handle_mm_fault(mm: Mm, vma: Vma, page: int, write: int, since: int) -> int:
    """handle_mm_fault() and handle_pte_fault(), Linux 6.1, where the VMA allows the access; mmap_lock is held.

    The first touch of a page raises nothing, and nothing is done where there is nothing to do. The caller looks at the
    PTE again: who changes it meanwhile wins.

    :param since: from which ``mm.raises`` on a broken copy-on-write raises its CLEAR
    :returns: 0, or -EFAULT
    """
    if hugetlb_fault(mm, vma, page, write, since) or huge_fault(mm, vma, page, write, since):
        return 0
    pte = pt_get(mm.pt, page)
    if pte and not pte & VALID:
        do_swap_page(mm, vma, page, pte, write, since)
    elif not pte & VALID:
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


# --- the process's own


@protocol
def within_stack_limit(vma: Vma, page: int) -> int:
    """Whether this is a stack that may grow down to a page below it (acct_stack_growth())."""
    if vma.flags & MAP_GROWSDOWN and vma.last + 1 - page <= STACK_LIMIT:
        return 1
    return 0


@protocol
def expand_stack(mm: Mm, vma: Vma, page: int) -> None:
    """expand_downwards(), Linux 6.18: unless too little would be left to what is below, or it would be too large."""
    below = Vma(NULL)
    near = next_vma(mm, page - STACK_GUARD_GAP)
    while near.start < vma.start:
        below = near
        near = next_vma(mm, near.last + 1)
    if below and not below.flags & MAP_GROWSDOWN and below.prot:
        return
    anon_vma_prepare(mm, vma)
    if within_stack_limit(vma, page):
        resize_vma(mm, vma, page, vma.last)


@protocol
def lock_mm_and_find_vma(mm: Mm, page: int) -> Vma:
    """lock_mm_and_find_vma(), Linux 6.1.37: a VMA and mmap_lock held for reading, or NULL and no lock (SIGSEGV).

    A stack grows under the write lock, for which the read lock is given up, and the VMA looked up again.
    """
    down_read(mm.mmap_lock)
    vma = next_vma(mm, page)
    if vma and vma.start <= page:
        return vma
    stack = 0
    if vma:
        stack = vma.flags & MAP_GROWSDOWN
    up_read(mm.mmap_lock)
    if not stack:
        return NULL
    down_write(mm.mmap_lock)
    vma = next_vma(mm, page)
    if vma and vma.start > page and vma.flags & MAP_GROWSDOWN:
        expand_stack(mm, vma, page)
    if not vma or vma.start > page:
        up_write(mm.mmap_lock)
        return NULL
    downgrade_write(mm.mmap_lock)
    return vma


@protocol
def mm_cpu_fault(mm: Mm, addr: int, write: int) -> int:
    """do_user_addr_fault(), Linux 6.18: the process accesses a page, mmap_lock held for reading.

    :returns: 0, or -EFAULT: the process gets a signal
    """
    page = addr & -PAGE_SIZE
    ret = -EFAULT
    vma = lock_mm_and_find_vma(mm, page)
    if not vma:
        return ret
    if (write and vma.prot & PROT_WRITE) or (not write and vma.prot):
        ret = handle_mm_fault(mm, vma, page, write, RAISES_CALLS)
    up_read(mm.mmap_lock)
    return ret
