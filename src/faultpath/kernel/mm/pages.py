"""What else is known of pages (``struct page``), in programs of calls whose children touch nothing.

An entry of a page table has no room for it, and neither replays nor checked scenarios need it: in those ``Mm.pages`` is
NULL. What is kept by address names the frame as well, so that it ends with the page.
"""

from __future__ import annotations

from faultpath.kernel.mm import fork, madvise
from faultpath.kernel.mm.fault import ANON, BIRTH_SHIFT, EXCLUSIVE, NO_BIRTH, ZERO, File, shared_with_a_child
from faultpath.kernel.mm.madvise import total_swap_pages
from faultpath.kernel.mm.vma import MAP_SHARED, PMD_SIZE, Vma, linear_page_index
from faultpath.kernel.mmu_notifier import ULONG_MAX, Mm
from faultpath.kernel.primitives.heap import on_stack
from faultpath.kernel.primitives.pagetable import (
    FRAME_SHIFT,
    PAGE_SHIFT,
    PAGE_SIZE,
    VALID,
    WRITE,
    pt_clear,
    pt_fork,
    pt_get,
    pt_init,
    pt_next,
    pt_set,
)
from faultpath.kernel.primitives.pmd import FRAME_BITS, pt_is_huge, pt_rewrite
from faultpath.protocol.language import protocol
from faultpath.protocol.struct import PageTable, Struct

LARGE = ANON | ZERO  # both: a page of a folio of 2 MiB
# Of an entry in Pages.folios, above where it begins: it was let go of lazily; it is dirty, whatever its PTEs say.
LAZY = 1 << 11
FOLIO_DIRTY = 1 << 12
# Of an entry in Pages.lazy: not written since it was let go of; a small page that was. A large folio's then has none.
CLEAN = VALID
REDIRTIED = 1 << 8
ZEROES = WRITE  # of an entry in Pages.swapped: the page was of a large folio, and nobody has ever written to it
DIRTY = WRITE  # of an entry in File.cache: it was written to through a shared mapping

KEPT_SHIFT = 8  # of an entry in Pages.kept: seven children, from the first fork on
MOST_KEPT = 7


class Pages(Struct):
    """By frame, of folios of 2 MiB, and by address."""

    folios: PageTable  # where they begin
    given: PageTable  # which children map a part of them
    kept: PageTable  # from which children an anonymous page was kept that its birth gives it to (MADV_DONTFORK)
    lazy: PageTable  # what was let go of lazily (mm/lazyfree.py)
    swapped: PageTable  # which children have the swap entry of a page that was swapped out, back or not (mm/swap.py)
    generation: int  # how often all children had gone when one was made


@protocol
def mm_init_pages(mm: Mm) -> None:
    """Of an address space's pages everything is known from now on."""
    pages = on_stack(Pages)
    pt_init(pages.folios, 0, folio_number(FRAME_BITS) + PAGE_SIZE)
    pt_init(pages.given, 0, folio_number(FRAME_BITS) + PAGE_SIZE)
    pt_init(pages.kept, 0, mm.task_size)
    pt_init(pages.lazy, 0, mm.task_size)
    pt_init(pages.swapped, 0, mm.task_size)
    mm.pages = pages


@protocol
def folio_number(pte: int) -> int:
    """Where ``Pages.folios`` has the folio of a page: by its frame, of which there are few."""
    return (pte & FRAME_BITS) << (PAGE_SHIFT - FRAME_SHIFT)


# --- what children have


@protocol(replaces=fork.all_children_are_gone)
def all_children_are_gone(mm: Mm) -> None:
    """Their numbers begin anew, and what is known of them by number is of others."""
    pages = Pages(mm.pages)
    mm.forks = 0
    pages.generation += 1
    pt_clear(pages.given, 0, ULONG_MAX)
    pt_clear(pages.kept, 0, ULONG_MAX)
    pt_rewrite(pages.swapped, 0, mm.task_size, 0, 0, 0, VALID | ZEROES | FRAME_BITS)


