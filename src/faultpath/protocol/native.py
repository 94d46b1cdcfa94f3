"""Back end one: a program as LLVM assembly, one function per protocol, primitive and helper.

The world is a pointer to 64-bit words, every value a 64-bit integer. The code runs in order and to completion. What
cannot go on (a step that would have to wait, for there is nobody to wait for; a broken rule) sets STATUS and returns
STOPPED, which every caller passes up.
"""

from __future__ import annotations

from faultpath.engine.world import BAD_ADDRESS, DIVISION, STATUS, WOULD_BLOCK
from faultpath.protocol import ir
from faultpath.protocol.language import Primitive
from faultpath.protocol.program import Program, Source

STOPPED = -(1 << 63)

_ARITHMETIC = {"+": "add", "-": "sub", "*": "mul", "&": "and", "|": "or", "^": "xor", "<<": "shl", ">>": "ashr"}
_COMPARISON = {"==": "eq", "!=": "ne", "<": "slt", "<=": "sle", ">": "sgt", ">=": "sge"}


FOOT = """declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
!0 = !{!"branch_weights", i32 1, i32 2000}"""


def assembly(program: Program, known: dict[int, int] | None = None) -> str:
    """Text of the module. Roots are exported under their names; everything else is internal.

    :param known: words of the world that no run changes, and what they hold
    """
    stopping = stopping_functions(program)
    exported = set(program.roots)
    parts = [
        FunctionEmitter(program, function, stopping, source in exported, known).text()
        for source, function in program.functions.items()
    ]
    return "\n".join([*parts, FOOT, ""])


def stopping_functions(program: Program) -> set[Source]:
    """Functions that may return STOPPED."""
    stopping: set[Source] = set()
    grown = True
    while grown:
        grown = False
        for source, function in program.functions.items():
            if source not in stopping and _may_stop(program, function.body, stopping):
                stopping.add(source)
                grown = True
    return stopping


def _may_stop(program: Program, node: object, stopping: set[Source]) -> bool:
    if isinstance(node, list | tuple):
        return any(_may_stop(program, n, stopping) for n in node)
    if isinstance(node, ir.Stop | ir.Wait | ir.HookCall):
        return True
    if isinstance(node, ir.Binary) and node.op in ("//", "%"):
        return True
    if isinstance(node, ir.Call):
        target = program.resolve(node.target)
        if target in stopping or (isinstance(target, Primitive) and target.blocks):
            return True
    if hasattr(node, "__dataclass_fields__"):
        return any(_may_stop(program, getattr(node, f), stopping) for f in node.__dataclass_fields__)
    return False


