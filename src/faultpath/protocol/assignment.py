"""Whether every local is set before it is read, whatever way a function takes.

Python raises where a local was not set; compiled code would read a zero. Neither is what somebody meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from faultpath.protocol import ir

Names = frozenset[str]


def unset_read(function: ir.Function) -> tuple[str, int] | None:
    """The first local that may be read before it is set, and the line; None if there is none."""
    return next(_Walk().block(function.body, frozenset(function.parameters))[0], None)


class _Walk:
    """Follows the tree with the set of names that are certainly set; None stands for "not reached"."""

    def __init__(self) -> None:
        self.breaks: list[list[Names]] = []  # of the loops around

    def block(self, stmts: list[ir.Stmt], known: Names | None) -> tuple[Iterator[tuple[str, int]], Names | None]:
        found: list[tuple[str, int]] = []
        for stmt in stmts:
            if known is None:
                break
            found += [(name, stmt.line) for name in _reads(stmt) if name not in known]
            more, known = self.statement(stmt, known)
            found += more
        return iter(found), known

    def statement(self, stmt: ir.Stmt, known: Names) -> tuple[list[tuple[str, int]], Names | None]:
        match stmt:
            case ir.Assign(name=name):
                return [], known | {name}
            case ir.If(then=then, otherwise=otherwise):
                first, after_then = self.block(then, known)
                second, after_otherwise = self.block(otherwise, known)
                return [*first, *second], _meet([after_then, after_otherwise])
            case ir.While(test=test, body=body):
                self.breaks.append([])
                found, _ = self.block(body, known)
                ends = self.breaks.pop()
                endless = isinstance(test, ir.Const) and test.value
                return list(found), _meet(ends) if endless else known
            case ir.Break():
                self.breaks[-1].append(known)
                return [], None
            case ir.Return() | ir.Continue() | ir.Stop():
                return [], None
        return [], known


def _meet(ways: Sequence[Names | None]) -> Names | None:
    """What is set whichever way was taken."""
    reached = [names for names in ways if names is not None]
    return frozenset.intersection(*reached) if reached else None


def _reads(node: object) -> Iterator[str]:
    """Locals that a statement reads itself; what is inside its blocks is looked at in turn."""
    if isinstance(node, ir.Local):
        yield node.name
    elif isinstance(node, tuple):
        for part in node:
            yield from _reads(part)
    elif hasattr(node, "__dataclass_fields__"):
        for name in node.__dataclass_fields__:
            yield from _reads(getattr(node, name))
