"""A kernel built for debugging: what the checker links in place of the empty hooks and of the plain allocator.

KASAN (freed objects stay poisoned as long as anybody may still point to them), lockdep, might_sleep, list and tree
debugging, and what goes one way or the other: allocations that fail, bounded loops that run out of time.
"""

from __future__ import annotations

from faultpath.engine.arena import (
    ALIVE,
    ARENA,
    ARENA_FULL,
    ASKED,
    CHOICES,
    CLASS_AFTER,
    CLASS_KEY,
    CLASSES,
    CLOSED,
    DEVICE_AT,
    DEVICES,
    FAILURES,
    FREED,
    GENERATION,
    ITREE,
    LIMIT,
    LIST_ADD,
    LIST_DEL,
    LOCK_AT,
    LOCK_CLASS,
    LOCK_ID,
    LOCK_ORDER,
    LOCKS,
    MAX_CLASSES,
    MAX_FREED,
    MAX_LOCKS,
    MAX_THREADS,
    MEMORY,
    MMAP_LOCK_IN_CALLBACK,
    NOT_HELD,
    NULL_POINTER,
    OBJECTS,
    PAGES,
    POOL,
    POOLS,
    PRIVATE,
    RANGE_WORDS,
    RANGES,
    RECORD,
    SELF_DEADLOCK,
    SHADOW,
    SLEEP_IN_ATOMIC,
    SLEEP_NON_BLOCK,
    THREAD,
    THREADS,
    TIMEOUTS,
    TREE_INSERT,
    TREE_WALKED,
    VISIBLE,
    WALKING,
)
from faultpath.engine.sanitizer import fail, note, note_count, note_free, put, shadow_of, window_used
from faultpath.engine.thread import ASLEEP, ATOMIC, CALLBACK, HEADER, HELD_READ, HELD_WRITE, NON_BLOCK
from faultpath.engine.world import BRK, DOUBLE_FREE, TID, WORK_HEAD, WORK_TAIL, Words
from faultpath.kernel import workqueue
from faultpath.kernel.mmu_notifier import Range
from faultpath.kernel.primitives import count, debug, ghost, heap, pagetable, time
from faultpath.kernel.primitives.heap import GFP_KERNEL
from faultpath.kernel.primitives.pagetable import DEVICE_BITS, FRAME_SHIFT, FULL, VALID
from faultpath.protocol.language import helper, primitive, protocol
from faultpath.protocol.struct import ROLES

MMAP_LOCK = ROLES.index("mmap_lock")
RANGE_START = Range.fields["start"].offset
MAX_ROUNDS = 1 << 16
RANGE_END = Range.fields["end"].offset


# --- memory


@helper(replaces=heap.take, raw=True)
def take(w: Words, size_class: int, tag: int, owned: int) -> int:
    """The lowest place in the running thread's own pool: addresses do not depend on what others allocated when."""
    first = w[POOLS] + (w[TID] - 1) * w[POOL]
    found = first
    obj = first
    while obj < found + 8 * size_class:
        if obj >= first + w[POOL]:
            fail(w, ARENA_FULL, size_class)
        if w[SHADOW + ((obj - ARENA) >> 3)]:
            found = obj + 8
        obj += 8
    for unit in range(size_class):
        put(w, SHADOW + ((found - ARENA) >> 3) + unit, found << 4 | (MEMORY if owned else 0) | PRIVATE | ALIVE)
    put(w, found, tag << 8 | size_class << 1 | 1)
    return found


@helper(replaces=heap.give_back, raw=True)
def give_back(w: Words, obj: int) -> int:
    """Poison an object: whoever touches it now is reported. It can be reused once nothing points to it."""
    if obj < OBJECTS or obj >= SHADOW:
        fail(w, NULL_POINTER, obj)
    shadow = w[SHADOW + ((obj - ARENA) >> 3)]
    if shadow & ALIVE == 0:
        fail(w, DOUBLE_FREE, obj)
    size_class = w[obj] >> 1 & 127
    for unit in range(size_class):
        put(w, SHADOW + ((obj - ARENA) >> 3) + unit, obj << 4)
    if shadow & PRIVATE == 0:
        note_free(w, obj, 8 * size_class)
    for word in range(obj + 1, obj + 8 * size_class):
        put(w, word, 0)
    put(w, obj, w[obj] & ~1)
    count = w[FREED]
    if count == MAX_FREED:
        fail(w, ARENA_FULL, obj)
    put(w, FREED + 1 + count, obj)
    return put(w, FREED, count + 1)