class Emitter:
    """Text of one function's body: instructions, labels and expressions. How a local is read is the back end's."""

    def __init__(self, program: Program, stopping: set[Source], known: dict[int, int] | None = None) -> None:
        self.program = program
        self.stopping = stopping
        self.known = known or {}
        self.lines: list[str] = []
        self.made = 0

    def read(self, name: str) -> str:
        """The value of a local."""
        raise NotImplementedError

    # --- text

    def put(self, text: str) -> None:
        self.lines.append("  " + text)

    def fresh(self, kind: str = "t") -> str:
        self.made += 1
        return f"{kind}.{self.made}"

    def let(self, text: str) -> str:
        name = f"%{self.fresh()}"
        self.put(f"{name} = {text}")
        return name

    def label(self, name: str) -> None:
        self.lines.append(f"{name}:")

    def goto(self, name: str) -> None:
        """Jump, and open an unreachable block for whatever text follows."""
        self.put(f"br label %{name}")
        self.label(self.fresh("dead"))

    def stop_if(self, condition: str, status: int | None = None) -> None:
        """Leave with STOPPED if the i1 holds, having set STATUS."""
        go_on, leave = self.fresh("ok"), "stopped"
        if status is not None:
            leave = self.fresh("stop")
        self.put(f"br i1 {condition}, label %{leave}, label %{go_on}, !prof !0")
        if status is not None:
            self.label(leave)
            self.put(f"store i64 {status}, ptr {self.let(f'getelementptr i64, ptr %w, i64 {STATUS}')}")
            self.put("br label %stopped")
        self.label(go_on)

    # --- expressions

    def index(self, base: ir.Expr, offset: int) -> str:
        return self.value(base) if offset == 0 else self.value(ir.Address(base, offset))

    def word_at(self, index: str) -> str:
        return self.let(f"getelementptr i64, ptr %w, i64 {index}")

    def load(self, base: ir.Expr, offset: int) -> str:
        return self.let(f"load i64, ptr {self.word_at(self.index(base, offset))}")

    def store(self, base: ir.Expr, offset: int, value: str) -> None:
        self.put(f"store i64 {value}, ptr {self.word_at(self.index(base, offset))}")

    def value(self, expr: ir.Expr) -> str:
        """An i64."""
        match expr:
            case ir.Const(value=value):
                return str(value)
            case ir.Local(name=name):
                return self.read(name)
            case ir.Load(base=ir.Const(value=word), offset=0) if word in self.known:
                return str(self.known[word])
            case ir.Load(base=base, offset=offset):
                return self.load(base, offset)
            case ir.LockClass():
                return str(expr.number)
            case ir.Prefetch(address=address):
                self.put(f"call void @llvm.prefetch.p0(ptr {self.word_at(self.value(address))}, i32 0, i32 3, i32 1)")
                return "0"
            case ir.CallNative(address=address, args=args):
                code = self.let(f"inttoptr i64 {self.value(address)} to ptr")
                text = ", ".join(["ptr %w", *(f"i64 {self.value(a)}" for a in args)])
                return self.let(f"call i64 {code}({text})")
            case ir.Address(base=base, offset=offset):
                return self.let(f"add i64 {self.value(base)}, {offset}")
            case ir.Binary(op="min" | "max" as op, a=a, b=b):
                x, y = self.value(a), self.value(b)
                first = self.let(f"icmp {'slt' if op == 'min' else 'sgt'} i64 {x}, {y}")
                return self.let(f"select i1 {first}, i64 {x}, i64 {y}")
            case ir.Binary(op="//" | "%" as op, a=a, b=b):
                return self.divide(op, self.value(a), self.value(b))
            case ir.Binary(op="<<" | ">>" as op, a=a, b=b) if not isinstance(b, ir.Const):
                return self.shift(op, self.value(a), self.value(b))
            case ir.Binary(op=op, a=a, b=b) if op in _ARITHMETIC:
                x, y = self.value(a), self.value(b)
                return self.let(f"{_ARITHMETIC[op]} i64 {x}, {y}")
            case ir.Unary(op="-", a=a):
                return self.let(f"sub i64 0, {self.value(a)}")
            case ir.Unary(op="~", a=a):
                return self.let(f"xor i64 {self.value(a)}, -1")
            case ir.Select(test=test, then=then, otherwise=otherwise):
                return self.select(self.test(test), then, otherwise)
            case ir.HookCall(target=hook, args=args):
                return self.hook_call(hook.slot, [self.value(a) for a in args])
            case ir.Call(target=target, args=args):
                return self.call(target, [self.value(a) for a in args])
        return self.let(f"zext i1 {self.test(expr)} to i64")

    def divide(self, op: str, x: str, y: str) -> str:
        """Floor division or its remainder, as Python has them. What the processor would trap at stops the run."""
        self.stop_if(self.let(f"icmp eq i64 {y}, 0"), DIVISION)
        overflow = self.let(f"and i1 {self.let(f'icmp eq i64 {y}, -1')}, {self.let(f'icmp eq i64 {x}, {STOPPED}')}")
        self.stop_if(overflow, DIVISION)
        quotient = self.let(f"sdiv i64 {x}, {y}")
        remainder = self.let(f"srem i64 {x}, {y}")
        unlike = self.let(f"icmp slt i64 {self.let(f'xor i64 {remainder}, {y}')}, 0")
        inexact = self.let(f"icmp ne i64 {remainder}, 0")
        adjust = self.let(f"and i1 {unlike}, {inexact}")
        if op == "//":
            return self.let(f"sub i64 {quotient}, {self.let(f'zext i1 {adjust} to i64')}")
        return self.let(f"add i64 {remainder}, {self.let(f'select i1 {adjust}, i64 {y}, i64 0')}")

    def shift(self, op: str, x: str, y: str) -> str:
        """A shift by any amount; LLVM leaves those of 64 and more undefined."""
        far = self.let(f"icmp ugt i64 {y}, 63")
        near = self.let(f"select i1 {far}, i64 63, i64 {y}")
        shifted = self.let(f"{_ARITHMETIC[op]} i64 {x}, {near}")
        return shifted if op == ">>" else self.let(f"select i1 {far}, i64 0, i64 {shifted}")

    def select(self, test: str, then: ir.Expr, otherwise: ir.Expr) -> str:
        yes, no, done, slot = self.fresh("yes"), self.fresh("no"), self.fresh("end"), self.slot()
        self.put(f"br i1 {test}, label %{yes}, label %{no}")
        for label, expr in ((yes, then), (no, otherwise)):
            self.label(label)
            self.put(f"store i64 {self.value(expr)}, ptr {slot}")
            self.put(f"br label %{done}")
        self.label(done)
        return self.let(f"load i64, ptr {slot}")

    def slot(self) -> str:
        """A stack word, allocated at the head of the function so that loops reuse it."""
        name = f"%{self.fresh('slot')}"
        self.lines.insert(1, f"  {name} = alloca i64")
        return name

    def test(self, expr: ir.Expr) -> str:
        """An i1."""
        match expr:
            case ir.Const(value=value):
                return "true" if value else "false"
            case ir.Binary(op=op, a=a, b=b) if op in _COMPARISON:
                x, y = self.value(a), self.value(b)
                return self.let(f"icmp {_COMPARISON[op]} i64 {x}, {y}")
            case ir.Unary(op="not", a=a):
                return self.let(f"xor i1 {self.test(a)}, true")
            case ir.Logic(op=op, parts=parts):
                result = parts[-1]
                for part in reversed(parts[:-1]):
                    then, otherwise = (result, ir.Const(0)) if op == "and" else (ir.Const(1), result)
                    result = ir.Select(part, then, otherwise)
                return self.let(f"icmp ne i64 {self.value(result)}, 0")
            case ir.HasOp(slot=slot, selector=selector):
                selected = self.value(selector)
                found = "false"
                for number in self.program.targets(slot):
                    found = self.let(f"or i1 {found}, {self.let(f'icmp eq i64 {selected}, {number}')}")
                return found
        return self.let(f"icmp ne i64 {self.value(expr)}, 0")

    def call(self, target: Source, args: list[str]) -> str:
        target = self.program.resolve(target)
        result = self.invoke(target, args)
        if isinstance(target, Primitive) and target.blocks:
            self.stop_if(self.let(f"icmp ne i64 {result}, 0"), WOULD_BLOCK)
        return result

    def invoke(self, target: Source, args: list[str]) -> str:
        text = ", ".join(["ptr %w", *(f"i64 {a}" for a in args)])
        result = self.let(f'call i64 @"{self.program.names[target]}"({text})')
        if target in self.stopping:
            self.stop_if(self.let(f"icmp eq i64 {result}, {STOPPED}"))
        return result

    def hook_call(self, slot: str, args: list[str]) -> str:
        """A chain of comparisons over the numbers that the program bound to the slot."""
        done, out = self.fresh("end"), self.slot()
        for number, target in self.program.targets(slot).items():
            this, other = self.fresh("is"), self.fresh("not")
            self.put(f"br i1 {self.let(f'icmp eq i64 {args[0]}, {number}')}, label %{this}, label %{other}")
            self.label(this)
            self.put(f"store i64 {self.invoke(target, args[1:])}, ptr {out}")
            self.put(f"br label %{done}")
            self.label(other)
        self.stop_if("true", BAD_ADDRESS)
        self.put(f"br label %{done}")
        self.label(done)
        return self.let(f"load i64, ptr {out}")


