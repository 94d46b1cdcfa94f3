"""One number of many traces and designs at a glance: traces downwards, designs across."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, Any

from rich import box
from rich.table import Table
from rich.text import Text

from faultpath.engine.counters import COUNTERS, DRIVER_COUNTERS, EXIT_COUNTERS, LOCKS
from faultpath.errors import FaultpathError
from faultpath.report.table import headings
from faultpath.report.terminal import console
from faultpath.report.units import number, size

ALL_LOCKS = "locks"
NAMES = (*COUNTERS, *EXIT_COUNTERS, *DRIVER_COUNTERS, *LOCKS, ALL_LOCKS)


def parse(wanted: Sequence[str]) -> list[tuple[str, str]]:
    """``NAME`` or ``NAME/NAME`` as pairs, the second "" if there is none.

    :raises FaultpathError: no such counter
    """
    pairs = []
    for text in wanted:
        above, _, below = text.partition("/")
        for name in (above, below) if "/" in text else (above,):
            if name not in NAMES:
                raise FaultpathError(f"no counter '{name}'", f"--count {text}", "see docs/counters.md, or say locks")
        pairs.append((above, below))
    return pairs


def pivots(document: dict[str, Any], wanted: Sequence[tuple[str, str]], raw: bool, out: IO[str] | None = None) -> None:
    """Print a table for each of ``wanted``, from a ``faultpath/compare/1`` document."""
    traces = document["traces"]
    columns = headings(traces[0]["results"])
    to = console(out, len(columns))
    for index, (above, below) in enumerate(wanted):
        if index:
            to.print()
        to.print(Text(f"{above} / {below}" if below else above, style="bold"))
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        table.add_column("")
        for heading in columns.values():
            table.add_column(heading, justify="right", overflow="fold")
        for trace in traces:
            table.add_row(trace["name"], *(_shown(result, above, below, raw) for result in trace["results"]))
        to.print(table)


def _shown(result: dict[str, Any], above: str, below: str, raw: bool) -> str:
    """A cell: "-" for what a driver does not count, or a share of nothing."""
    over, under = _value(result, above), _value(result, below) if below else 1
    if over is None or not under:
        return "-"
    if below:
        return number(round(over / under, 6) if raw else over / under, raw)
    return size(over, raw) if above == "interval_bytes_peak" else number(over, raw)


def _value(result: dict[str, Any], name: str) -> int | None:
    if name == ALL_LOCKS:
        return sum(sum(modes.values()) for modes in result["locks"].values())
    if name in LOCKS:
        return sum(result["locks"].get(name, {}).values())
    found: int | None = (result["counters"] | result["driver_counters"]).get(name)
    return found
