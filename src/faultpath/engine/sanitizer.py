"""What a debug kernel checks at each access, and the log that lets every step be undone.

Also who has touched which word, and under which lock: a word that every access so far made while holding one and the
same lock (writes: exclusively), or that one thread alone touches, or that nobody writes, is *guarded*. An access to a
guarded word cannot be told apart from the step before it by any other thread, so it needs no step of its own. That is
assumed from the accesses seen and verified by every later one; where it turns out wrong the search begins anew with
what was learnt (engine/check.py says why that is sound).

Two refinements. A read under a lock that every writer holds cannot be told either, whoever else reads without it. And
counts that only rise and fall above zero may do so in any order.

A free is a write to all of the object, and would leave hardly a word of a short-lived object guarded. So a word may be
guarded *but for frees*: then accesses to it need no steps either, but the thread remembers the object until its next
step that others can tell. Should another thread free it before that, the accesses might as well come after the free,
since nobody depends on them: a use after free, found just as if they had steps of their own.
"""

from __future__ import annotations

from faultpath.engine.arena import (
    ALIVE,
    ARENA,
    BROKEN,
    COUNTED,
    FINE,
    FORGETFUL,
    GUARD,
    GUARD_ALIVE,
    GUARDS,
    HELD_AT_EXIT,
    LATE,
    LIKE,
    LOCK_BITS,
    LOG_TOP,
    MAX_THREADS,
    MY_BIT,
    NULL_POINTER,
    OBJECTS,
    POOL,
    POOLS,
    PRIVATE,
    READ_GUARD,
    RECORD,
    REGISTERS,
    RELIED,
    REMEMBER,
    RESULTS,
    SHADOW,
    SHARED,
    TAKEN,
    THREAD,
    THREADS,
    USE_AFTER_FREE,
    VISIBLE,
    WILD_POINTER,
    WINDOW_AT,
    WRITTEN,
)
from faultpath.engine.thread import ASLEEP, HEADER, HELD_READ, HELD_WRITE, RESULT, WINDOW, WINDOW_SIZE
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
    for place in range(thread + WINDOW, thread + WINDOW + WINDOW_SIZE):
        if w[place]:
            put(w, place, 0)
    w[TAKEN] = 0
    return 0


@helper(raw=True)
def settle(w: Words, thread: int, count: int, mask: int) -> int:
    """A thread stops: the registers that matter here, one bit of ``mask`` each, are kept, the others zeroed."""
    for slot in range(count):
        value = w[REGISTERS + slot] if mask >> slot & 1 else 0
        if value != w[thread + HEADER + slot]:
            put(w, thread + HEADER + slot, value)
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
def guards_lost(w: Words, write: int) -> int:
    """What a word loses by an access of the running thread: every guard it does not hold; and WRITTEN."""
    held = w[w[THREAD] + HELD_WRITE] | w[MY_BIT]
    if write:
        return (~held & GUARDS) | WRITTEN
    return ~(held | w[w[THREAD] + HELD_READ]) & GUARDS


@helper(raw=True)
def unguarded(w: Words, place: int, lost: int) -> int:
    """Whether nothing guards a word once it has lost that, too. Counting and other accesses do not go together."""
    now = w[place] | lost
    return 1 if now & SHARED == SHARED or (now & COUNTED and now & GUARDS) else 0


@helper(raw=True)
def lose(w: Words, place: int, lost: int) -> int:
    """Remember what a word has lost. What was taken for granted may turn out wrong: then the search begins anew."""
    before = w[place]
    now = before | lost
    if now != before:
        if unguarded(w, place, lost) and not unguarded(w, place, 0):
            w[BROKEN] = 1
        w[place] = now
    return 0


@helper(raw=True)
def only_writers_hold(w: Words, addr: int) -> int:
    """Whether the running thread holds a lock under which every write of a word is made: reading it cannot be told."""
    thread = w[THREAD]
    return 1 if (w[thread + HELD_READ] | w[thread + HELD_WRITE]) & LOCK_BITS & ~w[READ_GUARD + addr] else 0


@helper(raw=True)
def rely_on_writers(w: Words, addr: int) -> int:
    """Remember under which locks a read was taken for one that cannot be told."""
    thread = w[THREAD]
    w[READ_GUARD + addr] |= (~(w[thread + HELD_READ] | w[thread + HELD_WRITE]) & LOCK_BITS) | RELIED
    return 0


@helper(raw=True)
def note_writer(w: Words, addr: int) -> int:
    """Remember under which locks a word is written."""
    before = w[READ_GUARD + addr]
    now = before | (~w[w[THREAD] + HELD_WRITE] & LOCK_BITS)
    if now != before:
        w[READ_GUARD + addr] = now
        if before & RELIED and now & LOCK_BITS == LOCK_BITS and before & LOCK_BITS != LOCK_BITS:
            w[BROKEN] = 1
    return 0


@helper(raw=True)
def in_window(w: Words, thread: int, obj: int) -> int:
    """Whether a thread has accessed an object since its last step that others can tell."""
    for place in range(thread + WINDOW, thread + WINDOW + WINDOW_SIZE):
        if w[place] == obj:
            return 1
    return 0


@helper(raw=True)
def window_room(w: Words, thread: int) -> int:
    """The first free place of a thread's window, or 0."""
    for place in range(thread + WINDOW, thread + WINDOW + WINDOW_SIZE):
        if w[place] == 0:
            return place
    return 0


