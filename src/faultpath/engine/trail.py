"""A counterexample step by step: the execution again, one access at a time, each put into words."""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from faultpath.engine import arena, search, world
from faultpath.engine.check import Check, Verdict
from faultpath.engine.names import Names, event
from faultpath.engine.thread import ASLEEP, HEADER, PC, START, WINDOW, WINDOW_SIZE
from faultpath.kernel.mmu_notifier import Range
from faultpath.kernel.primitives import atomic, count, ghost
from faultpath.kernel.primitives.wait import wake_up
from faultpath.protocol import ir, steps
from faultpath.protocol.language import Primitive
from faultpath.protocol.native import STOPPED
from faultpath.protocol.resumable import BLOCKED
from faultpath.protocol.struct import PageTable

Path = Sequence[tuple[int, int]]  # (thread, choices) of each step

LOCKING = {
    "mutex_lock", "mutex_trylock", "mutex_unlock", "spin_lock", "spin_unlock", "down_read", "down_read_trylock",
    "up_read", "down_write", "up_write", "downgrade_write",
}  # fmt: skip
FREEING = {"_kfree", "_off_stack"}


@dataclass(frozen=True)
class Step:
    """One access.

    :ivar thread: number of the thread
    :ivar choices: what went which way in it, one bit each
    :ivar frames: the calls that led to it, outermost first: (function, file name, line)
    :ivar kind: "read", "write", "call" (a primitive), "count" (one that counts references), "wait" (a guard that holds)
        or "note" (how an invalidation stands)
    :ivar text: what is done, objects by name: ``mutex_lock(svmm.mutex)``, ``subscriptions.invalidate_seq = 3``
    :ivar changes: words of objects that it changed: (name, before, after)
    :ivar lock: the name of the lock that is taken or given up, or ""
    :ivar freed: address of the object that is freed, or 0
    :ivar reads: words of objects that others know, read
    :ivar written: the same, written
    :ivar telling: to be shown whatever others do: it changes a page table, or goes one of several ways
    :ivar loop: part of what goes round for ever
    :ivar fatal: here the rule is broken
    """

    thread: int
    choices: int
    frames: tuple[tuple[str, str, int], ...]
    kind: str
    text: str
    changes: tuple[tuple[str, str, str], ...] = ()
    lock: str = ""
    freed: int = 0
    reads: frozenset[int] = frozenset()
    written: frozenset[int] = frozenset()
    telling: bool = False
    loop: bool = False
    fatal: bool = False


class Astray(Exception):
    """A path that this program does not take: a thread of it waits, or has ended."""


def thread_names(check: Check) -> list[str]:
    """``CPU0 fault``, ``CPU1 munmap``, ..."""
    return [call.name if call.name == "kworker" else f"CPU{n} {call.name}" for n, call in enumerate(check.calls)]


def names_of(check: Check) -> Names:
    """Names of everything in the check's world as it is now."""
    modules = {f.__module__ for thread in check.threads for f in thread.program.functions}
    tables = [check.design.driver(), *check.design.ops]
    known = check.design.open.fn.__globals__ | check.design.fault.fn.__globals__
    numbers = {int(ops): next((n for n, v in known.items() if v is ops), check.design.name) for ops in tables}
    for thread in check.threads:
        numbers.update({number: handler.__name__ for number, handler in thread.program.handlers.items()})
    return Names(check.w, thread_names(check), numbers, modules)


def registers_of(check: Check, number: int) -> dict[str, int]:
    """What a thread's registers hold: of those that share a slot, the ones that matter where it is."""
    record, code = check.records[number], check.threads[number].routine.code
    live = code.live.get(int(check.w[record + PC]), ())
    return {name: int(check.w[record + HEADER + code.slots[name]]) for name in [*code.slots, *live]}


def trail(check: Check, verdict: Verdict) -> list[Step]:
    """Every access of the counterexample of a search that has just ended; the world is then where it ends."""
    return follow(check, verdict)[0]


def follow(check: Check, verdict: Verdict) -> tuple[list[Step], Names]:
    """The same, and the names in it."""
    walk = _Trail(check)
    return walk.all(walk.coarse(verdict)), walk.names