class FunctionEmitter(Emitter):
    """A whole function, structured as its tree is; locals are words of the native stack."""

    attributes = ""

    def __init__(
        self,
        program: Program,
        function: ir.Function,
        stopping: set[Source],
        exported: bool,
        known: dict[int, int] | None,
    ) -> None:
        super().__init__(program, stopping, known)
        self.function = function
        self.exported = exported
        self.loops: list[tuple[str, str]] = []  # (continue to, break to)
        # Numbered, for a local's name may be anything that Python allows.
        self.places = {name: f"%local.{number}" for number, name in enumerate(function.locals)}

    def read(self, name: str) -> str:
        return self.let(f"load i64, ptr {self.places[name]}")

    def text(self) -> str:
        name = self.program.names[self.function.source]
        count = len(self.function.parameters)
        parameters = ", ".join(["ptr %w", *(f"i64 %arg.{number}" for number in range(count))])
        linkage = "" if self.exported else "internal "
        self.lines = [f'define {linkage}i64 @"{name}"({parameters}) nounwind {self.attributes}{{']
        for number, place in enumerate(self.places.values()):
            self.put(f"{place} = alloca i64")
            self.put(f"store i64 {f'%arg.{number}' if number < count else 0}, ptr {place}")
        self.block(self.function.body)
        self.put("ret i64 0")
        self.label("stopped")
        self.put(f"ret i64 {STOPPED}")
        return "\n".join([*self.lines, "}", ""])

    # --- statements

    def block(self, stmts: list[ir.Stmt]) -> None:
        for stmt in stmts:
            self.statement(stmt)

    def statement(self, stmt: ir.Stmt) -> None:
        match stmt:
            case ir.Assign(name=name, value=value):
                self.put(f"store i64 {self.value(value)}, ptr {self.places[name]}")
            case ir.Store(base=base, offset=offset, value=value):
                # The value first, as Python does.
                self.store(base, offset, self.value(value))
            case ir.Count(index=index, amount=amount):
                result = self.value(amount)
                where = self.word_at(str(index))
                before = self.let(f"load i64, ptr {where}")
                self.put(f"store i64 {self.let(f'add i64 {before}, {result}')}, ptr {where}")
            case ir.Evaluate(value=value):
                self.value(value)
            case ir.Wait(condition=condition):
                self.stop_if(self.let(f"xor i1 {self.test(condition)}, true"), WOULD_BLOCK)
            case ir.If():
                self.branch(stmt)
            case ir.While():
                self.loop(stmt)
            case ir.Return(value=value):
                self.put(f"ret i64 {self.value(value)}")
                self.label(self.fresh("dead"))
            case ir.Break():
                self.goto(self.loops[-1][1])
            case ir.Continue():
                self.goto(self.loops[-1][0])
            case ir.Stop():
                self.goto("stopped")

    def branch(self, stmt: ir.If) -> None:
        then, otherwise, done = self.fresh("then"), self.fresh("else"), self.fresh("end")
        self.put(f"br i1 {self.test(stmt.test)}, label %{then}, label %{otherwise}")
        self.label(then)
        self.block(stmt.then)
        self.put(f"br label %{done}")
        self.label(otherwise)
        self.block(stmt.otherwise)
        self.put(f"br label %{done}")
        self.label(done)

    def loop(self, stmt: ir.While) -> None:
        head, body, done = self.fresh("while"), self.fresh("do"), self.fresh("done")
        self.put(f"br label %{head}")
        self.label(head)
        self.put(f"br i1 {self.test(stmt.test)}, label %{body}, label %{done}")
        self.label(body)
        self.loops.append((head, done))
        self.block(stmt.body)
        self.loops.pop()
        self.put(f"br label %{head}")
        self.label(done)
