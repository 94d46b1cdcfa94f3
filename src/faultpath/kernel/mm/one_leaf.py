"""What a checked scenario never comes to, since its whole address space lies in one 2 MiB and its files are unknown.

Each of these would put the notifier core and the driver's callback into a thread once more: out of the way, a thread is
compiled in a fraction of the time.
"""

from __future__ import annotations

from faultpath.kernel.mm import fault, files, madvise, mmap, mremap, vma
from faultpath.kernel.mm.fault import File
from faultpath.kernel.mm.vma import Vma
from faultpath.kernel.mmu_notifier import Mm
from faultpath.kernel.primitives.itree import itree_insert
from faultpath.protocol.language import protocol


@protocol(replaces=vma.split_huge_pmd_if_needed)
def no_block_is_told(mm: Mm, vma: Vma, addr: int) -> None:
    """No VMA contains an aligned 2 MiB."""
    return


@protocol(replaces=vma.anon_vma_prepare)
def every_vma_has_one(mm: Mm, vma: Vma) -> None:
    """Private mappings have theirs from the start (map_vma)."""
    return


@protocol(replaces=vma.link_vma)
def link_vma(mm: Mm, vma: Vma) -> None:
    """Nobody asks in which order VMAs were linked: no file is known, and there are no huge pages."""
    itree_insert(mm.vmas, vma)


@protocol(replaces=mmap.free_pgtables)
def page_tables_stay(mm: Mm, start: int, end: int) -> None:
    """There is but one leaf."""
    return


@protocol(replaces=mremap.realigned)
def no_table_is_moved(mm: Mm, vma: Vma, old: int, new: int, size: int) -> int:
    """No move reaches the end of a page table."""
    return 0


@protocol(replaces=fault.read_from_file)
def no_file_is_known_to_a_fault(mm: Mm, vma: Vma, page: int, write: int, file: File) -> int:
    """Files are only told from each other."""
    return 0


@protocol(replaces=files.punch_hole)
def no_file_is_known_to_a_punch(mm: Mm, file: File, first: int, end: int) -> int:
    """Files are only told from each other."""
    return 0


@protocol(replaces=madvise.mapped_in_i_mmap)
def no_file_is_known_to_reclaim(mm: Mm, vma: Vma, page: int) -> int:
    """Files are only told from each other."""
    return 0


@protocol(replaces=madvise.tell_others)
def no_file_is_known_to_rmap(mm: Mm, vma: Vma, page: int) -> None:
    """Files are only told from each other."""
    return


NEVER = (
    every_vma_has_one,
    link_vma,
    no_block_is_told,
    page_tables_stay,
    no_table_is_moved,
    no_file_is_known_to_a_fault,
    no_file_is_known_to_a_punch,
    no_file_is_known_to_reclaim,
    no_file_is_known_to_rmap,
)
