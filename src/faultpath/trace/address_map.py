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

from faultpath.jit import jit
from faultpath.trace import ordered
from faultpath.trace.ordered import NONE, Table, floor, following, insert, remove, row, set_key

PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4
READ_WRITE = np.int64(PROT_READ | PROT_WRITE)
MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MAP_GROWSDOWN = 0x01, 0x02, 0x20, 0x100
# Not in a trace: the heap of brk; a mapping that only its faults tell of.
HEAP, INFERRED = 1 << 29, 1 << 30
OF_FAULTS = np.int64(MAP_PRIVATE | MAP_ANONYMOUS | INFERRED)
OF_BRK = np.int64(MAP_PRIVATE | MAP_ANONYMOUS | HEAP)

STACK_LIMIT = 8 << 20  # RLIMIT_STACK's usual soft limit: how far a stack VMA may grow

# Words of a VMA: [START, END) in bytes, PROT_* and MAP_* bits, the number of the call that mapped it, when (ns).
START, END, PROT, FLAGS, ORIGIN, BORN, VMA_WORDS = range(7)

# A block is 512 pages; its words: page number / 512, where its pages lie, how many are IN, and DEVICE.
BLOCK_SHIFT = 9
BLOCK_PAGES = 1 << BLOCK_SHIFT
BLOCK, INDEX, COUNT_IN, COUNT_DEVICE, BLOCK_WORDS = range(5)

# Bits of a page: touched at this address at any time; in; the CPU may write it without a fault; touched since the last
# invalidation of it: what a device that follows the process's faults would have mapped. Typed, as other constants are
# that functions are called with: numba compiles a function once for each plain integer it is called with.
EVER, IN, WRITABLE, DEVICE, NOTHING = (np.int64(bit) for bit in (1, 2, 4, 8, 0))

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
    return Space(
        ordered.table(VMA_WORDS), ordered.table(BLOCK_WORDS), np.zeros((64, BLOCK_PAGES), np.uint8), state
    )


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


@jit
def kind(prot, flags):  # type: ignore[no-untyped-def]
    """An index of KINDS."""
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


@jit
def first_vma(s, start, end):  # type: ignore[no-untyped-def]
    """The place of the first VMA that meets ``[start, end)``, or NONE."""
    place = floor(s.vmas, start)
    if place == NONE or row(s.vmas, place)[END] <= start:
        place = following(s.vmas, place)
        if place != NONE and row(s.vmas, place)[START] >= end:
            return NONE
    return place


@jit
def cut(s, start, end, unmapped):  # type: ignore[no-untyped-def]
    """Take ``[start, end)`` out of every VMA: some go, some shrink, one may be split.

    :param unmapped: count how old those were that went
    """
    state = s.state
    place = first_vma(s, start, end)
    while place != NONE:
        v = row(s.vmas, place)
        low, high, prot = v[START], v[END], v[PROT]
        if low >= end:
            break
        state[ACCESSIBLE if prot else RESERVED] -= min(high, end) - max(low, start)
        if low < start:
            v[END] = start
            if high > end:
                flags, origin, born = v[FLAGS], v[ORIGIN], v[BORN]
                upper = row(s.vmas, insert(s.vmas, end))
                upper[END], upper[PROT], upper[FLAGS], upper[ORIGIN], upper[BORN] = high, prot, flags, origin, born
                state[VMAS] += 1
                state[MADE] += 1
                break
            place = following(s.vmas, place)
        elif high > end:
            set_key(s.vmas, place, end)
            break
        else:
            age = 0
            while age < len(AGES) and state[NOW] - v[BORN] >= AGES[age]:
                age += 1
            state[AGE + age] += unmapped
            state[VMAS] -= 1
            state[GONE] += 1
            place = remove(s.vmas, place)


