"""An address space's beginning, its users and its end, and fork() seen by the parent: kernel/fork.c, Linux 6.18."""

from __future__ import annotations

from faultpath.kernel.mm.fault import ANON, BIRTH_SHIFT, EXCLUSIVE, MAX_FORKS, NO_BIRTH, shared_with_a_child
from faultpath.kernel.mm.mmap import exit_mmap
from faultpath.kernel.mm.raising import PROTECTION_PAGE, RAISES_CALLS, raise_end, raise_start
from faultpath.kernel.mm.vma import DONTCOPY, MAP_PRIVATE, WIPEONFORK, Vma, next_vma
from faultpath.kernel.mmu_notifier import Mm, Subscriptions
from faultpath.kernel.primitives.heap import on_stack
from faultpath.kernel.primitives.lists import queue_work
from faultpath.kernel.primitives.locks import (
    down_write,
    refcount_dec_and_test,
    refcount_inc,
    refcount_inc_not_zero,
    refcount_set,
)
from faultpath.kernel.primitives.pagetable import PAGE_SIZE, pt_fork, pt_get, pt_init, pt_next, pt_set
from faultpath.protocol.language import protocol


@protocol
def mm_init(task_size: int, raises: int, version: int) -> Mm:
    """A new address space ``[0, task_size)``, its notifier subscriptions in place (__mmu_notifier_register(NULL)).

    :param raises: RAISES_*
    :param version: LINUX_*
    """
    mm = on_stack(Mm)
    subs = on_stack(Subscriptions)
    subs.invalidate_seq = 2
    mm.notifier_subscriptions = subs
    mm.task_size = task_size
    mm.raises = raises
    mm.version = version
    refcount_set(mm.mm_users, 1)
    pt_init(mm.pt, 0, task_size)
    return mm


@protocol
def all_children_are_gone(mm: Mm) -> None:
    """Their numbers begin anew."""
    mm.forks = 0


@protocol
def copy_page_range(mm: Mm, vma: Vma, child: int) -> None:
    """copy_page_range() inside its event: what is anonymous is no longer the mm's alone."""
    pt_fork(mm.pt, vma.start, vma.last + 1, EXCLUSIVE | (NO_BIRTH << BIRTH_SHIFT if child == 1 else 0))


@protocol
def keep_from_child(mm: Mm, page: int, pte: int, child: int) -> None:
    """A page that is not copied, and that no earlier child has any more, will not be taken for this one's.

    One that some earlier child still has will, unless pages.py's takes the place of this.
    """
    if pte & EXCLUSIVE or not shared_with_a_child(mm, page, pte):
        pt_set(mm.pt, page, pte & ~(NO_BIRTH << BIRTH_SHIFT) | child << BIRTH_SHIFT)


@protocol
def keep_range_from_child(mm: Mm, start: int, end: int, child: int) -> None:
    """The anonymous pages of a VMA that is not copied."""
    page = pt_next(mm.pt, start, end)
    while page < end:
        pte = pt_get(mm.pt, page)
        if pte & ANON:
            keep_from_child(mm, page, pte, child)
        page = pt_next(mm.pt, page + PAGE_SIZE, end)


@protocol
def mm_fork(mm: Mm) -> int:
    """dup_mmap() and copy_page_range(), Linux 6.18, under mmap_lock for writing: one event per VMA that is copied.

    That are private ones with an anon_vma, unless they are kept from the child. Their anonymous pages become
    copy-on-write and are no longer the mm's alone. The child has no notifiers; of it is known whether it still lives.

    :returns: the child's number, for mm_child_ends()
    """
    with down_write(mm.mmap_lock):
        if not mm.children:
            all_children_are_gone(mm)
        child = min(mm.forks + 1, MAX_FORKS)
        vma = next_vma(mm, 0)
        while vma:
            if vma.flags & MAP_PRIVATE and vma.anon_vma:
                if not vma.flags & (DONTCOPY | WIPEONFORK):
                    range = raise_start(mm, vma.start, vma.last + 1, PROTECTION_PAGE, RAISES_CALLS)
                    copy_page_range(mm, vma, child)
                    raise_end(range)
                else:
                    keep_range_from_child(mm, vma.start, vma.last + 1, child)
            vma = next_vma(mm, vma.last + 1)
        mm.forks = child
        mm.children = mm.children | 1 << child
    return child


@protocol
def mm_child_ends(mm: Mm, child: int) -> None:
    """A child has exited or executed something else: it maps the pages that it shared no more."""
    if child < MAX_FORKS:
        mm.children = mm.children & ~(1 << child)


# --- users


@protocol
def mmget(mm: Mm) -> None:
    """mmget(): one more user of the address space, by someone who is one already."""
    refcount_inc(mm.mm_users)


@protocol
def mmget_not_zero(mm: Mm) -> int:
    """mmget_not_zero(): whether there was still a user; then the caller is one, too."""
    return refcount_inc_not_zero(mm.mm_users)


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
