"""Page tables, for the CPU and for devices: a radix tree whose leaves hold 16 bits per page.

An entry is VALID | WRITE | frame << 2: the frame is a number in 1..63 that changes whenever a page is replaced, so that
a stale device PTE can be told. The upper byte of a CPU's entry says what kind of page it maps (mm/fault.py); a
device's has none. Absent subtrees cost nothing to walk over. A directory keeps no count of what is below it.

Root words: 0 node, 1 levels above the leaf, 2 first address, 3 end address. Leaves pack four entries per word.
"""

from __future__ import annotations

from faultpath.engine.world import BAD_ADDRESS, DIR_BITS, INDEX, LEAF_BITS, NEXT_FRAME, STATUS, STATUS_ARG, Stop, Words
from faultpath.kernel.primitives.debug import table_alive, table_changes
from faultpath.kernel.primitives.heap import give_back, take
from faultpath.protocol.language import helper, primitive
from faultpath.protocol.struct import PageTable

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT

VALID = 1
WRITE = 2
FRAME_SHIFT = 2
DEVICE_BITS = 255  # of an entry: what a device's has as well
FULL = 65535
PER_WORD = 2  # log2 of the entries in a word, and of the bits of one
ENTRY = 4

PROBED = INDEX["ptes_probed"]
ZAPPED = INDEX["ptes_zapped"]

# Masks that keep, in each of a word's four entries, everything, nothing, or all but WRITE.
KEEP_ALL = -1
KEEP_NONE = 0
KEEP_READ = -0x0002000200020003
LOW_BITS = 0x0001000100010001


@primitive
def pt_init(w: Words, pt: PageTable, start: int, end: int) -> int:
    """Give an empty table the bounds ``[start, end)``."""
    levels = 0
    while (end - start - 1) >> (PAGE_SHIFT + w[LEAF_BITS] + levels * w[DIR_BITS]) > 0:
        levels += 1
    w[pt] = 0
    w[pt + 1] = levels
    w[pt + 2] = start
    w[pt + 3] = end
    return 0


@helper
def new_node(w: Words, words: int) -> int:
    """A zeroed table of ``words`` words, header word before it."""
    return take(w, (words + 8) >> 3, 0, 0)


@helper
def leaf_of(w: Words, pt: int, page: int, create: int) -> int:
    """The leaf that holds page number ``page`` (relative to the root's start), or 0 if absent and not ``create``."""
    link = pt
    level = w[pt + 1]
    leaf_bits = w[LEAF_BITS]
    dir_bits = w[DIR_BITS]
    while level > 0:
        node = w[link]
        if node == 0:
            if not create:
                return 0
            node = new_node(w, 1 << dir_bits)
            w[link] = node
        level -= 1
        index = page >> (leaf_bits + level * dir_bits)
        link = node + 1 + (index & ((1 << dir_bits) - 1))
    if w[link] == 0 and create:
        w[link] = new_node(w, max(1, (1 << leaf_bits) >> PER_WORD))
    return w[link]


@helper
def get(w: Words, pt: int, addr: int) -> int:
    """The entry for an address; 0 if not valid or outside the table."""
    table_alive(w, pt)
    if addr < w[pt + 2] or addr >= w[pt + 3]:
        return 0
    page = (addr - w[pt + 2]) >> PAGE_SHIFT
    leaf = leaf_of(w, pt, page, False)
    if leaf == 0:
        return 0
    slot = page & ((1 << w[LEAF_BITS]) - 1)
    return w[leaf + 1 + (slot >> PER_WORD)] >> ((slot & 3) << ENTRY) & FULL


@helper
def put(w: Words, pt: int, addr: int, entry: int) -> int:
    """Store the entry for an address."""
    table_changes(w, pt)
    if addr < w[pt + 2] or addr >= w[pt + 3]:
        w[STATUS] = BAD_ADDRESS
        w[STATUS_ARG] = addr
        raise Stop
    page = (addr - w[pt + 2]) >> PAGE_SHIFT
    slot = page & ((1 << w[LEAF_BITS]) - 1)
    word = leaf_of(w, pt, page, True) + 1 + (slot >> PER_WORD)
    shift = (slot & 3) << ENTRY
    w[word] = w[word] & ~(FULL << shift) | entry << shift
    return 0


