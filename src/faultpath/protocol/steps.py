"""A thread's whole program as one flat list of instructions, at most one access to shared state in each.

Every protocol that the thread's first one reaches is put in the place of its call (there is no recursion), so that
where a thread has come to is one number. What trees nest is pulled apart into registers. Instructions that touch
shared state are *steps*; the others touch registers only and run together with the step before them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from faultpath.protocol import ir
from faultpath.protocol.language import Primitive, Protocol
from faultpath.protocol.program import Program

Frame = tuple[Protocol, int]  # a protocol and a line of it


@dataclass
class Let:
    """Register := pure expression. A register without a name is nowhere read."""

    to: str
    value: ir.Expr


@dataclass
class Load:
    """Step. Register := word at an address."""

    to: str
    address: ir.Expr


@dataclass
class Store:
    """Step. Word at an address := value."""

    address: ir.Expr
    value: ir.Expr


@dataclass
class Invoke:
    """Step. Register := primitive(arguments); it may block."""

    to: str
    target: Primitive
    args: list[ir.Expr]


@dataclass
class Guard:
    """Step. Blocks until the condition, with whatever it reads, holds."""

    condition: ir.Expr


@dataclass
class Sleep:
    """Step. Register := whether the condition holds; if not, the thread sleeps on a queue. Blocks while it does."""

    to: str
    queue: ir.Expr
    condition: ir.Expr


@dataclass
class Count:
    """Bookkeeping: no step."""

    index: int
    amount: ir.Expr


@dataclass
class Jump:
    to: int


@dataclass
class Branch:
    """Go to ``yes`` if the pure condition holds, else to ``no``."""

    test: ir.Expr
    yes: int
    no: int


@dataclass
class End:
    """The thread is over."""

    value: ir.Expr


@dataclass
class Unbound:
    """A call through a function pointer that nothing was bound to."""


Instruction = Let | Load | Store | Invoke | Guard | Sleep | Count | Jump | Branch | End | Unbound
Step = Load | Store | Invoke | Guard | Sleep
STEPS = (Load, Store, Invoke, Guard, Sleep)


@dataclass
class Code:
    """A thread's program. Jump targets are indices into ``instructions``.

    :ivar frames: for each instruction, the calls that led to it, outermost first, with their lines
    :ivar slots: where registers are kept while the thread does not run; registers never kept at the same time share one
    :ivar live: for each step, the registers that matter from there on
    """

    root: Protocol
    instructions: list[Instruction] = field(default_factory=list)
    frames: list[tuple[Frame, ...]] = field(default_factory=list)
    slots: dict[str, int] = field(default_factory=dict)
    live: dict[int, list[str]] = field(default_factory=dict)

    @property
    def slot_count(self) -> int:
        return max(self.slots.values(), default=-1) + 1


def flatten(program: Program, root: Protocol) -> Code:
    """The program of a thread that runs ``root``; its parameters are kept in the slots of their names."""
    root = program.resolve(root)
    flattener = _Flattener(program, root)
    value = flattener.call(root, [ir.Local(name) for name, _ in root.parameters])
    flattener.emit(End(value))
    code = flattener.code
    _allocate(code, [name for name, _ in root.parameters])
    return code


class _Flattener:
    def __init__(self, program: Program, root: Protocol) -> None:
        self.program = program
        self.code = Code(root)
        self.stack: list[Frame] = []
        self.loops: list[tuple[int, list[Jump]]] = []  # (index of the test, breaks to patch)
        self.returns: list[tuple[str, list[Jump]]] = []  # (register of the result, jumps to patch)
        self.scope: dict[str, ir.Expr] = {}
        self.made = 0

    @property
    def here(self) -> int:
        return len(self.code.instructions)

    def emit(self, instruction: Instruction) -> None:
        self.code.instructions.append(instruction)
        self.code.frames.append(tuple(self.stack))

    def register(self, name: str = "") -> str:
        self.made += 1
        return f"{name}.{self.made}"

    def call(self, protocol: Protocol, args: list[ir.Expr]) -> ir.Expr:
        """The protocol's body here, its parameters bound; what it returns."""
        function = self.program.functions[protocol]
        outer, self.scope = self.scope, {}
        self.stack.append((protocol, protocol.fn.__code__.co_firstlineno))
        assigned = {stmt.name for stmt in _statements(function.body) if isinstance(stmt, ir.Assign)}
        for name, arg in zip(function.parameters, args, strict=True):
            if name in assigned:
                register = self.register(name)
                self.scope[name] = ir.Local(register)
                self.emit(Let(register, arg))
            else:
                self.scope[name] = arg  # it keeps its value as long as the callee runs
        for name in function.locals:
            self.scope.setdefault(name, ir.Local(self.register(name)))
        result = self.register()
        self.returns.append((result, []))
        self.emit(Let(result, ir.Const(0)))
        loops, self.loops = self.loops, []
        self.block(function.body)
        for jump in self.returns.pop()[1]:
            jump.to = self.here
        self.loops = loops
        self.stack.pop()
        self.scope = outer
        return ir.Local(result)

    def block(self, stmts: list[ir.Stmt]) -> None:
        for stmt in stmts:
            self.stack[-1] = (self.stack[-1][0], stmt.line)
            self.statement(stmt)

    def statement(self, stmt: ir.Stmt) -> None:
        match stmt:
            case ir.Assign(name=name, value=value):
                place = self.scope[name]
                assert isinstance(place, ir.Local)
                self.emit(Let(place.name, self.pure(value)))
            case ir.Store(base=base, offset=offset, value=value):
                result = self.pure(value)
                self.emit(Store(self.pure(ir.Address(base, offset)), result))
            case ir.Count(index=index, amount=amount):
                self.emit(Count(index, self.pure(amount)))
            case ir.Evaluate(value=value):
                self.pure(value)
            case ir.Wait(condition=condition, queue=queue):
                if queue:
                    self.sleep(self.pure(queue), self.renamed(condition))
                else:
                    self.emit(Guard(self.renamed(condition)))
            case ir.Return(value=value):
                register, jumps = self.returns[-1]
                self.emit(Let(register, self.pure(value)))
                jumps.append(Jump(-1))
                self.emit(jumps[-1])
            case ir.If():
                self.branch(stmt)
            case ir.While():
                self.loop(stmt)
            case ir.Break():
                self.loops[-1][1].append(Jump(-1))
                self.emit(self.loops[-1][1][-1])
            case ir.Continue():
                self.emit(Jump(self.loops[-1][0]))

    def sleep(self, queue: ir.Expr, condition: ir.Expr) -> None:
        head = self.here
        woken = self.register()
        self.emit(Sleep(woken, queue, condition))
        self.emit(Branch(ir.Local(woken), self.here + 1, head))

    def branch(self, stmt: ir.If) -> None:
        test = Branch(self.pure(stmt.test), -1, -1)
        self.emit(test)
        test.yes = self.here
        self.block(stmt.then)
        over = Jump(-1)
        self.emit(over)
        test.no = self.here
        self.block(stmt.otherwise)
        over.to = self.here

    def loop(self, stmt: ir.While) -> None:
        head = self.here
        test = Branch(self.pure(stmt.test), -1, -1)
        self.emit(test)
        test.yes = self.here
        self.loops.append((head, []))
        self.block(stmt.body)
        self.emit(Jump(head))
        test.no = self.here
        for jump in self.loops.pop()[1]:
            jump.to = self.here

    # --- expressions

    def renamed(self, expr: ir.Expr) -> ir.Expr:
        """A guard's condition: its accesses stay inside, its locals become registers."""
        match expr:
            case ir.Local(name=name):
                return self.scope[name]
            case ir.Call(target=target, args=args):
                return ir.Call(target, tuple(map(self.renamed, args)))
            case ir.Logic(op=op, parts=parts):
                return ir.Logic(op, tuple(map(self.renamed, parts)))
            case ir.Load(base=base, offset=offset):
                return ir.Load(self.renamed(base), offset)
            case ir.Address(base=base, offset=offset):
                return ir.Address(self.renamed(base), offset)
            case ir.Unary(op=op, a=a):
                return ir.Unary(op, self.renamed(a))
            case ir.Binary(op=op, a=a, b=b):
                return ir.Binary(op, self.renamed(a), self.renamed(b))
        return expr

    def pure(self, expr: ir.Expr) -> ir.Expr:
        """The expression with every access moved into a register, in order of evaluation."""
        match expr:
            case ir.Local(name=name):
                return self.scope[name]
            case ir.Load(base=base, offset=offset):
                to = self.register()
                self.emit(Load(to, self.pure(ir.Address(base, offset))))
                return ir.Local(to)
            case ir.Address(base=base, offset=offset):
                inner = self.pure(base)
                if isinstance(inner, ir.Address):
                    return ir.Address(inner.base, inner.offset + offset)
                return ir.Address(inner, offset)
            case ir.Unary(op=op, a=a):
                return ir.Unary(op, self.pure(a))
            case ir.Binary(op=op, a=a, b=b):
                return ir.Binary(op, self.pure(a), self.pure(b))
            case ir.Select(test=test, then=then, otherwise=otherwise):
                return self.choose(test, then, otherwise)
            case ir.Logic(op=op, parts=parts):
                first, *rest = parts
                if not rest:
                    return ir.Unary("not", ir.Unary("not", self.pure(first)))
                remaining = ir.Logic(op, tuple(rest))
                return self.choose(first, *((remaining, ir.Const(0)) if op == "and" else (ir.Const(1), remaining)))
            case ir.HasOp(slot=slot, selector=selector):
                return ir.HasOp(slot, self.pure(selector))
            case ir.HookCall(target=hook, args=args):
                return self.dispatch(hook.slot, [self.pure(a) for a in args])
            case ir.Call(target=target, args=args):
                values = [self.pure(a) for a in args]
                if isinstance(target, Protocol):
                    return self.call(self.program.resolve(target), values)
                assert isinstance(target, Primitive)
                to = self.register()
                self.emit(Invoke(to, self.program.resolve(target), values))
                return ir.Local(to)
        return expr

    def choose(self, test: ir.Expr, then: ir.Expr, otherwise: ir.Expr) -> ir.Expr:
        to = self.register()
        branch = Branch(self.pure(test), -1, -1)
        self.emit(branch)
        branch.yes = self.here
        self.emit(Let(to, self.pure(then)))
        over = Jump(-1)
        self.emit(over)
        branch.no = self.here
        self.emit(Let(to, self.pure(otherwise)))
        over.to = self.here
        return ir.Local(to)

    def dispatch(self, slot: str, args: list[ir.Expr]) -> ir.Expr:
        """A call through a function pointer: one after the other, is it this one?"""
        to = self.register()
        overs = []
        for number, target in self.program.targets(slot).items():
            branch = Branch(ir.Binary("==", args[0], ir.Const(number)), -1, -1)
            self.emit(branch)
            branch.yes = self.here
            self.emit(Let(to, self.call(target, args[1:])))
            overs.append(Jump(-1))
            self.emit(overs[-1])
            branch.no = self.here
        self.emit(Unbound())
        for over in overs:
            over.to = self.here
        return ir.Local(to)


