"""Breadth first over every interleaving: the loop of the checker, as functions over the words of one world.

The world holds one state at a time. A step is taken in place, its log tells what it wrote, the log is undone. A state
is told from others by a 64-bit sum over its words, kept up to date from the log. States wait in a queue, each as the
words in which it differs from the one before it, so that going from one to the next costs what differs.
"""

from __future__ import annotations

from faultpath.engine.arena import (
    ARENA,
    ASKED,
    BROKEN,
    CHOICES,
    DEADLOCK,
    FREED,
    LAST,
    LOG,
    LOG_TOP,
    MARK,
    MAX_THREADS,
    MY_BIT,
    POOL,
    POOLS,
    RECORD,
    THREAD,
    THREADS,
)
from faultpath.engine.sanitizer import undo_to
from faultpath.engine.symmetry import put_in_order
from faultpath.engine.thread import PC, START
from faultpath.engine.world import STATUS, TID, Words
from faultpath.kernel.debug import collect
from faultpath.protocol.language import call_native, helper, prefetch
from faultpath.protocol.native import STOPPED
from faultpath.protocol.resumable import BLOCKED

BASE = (1 << 24) + 1024
EXPANDED = BASE + 1  # states taken from the queue
FOUND = BASE + 2  # states put into it
MASK = BASE + 3  # entries of the table, less one
TABLE = BASE + 4  # pairs (fingerprint, number of the state)
QUEUE = BASE + 5  # first word of the queue, a ring; and how many
QUEUE_WORDS = BASE + 6
READ_AT = BASE + 7  # words read from and written to the queue so far
WRITTEN_AT = BASE + 8
PARENTS = BASE + 9  # of each state: number of the one it came from << 16 | thread << 12 | choices
TRANSITIONS = BASE + 10
HASH = BASE + 11  # of the state in the arena
DEPTH = BASE + 12  # steps from the first state to the one expanded
LEVEL_END = BASE + 13  # the first state one step further away
INVARIANTS = BASE + 14  # address of code(w): a status to stop with, or 0
FINAL = BASE + 15  # address of code(w), for states in which every thread has ended
BAD_STATE = BASE + 16  # where the search stopped: the state, and the step that broke a rule (-1: the state itself)
BAD_STEP = BASE + 17
TOUCHED = BASE + 18  # words that may differ from the last state put into the queue
EDGES = BASE + 19  # first word of the edges: state reached << 8 | thread << 4 | 1 if there was a choice
EDGE_COUNT = BASE + 20
FIRST_EDGE = BASE + 21  # of each state: number of its first edge << 8 | threads that could not move
FINISHED = BASE + 22  # states in which every thread had ended
MAX_FOUND = BASE + 23  # states the memory is for
BROKEN_AT = BASE + 25  # state at which a word taken for guarded turned out not to be, and some more
SYMMETRY = BASE + 24  # like threads are put in order
BIT = BASE + 32  # of each thread: its bit in a guard mask; like threads have none
STEP = BASE + 40  # of each thread: the code
DAEMON = BASE + 48  # of each thread: the PC at which it may wait for ever, or 0

TOUCHED_LIST = MARK + 1024  # below the first address that MARK is for; so is the next
WAYS = LAST + 1024  # steps from the state being expanded: thread << 12 | choices, fingerprint, end of its log
WAY_WORDS = 3
LOG_WORDS = 1 << 13  # room for the log of one of them

# Why a search stopped.
EXHAUSTED, PAUSED, TABLE_FULL, QUEUE_FULL, VIOLATED = range(5)

NARROW = 47  # bits of a value that fits beside its address in one word


@helper(raw=True)
def mix(w: Words, addr: int, value: int) -> int:
    """What a word adds to the fingerprint: every bit of address and value stirred into every bit (splitmix64)."""
    x = value + addr * -7046029254386353131
    x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * -4658895280553007687
    x = (x ^ (x >> 27 & 0x1FFFFFFFFF)) * -7723592293110705685
    return x ^ (x >> 31 & 0x1FFFFFFFF)


