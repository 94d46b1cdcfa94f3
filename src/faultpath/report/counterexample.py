"""A counterexample as kernel commit messages draw it: a column per CPU, time downwards. Plain ASCII."""

from __future__ import annotations

import re
from typing import Any

COLUMN = 49  # two of them and the gap between: 100
NARROWEST = 36
GAP = 2
GUTTER = 5  # the line number, and a space


def lines(result: dict[str, Any], width: int = 0, full: bool = False, numbered: bool = True) -> list[str]:
    """The lines of a violated result.

    :param width: columns there are; 0: as many as it takes
    :param full: every access, not only those that tell the story
    :param numbered: with the numbers of source lines, which come and go with any edit
    """
    steps = [s for s in result["counterexample"] if full or s["telling"] or s["violation"]]
    if not numbered:
        steps = [{**step, "where": step["where"].rpartition(":")[0] + ":"} for step in steps]
    threads = [t for t in result["threads"] if any(s["thread"] == t for s in result["counterexample"])]
    room = min(COLUMN, (width + GAP) // len(threads) - GAP) if width and threads else COLUMN
    if room < NARROWEST:
        return _one_column(result, steps, width)
    end = _mark(result, room)
    out = [_row(threads, threads, room), _row(threads, ["=" * len(t) for t in threads], room)]
    last: dict[str, tuple[str, str]] = {}
    for before, step in zip([None, *steps], steps, strict=False):
        if step["loop"] and not (before and before["loop"]):
            out.append("-- round and round from here:")
            last.clear()
        column = threads.index(step["thread"])
        for text in _cell(step, last, room, full):
            out.append(_row(threads, [text if n == column else "" for n in range(len(threads))], room))
    return [*out, *(_row(threads, [text if n == column else "" for n in range(len(threads))], room) for text in end)]


def _row(threads: list[str], cells: list[str], room: int) -> str:
    return (" " * GAP).join(f"{cell:{room}}" for cell, _ in zip(cells, threads, strict=True)).rstrip()


def _cell(step: dict[str, Any], last: dict[str, tuple[str, str]], room: int, full: bool) -> list[str]:
    """A step in its column: its function where that changes, its line, what it does."""
    if step["kind"] == "note":
        return _folded(f"-- {step['text']}", room, "   ")
    file, _, line = step["where"].rpartition(":")
    name = file.rpartition("/")[2]
    out = []
    if last.get(step["thread"]) != (step["function"], file):
        last[step["thread"]] = (step["function"], file)
        out += _folded(f"{step['function']}() {name}", room, "  ")
    out += _folded(f"{line:>{GUTTER - 1}} {step['text']}", room, " " * (GUTTER + 2))
    if full and step["kind"] in ("call", "count"):
        for word, before, after in step["changes"]:
            out += _folded(f"{'':{GUTTER}}  {word}: {before} -> {after}", room, " " * (GUTTER + 4))
    return out


def _folded(text: str, room: int, indent: str) -> list[str]:
    """Text in as many lines as it takes, broken after blanks and opening brackets, a long name after a dot."""
    out, now = [], ""
    for piece in re.findall(r"(?:\(\)|[^ (])*[ (]?", text):
        free = max(8, room - len(indent))
        parts = re.findall(rf"[^.]{{1,{free - 1}}}\.?|\.", piece) if len(piece.rstrip()) > free else [piece]
        for part in parts:
            if now.strip() and len(now + part.rstrip()) > room:
                out.append(now.rstrip())
                now = indent
            now += part
    return [*out, now.rstrip()]


def _mark(result: dict[str, Any], room: int) -> list[str]:
    """What follows the last step: it broke the rule."""
    return _folded(f"{'^' * (GUTTER - 1)} {result['rule']}", room, " " * GUTTER)


def _one_column(result: dict[str, Any], steps: list[dict[str, Any]], width: int) -> list[str]:
    """One under the other, where there is no room beside each other."""
    out: list[str] = []
    last: dict[str, tuple[str, str]] = {}
    before = ""
    looping = False
    for step in steps:
        if step["loop"] and not looping:
            looping = True
            out.append("-- round and round from here:")
        if step["thread"] != before:
            out.append(step["thread"])
            before = step["thread"]
            last = {}
        out += [f"  {text}" for text in _cell(step, last, max(20, width - 2), False)]
    return out + [f"  {text}" for text in _mark(result, max(20, width - 2))]
