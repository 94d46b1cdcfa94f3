"""The CPU side: what a process's faults and memory calls do to its VMAs, its page table and its notifiers.

The calls follow a trace. Where the trace holds the invalidations that the running kernel raised (the tap), they are
delivered as recorded by :func:`mm_invalidate` and the calls only do the bookkeeping; where it does not, ``mm.raises``
is set and each call raises what its kernel function raises (Linux 6.1; huge-page splits are not modelled).
"""

from __future__ import annotations

from faultpath.kernel.mmu_notifier import (
    ULONG_MAX,
    Mm,
    Range,
    Subscriptions,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
    mmu_notifier_release,
)
from faultpath.kernel.primitives.heap import off_stack, on_stack
from faultpath.kernel.primitives.locks import down_read, down_write, up_read, up_write
from faultpath.kernel.primitives.pagetable import (
    PAGE_SIZE,
    VALID,
    WRITE,
    new_frame,
    pt_any,
    pt_clear,
    pt_get,
    pt_init,
    pt_move,
    pt_set,
    pt_write_protect,
)
from faultpath.kernel.vma import (
    MAP_ANONYMOUS,
    MAP_GROWSDOWN,
    MAP_INFERRED,
    MAP_KIND,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    STACK_LIMIT,
    add_vma,
    cut_vmas,
    grow_vma,
    next_vma,
    protect_vmas,
    resize_vma,
)
from faultpath.protocol.language import count, protocol
from faultpath.trace.ops import PF_WRITE, Event

UNMAP = int(Event.UNMAP)
CLEAR = int(Event.CLEAR)
PROTECTION_VMA = int(Event.PROTECTION_VMA)
PROTECTION_PAGE = int(Event.PROTECTION_PAGE)
RELEASE = int(Event.RELEASE)

PAGE_MASK = ~(PAGE_SIZE - 1)

MMAP_MIN_ADDR = 65536  # vm.mmap_min_addr: nothing is ever mapped below

MREMAP_DONTUNMAP = 4
MADV_DONTNEED = 4
MADV_FREE = 8
MADV_REMOVE = 9
MADV_PAGEOUT = 21
MADV_DONTNEED_LOCKED = 24
CLONE_VM = 0x100


@protocol
def mm_init(task_size: int, raises: int) -> Mm:
    """A new address space ``[0, task_size)``, its notifier subscriptions in place (__mmu_notifier_register(NULL))."""
    mm = on_stack(Mm)
    subs = on_stack(Subscriptions)
    subs.invalidate_seq = 2
    mm.notifier_subscriptions = subs
    mm.task_size = task_size
    mm.raises = raises
    pt_init(mm.pt, 0, task_size)
    return mm


@protocol
def invalidate_range(mm: Mm, start: int, end: int, event: int) -> None:
    """mmu_notifier_invalidate_range_start() and _end() of a blockable range ``[start, end)``."""
    range = on_stack(Range)
    range.mm = mm
    range.start = start
    range.end = end
    range.event = event
    range.blockable = 1
    if not mmu_notifier_invalidate_range_start(range):
        mmu_notifier_invalidate_range_end(range)
    off_stack(range)


@protocol
def mm_invalidate(mm: Mm, start: int, end: int, event: int) -> None:
    """One invalidation, counted."""
    count("invalidations")
    invalidate_range(mm, start, end, event)


@protocol
def raise_event(mm: Mm, start: int, end: int, event: int) -> None:
    """One invalidation, if the calls are to raise them."""
    if mm.raises:
        mm_invalidate(mm, start, end, event)


@protocol
def mm_vma(mm: Mm, start: int, size: int, prot: int, flags: int) -> None:
    """A mapping found (execve made it, or it was there when recording began)."""
    down_write(mm.mmap_lock)
    cut_vmas(mm, start, start + size)
    add_vma(mm, start, start + size, prot, flags & MAP_KIND)
    up_write(mm.mmap_lock)


