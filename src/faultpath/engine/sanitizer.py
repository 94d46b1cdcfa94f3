"""What a debug kernel checks at each access, and the log that lets every step be undone.

Also who has touched which word, and under which lock: a word that every access so far made while holding one and the
same lock (writes: exclusively), or that one thread alone touches, or that nobody writes, is *guarded*. An access to a
guarded word cannot be told apart from the step before it by any other thread, so it needs no step of its own. That is
assumed from the accesses seen and verified by every later one; where it turns out wrong the search begins anew with
what was learnt (engine/check.py says why that is sound).
"""

from __future__ import annotations

from faultpath.engine.arena import (
    ALIVE,
    ARENA,
    BROKEN,
    FINE,
    GUARD,
    GUARDS,
    HELD_AT_EXIT,
    LOG_TOP,
    MY_BIT,
    NULL_POINTER,
    OBJECTS,
    PRIVATE,
    REGISTERS,
    RESULTS,
    SHADOW,
    SHARED,
    STATE_END,
    THREAD,
    USE_AFTER_FREE,
    VISIBLE,
    WILD_POINTER,
    WRITTEN,
)
from faultpath.engine.thread import HEADER, HELD_READ, HELD_WRITE
from faultpath.engine.world import COUNTER, STATUS, STATUS_ARG, TID, Stop, Words
from faultpath.protocol.language import helper


@helper(raw=True)
def put(w: Words, addr: int, value: int) -> int:
    """Write a word of the state; the log keeps what was there."""
    old = w[addr]
    if old != value:
        top = w[LOG_TOP]
        w[top] = addr
        w[top + 1] = old
        w[LOG_TOP] = top + 2
        w[addr] = value
    return 0


@helper(raw=True)
def wake(w: Words, thread: int, count: int) -> int:
    """A thread runs on: its registers are copied to where it works on them."""
    for slot in range(count):
        w[REGISTERS + slot] = w[thread + HEADER + slot]
    return 0


@helper(raw=True)
def settle(w: Words, thread: int, count: int, mask: int) -> int:
    """A thread stops: the registers that matter here, one bit of ``mask`` each, are kept, the others zeroed."""
    for slot in range(count):
        put(w, thread + HEADER + slot, w[REGISTERS + slot] if mask >> slot & 1 else 0)
    return 0


@helper(raw=True)
def undo_to(w: Words, mark: int) -> int:
    """Take back what was written since the log was at ``mark``."""
    top = w[LOG_TOP]
    while top > mark:
        top -= 2
        w[w[top]] = w[top + 1]
    w[LOG_TOP] = mark
    return 0


@helper(raw=True)
def fail(w: Words, status: int, arg: int) -> int:
    """A rule is broken."""
    w[STATUS] = status
    w[STATUS_ARG] = arg
    raise Stop


@helper(raw=True)
def shadow_of(w: Words, addr: int) -> int:
    """The shadow word of an address that must be inside a living object."""
    if addr < OBJECTS or addr >= SHADOW:
        if addr < 4096 and addr > -4096:
            fail(w, NULL_POINTER, addr)
        fail(w, WILD_POINTER, addr)
    shadow = w[SHADOW + ((addr - ARENA) >> 3)]
    if shadow & ALIVE == 0:
        if shadow:
            fail(w, USE_AFTER_FREE, addr)
        fail(w, WILD_POINTER, addr)
    return shadow


@helper(raw=True)
def guards_lost(w: Words, addr: int, write: int) -> int:
    """What is known of a word's accesses once the running thread has accessed it too: guards lost, and WRITTEN."""
    held = w[w[THREAD] + HELD_WRITE] | w[MY_BIT]
    if write:
        return w[GUARD + addr] | (~held & GUARDS) | WRITTEN
    return w[GUARD + addr] | (~(held | w[w[THREAD] + HELD_READ]) & GUARDS)


@helper(raw=True)
def note(w: Words, addr: int, write: int) -> int:
    """Remember an access of the running thread to a word of shared state."""
    now = guards_lost(w, addr, write)
    if now != w[GUARD + addr]:
        w[GUARD + addr] = now
        if now == SHARED:
            w[BROKEN] = 1
    if now == SHARED:
        w[VISIBLE] = 1
    return 0


@helper(raw=True)
def shared(w: Words, addr: int, write: int) -> int:
    """Whether other threads can tell when the running thread makes this access: then it is a step of its own."""
    if w[FINE]:
        return 1
    if addr < OBJECTS or addr >= SHADOW:
        return 0
    shadow = w[SHADOW + ((addr - ARENA) >> 3)]
    if shadow & ALIVE == 0 or shadow & PRIVATE:
        return 0
    return 1 if guards_lost(w, addr, write) == SHARED else 0


@helper(raw=True)
def publish(w: Words, addr: int) -> int:
    """Others can find this object from now on, and what it points to."""
    index = (addr - ARENA) >> 3
    shadow = w[SHADOW + index]
    if shadow & PRIVATE == 0:
        return 0
    start = shadow >> 4
    units = w[start] >> 1 & 127
    first = SHADOW + ((start - ARENA) >> 3)
    for unit in range(first, first + units):
        put(w, unit, w[unit] & ~PRIVATE)
    for word in range(start + 1, start + 8 * units):
        if w[word] >= OBJECTS and w[word] < SHADOW:
            publish(w, w[word])
    return 0


@helper(raw=True)
def stored(w: Words, shadow: int, value: int) -> int:
    """A value went into an object: a pointer to a private one gives it away, unless this one is private itself."""
    if value >= OBJECTS and value < SHADOW and shadow & PRIVATE == 0:
        publish(w, value)
    return 0


@helper(raw=True)
def read_field(w: Words, addr: int) -> int:
    """A protocol is about to read a field."""
    if shadow_of(w, addr) & PRIVATE == 0:
        note(w, addr, 0)
    return 0


@helper(raw=True)
def write_field(w: Words, addr: int, value: int) -> int:
    """A protocol writes a field."""
    shadow = shadow_of(w, addr)
    if shadow & PRIVATE == 0:
        note(w, addr, 1)
        stored(w, shadow, value)
    return put(w, addr, value)


@helper(raw=True)
def read_word(w: Words, addr: int) -> int:
    """A primitive is about to read a word: of an object, or of its own bookkeeping."""
    if addr < COUNTER or addr >= ARENA:
        read_field(w, addr)
    return 0


@helper(raw=True)
def write_word(w: Words, addr: int, value: int) -> int:
    """A primitive writes a word: of an object, or of its own bookkeeping."""
    if addr < COUNTER or addr >= ARENA:
        return write_field(w, addr, value)
    w[addr] = value
    return 0


@helper(raw=True)
def read_global(w: Words, addr: int) -> int:
    """A primitive is about to read a named word of the state."""
    return note(w, addr, 0)


@helper(raw=True)
def write_global(w: Words, addr: int, value: int) -> int:
    """A primitive writes a named word of the state."""
    note(w, addr, 1)
    if value >= OBJECTS and value < SHADOW:
        publish(w, value)
    return put(w, addr, value)


@helper(raw=True)
def thread_ends(w: Words, result: int) -> int:
    """A thread that returns holds nothing."""
    thread = w[THREAD]
    w[RESULTS + w[TID] - 1] |= 2 if result < 0 else 1
    if w[thread + HELD_READ] or w[thread + HELD_WRITE]:
        fail(w, HELD_AT_EXIT, w[thread + HELD_READ] | w[thread + HELD_WRITE])
    return 0


assert STATE_END < GUARD