@helper(replaces=heap.take, raw=True)
def take_at_setup(w: Words, size_class: int, tag: int, owned: int) -> int:
    """Before threads run: one object after the other, and everybody may know it."""
    found = w[BRK]
    w[BRK] = found + 8 * size_class
    for unit in range(size_class):
        w[SHADOW + ((found - ARENA) >> 3) + unit] = found << 4 | (MEMORY if owned else 0) | ALIVE
    w[found] = tag << 8 | size_class << 1 | 1
    return found


@helper(replaces=heap.give_back, raw=True)
def give_back_at_setup(w: Words, obj: int) -> int:
    """Before threads run: nothing is left of the object."""
    size_class = w[obj] >> 1 & 127
    for unit in range(size_class):
        w[SHADOW + ((obj - ARENA) >> 3) + unit] = 0
    for word in range(obj, obj + 8 * size_class):
        w[word] = 0
    return 0


@helper(raw=True)
def pointed_to(w: Words, obj: int, end: int) -> int:
    """Whether any living object, thread or named word may point into ``[obj, end)``."""
    for word in range(WORK_HEAD, WORK_TAIL + 1):
        if w[word] >= obj and w[word] < end:
            return 1
    unit = OBJECTS
    limit = w[LIMIT]
    while unit < limit:
        shadow = w[SHADOW + ((unit - ARENA) >> 3)]
        # Threads have no shadow; free places hold zeros.
        if shadow & ALIVE or unit >= w[POOLS] + MAX_THREADS * w[POOL]:
            for word in range(unit, unit + 8):
                if w[word] >= obj and w[word] < end:
                    return 1
        unit += 8
    return 0


@helper(raw=True)
def collect(w: Words) -> int:
    """Let go of freed objects that nothing points to any more: a state does not remember them."""
    kept = 0
    count = w[FREED]
    for number in range(count):
        obj = w[FREED + 1 + number]
        size_class = w[obj] >> 1 & 127
        if pointed_to(w, obj, obj + 8 * size_class):
            put(w, FREED + 1 + kept, obj)
            kept += 1
        else:
            put(w, obj, 0)
            for unit in range(size_class):
                put(w, SHADOW + ((obj - ARENA) >> 3) + unit, 0)
    for number in range(kept, count):
        put(w, FREED + 1 + number, 0)
    return put(w, FREED, kept)


@helper(replaces=debug.set_count, raw=True)
def set_count(w: Words, count: int, value: int, floor: int) -> int:
    """A count that stays above its floor may rise and fall in any order."""
    if shadow_of(w, count) & PRIVATE == 0:
        if w[count] > floor and value > floor:
            note_count(w, count)
        else:
            note(w, count, 1)
    return put(w, count, value)


@helper(replaces=debug.woken, raw=True)
def woken(w: Words, queue: int) -> int:
    """Every thread that sleeps on a queue may look again."""
    for number in range(w[THREADS]):
        if w[w[RECORD + number] + ASLEEP] == queue:
            put(w, w[RECORD + number] + ASLEEP, 0)
    return 0


@helper(replaces=debug.worker_is_caller, raw=True)
def worker_is_caller(w: Words) -> int:
    """Work items have a thread of their own."""
    return 0


@protocol(replaces=workqueue.run_until_none)
def run_none() -> None:
    """So who flushes does not run them, and a work function may flush."""


@helper(raw=True)
def choose(w: Words) -> int:
    """What goes one way or the other goes both ways: the explorer asks for each."""
    asked = w[ASKED]
    w[ASKED] = asked + 1
    # A path has room for the answers of twelve to a step: in good time the thread goes on in a step of its own.
    if asked >= 8:
        w[VISIBLE] = 1
    return w[CHOICES] >> asked & 1