def retrace(check: Check, path: Path, loop: int) -> tuple[list[Step], Names]:
    """Every access of an execution given access by access, and the names in it.

    :param loop: where the part of the path begins that can go round for ever; its length if there is none
    :raises Astray: the program does not take that path
    """
    walk = _Trail(check)
    return walk.all(walk.fine(path, loop)), walk.names


def stuck(check: Check) -> bool:
    """Whether no thread can take a step from the state in the world."""
    return all(check.w[record + PC] == -1 or check.blocked(number) for number, record in enumerate(check.records))


def over(check: Check) -> bool:
    """Whether every thread has ended, and workers wait for work."""
    places = [(int(check.w[record + PC]), int(check.w[search.DAEMON + n])) for n, record in enumerate(check.records)]
    return stuck(check) and all(pc == -1 or (daemon and pc in (daemon, START)) for pc, daemon in places)


class _Trail:
    def __init__(self, check: Check) -> None:
        self.check = check
        self.w = check.w
        # Who touched what. Cleared before each access: afterwards it tells what that one touched.
        self.guards = self.w[arena.GUARD + arena.ARENA : arena.GUARD + arena.STATE_END]

    def all(self, walk: Iterator[Step]) -> list[Step]:
        """The whole of a walk from the first state; then all is as it was, but for the state."""
        check, w = self.check, self.w
        like = slice(arena.LIKE, arena.LIKE + arena.MAX_THREADS)
        kept = int(w[arena.FINE]), w[like].copy(), self.guards.copy()
        check.reset()
        self.names = names_of(check)
        # Each access by itself, and each word by itself.
        w[arena.FINE], w[like] = 1, 0
        try:
            return list(walk)
        finally:
            w[arena.FINE], w[like], self.guards[:] = kept

    def coarse(self, verdict: Verdict) -> Iterator[Step]:
        """The accesses that the steps of a search consist of, in order; one that comes late where it comes."""
        path = [*verdict.path, *((number, 0) for number in verdict.loop)]
        cut = max((i for i, (n, _) in enumerate(verdict.path) if n == verdict.late), default=-1)
        lengths = self.lengths(verdict, path, cut)
        return self.taken(verdict, path, cut, lengths)

    def taken(self, verdict: Verdict, path: Path, cut: int, lengths: list[int]) -> Iterator[Step]:
        rest = 0
        for macro, (number, choices) in enumerate(path):
            seen = set()
            for _ in range(lengths[macro]):
                step = self.access(number, choices)
                choices >>= int(self.w[arena.ASKED])
                yield replace(step, loop=True) if macro >= len(verdict.path) else step
                state = self.w[self.check.records[number] : self.check.records[number] + 64].tobytes()
                if verdict.status == arena.SPINS and macro == len(path) - 1 and state in seen:
                    break  # once round is enough
                seen.add(state)
            if macro == cut:
                rest = choices
        while verdict.late >= 0:
            step = self.access(verdict.late, rest)
            rest >>= int(self.w[arena.ASKED])
            yield step
            if step.fatal:
                return

    def lengths(self, verdict: Verdict, path: Path, cut: int) -> list[int]:
        """How many accesses each step of the path makes; of step ``cut``, how many before one to what is then freed."""
        check, w = self.check, self.w
        check.reset()
        found = []
        for macro, (number, choices) in enumerate(path):
            result = check.step(number, choices)
            found.append(int(w[arena.TAKEN]) + (1 if result == STOPPED else 0))
            if macro == cut:
                window = check.records[number] + WINDOW
                objects = [int(obj) for obj in w[window : window + WINDOW_SIZE]]
                found[-1] = int(w[arena.WINDOW_AT + objects.index(verdict.arg)])
        return found

    def fine(self, path: Path, loop: int) -> Iterator[Step]:
        w, before = self.w, b""
        for nth, (number, choices) in enumerate(path):
            if not 0 <= number < len(self.check.threads) or w[self.check.records[number] + PC] == -1:
                raise Astray
            if nth == loop:
                before = w[arena.ARENA : arena.STATE_END].tobytes()
            yield replace(self.access(number, choices), loop=nth >= loop)
        if before and before != w[arena.ARENA : arena.STATE_END].tobytes():
            raise Astray

    def access(self, number: int, choices: int) -> Step:
        """Take one access, and tell of it."""
        check, w = self.check, self.w
        registers = registers_of(check, number)
        at = int(w[check.records[number] + PC])
        self.guards[:] = 0
        w[arena.LOG_TOP] = arena.LOG
        w[world.STATUS] = 0
        result = check.step(number, choices)
        if result == BLOCKED:
            raise Astray
        if at == START:
            at = int(w[arena.AT]) if result != STOPPED else self.first(number)
        self.names.learn()
        step = self.step(number, at, registers, choices & ((1 << int(w[arena.ASKED])) - 1), result == STOPPED)
        w[arena.LOG_TOP] = arena.LOG
        return step

    def first(self, number: int) -> int:
        """The first instruction of a thread that is a step, or a call that leads nowhere."""
        code = self.check.threads[number].routine.code
        kinds = (*steps.STEPS, steps.Unbound)
        return next(i for i, instruction in enumerate(code.instructions) if isinstance(instruction, kinds))

    def touched(self) -> tuple[frozenset[int], frozenset[int]]:
        """Words that the access read and wrote, of objects that others know."""
        words = self.guards.nonzero()[0]
        written = self.guards[words] & (arena.WRITTEN | arena.COUNTED) != 0
        return frozenset((words[~written] + arena.ARENA).tolist()), frozenset((words[written] + arena.ARENA).tolist())

    def step(self, number: int, at: int, registers: dict[str, int], choices: int, fatal: bool) -> Step:
        names, code = self.names, self.check.threads[number].routine.code
        instruction = code.instructions[at]
        lock, freed, telling = "", 0, choices != 0
        match instruction:
            case steps.Load(address=address):
                where = evaluate(address, registers)
                now = "" if fatal else f" -> {names.held(where, int(self.w[where]))}"
                kind, text = "read", f"{'read ' if fatal else ''}{names.word(where)}{now}"
            case steps.Store(address=address, value=value):
                where = evaluate(address, registers)
                kind, text = "write", f"{names.word(where)} = {names.held(where, evaluate(value, registers))}"
            case steps.Invoke(to=to, target=target, args=args):
                values = [evaluate(a, registers) for a in args]
                kind, text = self.call(target, values)
                if target.__name__ in LOCKING:
                    lock = names.word(values[0])
                if target.__name__ in FREEING:
                    freed = values[0]
                if to and not (fatal or target.blocks or target.__module__ == count.__name__):
                    text += f" -> {names.gave(target, int(self.w[arena.GAVE]))}"
                tables = any(issubclass(t, PageTable) for _, t in target.parameters)
                telling = telling or kind == "note" or (tables and any(True for _ in names.changes()))
            case _:
                protocol, line = code.frames[at][-1]
                kind, text = "wait", linecache.getline(protocol.fn.__code__.co_filename, line).strip()
                if self.w[self.check.records[number] + ASLEEP]:
                    text += " sleeps"
        reads, written = self.touched()
        if kind == "call" and target is wake_up and self.w[arena.LOG_TOP] == arena.LOG:
            written = frozenset()  # nobody slept: it tells nothing
        return Step(
            thread=number,
            choices=choices,
            frames=tuple((p.__name__, p.fn.__code__.co_filename, line) for p, line in code.frames[at]),
            kind=kind,
            text=text,
            changes=() if freed or lock else tuple(dict.fromkeys(names.changes())),
            lock=lock,
            freed=freed,
            reads=reads,
            written=written,
            telling=telling,
            fatal=fatal,
        )

    def call(self, target: Primitive, values: list[int]) -> tuple[str, str]:
        """Kind and text of a primitive's call; what only the checker wants to know says how an invalidation stands."""
        if target is ghost.range_starting:
            start, end, what = (
                int(self.w[values[0] + Range.fields[name].offset]) for name in ("start", "end", "event")
            )
            return "note", f"invalidate_range_start {start:#x}-{end:#x} {event(what)}"
        if target is ghost.range_started:
            return "note", "invalidate_range_start returns"
        if target is ghost.range_over:
            return "note", "invalidate_range_end"
        counting = target.__module__ == atomic.__name__ or target.__name__.startswith("refcount_")
        return "count" if counting else "call", self.names.call(target, values)