@helper
def edit(w: Words, pt: int, start: int, end: int, keep: int) -> int:
    """AND every entry in ``[start, end)`` with a KEEP mask; the number of valid entries met."""
    if keep != KEEP_ALL:
        table_changes(w, pt)
    start = max(start, w[pt + 2]) - w[pt + 2]
    end = min(end, w[pt + 3]) - w[pt + 2]
    if start >= end:
        return 0
    page = start >> PAGE_SHIFT
    stop = (end + PAGE_SIZE - 1) >> PAGE_SHIFT
    leaf_bits = w[LEAF_BITS]
    dir_bits = w[DIR_BITS]
    met = 0
    while page < stop:
        # Down to the leaf; an absent table is stepped over whole.
        node = w[pt]
        level = w[pt + 1]
        while node and level > 0:
            level -= 1
            node = w[node + 1 + (page >> (leaf_bits + level * dir_bits) & ((1 << dir_bits) - 1))]
        if node == 0:
            span = leaf_bits + level * dir_bits
            page = ((page >> span) + 1) << span
            continue
        upto = min(stop, ((page >> leaf_bits) + 1) << leaf_bits)
        while page < upto:
            slot = page & ((1 << leaf_bits) - 1)
            word = node + 1 + (slot >> PER_WORD)
            if w[word] == 0:
                page = (page | 3) + 1
                continue
            if slot & 3 == 0 and page + 4 <= upto:
                met += ((w[word] & LOW_BITS) * LOW_BITS) >> 48 & 255
                w[word] &= keep
                page += 4
                continue
            shift = (slot & 3) << ENTRY
            met += w[word] >> shift & 1
            w[word] &= ~(FULL << shift) | keep
            page += 1
    return met


@helper
def free_tables(w: Words, node: int, level: int) -> int:
    """Free a table and everything below it."""
    if level > 0:
        for i in range(1 << w[DIR_BITS]):
            if w[node + 1 + i]:
                free_tables(w, w[node + 1 + i], level - 1)
    return give_back(w, node)


@primitive
def pt_get(w: Words, pt: PageTable, addr: int) -> int:
    """The entry for an address: VALID, WRITE and frame bits, or 0."""
    return get(w, pt, addr)


@primitive
def pt_set(w: Words, pt: PageTable, addr: int, entry: int) -> int:
    """Write the entry for an address."""
    return put(w, pt, addr, entry)


@helper
def frame_comes_in(w: Words, addr: int, entry: int) -> int:
    """A page has come in at an address (for the checker, which names pages otherwise)."""
    return 0


@primitive
def pt_cmpxchg(w: Words, pt: PageTable, addr: int, old: int, new: int) -> int:
    """Write the entry for an address if it is still ``old`` (pte_same under the PTE lock); what was there."""
    found = get(w, pt, addr)
    if found == old:
        put(w, pt, addr, new)
        frame_comes_in(w, addr, new)
    return found


@primitive
def device_cmpxchg(w: Words, pt: PageTable, addr: int, old: int, new: int) -> int:
    """The same in a device's page table (cmpxchg64 of an SPTE): no page comes into being."""
    found = get(w, pt, addr)
    if found == old:
        put(w, pt, addr, new)
    return found


@primitive
def pt_unmap_frame(w: Words, pt: PageTable, addr: int, frame: int) -> int:
    """Clear the entry for an address if it still maps ``frame`` (page_vma_mapped_walk); what was there, or 0."""
    found = get(w, pt, addr)
    if found & VALID == 0 or (found & DEVICE_BITS) >> FRAME_SHIFT != frame:
        return 0
    put(w, pt, addr, 0)
    return found


@primitive
def pt_clear(w: Words, pt: PageTable, start: int, end: int) -> int:
    """Clear ``[start, end)``; the number of entries that were valid."""
    return edit(w, pt, start, end, KEEP_NONE)


@primitive
def pt_write_protect(w: Words, pt: PageTable, start: int, end: int) -> int:
    """Take WRITE from every entry in ``[start, end)``."""
    return edit(w, pt, start, end, KEEP_READ)


@primitive
def pt_fork(w: Words, pt: PageTable, start: int, end: int, bits: int) -> int:
    """Take WRITE and ``bits``, below 1 << 15, from every entry in ``[start, end)``."""
    return edit(w, pt, start, end, ~((WRITE | bits) * LOW_BITS))


