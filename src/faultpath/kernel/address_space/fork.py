"""fork(), seen by the parent: kernel/fork.c and mm/memory.c, Linux 6.18."""

from __future__ import annotations

from faultpath.kernel.address_space.fault import BIRTH_SHIFT, EXCLUSIVE, MAX_FORKS
from faultpath.kernel.address_space.vma import DONTCOPY, MAP_PRIVATE, WIPEONFORK, AddressSpace, next_vma
from faultpath.kernel.memory import RAISES_CALLS, raise_end, raise_start
from faultpath.kernel.primitives.locks import down_write, up_write
from faultpath.kernel.primitives.pagetable import pt_fork
from faultpath.protocol.language import protocol
from faultpath.trace.ops import Event

PROTECTION_PAGE = int(Event.PROTECTION_PAGE)


@protocol
def mm_fork(mm: AddressSpace) -> int:
    """dup_mmap() and copy_page_range(), Linux 6.18, under mmap_lock for writing: one event per VMA that is copied.

    That are private ones with an anon_vma, unless they are kept from the child. Their anonymous pages become
    copy-on-write and are no longer the mm's alone. The child has no notifiers; of it is known whether it still lives.

    :returns: the child's number, for mm_child_ends()
    """
    down_write(mm.mmap_lock)
    first = not mm.children
    if first:
        mm.forks = 0
    vma = next_vma(mm, 0)
    while vma:
        if vma.flags & MAP_PRIVATE and vma.anon_vma and not vma.flags & (DONTCOPY | WIPEONFORK):
            range = raise_start(mm, vma.start, vma.last + 1, PROTECTION_PAGE, RAISES_CALLS)
            pt_fork(mm.pt, vma.start, vma.last + 1, EXCLUSIVE | (15 << BIRTH_SHIFT if first else 0))
            raise_end(range)
        vma = next_vma(mm, vma.last + 1)
    mm.forks = min(mm.forks + 1, MAX_FORKS)
    child = mm.forks
    mm.children = mm.children | 1 << child
    up_write(mm.mmap_lock)
    return child


@protocol
def mm_child_ends(mm: AddressSpace, child: int) -> None:
    """A child has exited or executed something else: it maps the pages that it shared no more."""
    if child < MAX_FORKS:
        mm.children = mm.children & ~(1 << child)
