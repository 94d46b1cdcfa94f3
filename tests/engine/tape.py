"""Random programs for the checker: a protocol that does what a number tells it, and generators of such numbers.

Compiled once, it runs any program: six bits an operation, decoded in registers, so that the only steps are the
operations'. What threads share are a few words, locks of every kind, a list, an XArray and objects that one thread
makes, others find and somebody frees.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from faultpath.design import Design
from faultpath.engine import arena, search, world
from faultpath.engine.check import Check
from faultpath.engine.thread import RESULT
from faultpath.kernel.mirror import Device
from faultpath.kernel.mmu_notifier import Mm
from faultpath.kernel.primitives.atomic import Atomic, atomic_dec, atomic_inc, atomic_read
from faultpath.kernel.primitives.heap import GFP_ATOMIC, GFP_KERNEL, kfree, kmalloc
from faultpath.kernel.primitives.lists import hlist_add_head, hlist_del, hlist_first
from faultpath.kernel.primitives.locks import (
    down_read,
    down_read_trylock,
    down_write,
    downgrade_write,
    mutex_lock,
    mutex_trylock,
    mutex_unlock,
    refcount_dec_and_test,
    refcount_inc_not_zero,
    refcount_set,
    spin_lock,
    spin_unlock,
    up_read,
    up_write,
)
from faultpath.kernel.primitives.time import timed_out
from faultpath.kernel.primitives.wait import wake_up
from faultpath.kernel.primitives.xarray import xa_erase, xa_load, xa_store
from faultpath.kernel.srcu import Srcu, srcu_read_lock, srcu_read_unlock, synchronize_srcu
from faultpath.protocol.language import container_of, count, protocol, wait_event, wait_until
from faultpath.protocol.struct import (
    HlistHead,
    HlistNode,
    Mutex,
    RefCount,
    RwLock,
    RwSem,
    SpinLock,
    Struct,
    WaitQueue,
    XArray,
)
from faultpath.scenario import DEVICE, Call, Scenario


class Thing(Struct):
    """An object that one thread makes and others may find."""

    value: int
    next: Thing
    mutex: Mutex
    node: HlistNode
    ref: RefCount


class Board(Device):
    """What the threads share."""

    x: int
    y: int
    z: int
    thing: Thing
    other: Thing
    mutex: Mutex
    second: Mutex
    spin: SpinLock
    sem: RwSem
    atomic: Atomic
    list: HlistHead
    things: XArray
    srcu: Srcu
    queue: WaitQueue
    rw: RwLock


OPS = (
    "", "r=x", "r=y", "r=z", "x=r", "y=r", "z=r", "r+=1", "r=0", "skip if r", "skip unless r",
    "lock", "unlock", "lock second", "unlock second", "trylock", "trylock second", "spin", "unspin",
    "read", "unread", "write", "unwrite", "downgrade", "tryread",
    "new", "publish", "find", "hide", "get", "set", "free", "drop",
    "push", "follow", "lock it", "unlock it", "trylock it",
    "inc", "dec", "r=atomic", "sleep", "wait", "wake",
    "add", "delete", "first", "store", "load", "erase",
    "srcu", "unsrcu", "synchronize", "time", "new atomic", "again",
    "seen 0", "seen 1", "seen 2", "seen 3", "ref", "unref", "publish other", "find other",
)  # fmt: skip
NUMBER = {name: number for number, name in enumerate(OPS)}
assert len(OPS) <= 64
SEEN = ("fault_retries", "lookups", "invalidations", "callbacks")
PER_WORD = 10


@protocol
def board_locks(board: Board, op: int, r: int) -> int:
    """Operations on locks; the register afterwards."""
    if op == 11:
        mutex_lock(board.mutex)
    elif op == 12:
        mutex_unlock(board.mutex)
    elif op == 13:
        mutex_lock(board.second)
    elif op == 14:
        mutex_unlock(board.second)
    elif op == 15:
        r = mutex_trylock(board.mutex)
    elif op == 16:
        r = mutex_trylock(board.second)
    elif op == 17:
        spin_lock(board.spin)
    elif op == 18:
        spin_unlock(board.spin)
    elif op == 19:
        down_read(board.sem)
    elif op == 20:
        up_read(board.sem)
    elif op == 21:
        down_write(board.sem)
    elif op == 22:
        up_write(board.sem)
    elif op == 23:
        downgrade_write(board.sem)
    elif op == 24:
        r = down_read_trylock(board.sem)
    return r


@protocol
def board_words(board: Board, op: int, r: int) -> int:
    """Operations on shared words."""
    if op == 1:
        r = board.x
    elif op == 2:
        r = board.y
    elif op == 3:
        r = board.z
    elif op == 4:
        board.x = r
    elif op == 5:
        board.y = r
    elif op == 6:
        board.z = r
    elif op == 7:
        r = (r + 1) & 3
    elif op == 8:
        r = 0
    elif op == 38:
        atomic_inc(board.atomic)
    elif op == 39:
        atomic_dec(board.atomic)
    elif op == 40:
        r = atomic_read(board.atomic)
    elif op == 41:
        wait_event(board.queue, board.x != 0)
    elif op == 42:
        wait_until(atomic_read(board.atomic) > 0 or board.z != r)
    elif op == 43:
        wake_up(board.queue)
    elif op == 53:
        r = timed_out()
    elif op == 56:
        count("fault_retries")
    elif op == 57:
        count("lookups")
    elif op == 58:
        count("invalidations")
    elif op == 59:
        count("callbacks")
    return r


@protocol
def board_things(board: Board, thing: Thing, op: int, r: int) -> Thing:
    """Operations that make, find or let go of an object; the one at hand afterwards."""
    if op == 25:
        thing = kmalloc(Thing, GFP_KERNEL)
    elif op == 54:
        thing = kmalloc(Thing, GFP_ATOMIC)
    elif op == 26:
        board.thing = thing
    elif op == 27:
        thing = board.thing
    elif op == 28:
        board.thing = Thing(0)
    elif op == 62:
        board.other = thing
    elif op == 63:
        thing = board.other
    elif op == 31:
        if thing:
            kfree(thing)
            thing = Thing(0)
    elif op == 32:
        thing = Thing(0)
    elif op == 33:
        made = kmalloc(Thing, GFP_KERNEL)
        made.next = thing
        thing = made
    elif op == 34:
        if thing:
            thing = thing.next
    elif op == 46:
        first = hlist_first(board.list)
        thing = Thing(container_of(Thing, "node", first) if first else 0)
    elif op == 48:
        thing = Thing(xa_load(board.things, r, world.SCRATCH))
    return thing


@protocol
def board_uses(board: Board, thing: Thing, op: int, r: int) -> int:
    """Operations on the object at hand."""
    if op == 29:
        r = thing.value
    elif op == 30:
        thing.value = r
    elif op == 35:
        mutex_lock(thing.mutex)
    elif op == 36:
        mutex_unlock(thing.mutex)
    elif op == 37:
        r = mutex_trylock(thing.mutex)
    elif op == 44:
        hlist_add_head(thing.node, board.list)
    elif op == 45:
        hlist_del(thing.node)
    elif op == 47:
        xa_store(board.things, r, thing)
    elif op == 60:
        r = refcount_inc_not_zero(thing.ref)
    elif op == 61:
        if r:
            refcount_set(thing.ref, 1)
        else:
            r = refcount_dec_and_test(thing.ref)
    return r


@protocol
def play(board: Board, tape: int, more: int, again: int) -> int:
    """The operations of two words of tape, and of ``again`` if the register is not 0 then; what is in the register."""
    r = 0
    idx = 0
    thing = Thing(0)
    while tape:
        op = tape & 63
        tape = tape >> 6
        if op == 9 or op == 10:
            if (r != 0) == (op == 9):
                tape = tape >> 6
        elif op == 49:
            xa_erase(board.things, r)
        elif op == 50:
            idx = srcu_read_lock(board.srcu)
        elif op == 51:
            srcu_read_unlock(board.srcu, idx)
        elif op == 52:
            synchronize_srcu(board.srcu)
        elif op == 55:
            if r:
                tape = again
                again = 0
        elif op >= 11 and op <= 24:
            r = board_locks(board, op, r)
        elif (op >= 25 and op <= 28) or (op >= 31 and op <= 34) or op == 46 or op == 48 or op == 54 or op >= 62:
            thing = board_things(board, thing, op, r)
            if op == 25 or op == 27 or op == 54 or op == 46 or op == 48 or op >= 63 or op == 34:
                r = 1 if thing else 0
        elif op == 29 or op == 30 or (op >= 35 and op <= 37) or op == 44 or op == 45 or op == 47 or op >= 60:
            if thing:
                r = board_uses(board, thing, op, r)
        else:
            r = board_words(board, op, r)
        if not tape:
            tape = more
            more = 0
    return r


@protocol
def board_open(mm: Mm) -> Board:
    board = kmalloc(Board, GFP_KERNEL)
    board.mm = mm
    return board


@protocol
def board_nothing(board: Board, addr: int, write: int) -> int:
    return 0


@protocol
def board_walk(board: Board, addr: int) -> int:
    return 0


@protocol
def board_close(board: Board) -> None:
    pass


design = Design(
    name="board",
    title="words, locks and objects",
    source="none",
    open=board_open,
    fault=board_nothing,
    walk=board_walk,
    close=board_close,
    ops=[],
)

Program = tuple[list[str], list[str]]  # a thread's operations, and those that "again" goes to


def word(ops: list[str]) -> int:
    """Operations as a number."""
    assert len(ops) <= PER_WORD
    return sum(NUMBER[op] << 6 * i for i, op in enumerate(ops))


def scenario(programs: list[Program], failures: int = 0) -> Scenario:
    """Threads that run these programs."""
    threads = []
    for number, (ops, again) in enumerate(programs):
        args = (DEVICE, word(ops[:PER_WORD]), word(ops[PER_WORD:]), word(again))
        threads.append(Call(f"thread {number}", play, args))
    return Scenario("board", "random", [], threads, pages=0, failures=failures)


@dataclass
class Exploration:
    """What is compared: everything but the numbers of states and how the threads got there."""

    verdict: str
    outcomes: set[tuple[int, ...]]  # what is left when every thread has ended
    results: list[int]
    seen: set[str]
    status: int
    states: int


class Explored(Check):
    """Keeps what the last search alone found, and every state in which all threads have ended.

    :param learn: whether random executions come first; without them every wrong guess is found by the search itself
    """

    def __init__(self, threads: Scenario, *, reduce: bool, learn: bool) -> None:
        super().__init__(design, [], threads, reduce=reduce, memory=1 << 25)
        self.learn = learn
        self.outcomes: set[tuple[int, ...]] = set()
        self.callback = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(self._ended)
        self.w[arena.REMEMBER] = 1
        self.w[search.FINAL] = ctypes.cast(self.callback, ctypes.c_void_p).value

    def _ended(self, _: int) -> int:
        self.outcomes.add(self.outcome())
        return 0

    def outcome(self) -> tuple[int, ...]:
        """The shared words, and the objects that can be reached from them, by when they are met, not by address."""
        w, met, out = self.w, [int(self.devices[0])], [int(self.w[arena.FAILURES])]
        out += [int(w[record + RESULT]) for record in self.records]
        for start in met:
            header = int(w[start])
            out.append(header)
            for word in range(start + 1, start + 8 * (header >> 1 & 127)):
                value = int(w[word])
                if arena.OBJECTS <= value < arena.SHADOW:
                    target = int(w[arena.SHADOW + ((value - arena.ARENA) >> 3)]) >> 4
                    if target == int(self.mm):
                        continue
                    if target not in met:
                        met.append(target)
                    value = (met.index(target) + 1) << 32 | value - target
                out.append(value)
        return tuple(out)

    def _learn(self) -> None:
        if self.learn:
            super()._learn()

    def _search(self, *args):  # type: ignore[no-untyped-def]
        self.w[arena.SEEN : arena.SEEN + 64] = 0
        self.w[arena.RESULTS : arena.RESULTS + 6] = 0
        self.outcomes.clear()
        return super()._search(*args)


def explore(programs: list[Program], *, reduce: bool, learn: bool = True, failures: int = 0) -> Exploration:
    """Every interleaving of these programs."""
    check = Explored(scenario(programs, failures), reduce=reduce, learn=learn)
    found = check.run()
    return Exploration(found.verdict, check.outcomes, found.results, found.seen, found.status, found.states)
