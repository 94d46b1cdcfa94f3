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
    VALID,
    get,
    leaf_link,
    leaf_of,
    new_node,
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
    """Where a leaf says that it stands for a huge PMD; sizes are rounded up, so that there is room for it."""
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
    if leaf:
        w[huge_word(w, leaf)] = 0
    return 0


@primitive
def pt_next_huge(w: Words, pt: PageTable, start: int, end: int, partial: int) -> int:
    """The lowest block that a huge PMD maps and that meets ``[start, end)``, or ``end``.

    :param partial: only those that stick out
    """
    size = block_size(w)
    block = start & -size
    while block < end:
        leaf = leaf_at(w, pt, block)
        if leaf and w[huge_word(w, leaf)] and (not partial or block < start or block + size > end):
            return block
        block += size
    return end


@primitive
def pt_reclaim(w: Words, pt: PageTable, start: int, end: int) -> int:
    """Free the leaves that lie in ``[start, end)``, where all is cleared (zap_huge_pmd(), try_get_and_clear_pmd())."""
    size = block_size(w)
    block = (start + size - 1) & -size
    while block + size <= end:
        if leaf_at(w, pt, block):
            link = leaf_link(w, pt, block)
            give_back(w, w[link])
            w[link] = 0
        block += size
    return 0


@primitive
def pt_add_bits(w: Words, pt: PageTable, start: int, end: int, bits: int) -> int:
    """Give ``bits`` to every valid entry in ``[start, end)``, which is in one leaf."""
    for addr in range(start, end, PAGE_SIZE):
        entry = get(w, pt, addr)
        if entry & VALID:
            put(w, pt, addr, entry | bits)
    return 0


@helper
def like(w: Words, pt: int, addr: int, entry: int, mask: int) -> bool:
    """Whether the entry of an address is another one's in the bits of ``mask``."""
    return (get(w, pt, addr) ^ entry) & mask == 0


@primitive
def pt_batch(w: Words, pt: PageTable, start: int, end: int, mask: int) -> int:
    """Where the pages end that go on from ``start`` with an equal entry in ``mask`` (folio_pte_batch()), in its leaf."""
    size = block_size(w)
    end = min(end, (start & -size) + size)
    entry = get(w, pt, start)
    addr = start + PAGE_SIZE
    while addr < end and like(w, pt, addr, entry, mask):
        addr += PAGE_SIZE
    return addr


@primitive
def pt_count(w: Words, pt: PageTable, start: int, end: int, entry: int, mask: int) -> int:
    """How many entries in ``[start, end)`` are like ``entry`` in the bits of ``mask``, which is not 0 in it."""
    size = block_size(w)
    found = 0
    addr = start
    while addr < end:
        if leaf_at(w, pt, addr) == 0:
            addr = (addr & -size) + size
            continue
        if like(w, pt, addr, entry, mask):
            found += 1
        addr += PAGE_SIZE
    return found


@primitive
def pt_rewrite(w: Words, pt: PageTable, start: int, end: int, seen: int, mask: int, entry: int, keep: int) -> int:
    """Put ``entry`` in the place of those in ``[start, end)`` that are ``seen`` in ``mask``, less their bits ``keep``."""
    size = block_size(w)
    addr = start
    while addr < end:
        if leaf_at(w, pt, addr) == 0:
            addr = (addr & -size) + size
            continue
        if like(w, pt, addr, seen, mask):
            put(w, pt, addr, entry | get(w, pt, addr) & keep)
        addr += PAGE_SIZE
    return 0