@primitive
def pt_add_bits(w: Words, pt: PageTable, start: int, end: int, needed: int, bits: int) -> int:
    """Give ``bits`` to every valid entry in ``[start, end)`` that has the bits ``needed``; how many had them not."""
    leaf_bytes = PAGE_SIZE << w[LEAF_BITS]
    limit = min(end, w[pt + 3])
    given = 0
    while start < limit:
        if leaf_of(w, pt, (start - w[pt + 2]) >> PAGE_SHIFT, False) == 0:
            start += leaf_bytes - (start - w[pt + 2]) % leaf_bytes
            continue
        entry = get(w, pt, start)
        if entry & VALID and entry & needed == needed and entry & bits != bits:
            put(w, pt, start, entry | bits)
            given += 1
        start += PAGE_SIZE
    return given


@primitive
def pt_copy(w: Words, pt: PageTable, source: PageTable, start: int, end: int) -> int:
    """Write what another table has valid in ``[start, end)``, as far as a device may know; the number written."""
    leaf_bytes = PAGE_SIZE << w[LEAF_BITS]
    limit = min(end, w[source + 3])
    copied = 0
    while start < limit:
        if leaf_of(w, source, (start - w[source + 2]) >> PAGE_SHIFT, False) == 0:
            start += leaf_bytes - (start - w[source + 2]) % leaf_bytes
            continue
        entry = get(w, source, start) & DEVICE_BITS
        if entry & VALID:
            put(w, pt, start, entry)
            copied += 1
        start += PAGE_SIZE
    return copied


@primitive
def pt_any(w: Words, pt: PageTable, start: int, end: int) -> int:
    """Whether any entry in ``[start, end)`` is valid."""
    return 1 if edit(w, pt, start, end, KEEP_ALL) else 0


@helper
def table_of(w: Words, pt: int, addr: int) -> int:
    """The table of leaves for an address (Linux: the PMD table, which covers 1 GiB), or 0 if there is none."""
    node = w[pt]
    level = w[pt + 1]
    page = (addr - w[pt + 2]) >> PAGE_SHIFT
    while node and level > 1:
        level -= 1
        node = w[node + 1 + (page >> (w[LEAF_BITS] + level * w[DIR_BITS]) & ((1 << w[DIR_BITS]) - 1))]
    return node


@primitive
def pt_has_table(w: Words, pt: PageTable, addr: int) -> int:
    """Whether there is a table of leaves for an address (Linux: !pud_none())."""
    return 1 if table_of(w, pt, addr) else 0


@helper
def next_leaf(w: Words, pt: int, addr: int, end: int) -> int:
    """The lowest address in ``[addr, end)`` that has a leaf, or ``end``; absent tables are stepped over."""
    while addr < end:
        node = w[pt]
        level = w[pt + 1]
        page = (addr - w[pt + 2]) >> PAGE_SHIFT
        while node and level > 0:
            level -= 1
            node = w[node + 1 + (page >> (w[LEAF_BITS] + level * w[DIR_BITS]) & ((1 << w[DIR_BITS]) - 1))]
        if node:
            return addr
        span = w[LEAF_BITS] + level * w[DIR_BITS]
        addr = w[pt + 2] + (((page >> span) + 1) << (span + PAGE_SHIFT))
    return end


@primitive
def pt_next_leaf(w: Words, pt: PageTable, start: int, end: int) -> int:
    """The lowest address in ``[start, end)`` that has a leaf (Linux: !pmd_none()), or ``end``."""
    return next_leaf(w, pt, start, end)


@helper
def leaf_link(w: Words, pt: int, addr: int) -> int:
    """The word that links the leaf of an address (Linux: the PMD), with the tables above it made."""
    link = pt
    level = w[pt + 1]
    page = (addr - w[pt + 2]) >> PAGE_SHIFT
    while level > 0:
        if w[link] == 0:
            w[link] = new_node(w, 1 << w[DIR_BITS])
        level -= 1
        link = w[link] + 1 + (page >> (w[LEAF_BITS] + level * w[DIR_BITS]) & ((1 << w[DIR_BITS]) - 1))
    return link


@primitive
def pt_alloc(w: Words, pt: PageTable, addr: int) -> int:
    """Make the tables above the leaf of an address (p4d_alloc, pud_alloc, pmd_alloc), in a tree of Linux's shape."""
    leaf_link(w, pt, addr)
    return 0


