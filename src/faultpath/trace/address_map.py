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

PROT_WRITE, PROT_EXEC = 2, 4
MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MAP_GROWSDOWN = 0x01, 0x02, 0x20, 0x100
# Not in a trace: the heap of brk; a mapping that only its faults tell of.
HEAP, INFERRED = 1 << 29, 1 << 30

STACK_LIMIT = 8 << 20  # RLIMIT_STACK's usual soft limit: how far a stack VMA may grow

# Words of a VMA: [START, END) in bytes, PROT_* and MAP_* bits, the number of the call that mapped it, when (ns).
START, END, PROT, FLAGS, ORIGIN, BORN, VMA_WORDS = range(7)

# A block is 512 pages; its words: page number / 512, where its pages lie, how many are IN, and DEVICE.
BLOCK_SHIFT = 9
BLOCK_PAGES = 1 << BLOCK_SHIFT
BLOCK, INDEX, COUNT_IN, COUNT_DEVICE, BLOCK_WORDS = range(5)

# Bits of a page: touched at this address at any time; in; the CPU may write it without a fault; touched since the last
# invalidation of it: what a device that follows the process's faults would have mapped.
EVER, IN, WRITABLE, DEVICE = 1, 2, 4, 8

# Words of ``state``. Bytes by protection, VMAs, and pages that are IN, as they are now; the rest counts from the start.
(PAGE_SHIFT, NOW, BRK, ORIGINS, BLOCKS, ACCESSIBLE, RESERVED, VMAS, PAGES_IN,
 MADE, GONE, PAGES_UNMAPPED, STATE_WORDS) = range(13)  # fmt: skip

#: Kinds of mappings, as pmap shows them; each number is an index.
KINDS = (
    "unmapped",
    "heap",
    "stack",
    "anonymous",
    "anonymous_code",
    "anonymous_shared",
    "file",
    "file_code",
    "file_shared",
    "reserved",
    "inferred",
)
_UNMAPPED, _HEAP, _STACK, _ANON, _ANON_CODE, _ANON_SHARED, _FILE, _FILE_CODE, _FILE_SHARED, _RESERVED, _INFERRED = (
    range(len(KINDS))
)
#: VMAs that were unmapped, by age: each limit (ns) is above, the last class has none.
AGES = tuple(10**n for n in range(6, 11))


class Space(NamedTuple):
    """One address space.

    :ivar pages: bits by block (its INDEX word) and page
    :ivar lifetimes: VMAs that went whole, by age
    """

    vmas: Table
    blocks: Table
    pages: NDArray[np.uint8]
    state: NDArray[np.int64]
    lifetimes: NDArray[np.int64]


def space(page_size: int) -> Space:
    """An empty one."""
    state = np.zeros(STATE_WORDS, np.int64)
    state[PAGE_SHIFT] = page_size.bit_length() - 1
    return Space(
        ordered.table(VMA_WORDS),
        ordered.table(BLOCK_WORDS),
        np.zeros((64, BLOCK_PAGES), np.uint8),
        state,
        np.zeros(len(AGES) + 1, np.int64),
    )


VMAS_PER_ROW = 8  # at most, that one row of a trace makes


@jit
def has_room(s, blocks):  # type: ignore[no-untyped-def]
    """Whether any row can be done that makes no more than so many blocks."""
    return not (
        ordered.lacks(s.vmas, VMAS_PER_ROW)
        or ordered.lacks(s.blocks, blocks)
        or s.state[BLOCKS] + blocks > len(s.pages)
    )


def with_room(s: Space, blocks: int) -> Space:
    """The same space so that it has room."""
    while ordered.lacks(s.vmas, VMAS_PER_ROW):
        s = s._replace(vmas=ordered.grown(s.vmas, 2 * len(s.vmas.order)))
    while ordered.lacks(s.blocks, blocks):
        s = s._replace(blocks=ordered.grown(s.blocks, 2 * len(s.blocks.order)))
    if s.state[BLOCKS] + blocks > len(s.pages):
        pages = np.zeros((2 * (int(s.state[BLOCKS]) + blocks), BLOCK_PAGES), np.uint8)
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
        if flags & MAP_SHARED:
            return _ANON_SHARED
        return _ANON_CODE if prot & PROT_EXEC else _ANON
    if flags & MAP_SHARED:
        return _FILE_SHARED
    return _FILE_CODE if prot & PROT_EXEC else _FILE


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
def _weigh(s, prot, size):  # type: ignore[no-untyped-def]
    s.state[ACCESSIBLE if prot else RESERVED] += size


@jit
def _made(s):  # type: ignore[no-untyped-def]
    s.state[VMAS] += 1
    s.state[MADE] += 1


@jit
def _gone(s):  # type: ignore[no-untyped-def]
    s.state[VMAS] -= 1
    s.state[GONE] += 1


