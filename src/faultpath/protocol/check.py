"""Checks that a function stays inside the language, and turns it into the tree of :mod:`faultpath.protocol.ir`.

Whatever is outside is refused with file, line and the mend. The language: integers, structure pointers and embedded
fields; assignment, ``if``, ``while``, ``return``, ``break``, ``continue``; arithmetic, comparison, ``and``/``or``/
``not``, ``:=`` as the whole of a test; calls to protocols, primitives, hooks and the words of
:mod:`faultpath.protocol.language`; in protocols ``with`` for what takes a lock, and ``for`` over a list. Primitives and
their helpers have the world ``w`` as well, index it, call helpers, use ``for`` over ``range``, and may ``raise Stop``.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from faultpath.engine.world import INDEX
from faultpath.errors import FaultpathError
from faultpath.protocol import ir, language
from faultpath.protocol.assignment import unset_read
from faultpath.protocol.language import ForEach, Helper, Hook, Ops, Primitive, Protocol, StructCall
from faultpath.protocol.struct import Embedded, Field, Struct, WaitQueue, role_index

BINARY = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.BitAnd: "&",
    ast.BitOr: "|",
    ast.BitXor: "^",
    ast.LShift: "<<",
    ast.RShift: ">>",
}
COMPARE = {ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
UNARY = {ast.USub: "-", ast.Invert: "~"}


@cache
def _functions(filename: str) -> dict[int, ast.stmt]:
    """Every function of a file by its first line, decorators included: parsing once is what keeps start-up short."""
    try:
        tree = ast.parse(Path(filename).read_text())
    except OSError:
        return {}
    return {
        min([node.lineno, *(d.lineno for d in node.decorator_list)]): node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    }


@cache
def check(source: Protocol | Primitive | Helper) -> ir.Function:
    """The tree of a protocol, primitive or helper, or a :class:`FaultpathError` that names the line."""
    return _Checker(source).function()


class _Checker:
    def __init__(self, source: Protocol | Primitive | Helper) -> None:
        self.source = source
        self.words = not isinstance(source, Protocol)
        self.filename = source.fn.__code__.co_filename
        node = _functions(self.filename).get(source.fn.__code__.co_firstlineno)
        if node is None:
            raise FaultpathError(f"no source for {source.__name__}", self.filename, "define protocols in a file")
        self.node = node
        self.globals = source.fn.__globals__
        self.types: dict[str, type] = {}
        self.taken: list[ir.Call] = []  # what gives up what the blocks around have taken, outermost first
        self.loops: list[tuple[int, list[ir.Stmt]]] = []  # those around: how many of those are outside; what goes on
        self.out = ir.Function(source, [], [], self.filename)

    def refuse(self, node: ast.AST, what: str, mend: str) -> NoReturn:
        line = getattr(node, "lineno", self.node.lineno)
        raise FaultpathError(f"{self.source.__name__}: {what}", f"{self.filename}:{line}", mend)

    def function(self) -> ir.Function:
        assert isinstance(self.node, ast.FunctionDef)
        spec = self.node.args
        if spec.vararg or spec.kwarg or spec.kwonlyargs or spec.defaults:
            self.refuse(self.node, "a protocol has plain parameters only", "drop defaults, *args and **kwargs")
        if isinstance(self.source, Protocol):
            self.types.update(self.parameters(self.source))
        else:
            self.types.update({arg.arg: int for arg in spec.args[1:]})
        self.out.parameters = list(self.types)
        self.out.body = self.block(self.node.body)
        self.out.locals = list(self.types)
        if unset := unset_read(self.out):
            name, line = unset
            self.refuse(ast.Pass(lineno=line), f"'{name}' may be read before it is set", "set it on every way there")
        return self.out

    def parameters(self, protocol: Protocol) -> list[tuple[str, type]]:
        try:
            found = protocol.parameters
        except NameError as error:
            self.refuse(self.node, str(error), "import the type, or leave the annotation out")
        for name, type_ in found:
            if not (isinstance(type_, type) and issubclass(type_, int)):
                self.refuse(self.node, f"'{name}' is a {type_}", "parameters are int, structures or embedded fields")
        return found

    # --- statements

    def block(self, nodes: list[ast.stmt]) -> list[ir.Stmt]:
        return [stmt for node in nodes for stmt in self.statement(node)]

    def statement(self, node: ast.stmt) -> list[ir.Stmt]:
        line = node.lineno
        match node:
            case ast.Expr(value=ast.Constant(value=str())) | ast.Pass():
                return []
            case ast.Expr(value=ast.Call() as call):
                return [self.call_statement(call, line)]
            case ast.Assign(targets=[target], value=value):
                return [self.assign(target, value, line)]
            case ast.AnnAssign(target=ast.Name(id=name), value=value, annotation=annotation) if value is not None:
                declared = self.constant(annotation)
                if not (isinstance(declared, type) and issubclass(declared, int)):
                    self.refuse(node, "a local is an int or a structure", "annotate with int or a Struct class")
                self.types.setdefault(name, declared)
                return [self.assign(node.target, value, line)]
            case ast.AugAssign(target=target, op=op, value=value):
                load = ast.copy_location(ast.BinOp(left=_as_load(target), op=op, right=value), node)
                return [self.assign(target, load, line)]
            case ast.If(test=ast.NamedExpr(target=target, value=value), body=body, orelse=orelse):
                found = self.assign(target, value, line)
                return [found, ir.If(ir.Local(target.id), self.block(body), self.block(orelse), line)]
            case ast.While(test=ast.NamedExpr(target=target, value=value), body=body, orelse=[]):
                found = self.assign(target, value, line)
                leave = ir.If(ir.Unary("not", ir.Local(target.id)), [ir.Break(line)], [], line)
                return [ir.While(ir.Const(1), [found, leave, *self.loop(body)], line)]
            case ast.If(test=test, body=body, orelse=orelse):
                return [ir.If(self.condition(test), self.block(body), self.block(orelse), line)]
            case ast.While(test=test, body=body, orelse=[]):
                return [ir.While(self.condition(test), self.loop(body), line)]
            case ast.With(items=items, body=body) if not self.words:
                return self.with_block(items, body, line)
            case ast.Return(value=value):
                return self.leave(self.value(value) if value else ir.Const(0), line)
            case ast.For(target=ast.Name() as target, iter=ast.Call(func=ast.Name(id=name)) as call, orelse=[]) if (
                isinstance(self.globals.get(name), ForEach) and not self.words
            ):
                return self.for_each(target, call, node.body, line)
            case ast.For(target=ast.Name(id=name), iter=ast.Call(func=ast.Name(id="range"), args=bounds), orelse=[]):
                return self.for_range(name, bounds, node.body, line)
            case ast.Raise() if self.words:
                return [ir.Stop(line)]
            case ast.Break():
                return [*self.give_up(self.loops[-1][0], line), ir.Break(line)]
            case ast.Continue():
                outside, going_on = self.loops[-1]
                return [*self.give_up(outside, line), *going_on, ir.Continue(line)]
        self.refuse(
            node,
            f"'{type(node).__name__.lower()}' is not in the language",
            "use assignments, if, while, with, return, break, continue and calls",
        )

    def with_block(self, items: list[ast.withitem], body: list[ast.stmt], line: int) -> list[ir.Stmt]:
        """``with mutex_lock(...):``: what is taken is given up on every way out; which lock it is is evaluated once."""
        if not items:
            return self.block(body)
        call = items[0].context_expr
        target = self.constant(call.func) if isinstance(call, ast.Call) else None
        undo = target.undone_by if isinstance(target, Primitive) else None
        if undo is None or items[0].optional_vars:
            self.refuse(call, f"'{ast.unparse(items[0])}' takes nothing to give up again", "with mutex_lock(mutex):")
        assert isinstance(call, ast.Call)
        taking, _ = self.call(call)
        assert isinstance(taking, ir.Call)
        lock, before = self.once("lock", taking.args[0], body, line)
        taking = ir.Call(taking.target, (lock, *taking.args[1:]))
        if len(undo.parameters) == 1:
            before.append(ir.Evaluate(taking, line))
            undoing = ir.Call(undo, (lock,))
        else:
            name = self.temporary("idx")
            before.append(ir.Assign(name, taking, line))
            undoing = ir.Call(undo, (lock, ir.Local(name)))
        self.out.calls.append(undo)
        self.taken.append(undoing)
        inside = self.with_block(items[1:], body, line)
        self.taken.pop()
        end = [ir.Evaluate(undoing, body[-1].end_lineno or line)] if _goes_on(inside) else []
        return [*before, *inside, *end]

    def leave(self, value: ir.Expr, line: int) -> list[ir.Stmt]:
        """``return``: the value is known before anything is given up."""
        if self.taken and not isinstance(value, ir.Const | ir.Local):
            name = self.temporary("value")
            return [ir.Assign(name, value, line), *self.leave(ir.Local(name), line)]
        return [*self.give_up(0, line), ir.Return(value, line)]

    def give_up(self, outside: int, line: int) -> list[ir.Stmt]:
        """Give up what the blocks have taken that are left, innermost first; ``outside``: how many are not left."""
        return [ir.Evaluate(undoing, line) for undoing in reversed(self.taken[outside:])]

    def once(self, what: str, embedded: ir.Expr, body: list[ast.stmt], line: int) -> tuple[ir.Expr, list[ir.Stmt]]:
        """An embedded field that is the same throughout a block, and what has to come before that."""
        match embedded:
            case ir.Address(base=ir.Local(name=name)) if not _assigns(body, name):
                return embedded, []
        kept = self.temporary(what)
        return ir.Local(kept), [ir.Assign(kept, embedded, line)]

    def temporary(self, what: str) -> str:
        """A local that no text can name."""
        name = f"{what}.{len(self.types)}"
        self.types[name] = int
        return name

    def loop(self, body: list[ast.stmt], *going_on: ir.Stmt) -> list[ir.Stmt]:
        """The body of a loop; ``going_on`` leads to the next round, also from where it says ``continue``."""
        self.loops.append((len(self.taken), list(going_on)))
        stmts = self.block(body)
        self.loops.pop()
        return [*stmts, *going_on] if _goes_on(stmts) else stmts

    def for_each(self, target: ast.Name, call: ast.Call, body: list[ast.stmt], line: int) -> list[ir.Stmt]:
        """``for svmm in list_for_each_entry(Svmm, "head", svm.svmms):``."""
        walk: ForEach = self.constant(call.func)
        if len(call.args) != 3:
            self.refuse(call, "a list is gone over with three arguments", 'list_for_each_entry(Struct, "member", head)')
        if _assigns(body, target.id):
            self.refuse(target, f"'{target.id}' leads through the list and is assigned", "use another name")
        node = self.temporary("node")
        struct, member = self.member(call.args[0], call.args[1])
        (found,) = self.arguments(call, walk.first, call.args[2:])
        head, before = self.once("head", found, body, line)
        each: list[ir.Stmt] = [self.bind(target, ir.Binary("-", ir.Local(node), ir.Const(member.offset)), struct, line)]
        here = ir.Address(ir.Local(target.id), member.offset)
        following: ir.Expr = ir.Call(walk.following, (here, head)[: len(walk.following.parameters)])
        if walk.safe:
            after = self.temporary("after")
            each.append(ir.Assign(after, following, line))
            following = ir.Local(after)
        self.out.calls += [walk.first, walk.following]
        each += self.loop(body, ir.Assign(node, following, line))
        return [*before, ir.Assign(node, ir.Call(walk.first, (head,)), line), ir.While(ir.Local(node), each, line)]

    def for_range(self, name: str, bounds: list[ast.expr], body: list[ast.stmt], line: int) -> list[ir.Stmt]:
        """``for name in range(...)``: the bound is evaluated once; the step is a positive constant."""
        if not self.words:
            self.refuse(body[0], "'for' goes over lists, and over ranges only in a primitive", "use a while loop")
        values = [self.value(b) for b in bounds]
        first = values[0] if len(values) > 1 else ir.Const(0)
        step = values[2] if len(values) > 2 else ir.Const(1)
        if not isinstance(step, ir.Const) or step.value < 1:
            self.refuse(body[0], "the step of a range is a positive constant", "use a while loop")
        bound = f"{name}.end{line}"
        self.types[name] = self.types[bound] = int
        return [
            ir.Assign(name, first, line),
            ir.Assign(bound, values[1] if len(values) > 1 else values[0], line),
            ir.While(
                ir.Binary("<", ir.Local(name), ir.Local(bound)),
                self.loop(body, ir.Assign(name, ir.Binary("+", ir.Local(name), step), line)),
                line,
            ),
        ]

    def assign(self, target: ast.expr, value: ast.expr, line: int) -> ir.Stmt:
        expr, type_ = self.expression(value)
        if isinstance(target, ast.Name):
            return self.bind(target, expr, type_, line)
        if isinstance(target, ast.Attribute):
            base, field = self.field(target)
            if field.embedded:
                self.refuse(target, f"'{target.attr}' is embedded", "change it through its primitives")
            return ir.Store(base, field.offset, expr, line)
        if isinstance(target, ast.Subscript) and self.is_world(target.value):
            return ir.Store(self.value(target.slice), 0, expr, line)
        self.refuse(target, "only a name or a field can be assigned", "one target per assignment")

    def bind(self, target: ast.Name, expr: ir.Expr, type_: type, line: int) -> ir.Assign:
        """A local is set."""
        known = self.types.get(target.id)
        if known is not None and known is not int and type_ is int and expr != ir.Const(0):
            what = f"'{target.id}' is a {known.__name__} and is assigned a number"
            self.refuse(target, what, f"cast it, {known.__name__}(...)")
        if known in (None, int) and (type_ is not int or known is None):
            self.types[target.id] = type_
        elif type_ is not int and known is not None and not issubclass(type_, known):
            self.refuse(
                target,
                f"'{target.id}' is a {known.__name__} and is assigned a {type_.__name__}",
                f"cast it, {known.__name__}(...), or use another name",
            )
        return ir.Assign(target.id, expr, line)

    def call_statement(self, call: ast.Call, line: int) -> ir.Stmt:
        target = self.constant(call.func)
        if target is language.count:
            name = call.args[0] if 1 <= len(call.args) <= 2 else None
            if not (isinstance(name, ast.Constant) and name.value in INDEX):
                self.refuse(call, "count() of an unknown counter", f"one of {', '.join(INDEX)}")
            amount = self.value(call.args[1]) if len(call.args) > 1 else ir.Const(1)
            return ir.Count(INDEX[name.value], amount, line)
        if target is language.wait_until:
            if len(call.args) != 1:
                self.refuse(call, "wait_until() takes one condition", "wait_until(a == b)")
            return ir.Wait(self.condition(call.args[0]), None, line)
        if target is language.wait_event:
            if len(call.args) != 2:
                self.refuse(call, "wait_event() takes a queue and a condition", "wait_event(mm.wq, a == b)")
            queue, kind = self.expression(call.args[0])
            if not issubclass(kind, WaitQueue):
                self.refuse(call, f"'{ast.unparse(call.args[0])}' is no WaitQueue", "wait_event(mm.wq, a == b)")
            return ir.Wait(self.condition(call.args[1]), queue, line)
        return ir.Evaluate(self.value(call), line)

    def is_world(self, node: ast.expr) -> bool:
        return self.words and isinstance(node, ast.Name) and node.id == "w"

    # --- expressions: (tree, type)

    def value(self, node: ast.expr) -> ir.Expr:
        return self.expression(node)[0]

    def condition(self, node: ast.expr) -> ir.Expr:
        """An expression of which only the truth matters: ``and`` and ``or`` may join anything there."""
        if isinstance(node, ast.BoolOp):
            return ir.Logic(
                "and" if isinstance(node.op, ast.And) else "or", tuple(self.condition(v) for v in node.values)
            )
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ir.Unary("not", self.condition(node.operand))
        return self.value(node)

    def expression(self, node: ast.expr) -> tuple[ir.Expr, type]:
        match node:
            case ast.Constant(value=bool() | int() as value):
                return ir.Const(int(value)), int
            case ast.Name(id=name):
                if name in self.types:
                    return ir.Local(name), self.types[name]
                return self.number(node, self.constant(node))
            case ast.Attribute():
                if isinstance(node.value, ast.Name) and node.value.id not in self.types:
                    return self.number(node, self.constant(node))
                base, field = self.field(node)
                if field.embedded:
                    return ir.Address(base, field.offset), field.type
                return ir.Load(base, field.offset), field.type
            case ast.BinOp(left=left, op=op, right=right) if type(op) in BINARY:
                return ir.Binary(BINARY[type(op)], self.value(left), self.value(right)), int
            case ast.UnaryOp(op=ast.Not()):
                return self.condition(node), int
            case ast.UnaryOp(op=op, operand=operand) if type(op) in UNARY:
                inner = self.value(operand)
                if isinstance(inner, ir.Const) and isinstance(op, ast.USub):
                    return ir.Const(-inner.value), int
                return ir.Unary(UNARY[type(op)], inner), int
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in COMPARE:
                return ir.Binary(COMPARE[type(op)], self.value(left), self.value(right)), int
            case ast.BoolOp() if _is_truth(node):
                return self.condition(node), int
            case ast.Subscript(value=value, slice=index) if self.is_world(value):
                return ir.Load(self.value(index), 0), int
            case ast.IfExp(test=test, body=then, orelse=otherwise):
                return ir.Select(self.condition(test), self.value(then), self.value(otherwise)), int
            case ast.Call():
                return self.call(node)
        self.refuse(
            node,
            f"'{ast.unparse(node)}' is not in the language",
            "integers, fields, arithmetic, single comparisons, and/or/not and calls",
        )

    def number(self, node: ast.expr, value: Any) -> tuple[ir.Expr, type]:
        if isinstance(value, Protocol):
            self.out.numbers.append(value)
            return ir.Const(value.number), int
        if isinstance(value, bool | int | Ops):
            return ir.Const(int(value)), int
        self.refuse(node, f"'{ast.unparse(node)}' is not an integer", "only integers have values here")

    def constant(self, node: ast.expr) -> Any:
        """What a name outside the function stands for."""
        if isinstance(node, ast.Name):
            if node.id in self.globals:
                return self.globals[node.id]
            builtins = {"int": int, "min": min, "max": max}
            if node.id in builtins:
                return builtins[node.id]
            self.refuse(node, f"'{node.id}' is not defined", "assign it first, or import it")
        if isinstance(node, ast.Attribute):
            owner = self.constant(node.value)
            if hasattr(owner, node.attr):
                return getattr(owner, node.attr)
        self.refuse(node, f"'{ast.unparse(node)}' is not known here", "use a name of the module")

    def field(self, node: ast.Attribute) -> tuple[ir.Expr, Field]:
        base, type_ = self.expression(node.value)
        if not issubclass(type_, Struct):
            self.refuse(
                node,
                f"'{ast.unparse(node.value)}' is no structure, it has no field '{node.attr}'",
                "annotate the parameter or local with its Struct class",
            )
        if node.attr not in type_.fields:
            self.refuse(
                node,
                f"{type_.__name__} has no field '{node.attr}'",
                f"its fields: {', '.join(type_.fields)}",
            )
        return base, type_.fields[node.attr]

    def call(self, node: ast.Call) -> tuple[ir.Expr, type]:
        if node.keywords:
            self.refuse(node, "keyword arguments are not in the language", "pass them by position")
        target = self.constant(node.func)
        if isinstance(target, type) and issubclass(target, Struct) and len(node.args) == 1:
            return self.value(node.args[0]), target
        if target is language.container_of:
            return self.container_of(node)
        if target is language.has_op:
            if len(node.args) != 2 or not isinstance(node.args[1], ast.Constant):
                self.refuse(node, "has_op() takes a table and a slot's name", "has_op(sub.ops, 'release')")
            return ir.HasOp(str(node.args[1].value), self.value(node.args[0])), int
        if target in (min, max):
            if len(node.args) != 2:
                self.refuse(node, "min and max take two arguments", "nest them")
            a, b = map(self.value, node.args)
            return ir.Binary("min" if target is min else "max", a, b), int
        if isinstance(target, Hook):
            if not node.args:
                self.refuse(node, f"{target.__name__} needs the number of a table", "pass it first")
            selector = self.value(node.args[0])
            self.out.hooks.append(target)
            return ir.HookCall(target, (selector, *self.arguments(node, target, node.args[1:]))), target.returns
        if isinstance(target, Helper) and self.words:
            self.out.calls.append(target)
            return ir.Call(target, tuple(map(self.value, node.args[1:]))), int
        if isinstance(target, Protocol | Primitive) and not self.words:
            args = self.arguments(node, target, node.args)
            self.out.calls.append(target)
            if isinstance(target, Primitive) and target.has_role:
                args = (*args, self.lock_class(node.args[0]))
            return ir.Call(target, args), target.returns
        if isinstance(target, StructCall):
            return self.struct_call(node, target)
        if target is language.call_native and self.words:
            return ir.CallNative(self.value(node.args[0]), tuple(map(self.value, node.args[2:]))), int
        if target is language.prefetch and self.words:
            return ir.Prefetch(self.value(node.args[1])), int
        self.refuse(node, f"'{ast.unparse(node.func)}' cannot be called here", "call protocols and primitives only")

    def lock_class(self, node: ast.expr) -> ir.LockClass:
        """The class of the lock that an expression names: the structure and the field it is embedded in."""
        expr, type_ = self.expression(node)
        name = type_.__name__
        if isinstance(node, ast.Attribute) and isinstance(expr, ir.Address):
            name = f"{self.expression(node.value)[1].fields[node.attr].owner}.{node.attr}"  # type: ignore[attr-defined]
        return ir.LockClass(role_index(type_), name)

    def container_of(self, node: ast.Call) -> tuple[ir.Expr, type]:
        """``container_of(Struct, "field", address)``."""
        if len(node.args) != 3:
            self.refuse(node, "container_of takes three arguments", 'container_of(Struct, "field", address)')
        struct, field = self.member(node.args[0], node.args[1])
        return ir.Binary("-", self.value(node.args[2]), ir.Const(field.offset)), struct

    def member(self, node: ast.expr, name: ast.expr) -> tuple[type[Struct], Field]:
        """A structure and a field of it, by name."""
        struct = self.constant(node)
        if not (isinstance(struct, type) and issubclass(struct, Struct)):
            self.refuse(node, f"'{ast.unparse(node)}' is no structure", "pass a Struct class")
        if not (isinstance(name, ast.Constant) and name.value in struct.fields):
            self.refuse(
                node, f"{struct.__name__} has no field {ast.unparse(name)}", f"one of {', '.join(struct.fields)}"
            )
        return struct, struct.fields[str(name.value)]

    def struct_call(self, node: ast.Call, target: StructCall) -> tuple[ir.Expr, type]:
        """Allocation and freeing: the structure's size and name become constants."""
        wanted = len(target.primitive.parameters) - (2 if target.allocates else 1)
        if len(node.args) != wanted:
            self.refuse(node, f"{target.__name__} takes {wanted} arguments, not {len(node.args)}", "see its docstring")
        if target.allocates:
            struct = self.constant(node.args[0])
            if not (isinstance(struct, type) and issubclass(struct, Struct)):
                self.refuse(node, f"'{ast.unparse(node.args[0])}' is no structure", "pass a Struct class")
            constants = (struct.size_class(), struct.tag(), struct.interval_bytes)
            self.out.calls.append(target.primitive)
            args = tuple(self.value(a) for a in node.args[1:])
            return ir.Call(target.primitive, (*map(ir.Const, constants), *args)), struct
        pointer, struct = self.expression(node.args[0])
        if not issubclass(struct, Struct):
            self.refuse(node, f"'{ast.unparse(node.args[0])}' is no structure", "cast it to its Struct class first")
        self.out.calls.append(target.primitive)
        return ir.Call(target.primitive, (pointer, ir.Const(struct.interval_bytes))), int

    def arguments(
        self, node: ast.Call, target: Protocol | Primitive | Hook, nodes: list[ast.expr]
    ) -> tuple[ir.Expr, ...]:
        wanted = target.parameters
        if len(wanted) != len(nodes):
            self.refuse(
                node,
                f"{target.__name__} takes {len(wanted)} arguments, not {len(nodes)}",
                f"{target.__name__}({', '.join(n for n, _ in wanted)})",
            )
        args = []
        for (name, type_), arg in zip(wanted, nodes, strict=True):
            expr, got = self.expression(arg)
            if issubclass(type_, Embedded) and not issubclass(got, type_):
                self.refuse(
                    arg,
                    f"{target.__name__}: '{name}' must be a {type_.__name__}, '{ast.unparse(arg)}' is a {got.__name__}",
                    f"pass a field declared as {type_.__name__}",
                )
            args.append(expr)
        return tuple(args)


def _is_truth(node: ast.expr) -> bool:
    """Whether an expression is 0 or 1 by itself: then ``and`` and ``or`` give the same in Python and compiled."""
    if isinstance(node, ast.BoolOp):
        return all(map(_is_truth, node.values))
    return isinstance(node, ast.Compare) or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not))


def _assigns(body: list[ast.stmt], name: str) -> bool:
    """Whether a block assigns a local."""
    nodes = (node for stmt in body for node in ast.walk(stmt) if isinstance(node, ast.Name))
    return any(node.id == name and isinstance(node.ctx, ast.Store) for node in nodes)


def _goes_on(stmts: list[ir.Stmt]) -> bool:
    """Whether the end of a block may be reached."""
    match stmts[-1:]:
        case [ir.Return() | ir.Break() | ir.Continue()]:
            return False
        case [ir.If(then=then, otherwise=otherwise)]:
            return _goes_on(then) or _goes_on(otherwise)
    return True


def _as_load(target: ast.expr) -> ast.expr:
    """The assigned name or field, as an expression to read (for ``+=``)."""
    copy = ast.parse(ast.unparse(target), mode="eval").body
    return ast.copy_location(copy, target)
