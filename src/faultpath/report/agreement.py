"""``agreement`` on a terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from faultpath.agreement import OUTSIDE
from faultpath.report.units import number


def agreed(document: dict[str, Any]) -> None:
    """Print a ``faultpath/agreement/1`` document: a table of events for each trace, then what does not agree."""
    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("trace")
    table.add_column("event")
    for name in ("tapped", "derived", "agreed", "precision", "recall"):
        table.add_column(name, justify="right")
    for trace in document["traces"]:
        rows = [*trace["events"], {"event": "all", **trace["all"]}]
        for i, row in enumerate(rows):
            counts = [number(row[name]) for name in ("tapped", "derived", "agreed")]
            rates = ["-" if row[name] is None else f"{row[name]:.4f}" for name in ("precision", "recall")]
            table.add_row("" if i else trace["name"], row["event"], *counts, *rates, end_section=i == len(rows) - 1)
    console.print(table)
    for trace in document["traces"]:
        for what, said in (("missed", "seen and not derived"), ("extra", "derived and not seen")):
            for row in trace[what]:
                where = row["within"] if row["within"] == OUTSIDE else f"in {row['within']}"
                console.print(f"{trace['name']}: {number(row['count'])} {row['event']} {said}, {where}", soft_wrap=True)