def _statements(stmts: list[ir.Stmt]) -> Iterator[ir.Stmt]:
    for stmt in stmts:
        yield stmt
        if isinstance(stmt, ir.If):
            yield from _statements(stmt.then)
            yield from _statements(stmt.otherwise)
        elif isinstance(stmt, ir.While):
            yield from _statements(stmt.body)


# --- which registers matter where


def _reads(node: object) -> Iterator[str]:
    """Registers that an expression or instruction reads."""
    if isinstance(node, ir.Local):
        yield node.name
    elif isinstance(node, list | tuple):
        for part in node:
            yield from _reads(part)
    elif hasattr(node, "__dataclass_fields__"):
        for name in node.__dataclass_fields__:
            yield from _reads(getattr(node, name))


def following(instruction: Instruction, index: int) -> list[int]:
    """Indices of the instructions that may come next."""
    match instruction:
        case Jump(to=to):
            return [to]
        case Branch(test=ir.Const(value=value), yes=yes, no=no):
            return [yes if value else no]
        case Branch(yes=yes, no=no):
            return [yes, no]
        case End() | Unbound():
            return []
    return [index + 1]


def _allocate(code: Code, parameters: list[str]) -> None:
    """Fill ``live`` and ``slots``: parameters get the first slots, the others whatever is free."""
    numbers: dict[str, int] = {name: i for i, name in enumerate(parameters)}
    reads, writes = [], []
    for instruction in code.instructions:
        bits = 0
        for name in _reads(instruction):
            bits |= 1 << numbers.setdefault(name, len(numbers))
        reads.append(bits)
        to = getattr(instruction, "to", None)
        writes.append(1 << numbers.setdefault(to, len(numbers)) if isinstance(to, str) else 0)
    before = [0] * (len(code.instructions) + 1)
    nexts = [following(instruction, i) for i, instruction in enumerate(code.instructions)]

    def matter_after(i: int) -> int:
        after = 0
        for j in nexts[i]:
            after |= before[j]
        return after

    changed = True
    while changed:
        changed = False
        for i in range(len(code.instructions) - 1, -1, -1):
            live = reads[i] | (matter_after(i) & ~writes[i])
            if live != before[i]:
                before[i] = live
                changed = True
    names = list(numbers)
    kept = (1 << len(parameters)) - 1
    together = dict.fromkeys(_bits(kept), kept)  # register number -> registers that matter at the same time
    for i, instruction in enumerate(code.instructions):
        if isinstance(instruction, STEPS):
            code.live[i] = [names[n] for n in _bits(before[i])]
            kept |= before[i]
    for i, instruction in enumerate(code.instructions):
        after = matter_after(i)
        if not after & writes[i]:
            if writes[i]:
                instruction.to = ""  # type: ignore[union-attr]
            continue
        for n in _bits(after & kept):
            together[n] = together.get(n, 0) | after & kept
    taken: dict[int, int] = {}
    for n in sorted(together):
        used = {taken[m] for m in _bits(together[n]) if m in taken}
        slot = next(s for s in range(len(used) + 1) if s not in used)
        taken[n] = slot
        code.slots[names[n]] = slot


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low