@helper(raw=True)
def place(w: Words, addr: int) -> int:
    """A word of the state as a number of 15 bits."""
    return addr - ARENA + 32 if addr >= ARENA else addr


@helper(raw=True)
def touch(w: Words, addr: int) -> int:
    """A word may differ from the last state in the queue."""
    if w[MARK + addr] != w[FOUND]:
        w[MARK + addr] = w[FOUND]
        w[TOUCHED_LIST + w[TOUCHED]] = addr
        w[TOUCHED] += 1
    return 0


@helper(raw=True)
def undo_hashed(w: Words, base: int) -> int:
    """Take the step in the log from ``base`` on back; the fingerprint of the state it led to, never 0.

    The log then holds what was written, for :func:`apply`.
    """
    sum_ = w[HASH]
    top = w[LOG_TOP]
    while top > base:
        top -= 2
        addr = w[top]
        now = w[addr]
        old = w[top + 1]
        sum_ += mix(w, addr, now) - mix(w, addr, old)
        w[addr] = old
        w[top + 1] = now
    return sum_ if sum_ else 1


@helper(raw=True)
def apply(w: Words, base: int, end: int) -> int:
    """Write what the log holds; it then holds what was there, to be undone as usual."""
    for top in range(base, end, 2):
        addr = w[top]
        now = w[top + 1]
        w[top + 1] = w[addr]
        w[addr] = now
    w[LOG_TOP] = end
    return 0


@helper(raw=True)
def home(w: Words, fingerprint: int) -> int:
    """Where a fingerprint's search in the table begins."""
    return (fingerprint ^ (fingerprint >> 32)) & w[MASK]


@helper(raw=True)
def seek(w: Words, fingerprint: int) -> int:
    """The place in the table of a fingerprint, or of where it belongs."""
    slot = home(w, fingerprint)
    while w[w[TABLE] + 2 * slot] != 0 and w[w[TABLE] + 2 * slot] != fingerprint:
        slot = (slot + 1) & w[MASK]
    return w[TABLE] + 2 * slot


@helper(raw=True)
def push(w: Words, value: int) -> int:
    """A word more in the queue."""
    w[w[QUEUE] + (w[WRITTEN_AT] & (w[QUEUE_WORDS] - 1))] = value
    w[WRITTEN_AT] += 1
    return 0


@helper(raw=True)
def pop(w: Words) -> int:
    """The next word of the queue."""
    value = w[w[QUEUE] + (w[READ_AT] & (w[QUEUE_WORDS] - 1))]
    w[READ_AT] += 1
    return value


@helper(raw=True)
def enqueue(w: Words) -> int:
    """Put the state in the arena into the queue: the words in which it differs from the one before."""
    head = w[WRITTEN_AT]
    push(w, 0)
    differing = 0
    for number in range(w[TOUCHED]):
        addr = w[TOUCHED_LIST + number]
        value = w[addr]
        if value != w[LAST + addr]:
            w[LAST + addr] = value
            differing += 1
            if value << (63 - NARROW) >> (63 - NARROW) == value:
                push(w, value << 16 | place(w, addr))
            else:
                push(w, 1 << 15 | place(w, addr))
                push(w, value)
    w[TOUCHED] = 0
    w[w[QUEUE] + (head & (w[QUEUE_WORDS] - 1))] = differing
    return 0


@helper(raw=True)
def dequeue(w: Words) -> int:
    """Make the arena the next state of the queue."""
    sum_ = w[HASH]
    for _ in range(pop(w)):
        entry = pop(w)
        addr = entry & 0x7FFF
        addr = addr + ARENA - 32 if addr >= 32 else addr
        value = pop(w) if entry & 0x8000 else entry >> 16
        sum_ += mix(w, addr, value) - mix(w, addr, w[addr])
        w[addr] = value
        touch(w, addr)
    w[HASH] = sum_
    return 0


