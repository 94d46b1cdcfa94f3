"""What it costs nouveau-v6 to be right: the bundled recordings through it, its mended version and ODP.

Prints the tables of docs/nouveau-v6.md: per 1,000 device accesses, over all recordings, and for the recording in which
lookups get dearest. Counts, not times: they are the same on every machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

RECORDINGS = sorted((Path(__file__).parents[1] / "recordings").glob("*.trace"))
DESIGNS = ("nouveau-v6", "nouveau-v6-fixed", "odp-implicit")
ROWS = (
    "device_faults", "callbacks", "callbacks_empty", "intervals_created", "lookups", "lookup_steps", "walk_steps",
    "device_commands", "allocs", "locks",
)  # fmt: skip


def counted(result: dict[str, Any]) -> Counter[str]:
    """A result's counters, all lock acquisitions as one."""
    counts = Counter(result["counters"])
    counts["locks"] = sum(number for modes in result["locks"].values() for number in modes.values())
    return counts


def table(columns: dict[str, Counter[str]]) -> str:
    """Per 1,000 device accesses, in Markdown."""
    lines = [f"| per 1,000 device accesses | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for row in ROWS:
        cells = [f"{1000 * counts[row] / counts['device_accesses']:,.1f}" for counts in columns.values()]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    peaks = [f"{counts['intervals_peak']:,}" for counts in columns.values()]
    kib = [f"{counts['interval_bytes_peak'] / 1024:,.1f} KiB" for counts in columns.values()]
    lines.append(f"| intervals_peak, in all | {' | '.join(peaks)} |")
    lines.append(f"| interval_bytes_peak, in all | {' | '.join(kib)} |")
    return "\n".join(lines)


def main() -> None:
    command = [sys.executable, "-m", "faultpath", "compare", *map(str, RECORDINGS), "--json"]
    for design in DESIGNS:
        command += ["-d", design]
    document = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    whole: dict[str, Counter[str]] = {design: Counter() for design in DESIGNS}
    worst = ("", -1.0, whole)
    for trace in document["traces"]:
        found = {result["design"]: counted(result) for result in trace["results"]}
        for design, counts in found.items():
            whole[design].update(counts)
        plain, fixed = (found[design]["lookup_steps"] for design in DESIGNS[:2])
        worst = max(worst, (trace["name"], fixed / plain, found), key=lambda one: one[1])
    print(f"All {len(RECORDINGS)} recordings:\n\n{table(whole)}\n")
    print(f"The one in which the nodes read by lookups rise most, {worst[0]}:\n\n{table(worst[2])}")


if __name__ == "__main__":
    main()
