"""A protocol as a flat list of instructions, at most one access to shared state in each.

What the tree nests is pulled apart into registers (locals first, then temporaries), so that a thread can stop between
any two accesses and everything it knows lies in its frame. Instructions that touch shared state are *steps*; the others
touch registers only and run together with the step before them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from faultpath.protocol import ir
from faultpath.protocol.language import Primitive, Protocol
from faultpath.protocol.program import Program


@dataclass
class Let:
    """Register := pure expression."""

    to: str
    value: ir.Expr
    line: int


@dataclass
class Load:
    """Step. Register := word at an address."""

    to: str
    address: ir.Expr
    line: int


@dataclass
class Store:
    """Step. Word at an address := value."""

    address: ir.Expr
    value: ir.Expr
    line: int


@dataclass
class Invoke:
    """Step. Register := primitive(arguments); it may block."""

    to: str
    target: Primitive
    args: list[ir.Expr]
    line: int


@dataclass
class Guard:
    """Step. Blocks until the condition, with whatever it reads, holds."""

    condition: ir.Expr
    line: int


@dataclass
class Count:
    """Bookkeeping: no step."""

    index: int
    amount: ir.Expr
    line: int


@dataclass
class Enter:
    """Register := protocol(arguments): a new frame."""

    to: str
    target: Protocol
    args: list[ir.Expr]
    line: int


@dataclass
class Jump:
    to: int
    line: int


@dataclass
class Branch:
    """Go to ``yes`` if the pure condition holds, else to ``no``."""

    test: ir.Expr
    yes: int
    no: int
    line: int


@dataclass
class Leave:
    """Return from the protocol."""

    value: ir.Expr
    line: int


@dataclass
class Unbound:
    """A call through a function pointer that nothing was bound to."""

    line: int


Instruction = Let | Load | Store | Invoke | Guard | Count | Enter | Jump | Branch | Leave | Unbound
STEPS = (Load, Store, Invoke, Guard)


@dataclass
class Code:
    """A protocol's instructions. Jump targets are indices into them."""

    function: ir.Function
    instructions: list[Instruction] = field(default_factory=list)
    registers: list[str] = field(default_factory=list)


def flatten(program: Program, function: ir.Function) -> Code:
    """Pull a checked protocol apart."""
    flattener = _Flattener(program, function)
    flattener.block(function.body)
    flattener.emit(Leave(ir.Const(0), function.body[-1].line if function.body else 0))
    return flattener.code


class _Flattener:
    def __init__(self, program: Program, function: ir.Function) -> None:
        self.program = program
        self.code = Code(function, registers=list(function.locals))
        self.loops: list[tuple[int, list[Jump]]] = []  # (index of the test, breaks to patch)
        self.line = 0

    @property
    def here(self) -> int:
        return len(self.code.instructions)

    def emit(self, instruction: Instruction) -> None:
        self.code.instructions.append(instruction)

    def temporary(self) -> str:
        name = f".{len(self.code.registers)}"
        self.code.registers.append(name)
        return name

    # --- statements

    def block(self, stmts: list[ir.Stmt]) -> None:
        for stmt in stmts:
            self.line = stmt.line
            self.statement(stmt)

    def statement(self, stmt: ir.Stmt) -> None:
        match stmt:
            case ir.Assign(name=name, value=value, line=line):
                self.emit(Let(name, self.pure(value), line))
            case ir.Store(base=base, offset=offset, value=value, line=line):
                result = self.pure(value)
                self.emit(Store(self.pure(ir.Address(base, offset)), result, line))
            case ir.Count(index=index, amount=amount, line=line):
                self.emit(Count(index, self.pure(amount), line))
            case ir.Evaluate(value=value):
                self.pure(value)
            case ir.Wait(condition=condition, line=line):
                self.emit(Guard(condition, line))
            case ir.Return(value=value, line=line):
                self.emit(Leave(self.pure(value), line))
            case ir.If():
                self.branch(stmt)
            case ir.While():
                self.loop(stmt)
            case ir.Break(line=line):
                jump = Jump(-1, line)
                self.loops[-1][1].append(jump)
                self.emit(jump)
            case ir.Continue(line=line):
                self.emit(Jump(self.loops[-1][0], line))

    def branch(self, stmt: ir.If) -> None:
        test = Branch(self.pure(stmt.test), -1, -1, stmt.line)
        self.emit(test)
        test.yes = self.here
        self.block(stmt.then)
        over = Jump(-1, self.line)
        self.emit(over)
        test.no = self.here
        self.block(stmt.otherwise)
        over.to = self.here

    def loop(self, stmt: ir.While) -> None:
        head = self.here
        test = Branch(self.pure(stmt.test), -1, -1, stmt.line)
        self.emit(test)
        test.yes = self.here
        self.loops.append((head, []))
        self.block(stmt.body)
        self.emit(Jump(head, self.line))
        test.no = self.here
        for jump in self.loops.pop()[1]:
            jump.to = self.here

    # --- expressions

    def pure(self, expr: ir.Expr) -> ir.Expr:
        """The expression with every access moved into a register, in order of evaluation."""
        match expr:
            case ir.Const() | ir.Local():
                return expr
            case ir.Load(base=base, offset=offset):
                to = self.temporary()
                self.emit(Load(to, self.pure(ir.Address(base, offset)), self.line))
                return ir.Local(to)
            case ir.Address(base=base, offset=offset):
                return ir.Address(self.pure(base), offset)
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
                to = self.temporary()
                if isinstance(target, Protocol):
                    self.emit(Enter(to, self.program.resolve(target), values, self.line))
                else:
                    assert isinstance(target, Primitive)
                    self.emit(Invoke(to, target, values, self.line))
                return ir.Local(to)

    def choose(self, test: ir.Expr, then: ir.Expr, otherwise: ir.Expr) -> ir.Expr:
        to = self.temporary()
        branch = Branch(self.pure(test), -1, -1, self.line)
        self.emit(branch)
        branch.yes = self.here
        self.emit(Let(to, self.pure(then), self.line))
        over = Jump(-1, self.line)
        self.emit(over)
        branch.no = self.here
        self.emit(Let(to, self.pure(otherwise), self.line))
        over.to = self.here
        return ir.Local(to)

    def dispatch(self, slot: str, args: list[ir.Expr]) -> ir.Expr:
        to = self.temporary()
        overs = []
        for number, target in self.program.targets(slot).items():
            branch = Branch(ir.Binary("==", args[0], ir.Const(number)), -1, -1, self.line)
            self.emit(branch)
            branch.yes = self.here
            self.emit(Enter(to, target, args[1:], self.line))
            overs.append(Jump(-1, self.line))
            self.emit(overs[-1])
            branch.no = self.here
        self.emit(Unbound(self.line))
        for over in overs:
            over.to = self.here
        return ir.Local(to)