@jit
def add(s, start, end, prot, flags, origin, born):  # type: ignore[no-untyped-def]
    """Map ``[start, end)``, where nothing is, and merge it with its neighbours."""
    state = s.state
    state[ACCESSIBLE if prot else RESERVED] += end - start
    private = flags & MAP_ANONYMOUS and not flags & MAP_SHARED
    place = floor(s.vmas, start)
    merged = False
    if place != NONE:
        v = row(s.vmas, place)
        same = v[PROT] == prot and v[FLAGS] == flags and (private or v[ORIGIN] == origin)
        if same and v[END] == start:
            v[END] = end
            merged = True
    after = following(s.vmas, place)
    if after != NONE:
        w = row(s.vmas, after)
        same = w[PROT] == prot and w[FLAGS] == flags and (private or w[ORIGIN] == origin)
        if same and w[START] == end:
            if merged:
                v = row(s.vmas, place)
                v[END], v[BORN] = w[END], min(v[BORN], w[BORN])
                remove(s.vmas, after)
                state[VMAS] -= 1
                state[GONE] += 1
            else:
                w[BORN] = min(born, w[BORN])
                set_key(s.vmas, after, start)
                merged = True
    if not merged:
        v = row(s.vmas, insert(s.vmas, start))
        v[END], v[PROT], v[FLAGS], v[ORIGIN], v[BORN] = end, prot, flags, origin, born
        state[VMAS] += 1
        state[MADE] += 1


@jit
def protect(s, start, end, prot):  # type: ignore[no-untyped-def]
    """Give ``[start, end)`` new protection (mprotect_fixup). What only faults told of is a known mapping afterwards."""
    state = s.state
    vmas, made, gone = state[VMAS], state[MADE], state[GONE]
    place = first_vma(s, start, end)
    while place != NONE:
        v = row(s.vmas, place)
        if v[START] >= end:
            break
        first, upto = max(v[START], start), min(v[END], end)
        flags, origin, born = v[FLAGS] & ~INFERRED, v[ORIGIN], v[BORN]
        if v[PROT] != prot or v[FLAGS] != flags:
            cut(s, first, upto, False)
            add(s, first, upto, prot, flags, origin, born)
            place = first_vma(s, upto, end) if upto < end else NONE
        else:
            place = following(s.vmas, place)
    # A VMA that only changed its protection was neither made nor gone.
    change = state[VMAS] - vmas
    state[MADE], state[GONE] = made + max(change, 0), gone + max(-change, 0)


@jit
def vma_of_fault(s, page):  # type: ignore[no-untyped-def]
    """The place of the VMA of the page at an address: there was one, for it was touched.

    A stack above grows down to it (acct_stack_growth); else a mapping is inferred, of that page alone.
    """
    place = floor(s.vmas, page)
    if place != NONE and row(s.vmas, place)[END] > page:
        return place
    above = following(s.vmas, place)
    if above != NONE:
        v = row(s.vmas, above)
        if v[FLAGS] & MAP_GROWSDOWN and v[END] - page <= STACK_LIMIT:
            s.state[ACCESSIBLE if v[PROT] else RESERVED] += v[START] - page
            set_key(s.vmas, above, page)
            return above
    made, gone = s.state[MADE], s.state[GONE]
    add(s, page, page + (1 << s.state[PAGE_SHIFT]), READ_WRITE, OF_FAULTS, NOTHING, s.state[NOW])
    s.state[MADE], s.state[GONE] = made, gone  # found, not made
    return floor(s.vmas, page)


# --- pages


@jit
def first_block(s, page):  # type: ignore[no-untyped-def]
    """The place of the first block not below that of page number ``page``, or NONE."""
    place = floor(s.blocks, page >> BLOCK_SHIFT)
    if place == NONE or row(s.blocks, place)[BLOCK] < page >> BLOCK_SHIFT:
        place = following(s.blocks, place)
    return place