@protocol
def mm_mmap(mm: Mm, start: int, size: int, prot: int, flags: int) -> None:
    """mmap_region(): whatever was at ``[start, start + size)`` (MAP_FIXED) goes first."""
    down_write(mm.mmap_lock)
    over = next_vma(mm, start)
    if over and over.start < start + size:
        raise_event(mm, start, start + size, UNMAP)
        pt_clear(mm.pt, start, start + size)
        cut_vmas(mm, start, start + size)
    add_vma(mm, start, start + size, prot, flags & MAP_KIND)
    up_write(mm.mmap_lock)


@protocol
def mm_munmap(mm: Mm, start: int, size: int) -> None:
    """do_vmi_align_munmap(): the VMAs go, then unmap_region() raises UNMAP and clears the page table."""
    down_write(mm.mmap_lock)
    over = next_vma(mm, start)
    if over and over.start < start + size:
        cut_vmas(mm, start, start + size)
        raise_event(mm, start, start + size, UNMAP)
    pt_clear(mm.pt, start, start + size)
    up_write(mm.mmap_lock)


@protocol
def mm_mprotect(mm: Mm, start: int, size: int, prot: int) -> None:
    """mprotect_fixup() and change_protection(): an event only where something is populated."""
    down_write(mm.mmap_lock)
    protect_vmas(mm, start, start + size, prot)
    if mm.raises and pt_any(mm.pt, start, start + size):
        mm_invalidate(mm, start, start + size, PROTECTION_VMA)
    if not prot & PROT_WRITE:
        pt_write_protect(mm.pt, start, start + size)
    up_write(mm.mmap_lock)


@protocol
def mm_madvise(mm: Mm, start: int, size: int, advice: int) -> None:
    """madvise_dontneed_single_vma(), madvise_free_single_vma() and their kin; other advice does nothing here."""
    clears = 0
    if advice == MADV_DONTNEED or advice == MADV_DONTNEED_LOCKED or advice == MADV_REMOVE or advice == MADV_PAGEOUT:
        clears = 1
    down_read(mm.mmap_lock)
    if clears or advice == MADV_FREE:
        raise_event(mm, start, start + size, CLEAR)
    if clears:
        pt_clear(mm.pt, start, start + size)
    up_read(mm.mmap_lock)


@protocol
def mm_mremap(mm: Mm, old: int, old_size: int, new: int, new_size_and_flags: int) -> None:
    """mremap(): shrink, grow or move; a move raises UNMAP twice, in move_page_tables() and in do_munmap().

    Before a move whatever is at the new place goes, then the tail if it shrinks (mremap_to). An old size of 0
    duplicates a shared mapping.
    """
    new_size = new_size_and_flags & PAGE_MASK
    down_write(mm.mmap_lock)
    vma = next_vma(mm, old)
    prot = PROT_READ | PROT_WRITE
    flags = MAP_PRIVATE | MAP_ANONYMOUS
    if vma and vma.start <= old:
        prot = vma.prot
        flags = vma.flags
    if new != old:
        over = next_vma(mm, new)
        if over and over.start < new + new_size:
            raise_event(mm, new, new + new_size, UNMAP)
            pt_clear(mm.pt, new, new + new_size)
            cut_vmas(mm, new, new + new_size)
    if new_size < old_size:
        raise_event(mm, old + new_size, old + old_size, UNMAP)
        pt_clear(mm.pt, old + new_size, old + old_size)
        cut_vmas(mm, old + new_size, old + old_size)
        old_size = new_size
    if new == old and new_size > old_size:
        grow_vma(mm, old + old_size, old + new_size, prot, flags)
    if new != old:
        if old_size:
            raise_event(mm, old, old + old_size, UNMAP)
            pt_move(mm.pt, old, new, old_size)
        if old_size and not new_size_and_flags & MREMAP_DONTUNMAP:
            cut_vmas(mm, old, old + old_size)
            raise_event(mm, old, old + old_size, UNMAP)
            pt_clear(mm.pt, old, old + old_size)
        add_vma(mm, new, new + new_size, prot, flags)
    up_write(mm.mmap_lock)


