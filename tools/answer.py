"""Makes docs/answer.md and docs/designs anew: runs every command that the answer shows, and measures every design.

tools/answer.py            what ``make answer`` runs
tools/answer.py designs    docs/designs only
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from faultpath import catalog
from faultpath.check import check
from faultpath.compare import compare
from faultpath.engine.counters import DRIVER_COUNTERS
from faultpath.report.table import short
from faultpath.report.units import number, percent, size

ROOT = Path(__file__).resolve().parent.parent
ANSWER = ROOT / "docs" / "answer.md"
DESIGNS = ROOT / "docs" / "designs"
RECORDINGS = sorted((ROOT / "recordings").glob("*.trace"))
MEMORY = 4 << 30
WIDTH = 120  # columns of the answer's tables

Document = dict[str, Any]


# --- the answer


def answered(text: str) -> str:
    """The page with the output of each command of its console blocks as it is now."""
    return re.sub(r"```console\n(.*?)```", lambda block: f"```console\n{_ran(block[1])}```", text, flags=re.DOTALL)


def _ran(block: str) -> str:
    """A block's commands, each with its output. What follows a command goes: only commands are kept."""
    commands = [line[2:] for line in _joined(block) if line.startswith("$ ")]
    return "\n".join(f"$ {command}\n{_output(command)}" for command in commands)


def _joined(block: str) -> Iterable[str]:
    """Lines, those that end with a backslash together with the next."""
    return re.split(r"(?<!\\)\n", block)


def _output(command: str) -> str:
    print(f"answer: {' '.join(command.split())}", file=sys.stderr, flush=True)
    path = os.pathsep.join([str(ROOT / ".venv" / "bin"), os.environ.get("PATH", "")])
    env = {**os.environ, "PATH": path, "COLUMNS": str(WIDTH)}
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):  # 1: check found something
        sys.exit(f"answer: {command}\n{done.stderr}")
    return done.stdout and done.stdout.rstrip() + "\n"


# --- a page for each design


def told(name: str) -> str:
    """What a design says about itself: the page's first part."""
    design, default = catalog.find(name)
    small = catalog.find(name, small=True)[1]
    doc = design.doc.strip().replace(":mod:`", "`").replace("``", "`")
    out = [f"# {name}: {design.title}", "", f"Models {design.source}.", "", doc, ""]
    if design.parameters:
        out += ["## Parameters", "", "| name | default | in `check` | what it is |", "|---|---|---|---|"]
        for p in design.parameters:
            values = [catalog.text(p, of[p.name]) for of in (default, small)]
            doc = p.doc + (f" ({p.unit})" if p.unit else "") + (f": {', '.join(p.choices)}" if p.choices else "")
            out.append(f"| `{p.name}` | {' | '.join(values)} | {doc} |")
        out.append("")
    if design.counters:
        out += ["## What the driver itself counts", "", "| name | what it is |", "|---|---|"]
        out += [f"| `{counter}` | {DRIVER_COUNTERS[counter]} |" for counter in design.counters] + [""]
    if design.never:
        out += (
            ["## What cannot happen with it", ""] + [f"- {what}: {why}." for what, why in design.never.items()] + [""]
        )
    return "\n".join(out)


MEASURED = {
    "device faults": lambda r: number(r["counters"]["device_faults"]),
    "callbacks per invalidation": lambda r: _per(r, "callbacks", "invalidations"),
    "of them empty": lambda r: percent(r["counters"]["callbacks_empty"], r["counters"]["callbacks"]),
    "entries probed per callback": lambda r: _per(r, "ptes_probed", "callbacks"),
    "nodes read per fault": lambda r: _per(r, "lookup_steps", "device_faults"),
    "locks per access": lambda r: number(
        sum(sum(modes.values()) for modes in r["locks"].values()) / max(1, r["counters"]["device_accesses"])
    ),
    "commands per access": lambda r: _per(r, "device_commands", "device_accesses"),
    "intervals at the peak": lambda r: number(r["counters"]["intervals_peak"]),
    "their bytes": lambda r: size(r["counters"]["interval_bytes_peak"]),
}


def _per(result: Document, above: str, below: str) -> str:
    counters = result["counters"]
    return number(counters[above] / counters[below]) if counters[below] else "-"


def measured(name: str, recordings: list[Path]) -> list[str]:
    """The rows of what a design cost on recordings: trace by trace, ``MEASURED``."""
    traces = compare(recordings, [name])["traces"]
    rows = [[t["name"].removesuffix(".trace"), *(show(t["results"][0]) for show in MEASURED.values())] for t in traces]
    return [f"| {' | '.join(row)} |" for row in rows]


def verdicts(results: list[Document]) -> list[str]:
    """The rows of what check found."""
    rows = []
    for r in results:
        what = f"**violated**: {r['property']}: {r['rule']}" if r["verdict"] == "violated" else r["verdict"]
        rows.append(f"| {r['scenario']} | {what} | {short(r['states'])} |")
    return rows


def page(name: str) -> str:
    """docs/designs/NAME.md."""
    results = check(
        [name], [], memory=MEMORY, found=lambda r: print(f"answer: {name} {r['scenario']}", file=sys.stderr)
    )
    out = [told(name), "## Measured", "", f"`faultpath compare recordings/*.trace -d {name}`", ""]
    out += [f"| | {' | '.join(MEASURED)} |", f"|---{'|---:' * len(MEASURED)}|", *measured(name, RECORDINGS), ""]
    out += ["## Checked", "", f"`faultpath check {name}`; its parameters are those of the column *in `check`*.", ""]
    out += ["| scenario | verdict | states |", "|---|---|---:|", *verdicts(results["results"])]
    return "\n".join(out) + "\n"


def main(wanted: list[str]) -> None:
    DESIGNS.mkdir(exist_ok=True)
    for name in catalog.BUILT_IN:
        (DESIGNS / f"{name}.md").write_text(page(name))
    if "designs" not in wanted:
        ANSWER.write_text(answered(ANSWER.read_text()))


if __name__ == "__main__":
    main(sys.argv[1:])
