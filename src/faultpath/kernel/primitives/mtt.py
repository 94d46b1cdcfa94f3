"""mlx5's way to clear device translations: runs of MTT entries, one UMR post each."""

from __future__ import annotations

from faultpath.engine.world import DIR_BITS, INDEX, LEAF_BITS, Words
from faultpath.kernel.primitives.pagetable import ENTRY, KEEP_NONE, PAGE_SHIFT, PER_WORD, edit
from faultpath.protocol.language import helper, primitive
from faultpath.protocol.struct import PageTable

PROBED = INDEX["ptes_probed"]
ZAPPED = INDEX["ptes_zapped"]
COMMANDS = INDEX["device_commands"]
INVALIDATIONS = INDEX["page_invalidations"]


@helper
def word_at(w: Words, pt: int, page: int) -> int:
    """The word that holds the four entries from page number ``page`` (a multiple of four); 0 if there is no table."""
    node = w[pt]
    level = w[pt + 1]
    while node and level > 0:
        level -= 1
        node = w[node + 1 + (page >> (w[LEAF_BITS] + level * w[DIR_BITS]) & ((1 << w[DIR_BITS]) - 1))]
    if node == 0:
        return 0
    return w[node + 1 + ((page & ((1 << w[LEAF_BITS]) - 1)) >> PER_WORD)]


@helper
def count_runs(w: Words, pt: int, first: int, end: int) -> int:
    """UMR posts that zap the present entries among page numbers ``[first, end)``.

    A run ends at an absent entry only where its index is a multiple of eight (MLX5_UMR_MTT_ALIGNMENT), and at the end.
    page_invalidations grow by its entries, absent ones too; where an absent one ends it, that one is counted with it.
    """
    runs = 0
    in_run = False
    begin = 0
    for block in range(first & -4, end, 4):
        word = word_at(w, pt, block)
        if in_run and block & 7 == 0 and word & 1 == 0:
            runs += 1
            in_run = False
            w[INVALIDATIONS] += block - begin + 1
        for slot in range(max(0, first - block), min(4, end - block)):
            if word >> (slot << ENTRY) & 1 and not in_run:
                in_run = True
                begin = block + slot
    if in_run:
        runs += 1
        w[INVALIDATIONS] += end - begin
    return runs


@primitive
def dma_unmap(w: Words, pt: PageTable, start: int, end: int) -> int:
    """ib_umem_odp_unmap_dma_pages() of ``[start, end)``: every entry is looked at, present or not; entries unmapped."""
    met = edit(w, pt, start, end, KEEP_NONE)
    w[PROBED] += (end - start) >> PAGE_SHIFT
    w[ZAPPED] += met
    return met


@primitive
def mtt_zap(w: Words, pt: PageTable, start: int, end: int) -> int:
    """mlx5_ib_invalidate_range()'s two passes over ``[start, end)``: zap runs, then unmap; entries unmapped.

    Every entry of the range is looked at, present or not.
    """
    first = (start - w[pt + 2]) >> PAGE_SHIFT
    last = (end - w[pt + 2]) >> PAGE_SHIFT
    w[COMMANDS] += count_runs(w, pt, first, last)
    met = edit(w, pt, start, end, KEEP_NONE)
    w[PROBED] += last - first
    w[ZAPPED] += met
    return met
