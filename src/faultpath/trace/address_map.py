"""An address space as a trace tells it, for jitted code: its VMAs, and which of its pages have been touched.

VMAs are split and merged as the kernel does it (mm/vma.c, Linux 6.18) as far as a trace tells: private anonymous
neighbours of equal protection become one; of files and shared memory only pieces that one call mapped. What a trace
does not tell: the file and the offset, so that two calls that map neighbouring parts of a file leave two VMAs here, one
in the kernel; anon_vma and userfaultfd, which keep anonymous neighbours apart in the kernel; flags that madvise sets. A
page is *in* from the process's fault on it until a call takes it away: reclaim, truncation and the pages that a fault
on a file maps beside its own are not in the trace.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from faultpath.jit import jit_inline, jit_plain
from faultpath.trace import ordered
from faultpath.trace.ordered import NONE, Table, floor, following, get, insert, put, remove

PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4
READ_WRITE = np.int64(PROT_READ | PROT_WRITE)
MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MAP_GROWSDOWN = 0x01, 0x02, 0x20, 0x100
# Not in a trace: the heap of brk; a mapping that only its faults tell of.
HEAP, INFERRED = 1 << 29, 1 << 30
OF_FAULTS = np.int64(MAP_PRIVATE | MAP_ANONYMOUS | INFERRED)
OF_BRK = np.int64(MAP_PRIVATE | MAP_ANONYMOUS | HEAP)

STACK_LIMIT = 8 << 20  # RLIMIT_STACK's usual soft limit: how far a stack VMA may grow

# Constants that functions are called with are typed: numba compiles a function once for each plain integer it is given.

# Words of a VMA: [START, END) in bytes, PROT_* and MAP_* bits, the number of the call that mapped it, when (ns).
START, END, PROT, FLAGS, ORIGIN, BORN, VMA_WORDS = map(np.int64, range(7))

# A block is 512 pages; its words: page number / 512, where its pages lie, how many are IN, DEVICE, and EVER were.
BLOCK_SHIFT = 9
BLOCK_PAGES = 1 << BLOCK_SHIFT
BLOCK, INDEX, COUNT_IN, COUNT_DEVICE, COUNT_EVER, BLOCK_WORDS = map(np.int64, range(6))

# Bits of a page: touched at this address at any time; in; the CPU may write it without a fault; touched since the last
# invalidation of it: what a device that follows the process's faults would have mapped.
EVER, IN, DEVICE, NOTHING = (np.int64(bit) for bit in (1, 2, 4, 0))

#: VMAs that were unmapped are counted by age: each limit (ns) is above its class, the last class has none.
AGES = tuple(10**n for n in range(6, 11))

# Words of ``state``: how things are now (bytes by protection; pages that are IN), then what has been counted.
(PAGE_SHIFT, NOW, BRK, ORIGINS, BLOCKS, ACCESSIBLE, RESERVED, VMAS, PAGES_IN,
 MADE, GONE, PAGES_UNMAPPED, AGE) = range(13)  # fmt: skip
STATE_WORDS = AGE + len(AGES) + 1

#: Kinds of mappings, much as pmap shows them; each number is an index.
KINDS = (
    "unmapped", "heap", "stack", "anonymous", "anonymous_code", "anonymous_shared", "file", "file_code", "file_shared",
    "reserved", "inferred",
)  # fmt: skip
_HEAP, _STACK, _ANON, _ANON_CODE, _ANON_SHARED, _FILE, _FILE_CODE, _FILE_SHARED, _RESERVED, _INFERRED = range(1, 11)


class Space(NamedTuple):
    """One address space.

    :ivar pages: bits by block (its INDEX word) and page
    """

    vmas: Table
    blocks: Table
    pages: NDArray[np.uint8]
    state: NDArray[np.int64]


def space(page_size: int) -> Space:
    """An empty one."""
    state = np.zeros(STATE_WORDS, np.int64)
    state[PAGE_SHIFT] = page_size.bit_length() - 1
    return Space(ordered.table(VMA_WORDS), ordered.table(BLOCK_WORDS), np.zeros((64, BLOCK_PAGES), np.uint8), state)


VMAS_PER_ROW = 8  # at most, that one row of a trace makes


def with_room(s: Space, blocks: int) -> Space:
    """The same space with room for so many blocks more, and for the VMAs of a row."""
    while ordered.lacks(s.vmas, VMAS_PER_ROW):
        s = s._replace(vmas=ordered.grown(s.vmas))
    while ordered.lacks(s.blocks, blocks):
        s = s._replace(blocks=ordered.grown(s.blocks))
    needed = int(s.state[BLOCKS]) + blocks
    if needed > len(s.pages):
        pages = np.zeros((2 * needed, BLOCK_PAGES), np.uint8)
        pages[: len(s.pages)] = s.pages
        s = s._replace(pages=pages)
    return s


@jit_plain
def kind_at(s, place):  # type: ignore[no-untyped-def]
    """The kind of a VMA, an index of KINDS."""
    prot, flags = get(s.vmas, place, PROT), get(s.vmas, place, FLAGS)
    if flags & INFERRED:
        return _INFERRED
    if not prot:
        return _RESERVED
    if flags & HEAP:
        return _HEAP
    if flags & MAP_GROWSDOWN:
        return _STACK
    if flags & MAP_ANONYMOUS:
        return _ANON_SHARED if flags & MAP_SHARED else _ANON_CODE if prot & PROT_EXEC else _ANON
    return _FILE_SHARED if flags & MAP_SHARED else _FILE_CODE if prot & PROT_EXEC else _FILE


# --- VMAs


@jit_plain
def first_vma(s, start, end):  # type: ignore[no-untyped-def]
    """The place of the first VMA that meets ``[start, end)``, or NONE."""
    place = floor(s.vmas, start)
    if place == NONE or get(s.vmas, place, END) <= start:
        place = following(s.vmas, place)
        if place != NONE and get(s.vmas, place, START) >= end:
            return NONE
    return place


@jit_plain
def cut(s, start, end, unmapped):  # type: ignore[no-untyped-def]
    """Take ``[start, end)`` out of every VMA: some go, some shrink, one may be split.

    :param unmapped: count how old those were that went
    """
    state = s.state
    place = first_vma(s, start, end)
    while place != NONE:
        low, high, prot = get(s.vmas, place, START), get(s.vmas, place, END), get(s.vmas, place, PROT)
        if low >= end:
            break
        state[ACCESSIBLE if prot else RESERVED] -= min(high, end) - max(low, start)
        if low < start:
            put(s.vmas, place, END, start)
            if high > end:
                upper = insert(s.vmas, end)
                below = floor(s.vmas, low)
                for word in range(START + 1, VMA_WORDS):
                    put(s.vmas, upper, word, get(s.vmas, below, word))
                put(s.vmas, upper, END, high)
                state[VMAS] += 1
                state[MADE] += 1
                break
            place = following(s.vmas, place)
        elif high > end:
            put(s.vmas, place, START, end)
            break
        else:
            age = 0
            while age < len(AGES) and state[NOW] - get(s.vmas, place, BORN) >= AGES[age]:
                age += 1
            state[AGE + age] += unmapped
            state[VMAS] -= 1
            state[GONE] += 1
            place = remove(s.vmas, place)


@jit_plain
def _alike(s, place, prot, flags, origin):  # type: ignore[no-untyped-def]
    """Whether a VMA can be one with such a neighbour."""
    private = flags & MAP_ANONYMOUS and not flags & MAP_SHARED
    return (
        get(s.vmas, place, PROT) == prot
        and get(s.vmas, place, FLAGS) == flags
        and (private or get(s.vmas, place, ORIGIN) == origin)
    )


@jit_plain
def add(s, start, end, prot, flags, origin, born):  # type: ignore[no-untyped-def]
    """Map ``[start, end)``, where nothing is, and merge it with its neighbours."""
    state = s.state
    state[ACCESSIBLE if prot else RESERVED] += end - start
    place = floor(s.vmas, start)
    after = following(s.vmas, place)
    with_left = place != NONE and get(s.vmas, place, END) == start and _alike(s, place, prot, flags, origin)
    with_right = after != NONE and get(s.vmas, after, START) == end and _alike(s, after, prot, flags, origin)
    if with_left:
        if with_right:
            end, born = get(s.vmas, after, END), get(s.vmas, after, BORN)
            remove(s.vmas, after)
            state[VMAS] -= 1
            state[GONE] += 1
        put(s.vmas, place, END, end)
        put(s.vmas, place, BORN, min(get(s.vmas, place, BORN), born))
    elif with_right:
        put(s.vmas, after, BORN, min(get(s.vmas, after, BORN), born))
        put(s.vmas, after, START, start)
    else:
        place = insert(s.vmas, start)
        put(s.vmas, place, END, end)
        put(s.vmas, place, PROT, prot)
        put(s.vmas, place, FLAGS, flags)
        put(s.vmas, place, ORIGIN, origin)
        put(s.vmas, place, BORN, born)
        state[VMAS] += 1
        state[MADE] += 1


@jit_plain
def protect(s, start, end, prot):  # type: ignore[no-untyped-def]
    """Give ``[start, end)`` new protection (mprotect_fixup). What only faults told of is a known mapping afterwards."""
    state = s.state
    vmas, made, gone = state[VMAS], state[MADE], state[GONE]
    place = first_vma(s, start, end)
    while place != NONE:
        low, high, flags = get(s.vmas, place, START), get(s.vmas, place, END), get(s.vmas, place, FLAGS)
        if low >= end:
            break
        first, upto, known = max(low, start), min(high, end), flags & ~INFERRED
        if get(s.vmas, place, PROT) != prot or flags != known:
            origin, born = get(s.vmas, place, ORIGIN), get(s.vmas, place, BORN)
            cut(s, first, upto, False)
            add(s, first, upto, prot, known, origin, born)
            place = first_vma(s, upto, end) if upto < end else NONE
        else:
            place = following(s.vmas, place)
    # A VMA that only changed its protection was neither made nor gone.
    change = state[VMAS] - vmas
    state[MADE], state[GONE] = made + max(change, 0), gone + max(-change, 0)


@jit_plain
def new_vma_of_fault(s, page):  # type: ignore[no-untyped-def]
    """The place of the VMA of the page at an address where none is known: there was one, for it was touched.

    A stack above grows down to it (acct_stack_growth); else a mapping is inferred, of that page alone.
    """
    place = floor(s.vmas, page)
    above = following(s.vmas, place)
    stack = above != NONE and get(s.vmas, above, FLAGS) & MAP_GROWSDOWN != 0
    if stack and get(s.vmas, above, END) - page <= STACK_LIMIT:
        s.state[ACCESSIBLE if get(s.vmas, above, PROT) else RESERVED] += get(s.vmas, above, START) - page
        put(s.vmas, above, START, page)
        return above
    made, gone = s.state[MADE], s.state[GONE]
    add(s, page, page + (1 << s.state[PAGE_SHIFT]), READ_WRITE, OF_FAULTS, NOTHING, s.state[NOW])
    s.state[MADE], s.state[GONE] = made, gone  # found, not made
    return floor(s.vmas, page)


# --- pages


@jit_plain
def first_block(s, page):  # type: ignore[no-untyped-def]
    """The place of the first block not below that of page number ``page``, or NONE."""
    place = floor(s.blocks, page >> BLOCK_SHIFT)
    if place == NONE or get(s.blocks, place, BLOCK) < page >> BLOCK_SHIFT:
        place = following(s.blocks, place)
    return place


@jit_inline
def touch(s, page, bits):  # type: ignore[no-untyped-def]
    """Set bits of page number ``page``, in a new block if it has none; what they were."""
    number, i = page >> BLOCK_SHIFT, page & (BLOCK_PAGES - 1)
    place = floor(s.blocks, number)
    if place == NONE or get(s.blocks, place, BLOCK) != number:
        place = insert(s.blocks, number)
        put(s.blocks, place, INDEX, s.state[BLOCKS])
        s.state[BLOCKS] += 1
    index = get(s.blocks, place, INDEX)
    was = np.int64(s.pages[index, i])
    s.pages[index, i] = was | bits
    if bits & ~was & IN:
        s.state[PAGES_IN] += 1
        put(s.blocks, place, COUNT_IN, get(s.blocks, place, COUNT_IN) + 1)
    if bits & ~was & DEVICE:
        put(s.blocks, place, COUNT_DEVICE, get(s.blocks, place, COUNT_DEVICE) + 1)
    if bits & ~was & EVER:
        put(s.blocks, place, COUNT_EVER, get(s.blocks, place, COUNT_EVER) + 1)
    return was


@jit_plain
def sweep(s, start, end, gone):  # type: ignore[no-untyped-def]
    """Clear the bits ``gone`` of the pages in ``[start, end)``, bytes; how many were IN, and DEVICE, before."""
    first, last = start >> s.state[PAGE_SHIFT], (end - 1) >> s.state[PAGE_SHIFT]
    were_in, were_device = 0, 0
    place = first_block(s, first)
    while place != NONE:
        base, index = get(s.blocks, place, BLOCK) << BLOCK_SHIFT, get(s.blocks, place, INDEX)
        if base > last:
            break
        low, high = max(first - base, 0), min(last - base, BLOCK_PAGES - 1)
        n_in, n_device = get(s.blocks, place, COUNT_IN), get(s.blocks, place, COUNT_DEVICE)
        found = (IN if n_in else NOTHING) | (DEVICE if n_device else NOTHING)
        if found and (gone & found or high - low < BLOCK_PAGES - 1):
            n_in, n_device = 0, 0
            for i in range(low, high + 1):
                was = np.int64(s.pages[index, i])
                n_in += (was & IN) != 0
                n_device += (was & DEVICE) != 0
                s.pages[index, i] = was & ~gone
            if gone & IN:
                put(s.blocks, place, COUNT_IN, get(s.blocks, place, COUNT_IN) - n_in)
                s.state[PAGES_IN] -= n_in
            if gone & DEVICE:
                put(s.blocks, place, COUNT_DEVICE, get(s.blocks, place, COUNT_DEVICE) - n_device)
        were_in += n_in
        were_device += n_device
        place = following(s.blocks, place)
    return were_in, were_device


@jit_plain
def move_pages(s, old, new, size):  # type: ignore[no-untyped-def]
    """The pages in ``[old, old + size)`` are at ``new`` from now on (move_page_tables); the device's are not."""
    shift = s.state[PAGE_SHIFT]
    at, end, distance = old >> shift, (old + size) >> shift, (new - old) >> shift
    while at < end:
        place = first_block(s, at)
        if place == NONE:
            break
        base, index = get(s.blocks, place, BLOCK) << BLOCK_SHIFT, get(s.blocks, place, INDEX)
        for page in range(max(at, base), min(base + BLOCK_PAGES, end)):
            was = np.int64(s.pages[index, page - base])
            if was & IN:
                s.pages[index, page - base] = was & ~IN
                place = floor(s.blocks, base >> BLOCK_SHIFT)
                put(s.blocks, place, COUNT_IN, get(s.blocks, place, COUNT_IN) - 1)
                s.state[PAGES_IN] -= 1
                touch(s, page + distance, IN)
        at = base + BLOCK_PAGES


