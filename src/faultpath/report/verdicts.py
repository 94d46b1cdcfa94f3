"""What ``check`` found, on a terminal: a line for each verdict, counterexamples, and the matrix."""

from __future__ import annotations

import os
import sys
import textwrap
from typing import Any

from faultpath.report import counterexample

Result = dict[str, Any]


def said(result: Result) -> None:
    """One result, as soon as it is there."""
    print(line(result), flush=True)


def line(result: Result) -> str:
    """``DESIGN SCENARIO: VERDICT: ... (states=... ...)``: stable, for grep."""
    head = f"{result['label']} {result['scenario']}: {result['verdict']}: "
    numbers = {
        "states": result["states"],
        "transitions": result["transitions"],
        "depth": result["depth"],
        "seconds": f"{result['check_seconds']:.2f}",
        "states/s": round(result["states_per_second"]),
    }
    if result["verdict"] == "violated":
        what = f"{result['property']}: {result['rule']}"
    elif result["verdict"] == "bounded":
        what = f"not everything was explored ({result['bounds']['limit']})"
    else:
        what = "complete"
        numbers["collision"] = f"<{max(result['bounds']['collision_probability'], 1e-19):.0e}"
    if result["verdict"] != "violated" and result["reached"]:
        numbers |= {f"fault_{name}": "yes" if yes else "no" for name, yes in result["reached"].items()}
    if result["replayed"]:
        return f"{head}{what} (replayed, steps={result['depth']})"
    return f"{head}{what} ({' '.join(f'{name}={value}' for name, value in numbers.items())})"


def checked(document: dict[str, Any], matrix: bool, full: bool, named: bool) -> None:
    """After the lines: the matrix, or the counterexamples.

    :param named: the scenarios were asked for: each counterexample is wanted
    """
    width = columns()
    violated = [r for r in document["results"] if r["verdict"] == "violated"]
    if matrix:
        from faultpath.report import table

        print("\n" + "\n".join(table.matrix(document["results"], width)))
        for result in violated:
            print(f"{result['label']} {result['scenario']}: {result['property']}: {result['message']}")
        print("\nscenarios, by what was found:\n\n" + "\n".join(table.summary(document["results"])))
        return
    shown = violated if full or named else violated and [min(violated, key=lambda r: len(r["counterexample"]))]
    for result in shown:
        print("\n" + "\n".join(explained(result, width, full)))
    if len(shown) < len(violated):
        print(f"\n{len(violated) - len(shown)} more violated: --scenario NAME shows one, --full all of them.")


def explained(result: Result, width: int, full: bool) -> list[str]:
    """A violated result with its counterexample."""
    out = textwrap.wrap(
        f"{result['label']} {result['scenario']}: {result['property']}: {result['message']}",
        min(width, 100) if width else 100,
        subsequent_indent="    ",
        break_on_hyphens=False,
    )
    out += ["", *counterexample.lines(result, width, full)]
    if result["replay"]:
        asked = result.get("request") or f"{result['label']} --scenario {result['scenario_request']}"
        out += ["", f"Again: faultpath check {asked} --replay {result['replay']}"]
    return out


def columns() -> int:
    """Columns of the terminal; 0 where there is none, and lines may be as long as they need."""
    if "COLUMNS" in os.environ and os.environ["COLUMNS"].isdigit():
        return int(os.environ["COLUMNS"])
    return os.get_terminal_size(sys.stdout.fileno()).columns if sys.stdout.isatty() else 0
