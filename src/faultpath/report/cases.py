"""What ``check --cases`` found, on a terminal: a table, and the counterexamples of cases asked for by name."""

from __future__ import annotations

from typing import Any

from faultpath.report import verdicts

HEADINGS = ("case", "CVE", "variant", "commit", "in", "verdict", "states")


def checked(document: dict[str, Any], named: bool, full: bool) -> None:
    """The table; with ``named``, every counterexample as ``check`` prints it."""
    print("\n".join(table(document)))
    width = verdicts.columns()
    for case in document["cases"]:
        for result in case["variants"]:
            if named and result["verdict"] == "violated":
                print("\n" + "\n".join(verdicts.explained(result, width, full)))


def table(document: dict[str, Any]) -> list[str]:
    """A line for each variant, and what they come to."""
    rows = [HEADINGS]
    for case in document["cases"]:
        for number, result in enumerate(case["variants"]):
            name, cve = ("", "") if number else (case["name"], case["cve"])
            rows.append(
                (
                    name,
                    cve,
                    result["variant"],
                    result["commit"],
                    result["version"],
                    verdict(result),
                    str(result["states"]),
                )
            )
    widths = [max(len(row[n]) for row in rows) for n in range(len(HEADINGS))]
    lines = [
        "  ".join(f"{cell:{'>' if n == len(row) - 1 else '<'}{widths[n]}}" for n, cell in enumerate(row)).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
    results = [result for case in document["cases"] for result in case["variants"]]
    wrong = sum(not result["as_expected"] for result in results)
    end = "all as expected" if not wrong else f"{wrong} not as expected"
    return [*lines, "", f"{len(document['cases'])} cases, {len(results)} verdicts, {end}"]


def verdict(result: dict[str, Any]) -> str:
    """``violated: coherence``; and what was expected, if it was something else."""
    said = result["verdict"]
    if said == "violated":
        said += f": {result['property']}"
    return str(said) if result["as_expected"] else f"{said} (expected {result['expected']})"