@jit
def cut(s, start, end):  # type: ignore[no-untyped-def]
    """Take ``[start, end)`` out of every VMA: some go, some shrink, one may be split."""
    place = floor(s.vmas, start)
    if place == NONE:
        place = following(s.vmas, place)
    elif row(s.vmas, place)[START] < start:
        v = row(s.vmas, place)
        upto = v[END]
        if upto > start:
            v[END] = start
            _weigh(s, v[PROT], start - min(upto, end))
            if upto > end:
                prot, flags, origin, born = v[PROT], v[FLAGS], v[ORIGIN], v[BORN]
                _put(s, end, upto, prot, flags, origin, born)
                return
        place = following(s.vmas, place)
    while place != NONE:
        v = row(s.vmas, place)
        if v[START] >= end:
            break
        if v[END] > end:
            _weigh(s, v[PROT], v[START] - end)
            set_key(s.vmas, place, end)
            break
        _weigh(s, v[PROT], v[START] - v[END])
        _gone(s)
        place = remove(s.vmas, place)


@jit
def _put(s, start, end, prot, flags, origin, born):  # type: ignore[no-untyped-def]
    """A VMA of its own; its bytes are the caller's to weigh."""
    v = row(s.vmas, insert(s.vmas, start))
    v[END], v[PROT], v[FLAGS], v[ORIGIN], v[BORN] = end, prot, flags, origin, born
    _made(s)


@jit
def _merges(v, prot, flags, origin):  # type: ignore[no-untyped-def]
    private = flags & MAP_ANONYMOUS and not flags & MAP_SHARED
    return v[PROT] == prot and v[FLAGS] == flags and (private or v[ORIGIN] == origin)


@jit
def add(s, start, end, prot, flags, origin, born):  # type: ignore[no-untyped-def]
    """Map ``[start, end)``, where nothing is, and merge it with its neighbours."""
    _weigh(s, prot, end - start)
    left = floor(s.vmas, start)
    right = following(s.vmas, left)
    with_left, with_right = False, False
    if left != NONE:
        v = row(s.vmas, left)
        with_left = v[END] == start and _merges(v, prot, flags, origin)
    if right != NONE:
        v = row(s.vmas, right)
        with_right = v[START] == end and _merges(v, prot, flags, origin)
        if with_right and with_left:
            end = v[END]
            born = min(born, v[BORN])
            remove(s.vmas, right)
            _gone(s)
        elif with_right:
            v[BORN] = min(born, v[BORN])
            set_key(s.vmas, right, start)
    if with_left:
        v = row(s.vmas, left)
        v[END] = end
        v[BORN] = min(born, v[BORN])
    elif not with_right:
        _put(s, start, end, prot, flags, origin, born)


@jit
def map_new(s, start, end, prot, flags):  # type: ignore[no-untyped-def]
    """A mapping of a call of its own, where nothing is."""
    s.state[ORIGINS] += 1
    add(s, start, end, prot, flags, s.state[ORIGINS], s.state[NOW])


@jit
def protect(s, start, end, prot):  # type: ignore[no-untyped-def]
    """Give ``[start, end)`` new protection (mprotect_fixup). What only faults told of is a known mapping afterwards."""
    vmas, made, gone = s.state[VMAS], s.state[MADE], s.state[GONE]
    upto = start
    while upto < end:
        place = first_vma(s, upto, end)
        if place == NONE:
            break
        v = row(s.vmas, place)
        first, upto = max(v[START], start), min(v[END], end)
        flags, origin, born = v[FLAGS] & ~INFERRED, v[ORIGIN], v[BORN]
        if v[PROT] != prot or v[FLAGS] != flags:
            cut(s, first, upto)
            add(s, first, upto, prot, flags, origin, born)
    # A VMA that only changed its protection was neither made nor gone.
    change = s.state[VMAS] - vmas
    s.state[MADE], s.state[GONE] = made + max(change, 0), gone + max(-change, 0)


@jit
def bury(s, start, end):  # type: ignore[no-untyped-def]
    """Count the age of every VMA that lies in ``[start, end)`` and is about to be unmapped."""
    place = first_vma(s, start, end)
    while place != NONE:
        v = row(s.vmas, place)
        if v[START] >= end:
            break
        if v[START] >= start and v[END] <= end:
            age = 0
            while age < len(AGES) and s.state[NOW] - v[BORN] >= AGES[age]:
                age += 1
            s.lifetimes[age] += 1
        place = following(s.vmas, place)


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
            _weigh(s, v[PROT], v[START] - page)
            set_key(s.vmas, above, page)
            return above
    add(s, page, page + (1 << s.state[PAGE_SHIFT]), 3, MAP_PRIVATE | MAP_ANONYMOUS | INFERRED, 0, s.state[NOW])
    return floor(s.vmas, page)


# --- pages