@helper(raw=True)
def touch_log(w: Words, base: int, end: int) -> int:
    """The words of a step; whether any of them is not a thread's own, so that the invariants may look at it."""
    threads = w[POOLS] + MAX_THREADS * w[POOL]
    seen = 0
    for top in range(base, end, 2):
        touch(w, w[top])
        if w[top] < threads:
            seen = 1
    return seen


@helper(raw=True)
def stop_at(w: Words, state: int, step: int) -> int:
    """Remember where a rule was broken."""
    w[BAD_STATE] = state
    w[BAD_STEP] = step
    return VIOLATED


@helper(raw=True)
def broken_rule(w: Words, broken: int, state: int) -> int:
    """An invariant does not hold in a state, or could not even be evaluated there (STATUS says why)."""
    if broken != STOPPED:
        w[STATUS] = broken
    return stop_at(w, state, -1)


@helper(raw=True)
def next_choices(w: Words, choices: int, asked: int) -> int:
    """The answers to try next: the last ``no`` becomes a ``yes``, later ones are asked anew; -1 when all were tried."""
    while asked > 0:
        asked -= 1
        if choices >> asked & 1 == 0:
            return (choices & ((1 << asked) - 1)) | 1 << asked
    return -1


@helper(raw=True)
def take_step(w: Words, number: int, choices: int, base: int) -> int:
    """One step of a thread from the state in the arena, logged from ``base`` on; what step() returned."""
    w[LOG_TOP] = base
    w[CHOICES] = choices
    w[ASKED] = 0
    w[TID] = number + 1
    w[THREAD] = w[RECORD + number]
    w[MY_BIT] = w[BIT + number]
    result = call_native(w[STEP + number], w, w[THREAD])
    if result != STOPPED:
        if w[FREED]:
            collect(w)
        if w[SYMMETRY]:
            put_in_order(w)
    return result


@helper(raw=True)
def run_thread(w: Words, number: int, choices: int) -> int:
    """One step of a thread from the state in the arena, for those who take one at a time."""
    return take_step(w, number, choices, LOG)


@helper(raw=True)
def found_new(w: Words, base: int, end: int) -> int:
    """A state that was not known, by the step in a log, goes into the queue; 0, or what the invariants say."""
    apply(w, base, end)
    seen = touch_log(w, base, end)
    enqueue(w)
    w[FOUND] += 1
    broken = call_native(w[INVARIANTS], w) if seen else 0
    undo_to(w, base)
    touch_log(w, base, end)
    return broken


@helper(raw=True)
def arrive(w: Words, state: int, way: int) -> int:
    """A step leads to the state of a fingerprint: is it new? 0, or why the search stops."""
    step = w[WAYS + WAY_WORDS * way]
    entry = seek(w, w[WAYS + WAY_WORDS * way + 1])
    w[TRANSITIONS] += 1
    if w[entry] == 0:
        w[entry] = w[WAYS + WAY_WORDS * way + 1]
        w[entry + 1] = w[FOUND]
        w[w[PARENTS] + w[FOUND]] = state << 16 | step
        broken = found_new(w, LOG + LOG_WORDS * way, w[WAYS + WAY_WORDS * way + 2])
        if broken:
            return broken_rule(w, broken, w[FOUND] - 1)
    w[w[EDGES] + w[EDGE_COUNT]] = w[entry + 1] << 8 | step >> 12 << 4 | (1 if step & 0xFFF else 0)
    w[EDGE_COUNT] += 1
    return 0


@helper(raw=True)
def nobody_moves(w: Words, state: int) -> int:
    """All threads wait or have ended: is that how it should end? 0, or VIOLATED."""
    for number in range(w[THREADS]):
        pc = w[w[RECORD + number] + PC]
        if pc != -1 and (w[DAEMON + number] == 0 or (pc != w[DAEMON + number] and pc != START)):
            w[STATUS] = DEADLOCK
            return stop_at(w, state, -1)
    w[FINISHED] += 1
    broken = call_native(w[FINAL], w)
    if broken:
        return broken_rule(w, broken, state)
    return 0


