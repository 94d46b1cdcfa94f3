"""Designs against something else, in plain text, whichever way round fits: the matrix of ``check --all``."""

from __future__ import annotations

from collections import Counter
from typing import Any

LEGEND = (
    "holds: in every state; violated: see below; -: cannot happen with the driver; then states, and what was reached:",
    "c a fault completed, r a fault went round again, f a fault was refused, . not reachable",
)
VERDICTS = ("holds", "lifetime", "coherence", "coverage", "structure", "locks", "progress", "bounded")
WIDE = 100  # where there is no terminal


def matrix(results: list[dict[str, Any]], width: int) -> list[str]:
    """Its lines."""
    names = headings(results)
    scenarios = list(dict.fromkeys(r["scenario"] for r in results))
    cells = {(names[r["label"]], r["scenario"]): cell(r) for r in results}
    said = [f"{name}: {label}" for label, name in names.items() if label != name]
    return [*fitted(list(names.values()), scenarios, cells, width), *LEGEND, *said, ""]


def fitted(designs: list[str], others: list[str], cells: dict[tuple[str, str], str], width: int) -> list[str]:
    """Lines of a table, a row for each design if that is not too wide; else a column each, in as many as are needed."""
    width = width or WIDE
    across = [["", *others], *([d, *(cells.get((d, o), "-") for o in others)] for d in designs)]
    if _width(across) <= width:
        return [*_lines(across), ""]
    out = []
    while designs:
        count = len(designs)
        while True:
            some = designs[:count]
            down = [["", *some], *([o, *(cells.get((d, o), "-") for d in some)] for o in others)]
            if count == 1 or _width(down) <= width:
                break
            count -= 1
        out += [*_lines(down), ""]
        designs = designs[count:]
    return out


def summary(results: list[dict[str, Any]]) -> list[str]:
    """Lines of a table that says of each design in how many scenarios it holds, and what is violated in the others."""
    names = headings(results)
    said = [(names[r["label"]], r["property"] if r["verdict"] == "violated" else r["verdict"]) for r in results]
    counts = Counter(said)
    columns = [what for what in VERDICTS if any(other == what for _, other in said)]
    rows = [[name, *(str(counts[name, what] or "") for what in columns)] for name in names.values()]
    return _lines([["", *columns], *rows])


def headings(results: list[dict[str, Any]]) -> dict[str, str]:
    """What to call each design, by its label: its name, if that is its own."""
    labels = {r["label"]: r["design"] for r in results}
    shared = Counter(labels.values())
    return {label: name if shared[name] == 1 else label for label, name in labels.items()}


def cell(result: dict[str, Any]) -> str:
    """``holds 1,210 cr.``"""
    reached = result["reached"] or {}
    letters = {"completed": "c", "retried": "r", "refused": "f"}
    marks = "".join(letters[name] if yes else "." for name, yes in reached.items())
    return f"{result['verdict']} {short(result['states'])} {marks or '   '}"


def short(count: int) -> str:
    """``3.3M``."""
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= 10 * unit or (count >= unit and unit > 10**3):
            return f"{count / unit:.0f}{name}" if count >= 10 * unit else f"{count / unit:.1f}{name}"
    return str(count)


def _widths(rows: list[list[str]]) -> list[int]:
    return [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]


def _width(rows: list[list[str]]) -> int:
    return sum(_widths(rows)) + 2 * (len(rows[0]) - 1)


def _lines(rows: list[list[str]]) -> list[str]:
    widths = _widths(rows)

    def text(row: list[str]) -> str:
        first, *rest = [
            f"{cell:{'<' if n == 0 else '>'}{w}}" for n, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join([first, *rest]).rstrip()

    return [text(rows[0]), "-" * _width(rows), *map(text, rows[1:])]