@jit
def block_of(s, page):  # type: ignore[no-untyped-def]
    """The place of the block of page number ``page``, made if it is new."""
    number = page >> BLOCK_SHIFT
    place = floor(s.blocks, number)
    if place == NONE or row(s.blocks, place)[BLOCK] != number:
        place = insert(s.blocks, number)
        row(s.blocks, place)[INDEX] = s.state[BLOCKS]
        s.state[BLOCKS] += 1
    return place


@jit
def touch(s, page, bits):  # type: ignore[no-untyped-def]
    """Set bits of page number ``page``; what they were."""
    b = row(s.blocks, block_of(s, page))
    pages = s.pages[b[INDEX]]
    was = np.int64(pages[page & (BLOCK_PAGES - 1)])
    pages[page & (BLOCK_PAGES - 1)] = was | bits
    news = bits & ~was
    if news & IN:
        b[COUNT_IN] += 1
        s.state[PAGES_IN] += 1
    if news & DEVICE:
        b[COUNT_DEVICE] += 1
    return was


@jit
def sweep(s, start, end, gone):  # type: ignore[no-untyped-def]
    """Clear the bits ``gone`` of the pages in ``[start, end)``, bytes; how many were IN, and DEVICE, before."""
    first, last = start >> s.state[PAGE_SHIFT], (end - 1) >> s.state[PAGE_SHIFT]
    were_in, were_device = 0, 0
    place = floor(s.blocks, first >> BLOCK_SHIFT)
    if place == NONE or row(s.blocks, place)[BLOCK] < first >> BLOCK_SHIFT:
        place = following(s.blocks, place)
    while place != NONE:
        b = row(s.blocks, place)
        base = b[BLOCK] << BLOCK_SHIFT
        if base > last:
            break
        low, high = max(first - base, 0), min(last - base, BLOCK_PAGES - 1)
        whole = high - low == BLOCK_PAGES - 1
        if not b[COUNT_IN] and not b[COUNT_DEVICE]:
            pass
        elif whole and not (gone & IN and b[COUNT_IN]) and not (gone & DEVICE and b[COUNT_DEVICE]) and gone != WRITABLE:
            were_in += b[COUNT_IN]
            were_device += b[COUNT_DEVICE]
        else:
            n_in, n_device = 0, 0
            pages = s.pages[b[INDEX]]
            for i in range(low, high + 1):
                was = np.int64(pages[i])
                n_in += (was & IN) != 0
                n_device += (was & DEVICE) != 0
                pages[i] = was & ~gone
            were_in += n_in
            were_device += n_device
            if gone & IN:
                b[COUNT_IN] -= n_in
                s.state[PAGES_IN] -= n_in
            if gone & DEVICE:
                b[COUNT_DEVICE] -= n_device
        place = following(s.blocks, place)
    return were_in, were_device


@jit
def move_pages(s, old, new, size):  # type: ignore[no-untyped-def]
    """The pages in ``[old, old + size)`` are at ``new`` from now on (move_page_tables); the device's are not."""
    shift = s.state[PAGE_SHIFT]
    at, end, distance = old >> shift, (old + size) >> shift, (new - old) >> shift
    while at < end:
        place = floor(s.blocks, at >> BLOCK_SHIFT)
        if place == NONE or row(s.blocks, place)[BLOCK] < at >> BLOCK_SHIFT:
            place = following(s.blocks, place)
            if place == NONE:
                break
        b = row(s.blocks, place)
        base, index = b[BLOCK] << BLOCK_SHIFT, b[INDEX]
        at = max(at, base)
        upto = min(base + BLOCK_PAGES, end)
        while at < upto:
            was = np.int64(s.pages[index, at - base])
            if was & IN:
                s.pages[index, at - base] = was & ~(IN | WRITABLE)
                row(s.blocks, floor(s.blocks, base >> BLOCK_SHIFT))[COUNT_IN] -= 1
                s.state[PAGES_IN] -= 1
                touch(s, at + distance, was & (IN | WRITABLE))
            at += 1
    return


@jit
def at_birth(s):  # type: ignore[no-untyped-def]
    """The address space becomes a child's: nothing was touched by it, everything is copy-on-write."""
    place = following(s.blocks, NONE)
    while place != NONE:
        b = row(s.blocks, place)
        for i in range(BLOCK_PAGES):
            s.pages[b[INDEX], i] &= IN
        b[COUNT_DEVICE] = 0
        place = following(s.blocks, place)


@jit
def census(s, by_kind):  # type: ignore[no-untyped-def]
    """How the address space stands.

    :param by_kind: gets VMAs, VMAs with a page that is in, bytes, pages that are in; axes: kind, these
    """
    place = following(s.vmas, NONE)
    while place != NONE:
        v = row(s.vmas, place)
        found, _ = sweep(s, v[START], v[END], 0)
        line = by_kind[kind(v[PROT], v[FLAGS])]
        line[0] += 1
        line[1] += found > 0
        line[2] += v[END] - v[START]
        line[3] += found
        place = following(s.vmas, place)