@protocol
def give_file_page(mm: Mm, vma: Vma, page: int, child: int) -> None:
    """A child maps a page of a file from now on: its entry in the cache says so."""
    file = File(vma.file)
    at = linear_page_index(vma, page) << PAGE_SHIFT
    mine = VALID | (Pages(mm.pages).generation << FRAME_SHIFT & FRAME_BITS)
    entry = pt_get(file.cache, at)
    if entry & (VALID | FRAME_BITS) != mine:
        entry = entry & DIRTY | mine
    if child <= MOST_KEPT:
        entry = entry | 1 << (KEPT_SHIFT + child)
    pt_set(file.cache, at, entry)


@protocol
def give_swap_entries(mm: Mm, start: int, end: int, child: int) -> None:
    """copy_nonpresent_pte(): a child has from now on what the mm has of pages that were swapped out."""
    swapped = Pages(mm.pages).swapped
    page = pt_next(swapped, start, end)
    while page < end:
        pte = pt_get(mm.pt, page)
        if pte and not pte & VALID and child <= MOST_KEPT:
            pt_set(swapped, page, pt_get(swapped, page) | 1 << (KEPT_SHIFT + child))
        page = pt_next(swapped, page + PAGE_SIZE, end)


@protocol
def known_of(table: PageTable, page: int, pte: int) -> int:
    """What one of the tables above has of the page at an address, if it is still that page (its frame's number)."""
    known = pt_get(table, page)
    if (known ^ pte) & FRAME_BITS:
        return 0
    return known


@protocol
def holders(mm: Mm, page: int, pte: int) -> int:
    """Which children have had the swap entry that a page has, or came from, in the upper byte."""
    return known_of(Pages(mm.pages).swapped, page, pte) >> KEPT_SHIFT << KEPT_SHIFT


@protocol
def is_all_zeroes(mm: Mm, page: int, pte: int) -> int:
    """Whether a page that was swapped out once, or its swap entry, is: ZEROES or 0."""
    return known_of(Pages(mm.pages).swapped, page, pte) & ZEROES


@protocol
def child_has_swap_entry(mm: Mm, page: int, pte: int) -> int:
    """Whether a child that lives still has it (__swap_count() > 1, folio_swapped())."""
    return (holders(mm, page, pte) >> KEPT_SHIFT) & mm.children != 0


@protocol
def in_swap_cache(mm: Mm, page: int, pte: int) -> int:
    """folio_test_swapcache(): it has come back from an entry that was not the mm's alone, and not been written."""
    return known_of(Pages(mm.pages).swapped, page, pte) & VALID


@protocol(replaces=fork.copy_page_range)
def copy_page_range(mm: Mm, vma: Vma, child: int) -> None:
    """copy_page_range() inside its event, page by page."""
    pages = Pages(mm.pages)
    page = pt_next(mm.pt, vma.start, vma.last + 1)
    while page <= vma.last:
        pte = pt_get(mm.pt, page)
        if pte & LARGE == LARGE:
            number = folio_number(pte)
            pt_set(pages.given, number, pt_get(pages.given, number) | VALID | 1 << child)
        elif not pte & LARGE and vma.file and not pt_is_huge(mm.pt, page):  # copy_huge_pmd()
            give_file_page(mm, vma, page, child)
        page = pt_next(mm.pt, page + PAGE_SIZE, vma.last + 1)
    give_swap_entries(mm, vma.start, vma.last + 1, child)
    pt_fork(mm.pt, vma.start, vma.last + 1, EXCLUSIVE | (NO_BIRTH << BIRTH_SHIFT if child == 1 else 0))