@helper
def drop_tables(w: Words, pt: int, at: int, end: int, floor: int, ceiling: int, lowest: int) -> int:
    """Free what is ``lowest`` levels above the leaves and covers a part of ``[at, end)``, if no VMA needs it."""
    size = 1 << (PAGE_SHIFT + w[LEAF_BITS] + lowest * w[DIR_BITS])
    at = at & -size
    while at < end:
        link = pt
        level = w[pt + 1]
        page = (at - w[pt + 2]) >> PAGE_SHIFT
        while level > lowest and w[link]:
            level -= 1
            link = w[link] + 1 + (page >> (w[LEAF_BITS] + level * w[DIR_BITS]) & ((1 << w[DIR_BITS]) - 1))
        if w[link] == 0:  # there is nothing in all that this would cover
            span = 1 << (PAGE_SHIFT + w[LEAF_BITS] + level * w[DIR_BITS])
            at = (at & -span) + span
            continue
        if at >= floor and at + size <= ceiling:
            free_tables(w, w[link], lowest)
            w[link] = 0
        at += size
    return 0


@primitive
def pt_free_tables(w: Words, pt: PageTable, start: int, end: int, floor: int, ceiling: int) -> int:
    """free_pgtables() of ``[start, end)``: tables that lie in ``[floor, ceiling)``, where no VMA is, go.

    Only in a tree of Linux's shape: the few pages of a checked scenario have one leaf, which stays.
    """
    if w[pt + 1] < 2:
        return 0
    table_changes(w, pt)
    drop_tables(w, pt, start, end, floor, ceiling, 1)
    return drop_tables(w, pt, start, end, floor, ceiling, 0)


@primitive
def pt_next(w: Words, pt: PageTable, start: int, end: int) -> int:
    """The lowest page address in ``[start, end)`` with a valid entry, or ``end``. ``start`` is page aligned."""
    leaf_bytes = PAGE_SIZE << w[LEAF_BITS]
    limit = min(end, w[pt + 3])
    while start < limit:
        if leaf_of(w, pt, (start - w[pt + 2]) >> PAGE_SHIFT, False) == 0:
            start += leaf_bytes - (start - w[pt + 2]) % leaf_bytes
        elif get(w, pt, start) & VALID:
            return start
        else:
            start += PAGE_SIZE
    return end


@primitive
def pt_move(w: Words, pt: PageTable, old: int, new: int, size: int) -> int:
    """Move the entries of ``[old, old + size)`` to ``new`` (move_page_tables); what was at ``new`` is overwritten.

    Where there was a leaf there is one at the new place, whether anything is moved into it or not. A whole leaf itself
    goes to where none is (move_normal_pmd, move_huge_pmd).
    """
    leaf_bytes = PAGE_SIZE << w[LEAF_BITS]
    size = min(size, w[pt + 3] - old)  # an address behind the tree would lead to another one's leaf
    page = 0
    while page < size:
        # Step over absent leaves: a moved terabyte reservation costs what is in it.
        if leaf_of(w, pt, (old + page - w[pt + 2]) >> PAGE_SHIFT, False) == 0:
            page += leaf_bytes - (old + page) % leaf_bytes
            continue
        if (old + page) % leaf_bytes == 0 and (new + page) % leaf_bytes == 0 and page + leaf_bytes <= size:
            to = leaf_link(w, pt, new + page)
            if w[to] == 0:
                link = leaf_link(w, pt, old + page)
                w[to] = w[link]
                w[link] = 0
                page += leaf_bytes
                continue
        leaf_of(w, pt, (new + page - w[pt + 2]) >> PAGE_SHIFT, True)
        entry = get(w, pt, old + page)
        if entry:
            put(w, pt, old + page, 0)
            put(w, pt, new + page, entry)
        page += PAGE_SIZE
    return 0


@primitive
def pt_free(w: Words, pt: PageTable) -> int:
    """Free every table of the tree."""
    if w[pt]:
        free_tables(w, w[pt], w[pt + 1])
        w[pt] = 0
    return 0


@primitive
def device_zap(w: Words, pt: PageTable, start: int, end: int) -> int:
    """Clear device PTEs in ``[start, end)`` by walking what is mapped, and count them as probed and zapped."""
    met = edit(w, pt, start, end, KEEP_NONE)
    w[PROBED] += met
    w[ZAPPED] += met
    return met


@helper
def next_frame(w: Words, addr: int) -> int:
    """A name for the page that comes in at an address: numbers 1..63 in turn."""
    w[NEXT_FRAME] = w[NEXT_FRAME] % 63 + 1
    return w[NEXT_FRAME]


@primitive
def new_frame(w: Words, addr: int) -> int:
    """The frame bits for a page that comes into being at ``addr``."""
    return next_frame(w, addr) << FRAME_SHIFT
