"""The explorer again, slow and obvious: plain Python over lists and dicts.

Nothing is shared with engine/search.py or with the code that emits machine code: the flattened instructions are
interpreted, primitives run as the Python functions that they are, a state is known by a full copy of its words, one
access is one step, and nothing is reduced. What counts as an access to an object, which accesses are wrong, and what
must hold in every state is said anew. The debug kernel's other rules (lockdep, lists, the allocator) are its own
Python functions. Only the first state, and where threads keep their registers, is taken from the checker.
"""

from __future__ import annotations

import itertools
import types
import zlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from faultpath.engine import arena, sanitizer, search, world
from faultpath.engine.check import Check
from faultpath.engine.thread import ASLEEP, HEADER, HELD_READ, HELD_WRITE, PC
from faultpath.kernel import debug, primitives
from faultpath.kernel.mmu_notifier import IntervalNotifier, Mm, Notifier, Subscriptions
from faultpath.kernel.primitives.ghost import STARTED
from faultpath.protocol import ir, steps
from faultpath.protocol.language import Helper, Protocol
from faultpath.protocol.program import Program
from faultpath.protocol.struct import current

WORD = 1 << 64
VALID, WRITABLE = 1, 2
STEPPED, BLOCKED, ENDED = "stepped", "blocked", "ended"


class Violation(Exception):
    """A rule is broken."""

    def __init__(self, status: int, arg: int = 0) -> None:
        super().__init__(status, arg)
        self.status, self.arg = status, arg