@helper(raw=True)
def steps_of(w: Words, state: int, number: int, ways: int) -> int:
    """Every step of one thread from the state in the arena, into the table of ways; how many there are now, or -1."""
    choices = 0
    while choices >= 0:
        base = LOG + LOG_WORDS * ways
        result = take_step(w, number, choices, base)
        if result == BLOCKED:
            undo_to(w, base)
            return ways
        if result == STOPPED:
            undo_to(w, base)
            stop_at(w, state, number << 12 | choices)
            return -1
        asked = w[ASKED]
        end = w[LOG_TOP]
        fingerprint = undo_hashed(w, base)
        prefetch(w, w[TABLE] + 2 * home(w, fingerprint))
        w[WAYS + WAY_WORDS * ways] = number << 12 | choices
        w[WAYS + WAY_WORDS * ways + 1] = fingerprint
        w[WAYS + WAY_WORDS * ways + 2] = end
        ways += 1
        choices = next_choices(w, choices, asked)
    return ways


@helper(raw=True)
def expand(w: Words, state: int) -> int:
    """Every step from the state in the arena; 0, or why the search stops.

    All steps are taken before the first is looked up: by then its place in the table is in the cache.
    """
    ways = 0
    stuck = 0
    for number in range(w[THREADS]):
        before = ways
        if ways >= 0 and w[w[RECORD + number] + PC] != -1:
            ways = steps_of(w, state, number, ways)
        if ways == before:
            stuck = stuck | 1 << number
    if ways < 0:
        return VIOLATED
    for way in range(ways):
        why = arrive(w, state, way)
        if why:
            return why
    w[w[FIRST_EDGE] + state + 1] = w[EDGE_COUNT] << 8
    w[w[FIRST_EDGE] + state] |= stuck
    if ways == 0:
        return nobody_moves(w, state)
    return 0


@helper(raw=True)
def search(w: Words, budget: int) -> int:
    """Expand up to ``budget`` states; why it stopped.

    A search that must begin anew goes on until it is twice as far, to learn what else it did not know.
    """
    while budget > 0:
        if w[BROKEN_AT] and w[EXPANDED] > 2 * w[BROKEN_AT]:
            return PAUSED
        state = w[EXPANDED]
        if state == w[FOUND]:
            return EXHAUSTED
        if w[FOUND] * 3 > w[MASK] * 2 or w[FOUND] + 64 > w[MAX_FOUND]:
            return TABLE_FULL
        if w[WRITTEN_AT] - w[READ_AT] > w[QUEUE_WORDS] - (1 << 16):
            return QUEUE_FULL
        if state == w[LEVEL_END]:
            w[DEPTH] += 1
            w[LEVEL_END] = w[FOUND]
        dequeue(w)
        w[EXPANDED] += 1
        if state == 0:
            broken = call_native(w[INVARIANTS], w)
            if broken:
                return broken_rule(w, broken, 0)
        why = expand(w, state)
        if why:
            return why
        if w[BROKEN] and w[BROKEN_AT] == 0:
            w[BROKEN_AT] = state + 1000
        budget -= 1
    return PAUSED


@helper(raw=True)
def widen(w: Words) -> int:
    """Twice the room in the queue: words in use move up where their place in the larger ring is another."""
    narrow = w[QUEUE_WORDS] - 1
    wide = 2 * w[QUEUE_WORDS] - 1
    for number in range(w[READ_AT], w[WRITTEN_AT]):
        w[w[QUEUE] + (number & wide)] = w[w[QUEUE] + (number & narrow)]
    w[QUEUE_WORDS] = wide + 1
    return 0


@helper(raw=True)
def rehash(w: Words, table: int, mask: int) -> int:
    """Move the table's entries into a larger one."""
    old = w[TABLE]
    entries = w[MASK] + 1
    w[TABLE] = table
    w[MASK] = mask
    for slot in range(entries):
        if w[old + 2 * slot]:
            entry = seek(w, w[old + 2 * slot])
            w[entry] = w[old + 2 * slot]
            w[entry + 1] = w[old + 2 * slot + 1]
    return 0
