"""Page tables with huge pages: a leaf whose pages one PMD entry maps, and large folios, of which PTEs map the pages.

A leaf has a word behind its entries that says whether it stands for a huge PMD; its entries are there as well, all of
one frame, so that whoever looks at one page need not know. Only in a tree of Linux's shape.
"""

from __future__ import annotations

from faultpath.engine.world import LEAF_BITS, Words
from faultpath.kernel.primitives.debug import table_changes
from faultpath.kernel.primitives.heap import give_back
from faultpath.kernel.primitives.pagetable import (
    DEVICE_BITS,
    FRAME_SHIFT,
    PAGE_SHIFT,
    PAGE_SIZE,
    PER_WORD,
    get,
    leaf_link,
    leaf_of,
    new_node,
    next_leaf,
    put,
)
from faultpath.protocol.language import helper, primitive
from faultpath.protocol.struct import PageTable

FRAME_BITS = DEVICE_BITS & -(1 << FRAME_SHIFT)


@helper
def leaf_at(w: Words, pt: int, addr: int) -> int:
    """The leaf of an address, or 0."""
    return leaf_of(w, pt, (addr - w[pt + 2]) >> PAGE_SHIFT, False)


@helper
def huge_word(w: Words, leaf: int) -> int:
    """Where a leaf says that it stands for a huge PMD: in what its size is rounded up by."""
    return leaf + 1 + ((1 << w[LEAF_BITS]) >> PER_WORD)


@helper
def block_size(w: Words) -> int:
    """What a leaf maps, in bytes (2 MiB)."""
    return PAGE_SIZE << w[LEAF_BITS]


@primitive
def pt_has_leaf(w: Words, pt: PageTable, addr: int) -> int:
    """Whether there is a leaf for an address (Linux: !pmd_none())."""
    return 1 if leaf_at(w, pt, addr) else 0


@primitive
def pt_is_huge(w: Words, pt: PageTable, addr: int) -> int:
    """Whether an address is mapped by a huge PMD (pmd_trans_huge())."""
    leaf = leaf_at(w, pt, addr)
    return 1 if leaf and w[huge_word(w, leaf)] else 0


@primitive
def pt_set_huge(w: Words, pt: PageTable, block: int, entry: int, keep: int) -> int:
    """Map all of a block by a huge PMD (set_pmd_at()); of what is there every page keeps the bits ``keep``."""
    table_changes(w, pt)
    link = leaf_link(w, pt, block)
    if w[link] == 0:
        w[link] = new_node(w, (1 << w[LEAF_BITS]) >> PER_WORD)
    w[huge_word(w, w[link])] = 1
    for page in range(1 << w[LEAF_BITS]):
        addr = block + page * PAGE_SIZE
        put(w, pt, addr, entry | get(w, pt, addr) & keep)
    return 0


@primitive
def pt_split_huge(w: Words, pt: PageTable, addr: int) -> int:
    """A huge PMD, if there is one at an address, becomes a table of PTEs (__split_huge_pmd_locked())."""
    leaf = leaf_at(w, pt, addr)
    if leaf and w[huge_word(w, leaf)]:
        w[huge_word(w, leaf)] = 0
    return 0


@primitive
def pt_next_huge(w: Words, pt: PageTable, start: int, end: int, partial: int) -> int:
    """The lowest block that a huge PMD maps and that meets ``[start, end)``, or ``end``.

    :param partial: only those that stick out
    """
    size = block_size(w)
    block = next_leaf(w, pt, start & -size, end)
    while block < end:
        if w[huge_word(w, leaf_at(w, pt, block))] and (not partial or block < start or block + size > end):
            return block
        block = next_leaf(w, pt, block + size, end)
    return end


@primitive
def pt_reclaim(w: Words, pt: PageTable, start: int, end: int) -> int:
    """Free the leaves that lie in ``[start, end)``, where all is cleared (zap_huge_pmd(), try_get_and_clear_pmd())."""
    size = block_size(w)
    end = end & -size
    block = next_leaf(w, pt, (start + size - 1) & -size, end)
    while block < end:
        link = leaf_link(w, pt, block)
        give_back(w, w[link])
        w[link] = 0
        block = next_leaf(w, pt, block + size, end)
    return 0


@helper
def like(w: Words, pt: int, addr: int, entry: int, mask: int) -> bool:
    """Whether the entry of an address is another one's in the bits of ``mask``."""
    return (get(w, pt, addr) ^ entry) & mask == 0


@primitive
def pt_batch(w: Words, pt: PageTable, start: int, end: int, mask: int) -> int:
    """Where in its leaf the pages end that go on from ``start`` with an entry equal in ``mask`` (folio_pte_batch())."""
    size = block_size(w)
    end = min(end, (start & -size) + size)
    entry = get(w, pt, start)
    addr = start + PAGE_SIZE
    while addr < end and like(w, pt, addr, entry, mask):
        addr += PAGE_SIZE
    return addr


@primitive
def pt_count(w: Words, pt: PageTable, start: int, end: int, entry: int, mask: int) -> int:
    """How many entries in ``[start, end)`` are like ``entry`` in the bits of ``mask``, where there is a leaf."""
    found = 0
    addr = next_leaf(w, pt, start, end)
    while addr < end:
        if like(w, pt, addr, entry, mask):
            found += 1
        addr = next_leaf(w, pt, addr + PAGE_SIZE, end)
    return found


@primitive
def pt_rewrite(w: Words, pt: PageTable, start: int, end: int, seen: int, mask: int, entry: int, keep: int) -> int:
    """Put ``entry`` in the place of those in ``[start, end)`` that are ``seen`` in ``mask``, but for bits ``keep``."""
    addr = next_leaf(w, pt, start, end)
    while addr < end:
        if like(w, pt, addr, seen, mask):
            put(w, pt, addr, entry | get(w, pt, addr) & keep)
        addr = next_leaf(w, pt, addr + PAGE_SIZE, end)
    return 0