@helper(replaces=debug.may_fail, raw=True)
def may_fail(w: Words, gfp: int) -> int:
    """Allocations that can fail do so as often as the scenario lets them."""
    if gfp != GFP_KERNEL and w[FAILURES] and choose(w):
        put(w, FAILURES, w[FAILURES] - 1)
        return 1
    return 0


@helper(replaces=time.expired, raw=True)
def expired(w: Words) -> int:
    """A loop's time may be over at any moment."""
    return choose(w) if w[TIMEOUTS] else 0


# --- locks


@helper(replaces=debug.set_lock, raw=True)
def set_lock(w: Words, lock: int, value: int) -> int:
    """A lock's word is part of the state."""
    return put(w, lock, value)


@helper(raw=True)
def lock_number(w: Words, lock: int, role: int) -> int:
    """The number of a lock, counted from 1 in the order in which they are met; its class is looked up, too."""
    number = w[LOCK_ID + lock]
    if number == 0:
        number = w[LOCKS] + 1
        if number > MAX_LOCKS:
            fail(w, ARENA_FULL, lock)
        w[LOCKS] = number
        w[LOCK_ID + lock] = number
        w[LOCK_AT + number] = lock
    known = 0
    while known < w[CLASSES] and w[CLASS_KEY + known] != role:
        known += 1
    if known == w[CLASSES]:
        if known == MAX_CLASSES:
            fail(w, ARENA_FULL, lock)
        w[CLASS_KEY + known] = role
        w[CLASSES] = known + 1
    w[LOCK_CLASS + number] = known
    return number


@helper(raw=True)
def classes_after(w: Words, classes: int) -> int:
    """Every class that was ever taken, directly or not, while one of ``classes`` was held."""
    reached = classes
    before = 0
    while reached != before:
        before = reached
        for known in range(w[CLASSES]):
            if reached >> known & 1:
                reached |= w[CLASS_AFTER + known]
    return reached


@helper(raw=True)
def follows(w: Words, held: int, taken: int) -> int:
    """lockdep: class ``taken`` is wanted while ``held`` is held. Never must it have been the other way round.

    An order that closes a circle is not remembered: the search must come upon it again after the random executions.
    """
    if w[CLASS_AFTER + held] >> taken & 1:
        return 0
    if held == taken or classes_after(w, 1 << taken) >> held & 1:
        fail(w, LOCK_ORDER, held << 16 | taken)
    w[CLASS_AFTER + held] |= 1 << taken
    return 0


@helper(replaces=debug.might_sleep, raw=True)
def might_sleep(w: Words) -> int:
    """might_sleep(): not under a spinlock, not in a callback that must not block."""
    if w[w[THREAD] + ATOMIC]:
        fail(w, SLEEP_IN_ATOMIC, 0)
    if w[w[THREAD] + CALLBACK] & NON_BLOCK:
        fail(w, SLEEP_NON_BLOCK, 0)
    return 0


@helper(raw=True)
def shared_lock(w: Words, lock: int) -> int:
    """Taking a lock is a step that others can tell, unless nobody else can find it."""
    if shadow_of(w, lock) & PRIVATE == 0:
        w[VISIBLE] = 1
    return 0


@helper(replaces=debug.lock_wanted, raw=True)
def lock_wanted(w: Words, lock: int, role: int, spins: int) -> int:
    """lockdep and might_sleep, before a lock is waited for."""
    shared_lock(w, lock)
    if spins == 0:
        might_sleep(w)
    thread = w[THREAD]
    if role & 255 == MMAP_LOCK and w[thread + CALLBACK]:
        fail(w, MMAP_LOCK_IN_CALLBACK, lock)
    number = lock_number(w, lock, role)
    held = w[thread + HELD_READ] | w[thread + HELD_WRITE]
    if held >> (number - 1) & 1:
        fail(w, SELF_DEADLOCK, lock)
    wanted = w[LOCK_CLASS + number]
    other = 0
    while held:
        other += 1
        if held & 1:
            follows(w, w[LOCK_CLASS + other], wanted)
        held = held >> 1
    return 0


@helper(replaces=debug.lock_tried, raw=True)
def lock_tried(w: Words, lock: int) -> int:
    """A trylock looks at the lock's word without waiting: giving the lock up is then something others can tell."""
    shared_lock(w, lock)
    return note(w, lock, 1)