def telling(found: Sequence[Step], blamed: int = 0) -> list[bool]:
    """Which steps tell the story.

    What is written where others see it; reads of words that another thread writes, but not again in the same call
    while they stay as they are; locks that two threads use, unless nothing happens while they are held; phases of
    invalidations; what goes one of several ways, or round for ever; reference counts only where two threads meet.

    :param blamed: the word that the verdict is about
    """
    writers: dict[int, set[int]] = {}
    users: dict[str, set[int]] = {}
    for step in found:
        for word in step.written:
            writers.setdefault(word, set()).add(step.thread)
        users.setdefault(_class(step.lock), set()).add(step.thread)
    changed: dict[int, int] = {}  # when each word was last written
    known: dict[tuple[tuple[object, ...], int], int] = {}  # when a call last touched a word

    def matters(number: int, step: Step) -> bool:
        call = (step.thread, *step.frames[:-1], step.frames[-1][0])
        read = any(
            word == blamed
            or (writers.get(word, set()) - {step.thread} and known.get((call, word), -1) < changed.get(word, 0))
            for word in step.reads
        )
        for word in step.reads | step.written:
            known[call, word] = number
        changed.update(dict.fromkeys(step.written, number))
        if step.lock and not (step.fatal or step.loop):
            return len(users[_class(step.lock)]) > 1
        others = any(writers[word] - {step.thread} for word in step.written)
        return (
            step.fatal or step.loop or step.telling or read or others or (bool(step.written) and step.kind != "count")
        )

    tells = [matters(number, step) for number, step in enumerate(found)]
    for number, (here, after) in enumerate(pairwise(found)):
        if (here.kind, after.kind) == ("read", "write") and here.frames == after.frames and here.reads <= after.written:
            tells[number] = False  # x += 1: the write says it all
    for first, last in _sections(found):
        inside = range(first + 1, last)
        if (
            not found[last].loop
            and all(found[n].thread == found[first].thread and not tells[n] for n in inside)
            and not found[last].fatal
        ):
            tells[first] = tells[last] = False
    return tells


