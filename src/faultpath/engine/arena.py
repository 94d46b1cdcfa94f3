"""Where the checker keeps what: the state that it explores, and tables about it. Word indices of one world.

The state is the few named words of the world that :func:`is_state` names, and the arena: some words of the checker's
own, the objects, the threads, and a shadow word for every eight words, as KASAN has a byte. Everything else is no part
of the state. The arena lies where no integer of the model lies, so that a word that looks like a pointer is one.
"""

from __future__ import annotations

from faultpath.engine.world import NEXT_FRAME, WORK_HEAD, WORK_TAIL

MAX_THREADS = 6  # a worker for work items included

ARENA = 1 << 25
ARENA_WORDS = 1 << 14
SHADOW = ARENA + ARENA_WORDS
SHADOW_WORDS = ARENA_WORDS >> 3
STATE_END = SHADOW + SHADOW_WORDS

# A shadow word: start of the object << 4 | these bits; 0 where there is none.
ALIVE = 1
PRIVATE = 2  # only the thread that made it has its address
MEMORY = 4  # from kmalloc: may not be left behind

# The checker's own part of the state.
FREED = ARENA  # how many freed objects somebody may still point to, then their addresses
MAX_FREED = 15
RANGES = ARENA + 16  # invalidations under way, two of each thread: the Range, its start and end, its phase
RANGE_WORDS = 4
GENERATION = ARENA + 64  # how often each page came in
PAGES = 64
FAILURES = ARENA + 128  # allocations that may still fail
CLOSED = ARENA + 129  # devices whose file has been closed, one bit each
WALKING = ARENA + 130  # threads that go over the interval tree without its lock, one bit each
OBJECTS = ARENA + 136  # here objects begin

# No part of the state: the run's settings and scratch.
BASE = 1 << 24
LOG_TOP = BASE  # where the next entry of the log goes
TAKEN = BASE + 1  # steps of the last call of step()
VISIBLE = BASE + 2  # the primitive that ran touched what others touch
FINE = BASE + 3  # every access is a step of its own: no reduction
FORGETFUL = 2  # FINE: and who touches what need not be remembered
CHOICES = BASE + 4  # answers to what may go one way or the other, one bit each
ASKED = BASE + 5  # how many of them the step has used
THREAD = BASE + 6  # the thread that runs
MY_BIT = BASE + 7  # its bit in a guard mask
BROKEN = BASE + 8  # a word taken for guarded turned out not to be: search again
LOCKS = BASE + 9  # locks met so far
CLASSES = BASE + 10  # lock classes met so far
POOL = BASE + 11  # words of each thread's pool
POOLS = BASE + 12  # where the first pool begins
TIMEOUTS = BASE + 13  # whether a bounded loop may run out of time
SPAN = BASE + 14  # the pages under examination: first address, end
SPAN_END = BASE + 15
LIMIT = BASE + 16  # first word of the arena not in use
CHECK_MM = BASE + 17  # what the invariants look at: the mm, how many devices, and which
DEVICES = BASE + 18
AT = BASE + 19  # the instruction that ran last
DEVICE_AT = BASE + 20
DISJOINT = BASE + 24  # the design promises intervals that do not overlap
ITREE = BASE + 25  # root of the interval tree
REMEMBER = BASE + 26  # a state remembers what the threads that have ended returned
GAVE = BASE + 31  # what the primitive that ran last returned
RESULTS = BASE + 32  # of each thread: 1 if it ever returned 0 or more, 2 if it ever returned an error
LATE = BASE + 39  # the thread, counted from 1, whose last accesses come after the free that broke the rule
THREADS = BASE + 40  # how many there are, and of each its address
RECORD = BASE + 41
WINDOW_AT = BASE + 48  # of each place in the window of the thread that runs: its accesses before
LIKE = BASE + 56  # of each thread: the thread before it that runs the same on the same, counted from 1, or 0
SWAPPED = BASE + 63  # like threads that changed places after the last step, as a mask of the later ones
SEEN = BASE + 64  # of each counter: whether it was counted at all
LOCK_CLASS = BASE + 256  # of each lock met: its class number
CLASS_KEY = BASE + 320  # of each class: ir.LockClass.number
CLASS_AFTER = BASE + 384  # of each class: mask of the classes ever taken while it was held
REGISTERS = BASE + 512  # of the thread that runs
LOCK_AT = BASE + 576  # of each lock met: its address
MAX_LOCKS = 40  # bits of a guard mask; one bit per thread comes above them
MAX_CLASSES = 60

# Tables with a word for each address of the state: the base, plus the address.
GUARD = 1 << 26  # who has accessed the word, and how (sanitizer.note)
GUARD_ALIVE = 2 << 26  # the same, frees of the object aside
LOCK_ID = 3 << 26  # number of the lock there, counted from 1
LAST = 4 << 26  # what the last state put into the queue had there
MARK = 5 << 26  # number of the state that last touched it
LOG = 6 << 26  # pairs (address, what was there)
READ_GUARD = 7 << 26  # locks that not every writer of the word holds
TABLES = 8 << 26  # from here on: the search's own tables

GUARDS = (1 << (MAX_LOCKS + MAX_THREADS)) - 1
LOCK_BITS = (1 << MAX_LOCKS) - 1
WRITTEN = 1 << 60
COUNTED = 1 << 61  # by steps that add to a count above zero or take from it
RELIED = 1 << 62  # reads have relied on it
SHARED = GUARDS | WRITTEN

# Violations: STATUS words from here on.
USE_AFTER_FREE = 20
NULL_POINTER = 21
WILD_POINTER = 22
LOCK_ORDER = 23
SELF_DEADLOCK = 24
NOT_HELD = 25
SLEEP_IN_ATOMIC = 26
SLEEP_NON_BLOCK = 27
MMAP_LOCK_IN_CALLBACK = 28
LIST_ADD = 29
LIST_DEL = 30
TREE_INSERT = 31
HELD_AT_EXIT = 32
SPINS = 33
STALE_PTE = 34
PTE_DURING_INVALIDATION = 35
UNCOVERED_PTE = 36
OVERLAP = 37
DEADLOCK = 38
LEAK = 39
LIVELOCK = 40
CUSTOM = 41
TREE_WALKED = 42
ARENA_FULL = 60  # not the design's fault


def is_state(word: int) -> bool:
    """Whether a named word is part of the state."""
    return word in (WORK_HEAD, WORK_TAIL, NEXT_FRAME)
