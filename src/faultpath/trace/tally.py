"""What is counted while a process's rows go through its address map: jitted, row by row."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from faultpath.jit import jit_plain
from faultpath.trace import address_map as am
from faultpath.trace import ordered
from faultpath.trace.address_map import (
    BRK,
    DEVICE,
    END,
    EVER,
    FLAGS,
    IN,
    KINDS,
    MAP_ANONYMOUS,
    MAP_GROWSDOWN,
    MAP_PRIVATE,
    MAP_SHARED,
    NOTHING,
    NOW,
    OF_BRK,
    ORIGIN,
    PAGE_SHIFT,
    PAGES_UNMAPPED,
    PROT,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    READ_WRITE,
    START,
    Space,
)
from faultpath.trace.ops import PF_WRITE, Event, Op
from faultpath.trace.ordered import NONE, floor, get, put

# Typed: see address_map.
(_FAULT, _ACCESS, _VMA, _MMAP, _MUNMAP, _MREMAP, _MPROTECT, _MADVISE, _BRK, _FORK, _EXEC, _EXIT, _INVALIDATE) = (
    np.int64(op)
    for op in (
        Op.FAULT, Op.ACCESS, Op.VMA, Op.MMAP, Op.MUNMAP, Op.MREMAP, Op.MPROTECT, Op.MADVISE, Op.BRK, Op.FORK, Op.EXEC,
        Op.EXIT, Op.INVALIDATE,
    )
)  # fmt: skip
_UNMAP, _CLEAR, _PROTECTION_VMA, _PROTECTION_PAGE = (
    np.int64(event) for event in (Event.UNMAP, Event.CLEAR, Event.PROTECTION_VMA, Event.PROTECTION_PAGE)
)

OPS = max(Op) + 1
EVENTS = max(Event) + 1
ADVICES = 27  # MADV_COLLAPSE is 25; the last is any other
CALLS = (Op.MMAP, Op.MUNMAP, Op.MREMAP, Op.MPROTECT, Op.MADVISE, Op.MBIND, Op.BRK, Op.FORK)

PROT_MASK = PROT_READ | PROT_WRITE | PROT_EXEC
MMAP_MIN_ADDR = 65536  # vm.mmap_min_addr: nothing is ever mapped below
MREMAP_DONTUNMAP = 4
MADV_DONTNEED, MADV_FREE, MADV_REMOVE, MADV_PAGEOUT, MADV_DONTNEED_LOCKED = 4, 8, 9, 21, 24
CLONE_VM = 0x100
HUGE_SHIFT = 21  # 2 MiB, what a PMD maps with pages of 4 KiB

#: Classes of invalidations by their pages; an aligned 2 MiB and the whole address space are their own.
SIZES = ("1", "2-15", "16-511", "2MiB", "512-", "all")
WHOLE = 1 << 46  # bytes: half of user space with four-level paging

#: What is counted of invalidations: how many; of them over a page that is IN, and over one that is DEVICE; bytes; pages
#: IN, and DEVICE.
COUNTED = ("count", "touched", "useful", "bytes", "pages_touched", "pages_useful")

#: What a fault (or a device's access) met: an address never touched; one whose page had been unmapped or discarded; a
#: page still in, but invalidated since it was last touched; one not invalidated since (a read, then a write; two
#: threads); no mapping, or one that forbids it.
MET = ("first", "unmapped", "invalidated", "present", "refused")
_FIRST, _GONE, _INVALIDATED, _PRESENT, _REFUSED = range(len(MET))

# Words of a hot place: its key (address / 2 MiB, and kind), the lowest address and the end of what was invalidated in
# it, COUNTED, and how many by event.
KIND_SHIFT = 4
HOT_KEY, HOT_LOW, HOT_HIGH, HOT_COUNTED = map(np.int64, range(4))
HOT_EVENT = HOT_COUNTED + len(COUNTED)
HOT_WORDS = int(HOT_EVENT) + EVENTS

#: Words of a time slice: its end (ns), how things stood then, what happened in it.
SLICE = ("end_ns", "vmas", "mapped_bytes", "reserved_bytes", "touched_pages",
         "faults", "first_touches", "calls", "invalidations", "useful", "vmas_made", "vmas_gone")  # fmt: skip
(_S_END, _S_VMAS, _S_MAPPED, _S_RESERVED, _S_TOUCHED,
 _S_FAULTS, _S_FIRST, _S_CALLS, _S_INVALIDATIONS, _S_USEFUL, _S_MADE, _S_GONE) = range(len(SLICE))  # fmt: skip

#: Highest values, each with its time.
PEAKS = ("vmas", "mapped_bytes", "touched_pages")

# Words of ``numbers``.
AT, SLICE_AT, RECORDED, PEAK = range(4)
CALL = PEAK + 2 * len(PEAKS)
ADVICE = CALL + OPS
NUMBERS = ADVICE + ADVICES

DONE, NO_ROOM, SLICE_ENDS, SPACE_ENDS = range(4)


class Tally(NamedTuple):
    """Counts.

    :ivar hot: places of 2 MiB in which invalidations begin
    :ivar counted: axes: event, op it was raised in and class of SIZES, as one; COUNTED
    :ivar by_kind: of the first mapping that an invalidation meets; axes: kind, COUNTED
    :ivar faults: axes: kind, MET
    :ivar slices: axes: slice, SLICE
    :ivar numbers: the next row, the slice it falls in; whether the device accesses are the trace's own; PEAKS, value
        and time; calls by op; madvise by advice
    """

    hot: ordered.Table
    counted: NDArray[np.int64]
    by_kind: NDArray[np.int64]
    faults: NDArray[np.int64]
    slices: NDArray[np.int64]
    numbers: NDArray[np.int64]


def tally(ends: list[int], recorded: bool) -> Tally:
    """All zero.

    :param ends: of the time slices, ns
    """
    slices = np.zeros((len(ends), len(SLICE)), np.int64)
    slices[:, _S_END] = ends
    numbers = np.zeros(NUMBERS, np.int64)
    numbers[RECORDED] = recorded
    return Tally(
        ordered.table(HOT_WORDS),
        np.zeros((EVENTS * OPS * len(SIZES), len(COUNTED)), np.int64),
        np.zeros((len(KINDS), len(COUNTED)), np.int64),
        np.zeros((len(KINDS), len(MET)), np.int64),
        slices,
        numbers,
    )


def with_room(t: Tally) -> Tally:
    """The same with room for the hot place of a row."""
    return t._replace(hot=ordered.grown(t.hot)) if ordered.lacks(t.hot, 1) else t


@jit_plain
def invalidated(s, t, start, end, event, op):  # type: ignore[no-untyped-def]
    """An invalidation of ``[start, end)``, before the call it was raised in has changed anything."""
    pages_in, pages_device = am.sweep(s, start, end, DEVICE)
    place = am.first_vma(s, start, end)
    kind, low, high = 0, start, end
    if place != NONE:
        kind = am.kind_at(s, place)
        low, high = max(start, get(s.vmas, place, START)), min(end, get(s.vmas, place, END))
    key = (low >> HUGE_SHIFT) << KIND_SHIFT | kind
    place = floor(t.hot, key)
    if place == NONE or get(t.hot, place, HOT_KEY) != key:
        place = ordered.insert(t.hot, key)
        put(t.hot, place, HOT_LOW, low)
    put(t.hot, place, HOT_LOW, min(get(t.hot, place, HOT_LOW), low))
    put(t.hot, place, HOT_HIGH, max(get(t.hot, place, HOT_HIGH), high))
    put(t.hot, place, HOT_EVENT + event, get(t.hot, place, HOT_EVENT + event) + 1)
    pages = (end - start) >> s.state[PAGE_SHIFT]
    size = 0 if pages == 1 else 1 if pages < 16 else 2 if pages < 512 else 4
    if end - start == 1 << HUGE_SHIFT and not start & ((1 << HUGE_SHIFT) - 1):
        size = 3
    elif end - start >= WHOLE:
        size = 5
    line = (event * OPS + op) * len(SIZES) + size
    for i, n in enumerate((1, int(pages_in > 0), int(pages_device > 0), end - start, pages_in, pages_device)):
        t.counted[line, i] += n
        t.by_kind[kind, i] += n
        put(t.hot, place, HOT_COUNTED + i, get(t.hot, place, HOT_COUNTED + i) + n)
    t.slices[t.numbers[SLICE_AT], _S_INVALIDATIONS] += 1
    t.slices[t.numbers[SLICE_AT], _S_USEFUL] += pages_device > 0


@jit_plain
def touched(s, t, op, addr, write):  # type: ignore[no-untyped-def]
    """The process (FAULT) or the device (ACCESS) touches a page."""
    shift, line = s.state[PAGE_SHIFT], t.numbers[SLICE_AT]
    start = addr >> shift << shift
    t.slices[line, _S_FAULTS] += 1
    if start < MMAP_MIN_ADDR:
        t.faults[0, _REFUSED] += 1  # SIGSEGV: a JVM does this on purpose when it starts
        return
    place = floor(s.vmas, start)
    if place == NONE or get(s.vmas, place, END) <= start:
        place = am.new_vma_of_fault(s, start)
    kind, prot = am.kind_at(s, place), get(s.vmas, place, PROT)
    if not prot or (write and not prot & PROT_WRITE):
        t.faults[kind, _REFUSED] += 1
        return
    mapped = op == _ACCESS or not t.numbers[RECORDED]
    was = am.touch(s, addr >> shift, IN | EVER | (DEVICE if mapped else NOTHING))
    met = _FIRST if not was & EVER else _GONE if not was & IN else _PRESENT if was & DEVICE else _INVALIDATED
    t.slices[line, _S_FIRST] += met == _FIRST
    t.faults[kind, met] += 1


@jit_plain
def call(s, t, op, addr, size, arg, aux):  # type: ignore[no-untyped-def]
    """A memory call, at its successful exit: it unmaps up to three ranges, moves pages before the last, maps one."""
    state, mask = s.state, (1 << s.state[PAGE_SHIFT]) - 1
    end = addr + size
    # Ranges to unmap.
    low0, end0, low1, end1, low2, end2 = addr, addr, addr, addr, addr, addr
    moved = 0
    low, high, prot, flags, origin = addr, addr, arg & PROT_MASK, NOTHING, NOTHING
    if op in (_MMAP, _VMA):
        end0, high = end, end
        flags = (MAP_SHARED if aux & MAP_SHARED else MAP_PRIVATE) | aux & (MAP_ANONYMOUS | MAP_GROWSDOWN)
    elif op == _MUNMAP:
        end0 = end
    elif op == _BRK:
        old, new = (state[BRK] + mask) & ~mask, (addr + mask) & ~mask
        known = state[BRK] > 0  # the first call only tells where the heap ends
        state[BRK] = addr
        if known and new < old:
            low0, end0 = new, old
        elif known and new > old:
            low0, end0, low, high, prot, flags = old, new, old, new, READ_WRITE, OF_BRK
            place = floor(s.vmas, old - 1)
            if place != NONE:
                here, bits = get(s.vmas, place, PROT), get(s.vmas, place, FLAGS)
                if get(s.vmas, place, END) == old and here == READ_WRITE and bits == MAP_PRIVATE | MAP_ANONYMOUS:
                    put(s.vmas, place, FLAGS, OF_BRK)  # what was there when recording began is the heap, too
    elif op == _MREMAP:
        new, new_size = arg, aux & ~mask
        prot, flags = READ_WRITE, NOTHING | MAP_PRIVATE | MAP_ANONYMOUS
        place = am.first_vma(s, addr, addr + 1)
        if place != NONE:
            prot, flags, origin = get(s.vmas, place, PROT), get(s.vmas, place, FLAGS), get(s.vmas, place, ORIGIN)
        low, high = new, new + new_size
        if new != addr:
            low0, end0, origin = new, new + new_size, NOTHING
            moved = min(size, new_size)
            if not aux & MREMAP_DONTUNMAP:
                low2, end2 = addr, addr + moved
        elif new_size > size:
            low0, end0, low = end, addr + new_size, end
        else:
            high = low
        if new_size < size:
            low1, end1 = addr + new_size, end
    elif op == _MPROTECT:
        am.protect(s, addr, end, prot)
    elif op == _MADVISE:
        t.numbers[ADVICE + (arg if 0 <= arg < ADVICES else ADVICES - 1)] += 1
        if arg in (MADV_DONTNEED, MADV_REMOVE, MADV_PAGEOUT, MADV_DONTNEED_LOCKED):
            pages_in, _ = am.sweep(s, addr, end, IN)
            state[PAGES_UNMAPPED] += pages_in
    for i in range(3):
        first, upto = low0, end0
        if i == 1:
            first, upto = low1, end1
        elif i == 2:
            first, upto = low2, end2
            if moved:
                am.move_pages(s, addr, arg, moved)
        if first < upto:
            if op != _VMA:
                pages_in, _ = am.sweep(s, first, upto, IN)
                state[PAGES_UNMAPPED] += pages_in
            am.cut(s, first, upto, op != _VMA)
    if low < high:
        state[am.ORIGINS] += 1
        am.add(s, low, high, prot, flags, origin if origin else state[am.ORIGINS], state[NOW])


@jit_plain
def run(s, t, times, ops, addrs, sizes, args, auxs):  # type: ignore[no-untyped-def]
    """Count rows from the one in ``numbers[AT]`` on.

    :returns: DONE; or, with the row in ``numbers[AT]`` not done: there is NO_ROOM, a slice has ended before it
        (SLICE_ENDS), exec or exit (SPACE_ENDS)
    """
    state, numbers = s.state, t.numbers
    for at in range(numbers[AT], len(ops)):
        now, op = times[at], np.int64(ops[at])
        numbers[AT] = at
        slice_at = numbers[SLICE_AT]
        if now >= t.slices[slice_at, _S_END] and slice_at + 1 < len(t.slices):
            return SLICE_ENDS
        if op in (_EXEC, _EXIT):
            return SPACE_ENDS
        blocks = 2 * state[am.BLOCKS] + 1 if op == _MREMAP else 1
        if (
            state[am.BLOCKS] + blocks > len(s.pages)
            or ordered.lacks(s.blocks, blocks)
            or ordered.lacks(s.vmas, am.VMAS_PER_ROW)
            or ordered.lacks(t.hot, 1)
        ):
            return NO_ROOM
        state[NOW] = now
        numbers[CALL + op] += 1
        if op in (_FAULT, _ACCESS):
            touched(s, t, op, addrs[at], args[at] & (PF_WRITE if op == _FAULT else 1))
        elif op == _INVALIDATE:
            invalidated(s, t, addrs[at], addrs[at] + sizes[at], args[at], auxs[at])
        else:
            made, gone = state[am.MADE], state[am.GONE]
            call(s, t, op, addrs[at], sizes[at], args[at], auxs[at])
            if op == _VMA:  # found, not made
                state[am.MADE], state[am.GONE] = made, gone
            t.slices[slice_at, _S_CALLS] += op != _VMA
            t.slices[slice_at, _S_MADE] += state[am.MADE] - made
            t.slices[slice_at, _S_GONE] += state[am.GONE] - gone
        for peak in range(3):
            value = state[am.VMAS if peak == 0 else am.ACCESSIBLE if peak == 1 else am.PAGES_IN]
            if value > numbers[PEAK + 2 * peak]:
                numbers[PEAK + 2 * peak], numbers[PEAK + 2 * peak + 1] = value, now
    numbers[AT] = len(ops)
    return DONE


def end_slice(s: Space, t: Tally) -> None:
    """Note how things stand, and go on with the next slice."""
    line = t.slices[t.numbers[SLICE_AT]]
    line[[_S_VMAS, _S_MAPPED, _S_RESERVED, _S_TOUCHED]] = s.state[[am.VMAS, am.ACCESSIBLE, am.RESERVED, am.PAGES_IN]]
    t.numbers[SLICE_AT] = min(t.numbers[SLICE_AT] + 1, len(t.slices) - 1)