def _class(lock: str) -> str:
    """A lock's name without the number of the object: that somebody takes another one of its kind tells much, too."""
    return re.sub("#[0-9]+", "", lock)


def _sections(found: Sequence[Step]) -> Iterator[tuple[int, int]]:
    """Where a lock is taken, and where the same thread does the next thing to it: innermost sections first."""
    taken: dict[tuple[int, str], int] = {}
    for number, step in enumerate(found):
        if step.lock:
            first = taken.pop((step.thread, step.lock), None)
            if first is None:
                taken[step.thread, step.lock] = number
            else:
                yield first, number


def evaluate(expr: ir.Expr, registers: dict[str, int]) -> int:
    """A pure expression's value."""
    match expr:
        case ir.Const(value=value):
            return value
        case ir.LockClass():
            return expr.number
        case ir.Local(name=name):
            return registers.get(name, 0)
        case ir.Address(base=base, offset=offset):
            return evaluate(base, registers) + offset
        case ir.Unary(op=op, a=a):
            inner = evaluate(a, registers)
            return {"-": -inner, "~": ~inner, "not": int(not inner)}[op]
        case ir.Binary(op=op, a=a, b=b):
            return int(_BINARY[op](evaluate(a, registers), evaluate(b, registers)))
    raise AssertionError(expr)


_BINARY: dict[str, Any] = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "//": lambda a, b: a // b,
    "%": lambda a, b: a % b, "&": lambda a, b: a & b, "|": lambda a, b: a | b, "^": lambda a, b: a ^ b,
    "<<": lambda a, b: a << b, ">>": lambda a, b: a >> b, "==": lambda a, b: a == b, "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b, "<=": lambda a, b: a <= b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b,
    "min": min, "max": max,
}  # fmt: skip