@protocol(replaces=fork.keep_from_child)
def keep_from_child(mm: Mm, page: int, pte: int, child: int) -> None:
    """A page that is not copied will not be taken for this child's, whoever else has it."""
    if pte & LARGE == LARGE:
        return
    if pte & EXCLUSIVE or not shared_with_a_child(mm, page, pte):
        pt_set(mm.pt, page, pte & ~(NO_BIRTH << BIRTH_SHIFT) | child << BIRTH_SHIFT)
    elif child <= MOST_KEPT:
        kept = kept_from(mm, page, pte) | 1 << (KEPT_SHIFT + child)
        pt_set(Pages(mm.pages).kept, page, VALID | pte & FRAME_BITS | kept)


@protocol
def kept_from(mm: Mm, page: int, pte: int) -> int:
    """From which children a page was kept that are younger than it, in the upper byte."""
    return known_of(Pages(mm.pages).kept, page, pte) >> KEPT_SHIFT << KEPT_SHIFT


@protocol
def small_page_is_shared(mm: Mm, page: int, pte: int) -> int:
    """Whether a child that lives has an anonymous page that was there when it was made, and was not kept from it."""
    younger = mm.children >> ((pte >> BIRTH_SHIFT & NO_BIRTH) + 1) << ((pte >> BIRTH_SHIFT & NO_BIRTH) + 1)
    return younger & ~(kept_from(mm, page, pte) >> KEPT_SHIFT) != 0


@protocol(replaces=madvise.child_maps_file)
def child_maps_file(mm: Mm, vma: Vma, page: int, pte: int) -> int:
    """Whether a child that lives maps a page of a known file, from wherever it got it."""
    entry = pt_get(File(vma.file).cache, linear_page_index(vma, page) << PAGE_SHIFT)
    if (entry >> FRAME_SHIFT ^ Pages(mm.pages).generation) & (FRAME_BITS >> FRAME_SHIFT):
        return 0
    return entry >> KEPT_SHIFT & mm.children != 0


# --- what is in the cache of a file


@protocol
def file_written(vma: Vma, page: int) -> None:
    """fault_dirty_shared_page(), or what zapping a dirty PTE says of its page later on."""
    file = File(vma.file)
    at = linear_page_index(vma, page) << PAGE_SHIFT
    if vma.flags & MAP_SHARED and pt_get(file.cache, at):
        pt_set(file.cache, at, pt_get(file.cache, at) | DIRTY)


@protocol(replaces=madvise.remove_mapping)
def remove_mapping(mm: Mm, vma: Vma, page: int) -> None:
    """__remove_mapping(), Linux 6.18: without swap a page of a file in memory leaves the cache only if it is clean.

    With swap it goes there (shmem_writeout()), and is dirty when it comes back.
    """
    file = File(vma.file)
    at = linear_page_index(vma, page) << PAGE_SHIFT
    if total_swap_pages(mm) or not pt_get(file.cache, at) & DIRTY:
        pt_set(file.cache, at, 0)


# --- what was let go of


@protocol
def lazy_entry(mm: Mm, page: int, pte: int) -> int:
    """What is known of the page at an address that was let go of, if it is still that one; else 0."""
    return known_of(Pages(mm.pages).lazy, page, pte)


@protocol
def written(mm: Mm, page: int, pte: int) -> None:
    """The entry that maps a page becomes dirty, be it a PTE or a huge PMD."""
    if not pte & VALID:
        return
    pt_set(Pages(mm.pages).swapped, page, 0)
    if not lazy_entry(mm, page, pte):
        return
    known = Pages(mm.pages)
    if pte & LARGE != LARGE:
        pt_set(known.lazy, page, CLEAN | pte & FRAME_BITS | REDIRTIED)
    elif pt_is_huge(mm.pt, page):
        pt_clear(known.lazy, page & -PMD_SIZE, (page & -PMD_SIZE) + PMD_SIZE)
    else:
        pt_set(known.lazy, page, 0)


KNOWN = [all_children_are_gone, copy_page_range, keep_from_child, child_maps_file, remove_mapping]
