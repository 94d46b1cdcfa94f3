"""The CPU side: what a process's memory calls do to its VMAs, its page table and its notifiers, and who else does.

The calls follow a trace. Where the trace holds the invalidations that the running kernel raised (the tap), they are
delivered as recorded by :func:`mm_invalidate` and the calls only do the bookkeeping; where it does not, ``mm.raises``
is set and each call raises what its kernel function raises, in the order and under the locks of Linux 6.1 (huge-page
splits are not modelled). Each ``mm_`` protocol can run as a thread beside others.
"""

from __future__ import annotations

from faultpath.kernel.errno import EAGAIN
from faultpath.kernel.memory import (
    CLEAR,
    RAISES_ALL,
    RAISES_CALLS,
    UNMAP,
    handle_mm_fault,
    new_range,
    raise_end,
    raise_start,
    zap_range,
)
from faultpath.kernel.mmu_notifier import (
    ULONG_MAX,
    Mm,
    Range,
    Subscriptions,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
    mmu_notifier_invalidate_range_start_nonblock,
    mmu_notifier_release,
)
from faultpath.kernel.primitives.heap import off_stack, on_stack
from faultpath.kernel.primitives.lists import queue_work
from faultpath.kernel.primitives.locks import (
    down_read,
    down_read_trylock,
    down_write,
    downgrade_write,
    refcount_dec_and_test,
    refcount_inc,
    refcount_inc_not_zero,
    refcount_set,
    up_read,
    up_write,
)
from faultpath.kernel.primitives.pagetable import (
    FRAME_SHIFT,
    PAGE_SIZE,
    VALID,
    pt_any,
    pt_clear,
    pt_free,
    pt_get,
    pt_init,
    pt_move,
    pt_unmap_frame,
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
    Vma,
    add_vma,
    cut_vmas,
    grow_vma,
    next_vma,
    protect_vmas,
    resize_vma,
)
from faultpath.protocol.language import NULL, count, protocol
from faultpath.trace.ops import PF_WRITE, Event

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
    """A new address space ``[0, task_size)``, its notifier subscriptions in place (__mmu_notifier_register(NULL)).

    :param raises: RAISES_*
    """
    mm = on_stack(Mm)
    subs = on_stack(Subscriptions)
    subs.invalidate_seq = 2
    mm.notifier_subscriptions = subs
    mm.task_size = task_size
    mm.raises = raises
    refcount_set(mm.mm_users, 1)
    pt_init(mm.pt, 0, task_size)
    return mm


# --- a replay's own


@protocol
def invalidate_range(mm: Mm, start: int, end: int, event: int) -> None:
    """range_start and at once range_end of ``[start, end)``, around nothing."""
    range = new_range(mm, start, end, event)
    mmu_notifier_invalidate_range_start(range)
    mmu_notifier_invalidate_range_end(range)
    off_stack(range)


@protocol
def mm_invalidate(mm: Mm, start: int, end: int, event: int) -> None:
    """A recorded invalidation, counted; the CPU's page table follows the calls."""
    count("invalidations")
    invalidate_range(mm, start, end, event)


@protocol
def mm_vma(mm: Mm, start: int, size: int, prot: int, flags: int) -> None:
    """A mapping found (execve made it, or it was there when recording began)."""
    down_write(mm.mmap_lock)
    cut_vmas(mm, start, start + size)
    add_vma(mm, start, start + size, prot, flags & MAP_KIND)
    up_write(mm.mmap_lock)


# --- memory calls


@protocol
def do_mas_align_munmap(mm: Mm, start: int, end: int, downgrade: int) -> int:
    """do_mas_align_munmap(), Linux 6.1: the VMAs go under mmap_lock for writing, then unmap_region() zaps (UNMAP).

    A VMA above that may grow down under the read lock forbids the downgrade.

    :returns: whether mmap_lock is held for reading now, which only ``downgrade`` allows
    """
    cut_vmas(mm, start, end)
    if downgrade:
        above = next_vma(mm, end)
        if above and above.flags & MAP_GROWSDOWN:
            downgrade = 0
        else:
            downgrade_write(mm.mmap_lock)
    zap_range(mm, start, end, UNMAP)
    return downgrade