@jit_plain
def census(s, by_kind):  # type: ignore[no-untyped-def]
    """How the address space stands.

    :param by_kind: gets VMAs, VMAs with a page that is in, bytes, pages that are in; axes: kind, these
    """
    place = following(s.vmas, NONE)
    while place != NONE:
        start, end = get(s.vmas, place, START), get(s.vmas, place, END)
        found, _ = sweep(s, start, end, NOTHING)
        line = kind_at(s, place)
        by_kind[line, 0] += 1
        by_kind[line, 1] += found > 0
        by_kind[line, 2] += end - start
        by_kind[line, 3] += found
        place = following(s.vmas, place)


@jit_plain
def count_pages(pages, indices, bit, number):  # type: ignore[no-untyped-def]
    """How many pages have a bit; axes of ``number``: block, as in ``indices``; equal parts of it."""
    part = BLOCK_PAGES // number.shape[1]
    for i in range(len(indices)):
        for j in range(BLOCK_PAGES):
            number[i, j // part] += (pages[indices[i], j] & bit) != 0


def at_birth(s: Space) -> None:
    """The address space becomes a child's: nothing was touched by it, everything is copy-on-write."""
    s.pages[:] &= IN.astype(np.uint8)
    used = s.blocks[: s.blocks[0, ordered.ROOM, ordered.USED], ordered.ROOM, ordered.ORDER]
    s.blocks[used, : ordered.ROOM, COUNT_DEVICE:] = 0