@protocol
def mm_brk(mm: Mm, brk: int) -> None:
    """brk(): the heap VMA grows or shrinks to the new break; the first call seen only tells where it is."""
    down_write(mm.mmap_lock)
    old = (mm.brk + PAGE_SIZE - 1) & PAGE_MASK
    new = (brk + PAGE_SIZE - 1) & PAGE_MASK
    if mm.brk and new > old:
        cut_vmas(mm, old, new)
        add_vma(mm, old, new, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    if mm.brk and new < old:
        cut_vmas(mm, new, old)
        raise_event(mm, new, old, UNMAP)
        pt_clear(mm.pt, new, old)
    mm.brk = brk
    up_write(mm.mmap_lock)


@protocol
def mm_fork(mm: Mm, clone_flags: int) -> None:
    """copy_page_range() for each private VMA: what is populated becomes copy-on-write, one event per VMA."""
    if clone_flags & CLONE_VM:
        return
    down_write(mm.mmap_lock)
    vma = next_vma(mm, 0)
    while vma:
        if vma.flags & MAP_PRIVATE and vma.prot & PROT_WRITE and pt_any(mm.pt, vma.start, vma.last + 1):
            raise_event(mm, vma.start, vma.last + 1, PROTECTION_PAGE)
            pt_write_protect(mm.pt, vma.start, vma.last + 1)
        vma = next_vma(mm, vma.last + 1)
    up_write(mm.mmap_lock)


@protocol
def mm_cpu_fault(mm: Mm, addr: int, error_code: int) -> None:
    """handle_mm_fault() for the CPU: the page comes in, or its copy-on-write is broken (wp_page_copy: CLEAR).

    A fault where no mapping is known infers one of a page: it was there before the recording, or its call is missing.
    The first write to an inferred page tells that it may be written.
    """
    page = addr & PAGE_MASK
    write = error_code & PF_WRITE
    if page < MMAP_MIN_ADDR:
        return  # SIGSEGV: a JVM does this on purpose when it starts
    down_read(mm.mmap_lock)
    vma = next_vma(mm, page)
    if not vma or page < vma.start:
        if vma and vma.flags & MAP_GROWSDOWN and vma.last + 1 - page <= STACK_LIMIT:
            resize_vma(mm, vma, page, vma.last)  # expand_downwards()
        else:
            count("vmas_inferred")
            add_vma(mm, page, page + PAGE_SIZE, PROT_READ, MAP_INFERRED)
        vma = next_vma(mm, page)
    if write and vma.flags == MAP_INFERRED and not vma.prot & PROT_WRITE:
        cut_vmas(mm, page, page + PAGE_SIZE)
        add_vma(mm, page, page + PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_INFERRED)
        vma = next_vma(mm, page)
    pte = pt_get(mm.pt, page)
    if write and vma.prot & PROT_WRITE:
        if pte & VALID and not pte & WRITE:
            raise_event(mm, page, page + PAGE_SIZE, CLEAR)
        pt_set(mm.pt, page, new_frame(page) | VALID | WRITE)
    elif not pte & VALID and not write and vma.prot & PROT_READ:
        pt_set(mm.pt, page, new_frame(page) | VALID)
    up_read(mm.mmap_lock)


@protocol
def mm_exit(mm: Mm) -> None:
    """exit_mmap(): RELEASE to every interval, then unmap_vmas() raises UNMAP; both over the whole address space."""
    range = on_stack(Range)
    range.mm = mm
    range.start = 0
    range.end = ULONG_MAX
    range.event = RELEASE
    range.blockable = 1
    mmu_notifier_release(mm, range)
    off_stack(range)
    invalidate_range(mm, 0, ULONG_MAX, UNMAP)