@protocol
def do_mas_munmap(mm: Mm, start: int, end: int, downgrade: int) -> int:
    """do_mas_munmap(), Linux 6.1: nothing is done where nothing is mapped."""
    vma = next_vma(mm, start)
    if not vma or vma.start >= end:
        return 0
    return do_mas_align_munmap(mm, start, end, downgrade)


@protocol
def mmap_unlock(mm: Mm, downgraded: int) -> None:
    """mmap_read_unlock() if the lock was downgraded, else mmap_write_unlock()."""
    if downgraded:
        up_read(mm.mmap_lock)
    else:
        up_write(mm.mmap_lock)


@protocol
def mm_mmap(mm: Mm, start: int, size: int, prot: int, flags: int) -> None:
    """mmap_region(), Linux 6.1: whatever was at ``[start, start + size)`` (MAP_FIXED) goes first, under one lock."""
    down_write(mm.mmap_lock)
    do_mas_munmap(mm, start, start + size, 0)
    add_vma(mm, start, start + size, prot, flags & MAP_KIND)
    up_write(mm.mmap_lock)


@protocol
def mm_munmap(mm: Mm, start: int, size: int) -> None:
    """munmap() and __vm_munmap(), Linux 6.1: the zap runs under mmap_lock for reading (since 4.20)."""
    down_write(mm.mmap_lock)
    mmap_unlock(mm, do_mas_munmap(mm, start, start + size, 1))


@protocol
def mm_mprotect(mm: Mm, start: int, size: int, prot: int) -> None:
    """mprotect_fixup() and change_protection(), Linux 6.1, under mmap_lock for writing.

    VMAs change before the event, PTEs inside it; there is one only where something is populated. PTEs only lose WRITE:
    what a PROT_NONE keeps present, the VMA refuses.
    """
    range = Range(NULL)
    down_write(mm.mmap_lock)
    protect_vmas(mm, start, start + size, prot)
    if mm.raises and pt_any(mm.pt, start, start + size):
        range = raise_start(mm, start, start + size, PROTECTION_VMA, RAISES_CALLS)
    if not prot & PROT_WRITE:
        pt_write_protect(mm.pt, start, start + size)
    raise_end(range)
    up_write(mm.mmap_lock)


@protocol
def mm_madvise(mm: Mm, start: int, size: int, advice: int) -> None:
    """do_madvise(), Linux 6.1, under mmap_lock for reading: the advice that raises an event; other does nothing here.

    MADV_FREE leaves pages as they are, only clean and old; MADV_REMOVE lets go of the lock around its hole punch.
    """
    down_read(mm.mmap_lock)
    if advice == MADV_DONTNEED or advice == MADV_DONTNEED_LOCKED or advice == MADV_PAGEOUT:
        zap_range(mm, start, start + size, CLEAR)
    elif advice == MADV_FREE:
        raise_end(raise_start(mm, start, start + size, CLEAR, RAISES_CALLS))
    elif advice == MADV_REMOVE:
        up_read(mm.mmap_lock)
        mm_truncate(mm, start, size)
        down_read(mm.mmap_lock)
    up_read(mm.mmap_lock)


@protocol
def mm_mremap(mm: Mm, old: int, old_size: int, new: int, new_size_and_flags: int) -> None:
    """mremap(), Linux 6.1: shrink, grow or move, under mmap_lock for writing.

    A move raises UNMAP twice, in move_page_tables(), where the PTEs move, and in do_munmap(), where nothing is left.
    Before it whatever is at the new place goes, then the tail if it shrinks (mremap_to). To shrink in place is a
    munmap() with its downgrade. An old size of 0 duplicates a shared mapping. The kernel links the new VMA before it
    moves, which nobody can see who needs mmap_lock to look.
    """
    new_size = new_size_and_flags & PAGE_MASK
    downgraded = 0
    down_write(mm.mmap_lock)
    vma = next_vma(mm, old)
    prot = PROT_READ | PROT_WRITE
    flags = MAP_PRIVATE | MAP_ANONYMOUS
    if vma and vma.start <= old:
        prot = vma.prot
        flags = vma.flags
    if new != old:
        do_mas_munmap(mm, new, new + new_size, 0)
    if new_size < old_size:
        downgraded = do_mas_align_munmap(mm, old + new_size, old + old_size, new == old)
        old_size = new_size
    if new == old and new_size > old_size:
        grow_vma(mm, old + old_size, old + new_size, prot, flags)
    if new != old:
        if old_size:
            range = raise_start(mm, old, old + old_size, UNMAP, RAISES_CALLS)
            pt_move(mm.pt, old, new, old_size)
            raise_end(range)
        if old_size and not new_size_and_flags & MREMAP_DONTUNMAP:
            do_mas_align_munmap(mm, old, old + old_size, 0)
        add_vma(mm, new, new + new_size, prot, flags)
    mmap_unlock(mm, downgraded)