@helper(raw=True)
def window_used(w: Words, thread: int) -> int:
    """Whether there is any object in a thread's window: it is filled from the front, and emptied whole."""
    return 1 if w[thread + WINDOW] else 0


@helper(raw=True)
def guard_of(w: Words, addr: int) -> int:
    """The word whose guards stand for an address's: of like threads' pools the first one's."""
    if addr < w[POOLS] or addr >= w[POOLS] + MAX_THREADS * w[POOL]:
        return addr
    number = (addr - w[POOLS]) // w[POOL]
    while w[LIKE + number]:
        addr -= w[POOL] * (number + 1 - w[LIKE + number])
        number = w[LIKE + number] - 1
    return addr


@helper(raw=True)
def told(w: Words, addr: int, write: int, lost: int) -> int:
    """Whether others can tell an access of the running thread: 1; 0 if not; -1 if not but for frees of the object."""
    guard = guard_of(w, addr)
    if not unguarded(w, GUARD + guard, lost):
        return 0
    if unguarded(w, GUARD_ALIVE + guard, lost) and (write or not only_writers_hold(w, guard)):
        return 1
    if addr < OBJECTS:
        return 0
    obj = w[SHADOW + ((addr - ARENA) >> 3)] >> 4
    if w[GUARD + guard_of(w, obj)] & WRITTEN == 0 or in_window(w, w[THREAD], obj):
        return 0  # nobody frees it, or it is remembered already
    return -1 if window_room(w, w[THREAD]) else 1


@helper(raw=True)
def settle_access(w: Words, addr: int, write: int, lost: int) -> int:
    """The running thread makes an access: what follows from whether others can tell."""
    tells = told(w, addr, write, lost)
    if tells == 1:
        w[VISIBLE] = 1
        return 0
    if not write and unguarded(w, GUARD_ALIVE + guard_of(w, addr), 0):
        rely_on_writers(w, guard_of(w, addr))
    if tells and w[TAKEN]:
        room = window_room(w, w[THREAD])
        w[WINDOW_AT + room - w[THREAD] - WINDOW] = w[TAKEN]
        put(w, room, w[SHADOW + ((addr - ARENA) >> 3)] >> 4)
    return 0


@helper(raw=True)
def note(w: Words, addr: int, write: int) -> int:
    """Remember an access of the running thread to a word of shared state."""
    if w[FINE] == FORGETFUL:
        return 0
    lost = guards_lost(w, write)
    guard = guard_of(w, addr)
    lose(w, GUARD_ALIVE + guard, lost)
    lose(w, GUARD + guard, lost)
    if write:
        note_writer(w, guard)
    return settle_access(w, addr, write, lost)


@helper(raw=True)
def note_count(w: Words, addr: int) -> int:
    """The running thread adds to or takes from a count that stays above zero: the order of such steps is all one."""
    if w[FINE] == FORGETFUL:
        return 0
    lose(w, GUARD_ALIVE + guard_of(w, addr), COUNTED)
    lose(w, GUARD + guard_of(w, addr), COUNTED)
    return settle_access(w, addr, 1, COUNTED)


@helper(raw=True)
def note_free(w: Words, obj: int, words: int) -> int:
    """The running thread frees an object: a write to all of it. Has another yet to make an access, it comes late."""
    if w[FINE] == FORGETFUL:
        return 0
    for number in range(w[THREADS]):
        thread = w[RECORD + number]
        if thread != w[THREAD] and in_window(w, thread, obj):
            w[LATE] = number + 1
            fail(w, USE_AFTER_FREE, obj)
    lost = guards_lost(w, 1)
    guard = guard_of(w, obj)
    if w[GUARD + guard] & WRITTEN == 0:
        w[BROKEN] = 1  # until now nobody remembered accesses to it
    for word in range(guard, guard + words):
        lose(w, GUARD + word, lost)
        if unguarded(w, GUARD + word, lost):
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
    return 1 if told(w, addr, write, guards_lost(w, write)) == 1 else 0


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
def give_away(w: Words, value: int) -> int:
    """A value went where others can read it: if it is a pointer to a private object, that is private no more."""
    if value >= OBJECTS and value < SHADOW:
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
    if shadow_of(w, addr) & PRIVATE == 0:
        note(w, addr, 1)
        give_away(w, value)
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
    give_away(w, value)
    return put(w, addr, value)


@helper(raw=True)
def asleep(w: Words) -> int:
    """Whether the running thread sleeps on a wait queue, and has not been woken."""
    return 1 if w[w[THREAD] + ASLEEP] else 0


@helper(raw=True)
def fall_asleep(w: Words, queue: int) -> int:
    """The running thread puts itself on a wait queue, under the queue's lock."""
    write_field(w, queue, 0)
    return put(w, w[THREAD] + ASLEEP, queue)


@helper(raw=True)
def thread_ends(w: Words, result: int) -> int:
    """A thread that returns holds nothing."""
    thread = w[THREAD]
    w[RESULTS + w[TID] - 1] |= 2 if result < 0 else 1
    if w[REMEMBER]:
        put(w, thread + RESULT, result)
    if w[thread + HELD_READ] or w[thread + HELD_WRITE]:
        fail(w, HELD_AT_EXIT, w[thread + HELD_READ] | w[thread + HELD_WRITE])
    return 0
