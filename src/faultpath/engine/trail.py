"""A counterexample step by step: the execution again, one access at a time, each put into words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from faultpath.engine import arena
from faultpath.engine.check import Check, Verdict
from faultpath.engine.thread import HEADER, PC, WINDOW, WINDOW_SIZE
from faultpath.protocol import ir, steps
from faultpath.protocol.language import Primitive
from faultpath.protocol.native import STOPPED
from faultpath.protocol.struct import Embedded, Struct


@dataclass(frozen=True)
class Step:
    """One access.

    :ivar thread: number of the thread
    :ivar macro: which step of the search it is part of; those of one macro step no other thread can tell apart
    :ivar frames: the calls that led to it, outermost first: (function, file name, line)
    :ivar kind: "read", "write", "call" (a primitive) or "wait" (a guard that holds)
    :ivar text: what is done, objects by name: ``mutex_lock(svmm.mutex)``, ``A.invalidate_seq -> 3``
    :ivar writes: words of objects that it changed: (name, before, after)
    :ivar lock: the name of the lock that is taken or given up, or ""
    :ivar visible: other threads can tell
    :ivar fatal: here the rule is broken
    """

    thread: int
    macro: int
    frames: tuple[tuple[str, str, int], ...]
    kind: str
    text: str
    writes: tuple[tuple[str, int, int], ...]
    lock: str
    visible: bool
    fatal: bool = False


LOCKING = {
    "mutex_lock", "mutex_trylock", "mutex_unlock", "spin_lock", "spin_unlock", "down_read", "down_read_trylock",
    "up_read", "down_write", "up_write", "downgrade_write",
}  # fmt: skip


def trail(check: Check, verdict: Verdict) -> list[Step]:
    """Every access of the counterexample of a search that has just ended."""
    return list(_Trail(check).steps(verdict))


class _Trail:
    def __init__(self, check: Check) -> None:
        self.check = check
        self.w = check.w
        self.names: dict[int, str] = {}  # of objects, by address
        self.letters: dict[str, int] = {}

    def steps(self, verdict: Verdict) -> Iterator[Step]:
        check, w = self.check, self.w
        cut = max((i for i, (n, _) in enumerate(verdict.path) if n == verdict.late), default=-1)
        lengths = self.lengths(verdict, cut)
        check.reset()
        fine, w[arena.FINE] = int(w[arena.FINE]), 1
        rest = 0
        for macro, (number, choices) in enumerate(verdict.path):
            for nth in range(lengths[macro]):
                choices, step = self.access(number, macro, choices, nth == 0)
                yield step
            if macro == cut:
                rest = choices
        while verdict.late >= 0:
            rest, step = self.access(verdict.late, len(verdict.path), rest, False)
            yield step
            if step.fatal:
                break
        w[arena.FINE] = fine

    def lengths(self, verdict: Verdict, cut: int) -> list[int]:
        """How many accesses each step of the path makes; of step ``cut``, how many before one to what is then freed."""
        check, w = self.check, self.w
        check.reset()
        found = []
        for macro, (number, choices) in enumerate(verdict.path):
            result = check.step(number, choices)
            found.append(int(w[arena.TAKEN]) + (1 if result == STOPPED else 0))
            if macro == cut:
                window = check.records[number] + WINDOW
                objects = [int(obj) for obj in w[window : window + WINDOW_SIZE]]
                found[-1] = int(w[arena.WINDOW_AT + objects.index(verdict.arg)])
        return found

    def access(self, number: int, macro: int, choices: int, first: bool) -> tuple[int, Step]:
        """The next access of a thread; the choices that it has left."""
        check, w = self.check, self.w
        before = self.registers(number)
        at = int(w[check.records[number] + PC])
        result = check.step(number, choices)
        instruction = self.instruction(number, at, result)
        step = self.step(number, macro, instruction, before, first, result == STOPPED)
        w[arena.LOG_TOP] = arena.LOG
        return choices >> int(w[arena.ASKED]), step

    def instruction(self, number: int, at: int, result: int) -> int:
        """The instruction that ran: the one the thread stood at, or the one that it came to first."""
        return at if at >= 0 else (0 if result == STOPPED else int(self.w[arena.AT]))

    def registers(self, number: int) -> dict[str, int]:
        record, code = self.check.records[number], self.check.threads[number].routine.code
        return {name: int(self.w[record + HEADER + slot]) for name, slot in code.slots.items()} | {
            name: int(self.w[record + HEADER + slot])
            for name, slot in code.slots.items()
            if name in code.live.get(int(self.w[record + PC]), ())
        }

    def step(self, number: int, macro: int, at: int, registers: dict[str, int], visible: bool, fatal: bool) -> Step:
        code = self.check.threads[number].routine.code
        instruction = code.instructions[at]
        lock = ""
        match instruction:
            case steps.Load(address=address):
                where = evaluate(address, registers)
                kind, text = "read", f"{self.name(where)} -> {self.number(int(self.w[where]))}"
            case steps.Store(address=address, value=value):
                where = evaluate(address, registers)
                kind, text = "write", f"{self.name(where)} = {self.number(evaluate(value, registers))}"
            case steps.Invoke(target=target, args=args):
                values = [evaluate(a, registers) for a in args]
                kind, text = "call", f"{target.__name__}({', '.join(self.arguments(target, values))})"
                if target.__name__ in LOCKING:
                    lock = self.name(values[0])
            case _:
                kind, text = "wait", "wait until the condition holds"
        return Step(
            thread=number,
            macro=macro,
            frames=tuple((p.__name__, p.fn.__code__.co_filename, line) for p, line in code.frames[at]),
            kind=kind,
            text=text,
            writes=tuple(self.writes()),
            lock=lock,
            visible=visible,
            fatal=fatal,
        )

    def arguments(self, target: Primitive, values: list[int]) -> list[str]:
        shown = values[: len(target.parameters)]
        return [self.number(v) for v in shown]

    def writes(self) -> Iterator[tuple[str, int, int]]:
        """What the step in the log changed in objects, each word once."""
        w = self.w
        before: dict[int, int] = {}
        for entry in range(arena.LOG, int(w[arena.LOG_TOP]), 2):
            before.setdefault(int(w[entry]), int(w[entry + 1]))
        for addr, old in before.items():
            if arena.OBJECTS <= addr < int(w[arena.POOLS]) + arena.MAX_THREADS * int(w[arena.POOL]) and old != w[addr]:
                yield self.name(addr), old, int(w[addr])

    def number(self, value: int) -> str:
        """A value: a pointer by the name of what it points to, an address of a page in hexadecimal."""
        if arena.OBJECTS <= value < arena.SHADOW:
            return self.name(value)
        return hex(value) if value >= 4096 else str(value)

    def name(self, addr: int) -> str:
        """A word's name: the object and the field it is in."""
        if not arena.OBJECTS <= addr < arena.SHADOW:
            return self.number(addr) if not arena.OBJECTS <= addr < arena.SHADOW else hex(addr)
        shadow = int(self.w[arena.SHADOW + ((addr - arena.ARENA) >> 3)])
        start = shadow >> 4 if shadow else addr & ~7
        struct = structures().get(int(self.w[start]) >> 8)
        name = self.object(start, struct)
        if addr == start:
            return name
        return f"{name}.{field_at(struct, addr - start)}"

    def object(self, start: int, struct: type[Struct] | None) -> str:
        if start not in self.names:
            kind = struct.__name__ if struct else "table"
            self.letters[kind] = self.letters.get(kind, 0) + 1
            self.names[start] = kind if self.letters[kind] == 1 else f"{kind}#{self.letters[kind]}"
        return self.names[start]


def field_at(struct: type[Struct] | None, offset: int) -> str:
    """The field that a word of a structure belongs to."""
    for field in reversed(list(struct.fields.values())) if struct else ():
        if field.offset <= offset:
            words = field.type.words if issubclass(field.type, Embedded) else 1
            if offset < field.offset + words:
                return field.name
    return str(offset)


@cache
def structures() -> dict[int, type[Struct]]:
    """Every structure, by the tag that its objects carry."""
    found: dict[int, type[Struct]] = {}

    def visit(struct: type[Struct]) -> None:
        for sub in struct.__subclasses__():
            found[sub.tag()] = sub
            visit(sub)

    visit(Struct)
    return found


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