def signed(value: int) -> int:
    """What 64 bits keep of a value."""
    return (value + WORD // 2) % WORD - WORD // 2


class Name(int):
    """Index of a named word, as opposed to a number that happens to be the same."""


NAMED = (world.WORK_HEAD, world.WORK_TAIL, world.NEXT_FRAME)  # named words that are part of the state
NAMES = {name: Name(value) for name, value in vars(world).items() if name.isupper() and type(value) is int}


class Plain:
    """The words, unchecked: the arena in one array, all others in a dict."""

    def __init__(self) -> None:
        self.arena = array("q", bytes(8 * (arena.STATE_END - arena.ARENA)))
        self.others: dict[int, int] = {}

    def __getitem__(self, at: int) -> int:
        if at >= arena.ARENA and at < arena.STATE_END:
            return self.arena[at - arena.ARENA]
        return self.others.get(at, 0)

    def __setitem__(self, at: int, value: int) -> None:
        if at >= arena.ARENA and at < arena.STATE_END:
            try:
                self.arena[at - arena.ARENA] = value
            except OverflowError:
                self.arena[at - arena.ARENA] = signed(value)
        else:
            self.others[at] = signed(value)


class Checked:
    """The words as a primitive sees them: KASAN looks at every access that is to an object."""

    def __init__(self, plain: Plain) -> None:
        self.plain = plain

    def shadow(self, at: int) -> int:
        """The shadow of a word that must be in a living object."""
        if not arena.OBJECTS <= at < arena.SHADOW:
            raise Violation(arena.NULL_POINTER if -4096 < at < 4096 else arena.WILD_POINTER, at)
        shadow = self.plain[arena.SHADOW + (at - arena.ARENA) // 8]
        if not shadow & arena.ALIVE:
            raise Violation(arena.USE_AFTER_FREE if shadow else arena.WILD_POINTER, at)
        return shadow

    def publish(self, pointer: int) -> None:
        """A private object that a pointer leads to is private no more, nor is what it leads to."""
        waiting = [pointer]
        while waiting:
            pointer = waiting.pop()
            if not arena.OBJECTS <= pointer < arena.SHADOW:
                continue
            shadow = self.plain[arena.SHADOW + (pointer - arena.ARENA) // 8]
            if shadow & arena.PRIVATE:
                start = shadow >> 4
                units = self.plain[start] >> 1 & 127
                for unit in range(units):
                    place = arena.SHADOW + (start - arena.ARENA) // 8 + unit
                    self.plain[place] = self.plain[place] & ~arena.PRIVATE
                waiting += [self.plain[word] for word in range(start + 1, start + 8 * units)]

    def __getitem__(self, at: int) -> int:
        if type(at) is not Name and (at < world.COUNTER or at >= arena.ARENA):
            self.shadow(at)
        return self.plain[at]

    def __setitem__(self, at: int, value: int) -> None:
        if type(at) is Name:
            if at in (world.WORK_HEAD, world.WORK_TAIL):
                self.publish(value)
        elif (at < world.COUNTER or at >= arena.ARENA) and not self.shadow(at) & arena.PRIVATE:
            self.publish(signed(value))
        self.plain[at] = value


class _Interposed:
    """Stands for a program where helpers look for what to call: gives each the view of the words that it has."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.found: dict[Any, Any] = {}

    def resolve(self, source: Any) -> Any:
        if source not in self.found:
            self.found[source] = types.SimpleNamespace(fn=self.kernel.function(source))
        return self.found[source]


class Kernel:
    """Runs a program's primitives and helpers as Python."""

    def __init__(self, program: Program, plain: Plain) -> None:
        self.program = program
        self.plain = plain
        self.checked = Checked(plain)
        self.interposed = _Interposed(self)
        plain_view, checked = plain, self.checked

        def fail(_: Any, status: int, arg: int) -> int:
            raise Violation(status, arg)

        def put(_: Any, at: int, value: int) -> int:
            plain_view[at] = value
            return 0

        self.own: dict[Any, Callable[..., int]] = {
            sanitizer.fail: fail,
            sanitizer.put: put,
            sanitizer.note: lambda _, at, write: 0,
            sanitizer.shadow_of: lambda _, at: checked.shadow(at),
        }

    def function(self, source: Any) -> Callable[..., int]:
        """What runs for a primitive or helper, whatever words it is given."""
        if source in self.own:
            return self.own[source]
        source = self.program.resolve(source)
        fn = source.fn
        named = {name: NAMES[name] for name in fn.__code__.co_names if fn.__globals__.get(name) == NAMES.get(name, "")}
        fn = types.FunctionType(fn.__code__, {**fn.__globals__, **named})
        view = self.plain if isinstance(source, Helper) and source.raw else self.checked
        return lambda _, *args: fn(view, *args)

    def call(self, source: Any, *args: int) -> int:
        """A primitive or helper."""
        current.program = self.interposed
        try:
            return int(self.interposed.resolve(source).fn(None, *args) or 0)
        except world.Stop:
            raise Violation(self.plain[world.STATUS], self.plain[world.STATUS_ARG]) from None


def evaluate(expr: ir.Expr, registers: dict[str, int], kernel: Kernel) -> int:
    """An expression; guards' have loads and calls in them."""
    match expr:
        case ir.Const(value=value):
            return value
        case ir.LockClass(role=role, name=name):
            return zlib.crc32(name.encode()) << 8 | role
        case ir.Local(name=name):
            return registers[name]
        case ir.Address(base=base, offset=offset):
            return evaluate(base, registers, kernel) + offset
        case ir.Load(base=base, offset=offset):
            return kernel.checked[evaluate(base, registers, kernel) + offset]
        case ir.Unary(op=op, a=a):
            inner = evaluate(a, registers, kernel)
            return signed({"-": -inner, "~": ~inner, "not": int(not inner)}[op])
        case ir.Logic(op="and", parts=parts):
            return int(all(evaluate(p, registers, kernel) for p in parts))
        case ir.Logic(op="or", parts=parts):
            return int(any(evaluate(p, registers, kernel) for p in parts))
        case ir.Select(test=test, then=then, otherwise=otherwise):
            return evaluate(then if evaluate(test, registers, kernel) else otherwise, registers, kernel)
        case ir.HasOp(slot=slot, selector=selector):
            return int(evaluate(selector, registers, kernel) in kernel.program.targets(slot))
        case ir.Call(target=target, args=args):
            return kernel.call(target, *(evaluate(a, registers, kernel) for a in args))
        case ir.Binary(op=op, a=a, b=b):
            return binary(op, evaluate(a, registers, kernel), evaluate(b, registers, kernel))
    raise AssertionError(expr)


def binary(op: str, a: int, b: int) -> int:
    """Two numbers joined."""
    if op in ("//", "%") and b == 0:
        raise Violation(world.DIVISION)
    if op in ("<<", ">>") and not 0 <= b < 64:
        return 0 if op == "<<" or a >= 0 else -1
    match op:
        case "+":
            value = a + b
        case "-":
            value = a - b
        case "*":
            value = a * b
        case "//":
            value = a // b
        case "%":
            value = a % b
        case "&":
            value = a & b
        case "|":
            value = a | b
        case "^":
            value = a ^ b
        case "<<":
            value = a << b
        case ">>":
            value = a >> b
        case "min" | "max":
            value = min(a, b) if op == "min" else max(a, b)
        case "==":
            value = a == b
        case "!=":
            value = a != b
        case "<":
            value = a < b
        case "<=":
            value = a <= b
        case ">":
            value = a > b
        case ">=":
            value = a >= b
        case _:
            raise AssertionError(op)
    return signed(int(value))


@dataclass
class Found:
    """What there is to know of all executions."""

    verdict: str = "holds"
    status: int = 0
    states: int = 1
    transitions: int = 0
    depth: int = 0
    finished: int = 0
    path: list[tuple[int, int]] = field(default_factory=list)


State = tuple[bytes, int, int, int]


class Explorer:
    """All executions of a check's threads, one access a step."""

    def __init__(self, check: Check) -> None:
        self.check = check
        self.plain = Plain()
        named, words = check.first
        self.plain.arena = array("q", words.tobytes())
        for word in (*range(64), *range(arena.BASE, arena.BASE + 48)):
            value = int(check.w[word]) if word >= 64 else int(named[word])
            if value:
                self.plain.others[word] = value
        for word in (arena.LOCKS, arena.CLASSES):
            self.plain.others[word] = 0
        self.kernels = [Kernel(thread.program, self.plain) for thread in check.threads]
        self.codes = [thread.routine.code for thread in check.threads]
        self.daemons = [int(check.w[search.DAEMON + number]) for number in range(len(self.codes))]
        self.used = int(check.w[arena.LIMIT]) - arena.ARENA
        self.rules = Rules(check, self.plain)

    # --- states

    def copy(self) -> State:
        """Every word of the state."""
        first = arena.SHADOW - arena.ARENA
        words = self.plain.arena[: self.used].tobytes() + self.plain.arena[first : first + self.used // 8].tobytes()
        return zlib.compress(words, 1), *(self.plain[word] for word in NAMED)

    def restore(self, state: State) -> None:
        """Back to a state."""
        words = array("q", zlib.decompress(state[0]))
        first = arena.SHADOW - arena.ARENA
        self.plain.arena[: self.used] = words[: self.used]
        self.plain.arena[first : first + self.used // 8] = words[self.used :]
        for word, value in zip(NAMED, state[1:], strict=True):
            self.plain[word] = value

    # --- one step

    def step(self, number: int, answers: list[int]) -> str:
        """One access of a thread. ``answers`` to what may go either way are used from the front; those missing are no.

        Afterwards ``answers`` holds those that were asked for.
        """
        plain, kernel, code, record = self.plain, self.kernels[number], self.codes[number], self.check.records[number]
        plain.others.update({world.TID: number + 1, arena.THREAD: record, arena.ASKED: 0})
        plain.others[arena.CHOICES] = sum(answer << i for i, answer in enumerate(answers))
        at = plain[record + PC]
        names = code.live[at] if at >= 0 else [name for name, _ in code.root.parameters]
        registers = {name: plain[record + HEADER + code.slots[name]] for name in names}
        at = max(at, 0)
        result = self.run(kernel, code, record, registers, at)
        if plain[arena.FREED] and result != BLOCKED:
            kernel.call(debug.collect)
        asked = plain[arena.ASKED]
        answers[:] = [*answers, *[0] * asked][:asked]
        return result

    def run(self, kernel: Kernel, code: steps.Code, record: int, registers: dict[str, int], at: int) -> str:
        """From an instruction through one access to the next."""
        taken = False
        while True:
            instruction = code.instructions[at]
            if isinstance(instruction, steps.STEPS):
                if taken:
                    self.save(code, record, registers, at)
                    return STEPPED
                if not self.access(kernel, instruction, registers):
                    return BLOCKED
                taken = True
                at += 1
                continue
            match instruction:
                case steps.Let(to=to, value=value):
                    if to:
                        registers[to] = evaluate(value, registers, kernel)
                case steps.Jump(to=to):
                    at = to
                    continue
                case steps.Branch(test=test, yes=yes, no=no):
                    at = yes if evaluate(test, registers, kernel) else no
                    continue
                case steps.End(value=value):
                    if self.plain[record + HELD_READ] or self.plain[record + HELD_WRITE]:
                        raise Violation(arena.HELD_AT_EXIT)
                    evaluate(value, registers, kernel)  # a state does not remember it
                    self.save(code, record, {}, -1)
                    return ENDED
                case steps.Unbound():
                    raise Violation(world.BAD_ADDRESS)
            at += 1

    def access(self, kernel: Kernel, instruction: steps.Instruction, registers: dict[str, int]) -> bool:
        """The one access of a step; False if it has to wait."""
        match instruction:
            case steps.Load(to=to, address=address):
                registers[to] = kernel.checked[evaluate(address, registers, kernel)]
            case steps.Store(address=address, value=value):
                kernel.checked[evaluate(address, registers, kernel)] = evaluate(value, registers, kernel)
            case steps.Invoke(to=to, target=target, args=args):
                before = self.plain.arena[:] if target.blocks else None
                result = kernel.call(target, *(evaluate(a, registers, kernel) for a in args))
                if target.blocks and result:
                    assert self.plain.arena == before, f"{target.__name__} changed something and then waits"
                    return False
                registers[to] = result
            case steps.Guard(condition=condition):
                return bool(evaluate(condition, registers, kernel))
            case steps.Sleep(to=to, queue=queue, condition=condition):
                record = self.plain[arena.THREAD]
                if self.plain[record + ASLEEP]:
                    return False
                kernel.call(primitives.debug.might_sleep)
                registers[to] = int(bool(evaluate(condition, registers, kernel)))
                if not registers[to]:
                    on = evaluate(queue, registers, kernel)
                    kernel.checked.shadow(on)
                    self.plain[record + ASLEEP] = on
        return True

    def save(self, code: steps.Code, record: int, registers: dict[str, int], at: int) -> None:
        """What a thread that stops here must remember."""
        self.plain[record + PC] = at
        for slot in range(code.slot_count):
            self.plain[record + HEADER + slot] = 0
        for name in code.live.get(at, ()):
            self.plain[record + HEADER + code.slots[name]] = registers[name]

    # --- all of them

    def explore(self) -> Found:
        """Breadth first over everything that can happen."""
        found = Found()
        first = self.copy()
        came_from: dict[State, tuple[State | None, int, int]] = {first: (None, 0, 0)}
        level = [first]

        def violated(state: State, violation: Violation, *more: tuple[int, int]) -> Found:
            found.verdict, found.status, found.states = "violated", violation.status, len(came_from)
            found.path = list(more)
            while (came := came_from[state])[0] is not None:
                found.path.insert(0, came[1:])
                state = came[0]
            found.depth = len(found.path)
            return found

        while level:
            following = []
            for state in level:
                moved = False
                self.restore(state)
                alive = [n for n, record in enumerate(self.check.records) if self.plain[record + PC] != -1]
                for number in alive:
                    answers: list[int] | None = []
                    while answers is not None:
                        self.restore(state)
                        try:
                            result = self.step(number, answers)
                        except Violation as violation:
                            return violated(state, violation, (number, as_number(answers)))
                        if result == BLOCKED:
                            break
                        moved = True
                        found.transitions += 1
                        reached = self.copy()
                        if reached not in came_from:
                            came_from[reached] = (state, number, as_number(answers))
                            following.append(reached)
                            try:
                                self.rules.state()
                            except Violation as violation:
                                return violated(reached, violation)
                        answers = others(answers)
                if not moved:
                    self.restore(state)
                    try:
                        self.nobody_moves()
                    except Violation as violation:
                        return violated(state, violation)
                    found.finished += 1
            level = following
            found.depth += bool(level)
        found.states = len(came_from)
        return found

    def nobody_moves(self) -> None:
        """Everybody has ended, or sleeps where it may."""
        for number, record in enumerate(self.check.records):
            at = self.plain[record + PC]
            if at != -1 and not (self.daemons[number] and at in (self.daemons[number], -2)):
                raise Violation(arena.DEADLOCK)
        self.rules.end()

    def replay(self, path: list[tuple[int, int]]) -> Violation | None:
        """An execution given as the checker gives it, one access a step; the rule that it breaks."""
        self.plain.arena = array("q", self.check.first[1].tobytes())
        self.plain[world.WORK_HEAD], self.plain[world.WORK_TAIL] = (int(w) for w in self.check.first[0][5:7])
        try:
            for number, choices in path:
                answers = [choices >> i & 1 for i in range(choices.bit_length())]
                assert self.step(number, answers) != BLOCKED
                self.rules.state()
            blocked = True
            for number, record in enumerate(self.check.records):
                blocked = blocked and (self.plain[record + PC] == -1 or self.step(number, []) == BLOCKED)
            if blocked:
                self.nobody_moves()
        except Violation as violation:
            return violation
        return None


def as_number(answers: list[int]) -> int:
    """Answers, the first in the lowest bit."""
    return sum(answer << i for i, answer in enumerate(answers))


def others(answers: list[int]) -> list[int] | None:
    """The answers to try next: as before up to the last no, which becomes a yes; None if there was none."""
    while answers and answers[-1]:
        answers = answers[:-1]
    return [*answers[:-1], 1] if answers else None


class Rules:
    """What must hold in every state, said anew."""

    def __init__(self, check: Check, plain: Plain) -> None:
        self.check = check
        self.plain = plain
        design = check.design
        roots = [design.walk, *([design.invariant] if design.invariant else [])]
        self.program = Program(roots, [design.driver(), *design.ops], design.replacements())
        self.pages = range(int(check.w[arena.SPAN]), int(check.w[arena.SPAN_END]), 4096)
        with_invalidate = [ops for ops in design.ops if "invalidate" in ops.table]
        self.interval_ops = {int(ops) for ops in with_invalidate}
        self.plain_ops = {int(ops) for ops in design.ops if "invalidate_range_start" in ops.table}
        self.subs = plain[check.mm + Mm.fields["notifier_subscriptions"].offset]

    def ask(self, protocol: Protocol, *args: int) -> int:
        """A protocol of the design, run to completion at one instant."""
        current.w, current.program = self.plain, self.program  # type: ignore[assignment]
        try:
            return int(protocol(*args))
        except world.Stop:
            raise Violation(self.plain[world.STATUS]) from None

    def of_subs(self, name: str) -> int:
        return self.subs + Subscriptions.fields[name].offset

    def invalidations(self, page: int) -> int:
        """The furthest that an invalidation of the page has come to: 0, 1 before its start returned, 2 after that."""
        phases = [0]
        for slot in range(2 * arena.MAX_THREADS):
            _, start, end, phase = (self.plain[arena.RANGES + 4 * slot + i] for i in range(4))
            if start <= page < end:
                phases.append(phase)
        return max(phases)

    def cpu(self, page: int) -> int:
        """The CPU's PTE; a scenario's whole table is one leaf."""
        table = self.check.mm + Mm.fields["pt"].offset
        leaf, level, start = (self.plain[table + i] for i in range(3))
        assert level == 0
        number = (page - start) >> 12
        return self.plain[leaf + 1 + number // 4] >> 16 * (number % 4) & 0xFFFF if leaf else 0

    def intervals(self) -> list[int]:
        """Every interval in the tree, by walking all of it."""
        found, waiting = [], [self.plain[self.of_subs("itree")]]
        while waiting:
            node = waiting.pop()
            if node:
                found.append(node)
                waiting += [self.plain[node + 2], self.plain[node + 3]]
        return found

    def interval(self, node: int) -> tuple[int, int, int]:
        """(first, last, ops)."""
        fields = IntervalNotifier.fields
        return tuple(self.plain[node + fields[name].offset] for name in ("start", "last", "ops"))  # type: ignore[return-value]

    def covered(self, page: int) -> bool:
        """Whether somebody would hear of an invalidation of the page."""
        for node in self.intervals():
            first, last, ops = self.interval(node)
            if first <= page <= last and ops in self.interval_ops:
                return True
        item = self.plain[self.of_subs("list")]
        while item:
            notifier = item - Notifier.fields["hlist"].offset
            if self.plain[notifier + Notifier.fields["ops"].offset] in self.plain_ops:
                return True
            item = self.plain[item]
        return False

    def state(self) -> None:
        """:raises Violation: something does not hold"""
        check = self.check
        locked = self.plain[self.of_subs("lock")]
        for number, device in enumerate(check.devices):
            if self.plain[arena.CLOSED] >> number & 1:
                continue
            for page in self.pages:
                entry = self.ask(check.design.walk, device, page)
                if not entry & VALID:
                    continue
                phase, cpu = self.invalidations(page), self.cpu(page)
                if phase == STARTED:
                    raise Violation(arena.PTE_DURING_INVALIDATION, page)
                same = (entry ^ cpu) & 255 & ~WRITABLE == 0  # what the CPU keeps above is its own
                if phase == 0 and not (same and (cpu & WRITABLE or not entry & WRITABLE)):
                    raise Violation(arena.STALE_PTE, page)
                if not locked and not self.covered(page):
                    raise Violation(arena.UNCOVERED_PTE, page)
            if check.design.invariant and self.ask(check.design.invariant, device):
                raise Violation(arena.CUSTOM)
        if check.design.disjoint and not locked and not self.plain[self.of_subs("invalidate_seq")] & 1:
            known = sorted(map(self.interval, self.intervals()))
            for first, second in itertools.pairwise(known):
                if first[2] == second[2] and second[0] <= first[1]:
                    raise Violation(arena.OVERLAP, second[0])

    def end(self) -> None:
        """:raises Violation: every file is closed and something is left"""
        if self.plain[arena.CLOSED] == (1 << len(self.check.devices)) - 1:
            shadows = self.plain.arena[arena.SHADOW - arena.ARENA :]
            if any(s & arena.ALIVE and s & arena.MEMORY for s in shadows):
                raise Violation(arena.LEAK)