@protocol
def mm_brk(mm: Mm, brk: int) -> None:
    """brk(), Linux 6.1: the heap VMA grows, or shrinks with munmap()'s downgrade; the first call tells where it is."""
    downgraded = 0
    down_write(mm.mmap_lock)
    old = (mm.brk + PAGE_SIZE - 1) & PAGE_MASK
    new = (brk + PAGE_SIZE - 1) & PAGE_MASK
    known = mm.brk
    mm.brk = brk
    if known and new > old:
        cut_vmas(mm, old, new)
        add_vma(mm, old, new, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    if known and new < old:
        downgraded = do_mas_align_munmap(mm, new, old, 1)
    mmap_unlock(mm, downgraded)


@protocol
def mm_fork(mm: Mm, clone_flags: int) -> None:
    """dup_mmap() and copy_page_range(), Linux 6.1, under mmap_lock for writing: one event per private VMA.

    What is populated becomes copy-on-write. The child has no notifiers and is not modelled.
    """
    if clone_flags & CLONE_VM:
        return
    down_write(mm.mmap_lock)
    vma = next_vma(mm, 0)
    while vma:
        if vma.flags & MAP_PRIVATE and vma.prot & PROT_WRITE and pt_any(mm.pt, vma.start, vma.last + 1):
            range = raise_start(mm, vma.start, vma.last + 1, PROTECTION_PAGE, RAISES_CALLS)
            pt_write_protect(mm.pt, vma.start, vma.last + 1)
            raise_end(range)
        vma = next_vma(mm, vma.last + 1)
    up_write(mm.mmap_lock)


# --- CPU faults


@protocol
def grows_down_to(vma: Vma, page: int) -> int:
    """Whether this is a stack that may grow down to a page below it (acct_stack_growth)."""
    if vma and vma.flags & MAP_GROWSDOWN and vma.last + 1 - page <= STACK_LIMIT:
        return 1
    return 0


@protocol
def lock_mm_and_find_vma(mm: Mm, page: int) -> Vma:
    """lock_mm_and_find_vma(), Linux 6.1.37: a VMA and mmap_lock held for reading, or NULL and no lock (SIGSEGV).

    A stack grows under the write lock, for which the read lock is given up, and the VMA looked up again.
    """
    down_read(mm.mmap_lock)
    vma = next_vma(mm, page)
    if vma and vma.start <= page:
        return vma
    grows = grows_down_to(vma, page)
    up_read(mm.mmap_lock)
    if not grows:
        return NULL
    down_write(mm.mmap_lock)
    vma = next_vma(mm, page)
    if vma and vma.start > page and grows_down_to(vma, page):
        resize_vma(mm, vma, page, vma.last)
    if not vma or vma.start > page:
        up_write(mm.mmap_lock)
        return NULL
    downgrade_write(mm.mmap_lock)
    return vma


@protocol
def lock_mm_and_infer_vma(mm: Mm, page: int, write: int) -> Vma:
    """What a replay does instead: a fault happened, so there was a mapping, before the recording or by a lost call.

    One of a page is inferred. The first write to an inferred page tells that it may be written. All under mmap_lock
    for reading, as the fault is counted, for a replay is alone.
    """
    down_read(mm.mmap_lock)
    vma = next_vma(mm, page)
    if not vma or page < vma.start:
        if grows_down_to(vma, page):
            resize_vma(mm, vma, page, vma.last)
        else:
            count("vmas_inferred")
            add_vma(mm, page, page + PAGE_SIZE, PROT_READ, MAP_INFERRED)
        vma = next_vma(mm, page)
    if write and vma.flags == MAP_INFERRED and not vma.prot & PROT_WRITE:
        cut_vmas(mm, page, page + PAGE_SIZE)
        add_vma(mm, page, page + PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_INFERRED)
        vma = next_vma(mm, page)
    return vma


@protocol
def mm_cpu_fault(mm: Mm, addr: int, error_code: int) -> None:
    """do_user_addr_fault(), Linux 6.1: the page comes in, or its copy-on-write is broken (wp_page_copy: CLEAR)."""
    page = addr & PAGE_MASK
    write = error_code & PF_WRITE
    if page < MMAP_MIN_ADDR:
        return  # SIGSEGV: a JVM does this on purpose when it starts
    if mm.raises == RAISES_ALL:
        vma = lock_mm_and_find_vma(mm, page)
    else:
        vma = lock_mm_and_infer_vma(mm, page, write)
    if not vma:
        return
    if (write and vma.prot & PROT_WRITE) or (not write and vma.prot & PROT_READ):
        handle_mm_fault(mm, vma, page, write, RAISES_CALLS)
    up_read(mm.mmap_lock)


# --- what others do to a process


@protocol
def mm_reclaim(mm: Mm, page: int) -> None:
    """try_to_unmap_one(), Linux 6.1: reclaim takes a mapped page away (CLEAR of it), without mmap_lock.

    Between start and the PTE lock somebody else may have: then the event was for nothing.
    """
    pte = pt_get(mm.pt, page)
    if not pte & VALID:
        return
    range = raise_start(mm, page, page + PAGE_SIZE, CLEAR, RAISES_CALLS)
    pt_unmap_frame(mm.pt, page, pte >> FRAME_SHIFT)
    raise_end(range)


@protocol
def mm_truncate(mm: Mm, start: int, size: int) -> None:
    """unmap_mapping_pages(), Linux 6.1: a mapped file is cut or punched (CLEAR), under i_mmap_rwsem, no mmap_lock."""
    down_read(mm.i_mmap)
    zap_range(mm, start, start + size, CLEAR)
    up_read(mm.i_mmap)


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


# --- the end


@protocol
def mmget(mm: Mm) -> None:
    """mmget(): one more user of the address space, by someone who is one already."""
    refcount_inc(mm.mm_users)


@protocol
def mmget_not_zero(mm: Mm) -> int:
    """mmget_not_zero(): whether there was still a user; then the caller is one, too."""
    return refcount_inc_not_zero(mm.mm_users)


@protocol
def exit_mmap(mm: Mm) -> None:
    """exit_mmap(), Linux 6.1: RELEASE to every interval, then UNMAP; both over everything and whatever ``mm.raises``.

    The zap runs under mmap_lock for reading, page tables and VMAs go under it for writing. Neither event is counted.
    """
    range = new_range(mm, 0, ULONG_MAX, RELEASE)
    range.blockable = 1
    mmu_notifier_release(mm, range)
    off_stack(range)
    down_read(mm.mmap_lock)
    range = new_range(mm, 0, ULONG_MAX, UNMAP)
    mmu_notifier_invalidate_range_start(range)
    pt_clear(mm.pt, 0, ULONG_MAX)
    mmu_notifier_invalidate_range_end(range)
    off_stack(range)
    up_read(mm.mmap_lock)
    mm.oom_skip = 1
    down_write(mm.mmap_lock)
    pt_free(mm.pt)
    cut_vmas(mm, 0, ULONG_MAX)
    up_write(mm.mmap_lock)


@protocol
def mmput(mm: Mm) -> None:
    """mmput(): the last user takes the address space down (exit_mmap)."""
    if refcount_dec_and_test(mm.mm_users):
        exit_mmap(mm)


@protocol
def mmput_async_fn(mm: Mm) -> None:
    """mmput_async_fn(): the work item's part of mmput_async()."""
    exit_mmap(mm)


@protocol
def mmput_async(mm: Mm) -> None:
    """mmput_async(): the same by a work item, for those who hold locks that callbacks take."""
    if refcount_dec_and_test(mm.mm_users):
        queue_work(mm.async_put_work, mmput_async_fn, mm)


@protocol
def mm_exit(mm: Mm) -> None:
    """exit_mm(): the process ends, or executes something else, and is no user any more."""
    mmput(mm)