@helper(replaces=debug.lock_taken, raw=True)
def lock_taken(w: Words, lock: int, role: int, write: int, spins: int) -> int:
    """The running thread holds it."""
    thread = w[THREAD]
    bit = 1 << (lock_number(w, lock, role) - 1)
    place = thread + (HELD_WRITE if write else HELD_READ)
    put(w, place, w[place] | bit)
    if spins:
        put(w, thread + ATOMIC, w[thread + ATOMIC] + 1)
    return 0


@helper(raw=True)
def left_behind(w: Words) -> int:
    """Others may have waited for this: what the thread accessed before is over for them, and the window closes."""
    if window_used(w, w[THREAD]):
        w[VISIBLE] = 1
    return 0


@helper(replaces=debug.lock_dropped, raw=True)
def lock_dropped(w: Words, lock: int, write: int, spins: int) -> int:
    """Giving a lock up can be told by nobody who waits for it; by one who tries it, or frees it, it can."""
    thread = w[THREAD]
    if shadow_of(w, lock) & PRIVATE == 0:
        note(w, lock, write)
        left_behind(w)
    place = thread + (HELD_WRITE if write else HELD_READ)
    number = w[LOCK_ID + lock]
    if number == 0 or w[place] >> (number - 1) & 1 == 0:
        fail(w, NOT_HELD, lock)
    put(w, place, w[place] & ~(1 << (number - 1)))
    if spins:
        put(w, thread + ATOMIC, w[thread + ATOMIC] - 1)
    return 0


@helper(replaces=debug.lock_downgraded, raw=True)
def lock_downgraded(w: Words, lock: int) -> int:
    """The running thread holds it for reading from now on, which lets other readers in."""
    thread = w[THREAD]
    if shadow_of(w, lock) & PRIVATE == 0:
        note(w, lock, 1)
        left_behind(w)
    number = w[LOCK_ID + lock]
    if number == 0 or w[thread + HELD_WRITE] >> (number - 1) & 1 == 0:
        fail(w, NOT_HELD, lock)
    bit = 1 << (number - 1)
    put(w, thread + HELD_WRITE, w[thread + HELD_WRITE] & ~bit)
    return put(w, thread + HELD_READ, w[thread + HELD_READ] | bit)


# --- lists and trees


@helper(replaces=debug.list_add_valid, raw=True)
def list_add_valid(w: Words, node: int) -> int:
    """__list_add_valid(): a node that is in a list already has a back pointer."""
    if w[node + 1]:
        fail(w, LIST_ADD, node)
    return 0


@helper(replaces=debug.list_del_valid, raw=True)
def list_del_valid(w: Words, node: int) -> int:
    """__list_del_entry_valid()."""
    shadow_of(w, node)
    if w[node + 1] == 0:
        fail(w, LIST_DEL, node)
    return 0


@helper(replaces=debug.tree_insert_valid, raw=True)
def tree_insert_valid(w: Words, node: int) -> int:
    """A node in a tree has a parent, or is black and the root; outside it has none or itself."""
    if w[node + 1] and w[node + 1] != node << 1:
        fail(w, TREE_INSERT, node)
    return 0


# --- what the invariants need to know


@helper(raw=True)
def range_slot(w: Words, range: int) -> int:
    """The running thread's record of an invalidation, or a free one."""
    first = RANGES + (w[TID] - 1) * 2 * RANGE_WORDS
    return first + RANGE_WORDS if w[first] and w[first] != range else first


@helper(replaces=ghost.range_stands, raw=True)
def range_stands(w: Words, range: int, where: int) -> int:
    """An invalidation has come to a phase. Where a rule ceases to hold, what was before must have been looked at."""
    if where != ghost.STARTED:
        w[VISIBLE] = 1
    slot = range_slot(w, range)
    put(w, slot, range if where else 0)
    put(w, slot + 1, w[range + RANGE_START] if where else 0)
    put(w, slot + 2, w[range + RANGE_END] if where else 0)
    return put(w, slot + 3, where)


@helper(replaces=ghost.callback_stands, raw=True)
def callback_stands(w: Words, inside: int, blockable: int) -> int:
    """The running thread goes into a driver's callback, or comes out."""
    place = w[THREAD] + CALLBACK
    deeper = 1 if blockable else 1 + NON_BLOCK
    return put(w, place, w[place] + deeper if inside else w[place] - deeper)


