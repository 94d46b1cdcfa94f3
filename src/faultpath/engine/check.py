"""Check: a design in a scenario, every interleaving of its threads, breadth first.

Why steps that cannot be told apart may be taken together. Let a thread at some state be about to access a word that is
guarded (sanitizer.py): it holds a lock under which, or it is the thread by which, every access to that word in any
execution is made, or nobody ever writes it, or the object is not known to anybody else. No other thread can make an
access that depends on this one before this one is made: the thread's next step alone is a persistent set (Godefroid
1996), and exploring only it keeps every reachable local state, every deadlock and every broken rule. Giving a lock up
is such a step too: who waits for it cannot go on before, and whoever only tries it makes the lock's word shared. A
thread never goes on for ever so, since a call of step() that does is itself a violation, so no other is forgotten.

The invariants look at states, of which there are fewer now. What they look at is therefore always a step of its own:
page tables that a device or the CPU uses, and the phases of an invalidation (condition C2 of ample sets).

That a word is guarded is a statement about all executions; it is made from those seen and verified at every access of
the reduced search. If it is wrong, take a shortest execution that shows it: every step before the last obeys the
statements, so the persistent-set argument applies to it and the reduced search reaches the same last access (Stoller
2002). It then begins anew, that word known to be shared.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

from faultpath.design import Design
from faultpath.engine import arena, native, progress, search, world
from faultpath.engine.native import Library, Native
from faultpath.engine.sanitizer import undo_to
from faultpath.engine.status import explain
from faultpath.engine.step import Routine
from faultpath.engine.thread import PC
from faultpath.engine.world import Words
from faultpath.errors import FaultpathError
from faultpath.kernel import debug
from faultpath.kernel.invariants import check_final, check_state
from faultpath.kernel.mirror import attach
from faultpath.kernel.mm import one_leaf
from faultpath.kernel.mm.fork import mm_init
from faultpath.kernel.mm.raising import RAISES_ALL
from faultpath.kernel.mm.versions import LINUX_6_18
from faultpath.kernel.mmu_notifier import Mm, Subscriptions
from faultpath.kernel.threads import worker
from faultpath.protocol.language import Protocol
from faultpath.protocol.native import STOPPED
from faultpath.protocol.program import Program, Source
from faultpath.protocol.resumable import BLOCKED, CHECKED, checked_module
from faultpath.scenario import DEVICE, MM, OTHER, PAGE, SPAN, Argument, Call, Scenario

FIRST_TABLE = 1 << 16  # entries of the hash table to begin with
BIG_TABLE = 1 << 22  # up to here it grows by four: what is moved into a larger one is moved less often
LEAF_BITS = 6  # a page-table leaf holds every page of a scenario
TASK_SIZE = PAGE << LEAF_BITS
POOL_WORDS = 512  # what one thread may have allocated at a time
WALKS = 48  # random executions at a time that tell which words are shared before the search begins
MAX_WALKS = 10 * WALKS
MAX_WALK_STEPS = 5000
BUDGET = 1 << 15  # states expanded between two looks at what has come of it
#: States from which on code is worth compiling well: what that takes is soon saved, and the next search finds it kept.
WORTHWHILE = 1 << 18

# Words of address space for the search's own tables: states, the queue, the hash table, edges of the graph.
MAX_STATES = 1 << 26
FIRST_QUEUE = 1 << 20  # a ring: small enough to stay in the cache, doubled when it is full
MAX_QUEUE = 1 << 27
PARENTS = arena.TABLES
FIRST_EDGE = PARENTS + MAX_STATES
QUEUE = FIRST_EDGE + MAX_STATES
HASH_TABLE = QUEUE + MAX_QUEUE
EDGES = HASH_TABLE + (1 << 28)

COUNTS = (
    search.EXPANDED,
    search.READ_AT,
    search.WRITTEN_AT,
    search.TRANSITIONS,
    search.DEPTH,
    search.TOUCHED,
    search.FINISHED,
    search.EDGE_COUNT,
    arena.LATE,
    search.BROKEN_AT,
    arena.BROKEN,
)


class CheckedThread:
    """What a thread of a scenario runs, compiled: every access checked and logged."""

    def __init__(
        self, design: Design, root: Protocol, replacements: Sequence[Source], handlers: Sequence[Protocol]
    ) -> None:
        core = [*design.replacements(), *replacements, *debug.HOOKS]
        self.program = Program([root, *CHECKED], [design.driver(), *design.ops], core, handlers)
        self.routine = Routine(self.program, root)
        self.text = checked_module(self.program, self.routine.code, "step")
        self.libraries = [Library(self.text, ["step"], quickly=True)]

    @property
    def library(self) -> Library:
        """The best there is; other checks may still run in those before."""
        return self.libraries[-1]

    def hasten(self) -> None:
        """Code that runs faster, if this is not it."""
        if self.library.effort < native.effort:
            self.libraries.append(Library(self.text, ["step"]))


@cache
def _compiled(
    design: Design, root: Protocol, replacements: tuple[Source, ...], handlers: tuple[Protocol, ...]
) -> CheckedThread:
    return CheckedThread(design, root, replacements, handlers)


@cache
def _searcher() -> Native:
    return Native(
        Program(
            [search.search, search.rehash, search.widen, search.seek, search.run_thread, undo_to, progress.livelock]
        )
    )


@dataclass
class Verdict:
    """What a search found."""

    verdict: str = "holds"
    status: int = 0
    arg: int = 0
    states: int = 0
    transitions: int = 0
    depth: int = 0
    finished: int = 0
    seconds: float = 0.0
    path: list[tuple[int, int]] = field(default_factory=list)  # (thread, choices) of each step
    loop: list[int] = field(default_factory=list)  # the threads that then go round for ever, one step each
    late: int = -1  # the thread whose last accesses of its last step come after the path, and break the rule
    searches: int = 0
    bound: str = ""
    results: list[int] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)


class Check:
    """One design in one scenario.

    :param reduce: take steps together that others cannot tell apart
    :param symmetry: take states for one that differ only in which of like threads is which
    :param page_symmetry: take states for one that differ only in the order in which pages came in at different places
    """

    def __init__(
        self,
        design: Design,
        values: Sequence[int],
        scenario: Scenario,
        *,
        reduce: bool = True,
        symmetry: bool = True,
        page_symmetry: bool = True,
        timeouts: bool = True,
        replacements: Sequence[Source] = (),
        memory: int = 4 << 30,
    ) -> None:
        self.design = design
        self.scenario = scenario
        self.reduce = reduce
        self.symmetry = symmetry
        self.page_symmetry = page_symmetry
        self.timeouts = timeouts
        self.memory = memory
        others = {source.replaces for source in replacements}
        never = [source for source in one_leaf.NEVER if source.replaces not in others]
        self.replacements = [*replacements, *never, *(debug.PAGES_BY_PLACE if page_symmetry else [])]
        self.calls = list(scenario.threads)
        self._set_up(list(values))

    # --- the first state

    def _set_up(self, values: list[int]) -> None:
        design, scenario = self.design, self.scenario
        core = [*design.replacements(), *self.replacements, *debug.SETUP]
        roots = [mm_init, design.open, attach, check_state, check_final, *(c.protocol for c in scenario.setup)]
        program = Program(list(dict.fromkeys(roots)), [design.driver(), *design.ops], core)
        self.native = Native(program, quickly=True)
        self.w = w = world.new_world(leaf_bits=LEAF_BITS)
        if w.size < EDGES + MAX_STATES:
            what = f"the system grants {w.size >> 27} GiB of address space"
            raise FaultpathError(what, "check", f"it needs {(EDGES + MAX_STATES) >> 27}: see ulimit -v")
        w[world.BRK] = arena.OBJECTS
        w[world.CAPACITY] = arena.SHADOW
        w[arena.LOG_TOP] = arena.LOG
        self.mm = self._call(mm_init, TASK_SIZE, RAISES_ALL, LINUX_6_18)
        self.devices = []
        for _ in range(scenario.devices):
            device = self._call(design.open, self.mm, *values)
            self._call(attach, self.mm, device, int(design.driver()))
            self.devices.append(device)
        for call in scenario.setup:
            self._call(call.protocol, *self._arguments(call.args))
        self.threads = [_compiled(design, c.protocol, tuple(self.replacements), ()) for c in self.calls]
        handlers = {p for t in self.threads for p in t.program.handlers.values()}
        if handlers:
            self.calls.append(Call("kworker", worker, ()))
            queued = tuple(sorted(handlers, key=int))
            self.threads.append(_compiled(design, worker, tuple(self.replacements), queued))
        if len(self.threads) > arena.MAX_THREADS:
            raise FaultpathError(f"{len(self.threads)} threads", scenario.name, f"at most {arena.MAX_THREADS}")
        self._lay_out()

    def _call(self, root: Protocol, *args: int) -> int:
        try:
            return self.native.call(root, self.w, *args)
        except world.Stop:
            raise explain(self.w, f"setting up {self.scenario.name}") from None

    def _arguments(self, args: tuple[Argument, ...]) -> tuple[int, ...]:
        named = {MM: self.mm, DEVICE: self.devices[0], OTHER: self.devices[-1]}
        return tuple(named[a] if isinstance(a, str) else a for a in args)

    def _lay_out(self) -> None:
        w = self.w
        pools = int(w[world.BRK])
        w[arena.POOLS] = pools
        w[arena.POOL] = POOL_WORDS
        self.pools = pools
        record = pools + arena.MAX_THREADS * POOL_WORDS
        self.records = []
        for number, (call, thread) in enumerate(zip(self.calls, self.threads, strict=True)):
            thread.routine.begin(w, record, number + 1, self._arguments(call.args))
            w[arena.RECORD + number] = record
            w[search.DAEMON + number] = thread.routine.idle if call.protocol is worker else 0
            self.records.append(record)
            record += thread.routine.words
        alike = self._alike()
        for number, like in enumerate(alike):
            w[arena.LIKE + number] = like
            w[search.BIT + number] = 0 if like or number + 1 in alike else 1 << (arena.MAX_LOCKS + number)
        if record >= arena.SHADOW:
            raise FaultpathError("too much state", self.scenario.name, "fewer threads or pages")
        w[arena.LIMIT] = record
        w[arena.CHECK_MM] = self.mm
        subscriptions = int(w[self.mm + Mm.fields["notifier_subscriptions"].offset])
        w[arena.ITREE] = subscriptions + Subscriptions.fields["itree"].offset
        w[arena.DEVICES] = len(self.devices)
        w[arena.DEVICE_AT : arena.DEVICE_AT + len(self.devices)] = self.devices
        w[arena.DISJOINT] = int(self.design.disjoint)
        w[arena.SPAN] = SPAN
        w[arena.SPAN_END] = SPAN + self.scenario.pages * PAGE
        w[arena.TIMEOUTS] = int(self.timeouts)
        w[arena.FAILURES] = self.scenario.failures
        w[arena.FINE] = 0 if self.reduce else arena.FORGETFUL
        w[arena.THREADS] = len(self.threads)
        self._link()
        w[search.QUEUE] = QUEUE
        w[search.PARENTS] = PARENTS
        w[search.MAX_FOUND] = MAX_STATES
        w[search.FIRST_EDGE] = FIRST_EDGE
        w[search.EDGES] = EDGES
        self.first = self._state()

    def _link(self) -> None:
        """Where the code is that the search calls."""
        for number, thread in enumerate(self.threads):
            self.w[search.STEP + number] = thread.library.address("step")
        self.w[search.INVARIANTS] = self.native.address(check_state)
        self.w[search.FINAL] = self.native.address(check_final)

    def hasten(self) -> None:
        """Compile well what was compiled quickly; which states there are is the same."""
        for thread in self.threads:
            thread.hasten()
        if self.native.library.effort < native.effort:
            self.native = Native(self.native.program)
        self._link()

    def _alike(self) -> list[int]:
        """Of each thread the one before it that runs the same protocol on the same, counted from 1; 0 if there is none.

        Threads that are alike must be neighbours.
        """
        same = [a.protocol is b.protocol and a.args == b.args for a, b in pairwise(self.calls)]
        return [0, *(number if self.symmetry and alike else 0 for number, alike in enumerate(same, 1))]

    def _first_alike(self) -> list[int]:
        """Of each thread the first one that is like it: itself, if there is none before."""
        first: list[int] = []
        for number, like in enumerate(self._alike()):
            first.append(first[like - 1] if like else number)
        return first

    def _state(self) -> tuple[Words, Words]:
        return self.w[:64].copy(), self.w[arena.ARENA : arena.STATE_END].copy()

    def reset(self) -> None:
        """Back to the first state."""
        named, state = self.first
        for word in range(64):
            if arena.is_state(word):
                self.w[word] = named[word]
        self.w[arena.ARENA : arena.STATE_END] = state

    # --- executions

    def step(self, number: int, choices: int) -> int:
        """One step of a thread in the arena as it is: STEPPED, BLOCKED, ENDED or STOPPED; its log is in the world."""
        return _searcher().call_raw(search.run_thread, self.w, number, choices)

    def _learn(self) -> None:
        """Random executions, until they tell nothing new: the search begins anew for each word that they missed."""
        w, draw = self.w, random.Random(1)
        fine, w[arena.FINE] = int(w[arena.FINE]), 1
        for _ in range(MAX_WALKS // WALKS):
            w[arena.BROKEN] = 0
            for _ in range(WALKS):
                self.reset()
                self._walk(draw)
            if not w[arena.BROKEN]:
                break
        w[arena.FINE] = fine
        w[arena.BROKEN] = 0
        self.reset()

    def _walk(self, draw: random.Random) -> None:
        """One execution, threads taking turns of random length, to its end or where it can go no further."""
        alive = list(range(len(self.threads)))
        turn, number = 0, 0
        for _ in range(MAX_WALK_STEPS):
            if turn == 0:
                number, turn = draw.choice(alive), draw.choice((1, 2, 5, 20))
            turn -= 1
            result = self.step(number, draw.getrandbits(8) & draw.getrandbits(8) & draw.getrandbits(8))
            if result == STOPPED:
                return
            if result == BLOCKED:
                self.undo()
                turn = 0
                if all(map(self.blocked, alive)):
                    return
            elif self.w[self.records[number] + PC] == -1:
                alive.remove(number)
                turn = 0
            if not alive:
                return

    def blocked(self, number: int) -> bool:
        """Whether a thread waits, in the arena as it is."""
        result = self.step(number, 0)
        self.undo()
        return result == BLOCKED

    def undo(self) -> None:
        """Take the last step back."""
        _searcher().call_raw(undo_to, self.w, arena.LOG)

    # --- the search

    def run(self, show: Callable[[int, int], None] = lambda done, found: None) -> Verdict:
        """Explore everything."""
        begin = time.perf_counter()
        verdict = Verdict()
        if self.reduce:
            self._learn()
        alike = any(self._alike())
        why = self._explore(verdict, show, alike)
        self._count(verdict)
        if why == search.EXHAUSTED and alike:
            # The progress pass needs the threads by their names.
            why = self._explore(verdict, show, False)
        if why == search.VIOLATED:
            self._violated(verdict, int(self.w[world.STATUS]))
        elif why != search.EXHAUSTED:
            verdict.verdict, verdict.bound = "bounded", "memory"
        elif (state := self._livelock()) is not None:
            self.w[search.BAD_STATE], self.w[search.BAD_STEP] = state, -1
            verdict.loop = progress.way_round(self.w, state, self._members())
            self._violated(verdict, arena.LIVELOCK)
        verdict.seconds = time.perf_counter() - begin
        return verdict

    def _explore(self, verdict: Verdict, show: Callable[[int, int], None], symmetry: bool) -> int:
        """Searches until one finds every word guarded that was taken for it; why that one stopped."""
        while True:
            verdict.searches += 1
            why = self._search(show, symmetry)
            if why is not None:
                return why

    def _count(self, verdict: Verdict) -> None:
        """What the search has counted and met."""
        w = self.w
        verdict.states = int(w[search.FOUND])
        verdict.transitions = int(w[search.TRANSITIONS])
        verdict.depth = int(w[search.DEPTH])
        verdict.finished = int(w[search.FINISHED])
        verdict.results = [int(r) for r in w[arena.RESULTS : arena.RESULTS + len(self.threads)]]
        for mine, first in enumerate(self._first_alike()):
            verdict.results[first] |= verdict.results[mine]  # what one may return, the others may
        verdict.results = [verdict.results[first] for first in self._first_alike()]
        verdict.seen = {name for name, index in world.INDEX.items() if w[arena.SEEN + index - world.COUNTER]}

    def _violated(self, verdict: Verdict, status: int) -> None:
        """A rule is broken, in the state and by the step that the search stopped at."""
        verdict.verdict = "violated"
        verdict.status, verdict.arg = status, int(self.w[world.STATUS_ARG])
        verdict.late = int(self.w[arena.LATE]) - 1
        verdict.path = self._path()
        verdict.depth = len(verdict.path)
        if self.w[search.SYMMETRY]:
            self._name(verdict)

    def _search(self, show: Callable[[int, int], None], symmetry: bool) -> int | None:
        """One search from the first state; None if a word taken for guarded was not."""
        w, functions = self.w, _searcher()
        self.reset()
        world.forget(w, HASH_TABLE, 4 * (int(w[search.MASK]) + 1))
        world.forget(w, FIRST_EDGE, int(w[search.FOUND]) + 1)
        entries = FIRST_TABLE
        table = HASH_TABLE + 2 * entries
        w[search.TABLE], w[search.MASK] = table, entries - 1
        for word in COUNTS:
            w[word] = 0
        w[search.SYMMETRY] = int(symmetry)
        w[search.FOUND] = 1
        w[search.LEVEL_END] = 1
        w[search.QUEUE_WORDS] = FIRST_QUEUE
        w[search.HASH] = 1
        world.forget(w, arena.MARK + arena.ARENA, arena.STATE_END - arena.ARENA)
        w[arena.MARK : arena.MARK + 64] = 0
        w[arena.LAST : arena.LAST + 64] = w[:64]
        w[arena.LAST + arena.ARENA : arena.LAST + arena.STATE_END] = w[arena.ARENA : arena.STATE_END]
        # The first state: number 0, fingerprint 1, nothing differs.
        w[functions.call_raw(search.seek, w, 1)] = 1
        w[int(w[search.QUEUE])] = 0
        w[search.WRITTEN_AT] = 1
        while True:
            why = functions.call_raw(search.search, w, BUDGET)
            if w[arena.BROKEN] and (why != search.PAUSED or w[search.EXPANDED] > 2 * w[search.BROKEN_AT] > 0):
                return None
            if why == search.TABLE_FULL:
                entries *= 4 if entries < BIG_TABLE else 2
                old, table = table, HASH_TABLE + 2 * entries
                if self._memory(entries) > self.memory or entries > MAX_STATES:
                    return int(why)
                functions.call(search.rehash, w, table, entries - 1)
                world.forget(w, old, entries)
            elif why == search.QUEUE_FULL and w[search.QUEUE_WORDS] < MAX_QUEUE:
                functions.call(search.widen, w)
            elif why != search.PAUSED:
                return int(why)
            if self._memory(entries) > self.memory:
                return search.TABLE_FULL
            show(int(w[search.EXPANDED]), int(w[search.FOUND]))
            if w[search.FOUND] >= WORTHWHILE:
                self.hasten()

    def _memory(self, entries: int) -> int:
        """Bytes that the search and the progress pass after it need, with so many entries in the hash table."""
        w = self.w
        waiting = int(w[search.WRITTEN_AT] - w[search.READ_AT])
        per_state = 2 + progress.NODE_WORDS
        return 8 * (2 * entries + per_state * int(w[search.FOUND]) + int(w[search.EDGE_COUNT]) + waiting)

    def _livelock(self) -> int | None:
        """The first state of a livelock in the graph of the last search."""
        w = self.w
        nodes = int(w[search.EDGES]) + int(w[search.EDGE_COUNT]) + 64
        words = int(w[search.FOUND]) * progress.NODE_WORDS
        world.forget(w, nodes, words)
        w[progress.NODES] = nodes
        w[progress.STACK] = nodes + words
        found = _searcher().call_raw(progress.livelock, w)
        if found < 0:
            return None
        return min(self._members())

    def _members(self) -> set[int]:
        """The states of the livelock found."""
        stack = int(self.w[progress.STACK])
        return {int(s) for s in self.w[stack : stack + int(self.w[progress.PART])]}

    def _path(self) -> list[tuple[int, int]]:
        w = self.w
        parents = int(w[search.PARENTS])
        path: list[tuple[int, int]] = []
        if w[search.BAD_STEP] >= 0:
            path.append((int(w[search.BAD_STEP]) >> 12, int(w[search.BAD_STEP]) & 0xFFF))
        state = int(w[search.BAD_STATE])
        while state:
            entry = int(w[parents + state])
            path.append((entry >> 12 & 15, entry & 0xFFF))
            state = entry >> 16
        return path[::-1]

    def _name(self, verdict: Verdict) -> None:
        """Like threads changed places on the way: from here on they keep their names."""
        w = self.w
        self.reset()
        who = list(range(len(self.threads)))
        path = verdict.path
        verdict.path = []
        for number, choices in path:
            verdict.path.append((who[number], choices))
            if self.step(number, choices) == STOPPED:
                break
            for other in range(1, len(who)):  # as put_in_order() did
                if w[arena.SWAPPED] >> other & 1:
                    who[other - 1], who[other] = who[other], who[other - 1]
        if verdict.late >= 0:
            verdict.late = who[verdict.late]
        w[search.SYMMETRY] = 0
