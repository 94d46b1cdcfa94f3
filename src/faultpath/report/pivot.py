"""One number of many traces and designs at a glance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from faultpath.engine.counters import COUNTERS, DRIVER_COUNTERS, EXIT_COUNTERS, LOCKS
from faultpath.errors import FaultpathError
from faultpath.report.table import fitted, headings
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


def pivots(document: dict[str, Any], wanted: Sequence[tuple[str, str]], raw: bool, width: int) -> list[str]:
    """Lines of a table for each of ``wanted``, from a ``faultpath/compare/1`` document."""
    traces = document["traces"]
    names = headings(traces[0]["results"])
    titles = [trace["name"].removesuffix(".trace") for trace in traces]
    out = []
    for above, below in wanted:
        cells = {
            (names[result["label"]], title): _shown(result, above, below, raw)
            for trace, title in zip(traces, titles, strict=True)
            for result in trace["results"]
        }
        out += [f"{above} / {below}" if below else above, "", *fitted(list(names.values()), titles, cells, width)]
    return out[:-1]


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
