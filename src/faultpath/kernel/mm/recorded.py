"""A process's memory calls and faults as a trace has them: what a replay makes of them.

A recording does not tell everything. Where a fault or a successful call shows that there was a mapping, one is
inferred; files are only told from each other. Where the trace holds the invalidations (the tap), they are delivered as
recorded and the calls raise none (``mm.raises``).
"""

from __future__ import annotations

from faultpath.kernel.mm.fault import ANON, EXCLUSIVE, handle_mm_fault, within_stack_limit
from faultpath.kernel.mm.fork import mm_fork
from faultpath.kernel.mm.mmap import map_vma, mm_brk, mm_mmap
from faultpath.kernel.mm.mprotect import mm_mprotect
from faultpath.kernel.mm.mremap import MREMAP_FIXED, mm_mremap
from faultpath.kernel.mm.raising import RAISES_CALLS, new_range
from faultpath.kernel.mm.vma import (
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
    UNKNOWN,
    Vma,
    add_vma,
    cut_vmas,
    linear_page_index,
    merge_whole,
    next_vma,
    resize_vma,
    vma_at,
)
from faultpath.kernel.mmu_notifier import (
    Mm,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from faultpath.kernel.primitives.heap import off_stack
from faultpath.kernel.primitives.locks import down_read, down_write
from faultpath.kernel.primitives.pagetable import PAGE_SHIFT, PAGE_SIZE, VALID, new_frame, pt_get, pt_set
from faultpath.protocol.language import NULL, count, protocol
from faultpath.trace.ops import PF_PROT, PF_WRITE

MAP_FIXED = 0x10
INFERRED = 1 << 30  # flag of a VMA, beside those in vma.py: a mapping that only its faults tell of
MAP_INFERRED = MAP_PRIVATE | MAP_ANONYMOUS | INFERRED
MMAP_MIN_ADDR = 65536  # vm.mmap_min_addr: nothing is ever mapped below
CLONE_VM = 0x100
PAGE_MASK = -PAGE_SIZE


@protocol
def recorded_invalidation(mm: Mm, start: int, end: int, event: int) -> None:
    """A recorded invalidation, counted: start and at once end, for the CPU's page table follows the calls."""
    count("invalidations")
    range = new_range(mm, start, end, event)
    mmu_notifier_invalidate_range_start(range)
    mmu_notifier_invalidate_range_end(range)
    off_stack(range)


# --- mappings


@protocol
def file_of(mm: Mm, flags: int) -> int:
    """What a new mapping maps: nothing, or a file of which only is known that it is not another one."""
    if flags & MAP_ANONYMOUS and not flags & MAP_SHARED:
        return 0
    mm.files += 2
    return mm.files | UNKNOWN


@protocol
def find_out(mm: Mm, start: int, end: int, prot: int, flags: int) -> None:
    """There is a mapping at ``[start, end)``, whatever was known of that place."""
    cut_vmas(mm, start, end)
    map_vma(mm, start, end, prot, flags, file_of(mm, flags), 0)


@protocol
def recorded_vma(mm: Mm, start: int, size: int, prot: int, flags: int) -> None:
    """A mapping found (execve made it, or it was there when recording began)."""
    with down_write(mm.mmap_lock):
        find_out(mm, start, start + size, prot, flags)


@protocol
def recorded_mmap(mm: Mm, start: int, size: int, prot: int, flags: int) -> None:
    """mmap(). A file put over a part of a file's mapping is taken to be that part again, as the dynamic linker does."""
    file = file_of(mm, flags)
    pgoff = 0
    vma = vma_at(mm, start)
    if flags & MAP_FIXED and not flags & MAP_ANONYMOUS and vma and vma.file:
        file = vma.file
        pgoff = linear_page_index(vma, start)
    mm_mmap(mm, start, size, prot, flags, file, pgoff)


@protocol
def recorded_mprotect(mm: Mm, start: int, size: int, prot: int) -> None:
    """mprotect(): it succeeded, so all of the range was mapped, and what is inferred of it is known from now on."""
    upto = start
    end = start + size
    while upto < end:
        vma = next_vma(mm, upto)
        first = end
        if vma:
            first = min(vma.start, end)
        if upto < first:
            find_out(mm, upto, first, prot, MAP_PRIVATE | MAP_ANONYMOUS)
            upto = first
        else:
            part = min(vma.last + 1, end)
            if vma.flags & INFERRED:
                find_out(mm, upto, part, vma.prot, MAP_PRIVATE | MAP_ANONYMOUS)
            upto = part
    mm_mprotect(mm, start, size, prot)


@protocol
def recorded_mremap(mm: Mm, old: int, old_size: int, new: int, new_size_and_flags: int) -> None:
    """mremap(): it succeeded, so there was one mapping; what is not known of it is private memory."""
    vma = vma_at(mm, old)
    if not vma or old + old_size > vma.last + 1:
        find_out(mm, old, old + max(old_size, PAGE_SIZE), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    new_size = new_size_and_flags & PAGE_MASK
    flags = new_size_and_flags & ~PAGE_MASK | MREMAP_FIXED
    if new == old and new_size > old_size:
        cut_vmas(mm, old + old_size, old + new_size)
    mm_mremap(mm, old, old_size, new, new_size, flags)


@protocol
def recorded_brk(mm: Mm, brk: int) -> None:
    """brk(): the first one tells where the heap ends."""
    if not mm.brk:
        mm.brk = brk
    if brk > mm.brk:
        cut_vmas(mm, (mm.brk + PAGE_SIZE - 1) & PAGE_MASK, (brk + PAGE_SIZE - 1) & PAGE_MASK)
    mm_brk(mm, brk)


@protocol
def recorded_fork(mm: Mm, clone_flags: int) -> None:
    """clone() and its like: a thread, or vfork()'s child, has no address space of its own."""
    if not clone_flags & CLONE_VM:
        mm_fork(mm)


# --- faults


@protocol
def inferred_page(mm: Mm, page: int, prot: int) -> Vma:
    """A mapping of a page, merged with its neighbours."""
    return merge_whole(mm, add_vma(mm, page, page + PAGE_SIZE, prot, MAP_INFERRED, 0, page >> PAGE_SHIFT, 0), NULL, 0)


@protocol
def infer_vma(mm: Mm, page: int, write: int) -> Vma:
    """The mapping that a fault shows: where none is known, one of a page is inferred, or a stack grows.

    The first write to an inferred page tells that it may be written. All under mmap_lock for reading, as the fault is
    counted, for a replay is alone.
    """
    vma = next_vma(mm, page)
    if not vma or page < vma.start:
        if vma and within_stack_limit(vma, page):
            resize_vma(mm, vma, page, vma.last)
        else:
            count("vmas_inferred")
            vma = inferred_page(mm, page, PROT_READ)
    if write and vma.flags & INFERRED and not vma.prot & PROT_WRITE:
        cut_vmas(mm, page, page + PAGE_SIZE)
        vma = inferred_page(mm, page, PROT_READ | PROT_WRITE)
    return vma


@protocol
def recorded_copy(mm: Mm, addr: int) -> None:
    """The only child that shares a page has written to it, and has a copy now: the page is the process's own again."""
    pte = pt_get(mm.pt, addr & PAGE_MASK)
    if pte & ANON and not pte & EXCLUSIVE:
        pt_set(mm.pt, addr & PAGE_MASK, pte | EXCLUSIVE)


@protocol
def recorded_fault(mm: Mm, addr: int, error_code: int) -> None:
    """do_user_addr_fault(): the page comes in, or its copy-on-write is broken (wp_page_copy: CLEAR).

    A write to a page that was there (PF_PROT) and is not known came in with its neighbours (filemap_map_pages()), or by
    the kernel's own access.
    """
    page = addr & PAGE_MASK
    write = error_code & PF_WRITE
    if page < MMAP_MIN_ADDR:
        return  # SIGSEGV: a JVM does this on purpose when it starts
    with down_read(mm.mmap_lock):
        vma = infer_vma(mm, page, write)
        if (write and vma.prot & PROT_WRITE) or (not write and vma.prot):
            if write and error_code & PF_PROT and not pt_get(mm.pt, page):
                entry = new_frame(page) | VALID
                if mm.forks and not vma.file:
                    entry = entry | ANON  # the kernel wrote to it before a fork; without one it is the zero page
                pt_set(mm.pt, page, entry)
            handle_mm_fault(mm, vma, page, write, RAISES_CALLS)