@helper(replaces=ghost.walk_stands, raw=True)
def walk_stands(w: Words, inside: int) -> int:
    """The running thread goes over the interval tree without its lock, or no more."""
    bit = 1 << (w[TID] - 1)
    return put(w, WALKING, w[WALKING] | bit if inside else w[WALKING] & ~bit)


@helper(replaces=debug.tree_changes, raw=True)
def tree_changes(w: Words, root: int) -> int:
    """The core promises its walkers that the tree stands still: that is what the odd sequence number is for."""
    if root == w[ITREE] and w[WALKING]:
        fail(w, TREE_WALKED, root)
    return 0


@helper(replaces=time.expired, raw=True)
def expired_at_setup(w: Words) -> int:
    """Before threads run nothing stands in a loop's way: one that still goes round is ended."""
    w[ASKED] += 1
    return 1 if w[ASKED] > MAX_ROUNDS else 0


@helper(replaces=ghost.device_closed, raw=True)
def device_closed(w: Words, device: int) -> int:
    """Which devices are closed."""
    w[VISIBLE] = 1
    for number in range(w[DEVICES]):
        if w[DEVICE_AT + number] == device:
            put(w, CLOSED, w[CLOSED] | 1 << number)
    return 0


@helper(raw=True)
def in_hand(w: Words, frame: int) -> int:
    """Whether a thread may have a page in a register, on its way into a table."""
    for number in range(w[THREADS]):
        end = w[RECORD + number + 1] if number + 1 < w[THREADS] else w[LIMIT]
        for word in range(w[RECORD + number] + HEADER, end):
            if w[word] <= FULL and (w[word] & DEVICE_BITS) >> FRAME_SHIFT == frame:
                return 1
    return 0


@helper(replaces=pagetable.next_frame, raw=True)
def next_frame(w: Words, addr: int) -> int:
    """A page by where it comes in and how many came in there before it, whatever happened elsewhere or came to nothing.

    Two threads that are about to bring one in at the same place have different ones in hand.
    """
    page = addr >> 12
    number = w[GENERATION + page % PAGES] + 1
    while number & 7 == 0 or in_hand(w, (page & 7) << 3 | number & 7):
        number += 1
    return (page & 7) << 3 | number & 7


@helper(replaces=pagetable.frame_comes_in, raw=True)
def frame_comes_in(w: Words, addr: int, entry: int) -> int:
    """It is in: the next one there has another name."""
    if entry & VALID:
        put(w, GENERATION + (addr >> 12) % PAGES, entry >> FRAME_SHIFT & 7)
    return 0


@primitive(replaces=count.zapped_so_far)
def zapped_does_not_matter(w: Words) -> int:
    """Counters are no part of the state, so no register may hold one: a state would be as many as ways lead to it."""
    return 0


@helper(replaces=debug.table_changes, raw=True)
def table_changes(w: Words, root: int) -> int:
    """The invariants look at it, whatever lock is held: each change is a step of its own."""
    if shadow_of(w, root) & PRIVATE == 0:
        w[VISIBLE] = 1
    return 0


@helper(replaces=debug.table_alive, raw=True)
def table_alive(w: Words, root: int) -> int:
    """The invariants walk the device's tables as its MMU does, which must not lead through freed memory."""
    shadow_of(w, root)
    return 0


PAGES_BY_PLACE = [next_frame, frame_comes_in]  # page symmetry: without them pages are numbered as they come

SETUP = [take_at_setup, give_back_at_setup, expired_at_setup, table_alive]

HOOKS = [
    take,
    give_back,
    set_count,
    woken,
    worker_is_caller,
    run_none,
    may_fail,
    expired,
    set_lock,
    might_sleep,
    lock_wanted,
    lock_tried,
    lock_taken,
    lock_dropped,
    lock_downgraded,
    list_add_valid,
    list_del_valid,
    tree_insert_valid,
    tree_changes,
    walk_stands,
    range_stands,
    callback_stands,
    device_closed,
    table_changes,
    zapped_does_not_matter,
]
