"""``with mutex_lock(...):`` written out, each lock and each unlock on a line of its own, where a bug can move it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from textwrap import indent

UNDOES = {
    "mutex_lock": "mutex_unlock({0})",
    "mutex_lock_nested": "mutex_unlock({0})",
    "spin_lock": "spin_unlock({0})",
    "down_read": "up_read({0})",
    "down_write": "up_write({0})",
    "read_lock": "read_unlock({0})",
    "write_lock": "write_unlock({0})",
    "srcu_read_lock": "srcu_read_unlock({0}, idx)",
}


def written_out(text: str) -> str:
    """The text of a function without ``with``."""
    while blocks := [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.With)]:
        text = _one(text, blocks[0])
    return text


def _one(text: str, block: ast.With) -> str:
    lines = text.splitlines(keepends=True)
    taking, giving = [], []
    for item in block.items:
        call = item.context_expr
        assert isinstance(call, ast.Call)
        name, lock = ast.unparse(call.func), ast.unparse(call.args[0])
        taking.append(f"idx = {name}({lock})\n" if name == "srcu_read_lock" else f"{name}({lock})\n")
        giving.insert(0, UNDOES[name].format(lock) + "\n")
    first, last = block.body[0].lineno - 1, block.end_lineno
    if comment := lines[first - 1].partition(":  #")[2]:
        taking[-1] = taking[-1].replace("\n", f"  #{comment}")
    for leaving in sorted(_leaving(block.body), key=lambda stmt: -stmt.lineno):
        before = "".join(giving)
        value = leaving.value if isinstance(leaving, ast.Return) else None
        if value and not isinstance(value, ast.Name | ast.Constant | ast.UnaryOp):
            before = f"value = {ast.unparse(value)}\n{before}"
            lines[leaving.lineno - 1] = " " * leaving.col_offset + "return value\n"
            lines[leaving.lineno : leaving.end_lineno] = [""] * (leaving.end_lineno - leaving.lineno)
        lines[leaving.lineno - 1] = indent(before, " " * leaving.col_offset) + lines[leaving.lineno - 1]
    inside = "".join(lines[first:last]).splitlines(keepends=True)
    lines[block.lineno - 1 : last] = [
        *(" " * block.col_offset + line for line in taking),
        *(line[4:] if line.strip() else line for line in inside),
        *(" " * block.col_offset + line for line in giving if _goes_on(block.body)),
    ]
    return "".join(lines)


def _leaving(stmts: list[ast.stmt], in_loop: bool = False) -> Iterator[ast.stmt]:
    """What leaves a block from within."""
    for stmt in stmts:
        match stmt:
            case ast.Return():
                yield stmt
            case ast.Break() | ast.Continue() if not in_loop:
                yield stmt
            case ast.If(body=body, orelse=orelse):
                yield from _leaving([*body, *orelse], in_loop)
            case ast.With(body=body):
                yield from _leaving(body, in_loop)
            case ast.While(body=body):
                yield from _leaving(body, True)


def _goes_on(stmts: list[ast.stmt]) -> bool:
    match stmts[-1]:
        case ast.Return() | ast.Break() | ast.Continue():
            return False
        case ast.If(body=body, orelse=orelse) if orelse:
            return _goes_on(body) or _goes_on(orelse)
        case ast.With(body=body):
            return _goes_on(body)
    return True
