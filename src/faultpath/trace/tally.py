"""What is counted while a process's rows go through its address map: jitted, row by row.

Invalidations are the recorded ones; where a trace holds none they are raised by the calls as ``faultpath.kernel.mm``
raises them in a replay: one a call, over its range (docs/engine.md, Limits).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from faultpath.jit import jit
from faultpath.trace import address_map as am
from faultpath.trace import ordered
from faultpath.trace.address_map import (
    BRK,
    DEVICE,
    END,
    EVER,
    FLAGS,
    HEAP,
    IN,
    INFERRED,
    KINDS,
    MAP_ANONYMOUS,
    MAP_GROWSDOWN,
    MAP_PRIVATE,
    MAP_SHARED,
    NOW,
    ORIGIN,
    PAGE_SHIFT,
    PAGES_UNMAPPED,
    PROT,
    PROT_EXEC,
    PROT_WRITE,
    START,
    WRITABLE,
)
from faultpath.trace.ops import PF_WRITE, Event, Op
from faultpath.trace.ordered import NONE, floor, following, row
from faultpath.trace.schema import ADDRESS_LIMIT

(_FAULT, _ACCESS, _VMA, _MMAP, _MUNMAP, _MREMAP, _MPROTECT, _MADVISE, _BRK, _FORK, _EXEC, _EXIT, _INVALIDATE) = (
    int(op)
    for op in (
        Op.FAULT, Op.ACCESS, Op.VMA, Op.MMAP, Op.MUNMAP, Op.MREMAP, Op.MPROTECT, Op.MADVISE, Op.BRK, Op.FORK, Op.EXEC,
        Op.EXIT, Op.INVALIDATE,
    )
)  # fmt: skip
_UNMAP, _CLEAR, _PROTECTION_VMA, _PROTECTION_PAGE = (
    int(event) for event in (Event.UNMAP, Event.CLEAR, Event.PROTECTION_VMA, Event.PROTECTION_PAGE)
)

OPS = max(Op) + 1
EVENTS = max(Event) + 1
CALLS = (Op.MMAP, Op.MUNMAP, Op.MREMAP, Op.MPROTECT, Op.MADVISE, Op.MBIND, Op.BRK, Op.FORK)

MMAP_MIN_ADDR = 65536  # vm.mmap_min_addr: nothing is ever mapped below
MREMAP_DONTUNMAP = 4
MADV_DONTNEED, MADV_FREE, MADV_REMOVE, MADV_PAGEOUT, MADV_DONTNEED_LOCKED = 4, 8, 9, 21, 24
CLONE_VM = 0x100
HUGE_SHIFT = 21  # 2 MiB, what a PMD maps with pages of 4 KiB

#: Classes of an invalidation by its pages; an aligned 2 MiB and the whole address space are their own.
SIZES = ("1", "2-15", "16-511", "2MiB", "512-", "all")
WHOLE = 1 << 46  # bytes: half of user space with four-level paging

# What a fault (or a device's access) met: an address never touched; one whose page had been unmapped or discarded;
# a page still in, but invalidated since it was last touched; one untouched since (two threads; a read, then a write);
# no mapping, or one that forbids it.
MET = ("first", "unmapped", "invalidated", "present", "refused")
_FIRST, _UNMAPPED, _INVALIDATED, _PRESENT, _REFUSED = range(len(MET))

# What is counted of invalidations: how many; those over a page that is IN; over one that is DEVICE; bytes; pages IN;
# pages DEVICE.
COUNTED = ("count", "touched", "useful", "bytes", "pages_touched", "pages_useful")
_COUNT, _TOUCHED, _USEFUL, _BYTES, _PAGES_TOUCHED, _PAGES_USEFUL = range(len(COUNTED))

# Words of a hot place: its key (address / 2 MiB and kind), the lowest address and the end of what was invalidated in
# it, COUNTED, and how many by event.
KIND_SHIFT = 4
HOT_LOW, HOT_HIGH, HOT_COUNTED = 1, 2, 3
HOT_EVENT = HOT_COUNTED + len(COUNTED)
HOT_WORDS = HOT_EVENT + EVENTS

# Words of a time slice: what happened in it, and how things stood at its end.
SLICE = ("faults", "first_touches", "calls", "invalidations", "useful", "made", "gone", "vmas", "mapped", "reserved",
         "touched")  # fmt: skip
(_S_FAULTS, _S_FIRST, _S_CALLS, _S_INVALIDATIONS, _S_USEFUL, _S_MADE, _S_GONE, _S_VMAS, _S_MAPPED, _S_RESERVED,
 _S_TOUCHED) = range(len(SLICE))  # fmt: skip

# Peaks: of VMAs, bytes that may be accessed, and pages in; each with its time.
PEAKS = ("vmas", "mapped", "touched")

DONE, ROOM, SLICE_ENDS, ENDS = range(4)


class Tally(NamedTuple):
    """Counts.

    :ivar invalidations: axes: event, op it was raised in, class of SIZES, COUNTED
    :ivar by_kind: of the first mapping an invalidation meets; axes: kind, COUNTED
    :ivar faults: axes: kind, MET
    :ivar calls: by op
    :ivar advice: madvise calls by advice
    :ivar hot: places of 2 MiB in which invalidations begin
    :ivar bounds: ends of the time slices, ns
    :ivar slices: axes: slice, SLICE
    :ivar peaks: axes: PEAKS, value and time
    :ivar where: row in the batch, slice
    """

    invalidations: NDArray[np.int64]
    by_kind: NDArray[np.int64]
    faults: NDArray[np.int64]
    calls: NDArray[np.int64]
    advice: NDArray[np.int64]
    hot: ordered.Table
    bounds: NDArray[np.int64]
    slices: NDArray[np.int64]
    peaks: NDArray[np.int64]
    where: NDArray[np.int64]


def tally(bounds: NDArray[np.int64]) -> Tally:
    """All zero."""
    return Tally(
        np.zeros((EVENTS, OPS, len(SIZES), len(COUNTED)), np.int64),
        np.zeros((len(KINDS), len(COUNTED)), np.int64),
        np.zeros((len(KINDS), len(MET)), np.int64),
        np.zeros(OPS, np.int64),
        np.zeros(256, np.int64),
        ordered.table(HOT_WORDS),
        bounds,
        np.zeros((len(bounds), len(SLICE)), np.int64),
        np.zeros((len(PEAKS), 2), np.int64),
        np.zeros(2, np.int64),
    )


@jit
def size_class(s, start, end):  # type: ignore[no-untyped-def]
    """An index of SIZES."""
    pages = (end - start) >> s.state[PAGE_SHIFT]
    if end - start >= WHOLE:
        return 5
    if end - start == 1 << HUGE_SHIFT and not start & ((1 << HUGE_SHIFT) - 1):
        return 3
    if pages >= 512:
        return 4
    return 0 if pages == 1 else 1 if pages < 16 else 2


@jit
def invalidated(s, t, start, end, event, op):  # type: ignore[no-untyped-def]
    """An invalidation of ``[start, end)``, before the call it was raised in has changed anything."""
    pages_in, pages_device = am.sweep(s, start, end, DEVICE)
    place = am.first_vma(s, start, end)
    kind, low, high = 0, start, end
    if place != NONE:
        v = row(s.vmas, place)
        kind, low, high = am.kind(v[PROT], v[FLAGS]), max(start, v[START]), min(end, v[END])
    key = (low >> HUGE_SHIFT) << KIND_SHIFT | kind
    place = floor(t.hot, key)
    if place == NONE or row(t.hot, place)[0] != key:
        place = ordered.insert(t.hot, key)
        row(t.hot, place)[HOT_LOW] = low
    hot = row(t.hot, place)
    hot[HOT_LOW], hot[HOT_HIGH] = min(hot[HOT_LOW], low), max(hot[HOT_HIGH], high)
    hot[HOT_EVENT + event] += 1
    for counted in (
        t.invalidations[event, op, size_class(s, start, end)], t.by_kind[kind], hot[HOT_COUNTED:HOT_EVENT]
    ):  # fmt: skip
        counted[_COUNT] += 1
        counted[_TOUCHED] += pages_in > 0
        counted[_USEFUL] += pages_device > 0
        counted[_BYTES] += end - start
        counted[_PAGES_TOUCHED] += pages_in
        counted[_PAGES_USEFUL] += pages_device
    line = t.slices[t.where[1]]
    line[_S_INVALIDATIONS] += 1
    line[_S_USEFUL] += pages_device > 0


@jit
def _fault(s, t, addr, write, raises, cpu, device):  # type: ignore[no-untyped-def]
    """The process (``cpu``) or the device touches a page."""
    shift = s.state[PAGE_SHIFT]
    start = addr >> shift << shift
    line = t.slices[t.where[1]]
    line[_S_FAULTS] += 1
    if start < MMAP_MIN_ADDR:
        t.faults[0, _REFUSED] += 1  # SIGSEGV: a JVM does this on purpose when it starts
        return
    v = row(s.vmas, am.vma_of_fault(s, start))
    kind = am.kind(v[PROT], v[FLAGS])
    if not v[PROT] or (write and not v[PROT] & PROT_WRITE):
        t.faults[kind, _REFUSED] += 1
        return
    was = am.touch(s, addr >> shift, IN | EVER | (WRITABLE if write else 0))
    if raises and cpu and write and was & IN and not was & WRITABLE:
        invalidated(s, t, start, start + (1 << shift), _CLEAR, _FAULT)  # copy-on-write is broken
    if device:
        am.touch(s, addr >> shift, DEVICE)
    if not was & EVER:
        met = _FIRST
        line[_S_FIRST] += 1
    elif not was & IN:
        met = _UNMAPPED
    else:
        met = _PRESENT if was & DEVICE else _INVALIDATED
    t.faults[kind, met] += 1


@jit
def _discard(s, start, end):  # type: ignore[no-untyped-def]
    """The pages in ``[start, end)`` go."""
    pages_in, _ = am.sweep(s, start, end, IN | WRITABLE)
    s.state[PAGES_UNMAPPED] += pages_in


@jit
def _unmap(s, t, start, end, op, raises):  # type: ignore[no-untyped-def]
    """do_munmap(): VMAs and pages go; ``raises``: 1 if anything is mapped there, 2 in any case."""
    if start >= end:
        return
    if raises == 2 or (raises and am.first_vma(s, start, end) != NONE):
        invalidated(s, t, start, end, _UNMAP, op)
    _discard(s, start, end)
    am.bury(s, start, end)
    am.cut(s, start, end)


@jit
def _map_bits(flags):  # type: ignore[no-untyped-def]
    """Which MAP_* bits tell one kind of mapping from another; MAP_SHARED_VALIDATE (3) is shared."""
    shared = MAP_SHARED if flags & MAP_SHARED else MAP_PRIVATE
    return shared | flags & (MAP_ANONYMOUS | MAP_GROWSDOWN)


@jit
def _mremap(s, t, old, old_size, new, new_size, dontunmap, raises):  # type: ignore[no-untyped-def]
    """mremap(), Linux 6.1, as faultpath.kernel.mm.mm_mremap has it."""
    prot, flags, origin = 3, MAP_PRIVATE | MAP_ANONYMOUS, 0
    place = am.first_vma(s, old, old + 1)
    if place != NONE:
        v = row(s.vmas, place)
        prot, flags, origin = v[PROT], v[FLAGS], v[ORIGIN]
    if new != old:
        _unmap(s, t, new, new + new_size, _MREMAP, raises)
    if new_size < old_size:
        _unmap(s, t, old + new_size, old + old_size, _MREMAP, 2 * raises)
        old_size = new_size
    if new == old:
        if new_size > old_size:
            am.cut(s, old + old_size, old + new_size)
            am.add(s, old + old_size, old + new_size, prot, flags, origin, s.state[NOW])
        return
    if old_size:
        if raises:
            invalidated(s, t, old, old + old_size, _UNMAP, _MREMAP)
        am.move_pages(s, old, new, old_size)
        if not dontunmap:
            _unmap(s, t, old, old + old_size, _MREMAP, 2 * raises)
    if new_size:
        am.map_new(s, new, new + new_size, prot, flags)


@jit
def _brk(s, t, brk, raises):  # type: ignore[no-untyped-def]
    """brk(): the heap grows or shrinks; the first call tells where it ends."""
    mask = (1 << s.state[PAGE_SHIFT]) - 1
    known = s.state[BRK]
    old, new = (known + mask) & ~mask, (brk + mask) & ~mask
    s.state[BRK] = brk
    if not known:
        return
    if new > old:
        # What was there when recording began is the heap, too.
        place = floor(s.vmas, old - 1)
        if place != NONE:
            v = row(s.vmas, place)
            if v[END] == old and v[PROT] == 3 and v[FLAGS] == MAP_PRIVATE | MAP_ANONYMOUS:
                v[FLAGS] |= HEAP
        am.cut(s, old, new)
        s.state[am.ORIGINS] += 1
        am.add(s, old, new, 3, MAP_PRIVATE | MAP_ANONYMOUS | HEAP, s.state[am.ORIGINS], s.state[NOW])
    else:
        _unmap(s, t, new, old, _BRK, 2 * raises)


@jit
def _fork(s, t):  # type: ignore[no-untyped-def]
    """Every private VMA that can be written and has pages is made copy-on-write."""
    place = following(s.vmas, NONE)
    while place != NONE:
        v = row(s.vmas, place)
        if v[FLAGS] & MAP_PRIVATE and v[PROT] & PROT_WRITE:
            pages_in, _ = am.sweep(s, v[START], v[END], WRITABLE)
            if pages_in:
                invalidated(s, t, v[START], v[END], _PROTECTION_PAGE, _FORK)
        place = following(s.vmas, place)


@jit
def _call(s, t, op, addr, size, arg, aux, raises):  # type: ignore[no-untyped-def]
    """A memory call, at its successful exit."""
    end = addr + size
    if op == _MMAP:
        _unmap(s, t, addr, end, op, raises)
        am.map_new(s, addr, end, arg & 7, _map_bits(aux))
    elif op == _VMA:
        am.cut(s, addr, end)
        am.map_new(s, addr, end, arg & 7, _map_bits(aux))
    elif op == _MUNMAP:
        _unmap(s, t, addr, end, op, raises)
    elif op == _MPROTECT:
        am.protect(s, addr, end, arg & 7)
        pages_in, _ = am.sweep(s, addr, end, 0 if arg & PROT_WRITE else WRITABLE)
        if raises and pages_in:
            invalidated(s, t, addr, end, _PROTECTION_VMA, op)
    elif op == _MADVISE:
        t.advice[min(max(arg, 0), 255)] += 1
        zaps = arg in (MADV_DONTNEED, MADV_REMOVE, MADV_PAGEOUT, MADV_DONTNEED_LOCKED)
        if raises and (zaps or arg == MADV_FREE):
            invalidated(s, t, addr, end, _CLEAR, op)
        if zaps:
            _discard(s, addr, end)
    elif op == _MREMAP:
        mask = (1 << s.state[PAGE_SHIFT]) - 1
        _mremap(s, t, addr, size, arg, aux & ~mask, aux & MREMAP_DONTUNMAP, raises)
    elif op == _BRK:
        _brk(s, t, addr, raises)
    elif op == _FORK and raises and not aux & CLONE_VM:
        _fork(s, t)


@jit
def run(s, t, raises, recorded, time, ops, addrs, sizes, args, auxs):  # type: ignore[no-untyped-def]
    """Count rows from ``where[0]`` on.

    :param raises: 1 if the calls raise the invalidations
    :param recorded: whether the device accesses are the trace's own; else it accesses what the process touches
    :returns: DONE; or, with the row in ``where[0]`` not done: ROOM is needed, a SLICE_ENDS before it, the address space
        ENDS (exec or exit)
    """
    at, state = t.where[0], s.state
    while at < len(ops):
        now, op, addr, arg, aux = time[at], np.int64(ops[at]), addrs[at], args[at], auxs[at]
        t.where[0] = at
        if now >= t.bounds[t.where[1]] and t.where[1] + 1 < len(t.bounds):
            return SLICE_ENDS
        if op == _EXEC or op == _EXIT:
            return ENDS
        blocks = 2 * state[am.BLOCKS] + 1 if op == _MREMAP else 1
        if not am.has_room(s, blocks) or ordered.lacks(t.hot, 4 + (state[am.VMAS] if op == _FORK else 0)):
            return ROOM
        state[NOW] = now
        t.calls[op] += 1
        if op == _FAULT:
            _fault(s, t, addr, arg & PF_WRITE, raises, True, not recorded)
        elif op == _ACCESS:
            _fault(s, t, addr, arg & 1, raises, False, True)
        elif op == _INVALIDATE:
            if not raises:
                invalidated(s, t, addr, addr + sizes[at], arg, aux)
        else:
            made, gone = state[am.MADE], state[am.GONE]
            _call(s, t, op, addr, sizes[at], arg, aux, raises)
            if op == _VMA:  # found, not made
                state[am.MADE], state[am.GONE] = made, gone
            line = t.slices[t.where[1]]
            line[_S_CALLS] += op != _VMA
            line[_S_MADE] += state[am.MADE] - made
            line[_S_GONE] += state[am.GONE] - gone
        for peak, value in ((0, state[am.VMAS]), (1, state[am.ACCESSIBLE]), (2, state[am.PAGES_IN])):
            if value > t.peaks[peak, 0]:
                t.peaks[peak, 0] = value
                t.peaks[peak, 1] = now
        at += 1
    t.where[0] = at
    return DONE


@jit
def end_slice(s, t):  # type: ignore[no-untyped-def]
    """Note how things stand, and go on with the next slice."""
    line = t.slices[t.where[1]]
    line[_S_VMAS], line[_S_MAPPED], line[_S_RESERVED] = s.state[am.VMAS], s.state[am.ACCESSIBLE], s.state[am.RESERVED]
    line[_S_TOUCHED] = s.state[am.PAGES_IN]
    t.where[1] = min(t.where[1] + 1, len(t.bounds) - 1)


def with_room(t: Tally, places: int) -> Tally:
    """The same with room for so many hot places more."""
    while ordered.lacks(t.hot, places):
        t = t._replace(hot=ordered.grown(t.hot, 2 * len(t.hot.order)))
    return t


__all__ = ["ADDRESS_LIMIT", "INFERRED", "PROT_EXEC", "Tally", "run", "tally"]