@jit
def touch(s, page, bits):  # type: ignore[no-untyped-def]
    """Set bits of page number ``page``, in a new block if it has none; what they were."""
    number, i = page >> BLOCK_SHIFT, page & (BLOCK_PAGES - 1)
    place = floor(s.blocks, number)
    if place == NONE or row(s.blocks, place)[BLOCK] != number:
        place = insert(s.blocks, number)
        row(s.blocks, place)[INDEX] = s.state[BLOCKS]
        s.state[BLOCKS] += 1
    b = row(s.blocks, place)
    was = np.int64(s.pages[b[INDEX], i])
    s.pages[b[INDEX], i] = was | bits
    new_in = (bits & ~was & IN) != 0
    b[COUNT_IN] += new_in
    s.state[PAGES_IN] += new_in
    b[COUNT_DEVICE] += (bits & ~was & DEVICE) != 0
    return was


@jit
def sweep(s, start, end, gone):  # type: ignore[no-untyped-def]
    """Clear the bits ``gone`` of the pages in ``[start, end)``, bytes; how many were IN, and DEVICE, before."""
    first, last = start >> s.state[PAGE_SHIFT], (end - 1) >> s.state[PAGE_SHIFT]
    were_in, were_device = 0, 0
    place = first_block(s, first)
    while place != NONE:
        b = row(s.blocks, place)
        base = b[BLOCK] << BLOCK_SHIFT
        if base > last:
            break
        low, high = max(first - base, 0), min(last - base, BLOCK_PAGES - 1)
        n_in, n_device = b[COUNT_IN], b[COUNT_DEVICE]
        found = (IN if n_in else NOTHING) | (WRITABLE if n_in else NOTHING) | (DEVICE if n_device else NOTHING)
        if found and (gone & found or high - low < BLOCK_PAGES - 1):
            n_in, n_device = 0, 0
            for i in range(low, high + 1):
                was = np.int64(s.pages[b[INDEX], i])
                n_in += (was & IN) != 0
                n_device += (was & DEVICE) != 0
                s.pages[b[INDEX], i] = was & ~gone
            if gone & IN:
                b[COUNT_IN] -= n_in
                s.state[PAGES_IN] -= n_in
            if gone & DEVICE:
                b[COUNT_DEVICE] -= n_device
        were_in += n_in
        were_device += n_device
        place = following(s.blocks, place)
    return were_in, were_device


@jit
def move_pages(s, old, new, size):  # type: ignore[no-untyped-def]
    """The pages in ``[old, old + size)`` are at ``new`` from now on (move_page_tables); the device's are not."""
    shift = s.state[PAGE_SHIFT]
    at, end, distance = old >> shift, (old + size) >> shift, (new - old) >> shift
    while at < end:
        place = first_block(s, at)
        if place == NONE:
            break
        base, index = row(s.blocks, place)[BLOCK] << BLOCK_SHIFT, row(s.blocks, place)[INDEX]
        for page in range(max(at, base), min(base + BLOCK_PAGES, end)):
            was = np.int64(s.pages[index, page - base])
            if was & IN:
                s.pages[index, page - base] = was & ~(IN | WRITABLE)
                row(s.blocks, floor(s.blocks, base >> BLOCK_SHIFT))[COUNT_IN] -= 1
                s.state[PAGES_IN] -= 1
                touch(s, page + distance, was & (IN | WRITABLE))
        at = base + BLOCK_PAGES


@jit
def census(s, by_kind):  # type: ignore[no-untyped-def]
    """How the address space stands.

    :param by_kind: gets VMAs, VMAs with a page that is in, bytes, pages that are in; axes: kind, these
    """
    place = following(s.vmas, NONE)
    while place != NONE:
        v = row(s.vmas, place)
        found, _ = sweep(s, v[START], v[END], NOTHING)
        line = by_kind[kind(v[PROT], v[FLAGS])]
        line[0] += 1
        line[1] += found > 0
        line[2] += v[END] - v[START]
        line[3] += found
        place = following(s.vmas, place)


def at_birth(s: Space) -> None:
    """The address space becomes a child's: nothing was touched by it, everything is copy-on-write."""
    s.pages[:] &= IN.astype(np.uint8)
    used = s.blocks[: s.blocks[0, ordered.ROOM, ordered.USED], ordered.ROOM, ordered.ORDER]
    s.blocks[used, : ordered.ROOM, COUNT_DEVICE] = 0
