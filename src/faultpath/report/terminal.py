"""Tables on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import IO, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from faultpath.report import explain
from faultpath.report.table import headings
from faultpath.report.units import duration, number, size

# Counters worth a line per thousand device accesses: what scales with the work.
PER_THOUSAND = (
    "device_faults",
    "callbacks",
    "callbacks_empty",
    "ptes_probed",
    "ptes_zapped",
    "lookups",
    "lookup_steps",
    "walk_steps",
    "deferred_ops",
    "device_commands",
    "allocs",
)


def compared(document: dict[str, Any], raw: bool, out: IO[str] | None = None) -> None:
    """Print a ``faultpath/compare/1`` document."""
    for index, trace in enumerate(document["traces"]):
        if index:
            print(file=out or sys.stdout)
        _trace(trace, raw, out)


def _trace(trace: dict[str, Any], raw: bool, out: IO[str] | None) -> None:
    to = console(out, len(trace["results"]))
    mode = {
        "touched": "the device accesses each page right after the process faulted it in",
        "resident": "as touched, and again after each invalidation that leaves the page mapped",
        "recorded": "the device accesses are the trace's own",
    }[trace["accesses"]]
    kernel = f"Linux {trace['kernel']}, " if trace["kernel"] else ""
    to.print(Text(f"{trace['name']}: {trace['comm'] or 'process'} (pid {trace['pid']})", style="bold"))
    to.print(
        f"{kernel}{number(trace['process_events'])} of {number(trace['events'])} events, "
        f"{duration(trace['duration_ns'], raw)}, lost {trace['lost_events']}; "
        f"invalidations from the {trace['invalidations_from']}"
    )
    to.print(f"accesses {trace['accesses']}: {mode}\n")
    to.print(_table(trace["results"], raw))
    to.print(_parameters(trace["results"]))
    for sentence in explain.sentences(trace):
        to.print(f"- {sentence}")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command line, where rich would end the process with status 1."""
        raise BrokenPipeError


def console(out: IO[str] | None, columns: int) -> Console:
    """Where tables of so many columns are printed."""
    found = _Console(file=out, highlight=False, markup=False)
    if not found.is_terminal:
        # A pipe has no width: wide enough for the table, so that nothing is cut.
        found = _Console(file=out, highlight=False, markup=False, width=max(100, 30 + 16 * columns))
    return found


def _table(results: list[dict[str, Any]], raw: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("")
    for heading in headings(results).values():
        table.add_column(heading, justify="right")
    for name in results[0]["counters"]:
        show = size if name == "interval_bytes_peak" else number
        values = [r["counters"][name] for r in results]
        table.add_row(name, *(show(v, raw) for v in values), style=None if any(values) else "dim")
    own = dict.fromkeys(name for r in results for name in r["driver_counters"])
    if own:
        table.add_section()
        table.add_row(Text("what the driver exports", style="bold"))
    for name in own:
        table.add_row(name, *(number(c[name], raw) if name in (c := r["driver_counters"]) else "" for r in results))
    table.add_section()
    for lock, mode in _locks(results):
        values = [r["locks"].get(lock, {}).get(mode, 0) for r in results]
        table.add_row(f"{lock} {'acquired' if mode == 'acquired' else mode}", *(number(v, raw) for v in values))
    accesses = results[0]["counters"]["device_accesses"]
    if accesses:
        table.add_section()
        table.add_row(Text("per 1,000 device accesses", style="bold"))
        for name in PER_THOUSAND:
            values = [1000 * r["counters"][name] / accesses for r in results]
            table.add_row(name, *(number(round(v, 2), raw) for v in values))
        locks = [1000 * sum(sum(m.values()) for m in r["locks"].values()) / accesses for r in results]
        table.add_row("locks acquired", *(number(round(v, 2), raw) for v in locks))
    return table


def _locks(results: list[dict[str, Any]]) -> list[tuple[str, str]]:
    found: dict[tuple[str, str], None] = {}
    for result in results:
        for lock, modes in result["locks"].items():
            found.update({(lock, mode): None for mode in modes})
    return list(found)


def _parameters(results: Iterable[dict[str, Any]]) -> str:
    return "".join(f"{r['design']}: {r['settings'].replace(',', ', ')}\n" for r in results if r["settings"])


def designs(found: list[dict[str, Any]], out: IO[str] | None = None) -> None:
    """Print designs as :func:`faultpath.catalog.describe` gives them."""
    to = console(out, 4)
    for design in found:
        to.print(Text.assemble((design["name"], "bold"), f"  {design['title']}"))
        to.print(f"  {design['models']}")
        for parameter in design["parameters"]:
            choices = f" ({', '.join(parameter['choices'])})" if parameter["choices"] else ""
            to.print(f"  {parameter['name']}={parameter['text']}{choices}  {parameter['doc']}")
        if "source" in design:
            to.print()
            to.out(design["source"], highlight=False)
