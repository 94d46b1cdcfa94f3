"""``check --cases``: every variant of each case, and whether the checker says of it what it must."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import faultpath
from faultpath import catalog
from faultpath.cases import CASES, load
from faultpath.cases.case import Case, Variant
from faultpath.check import examined
from faultpath.engine.check import Check
from faultpath.engine.native import compiled_quickly
from faultpath.errors import FaultpathError
from faultpath.report.cases import table
from faultpath.report.counterexample import lines

SCHEMA = "faultpath/cases/1"

Document = dict[str, Any]


def check_cases(
    requests: Sequence[str] = (),
    *,
    replay: str = "",
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Document:
    """Check cases.

    :param requests: ``NAME`` or ``NAME/VARIANT``; none: all
    :param replay: id of a counterexample of the one variant requested: follow it instead of searching
    :raises FaultpathError: a wrong request
    """
    wanted = [requested(request) for request in requests or CASES]
    total = sum(len(variants) for _, variants in wanted)
    if replay and total != 1:
        raise FaultpathError("a counterexample is of one variant", "--replay", "name it: --cases NAME/VARIANT")
    done = 0
    cases = []
    with compiled_quickly():
        for case, variants in wanted:
            results = []
            for variant in variants:
                progress(f"{case.name}/{variant.name}", done, total)
                results.append(checked(case, variant, replay))
                done += 1
            cases.append(described(case) | {"variants": results})
    return {"schema": SCHEMA, "version": faultpath.__version__, "cases": cases}


def requested(request: str) -> tuple[Case, list[Variant]]:
    """What ``NAME`` or ``NAME/VARIANT`` stands for."""
    name, slash, which = request.partition("/")
    case = load(name)
    variants = [v for v in case.variants if not slash or v.name == which]
    if not variants:
        names = ", ".join(v.name for v in case.variants)
        raise FaultpathError(f"{name} has no variant '{which}'", "--cases", f"it has: {names}")
    return case, variants


def described(case: Case) -> Document:
    """A case without its variants."""
    return {
        "name": case.name,
        "title": case.title,
        "commit": case.commits(),
        "version": case.versions(),
        "cve": case.cve,
        "property": case.property,
        "source": case.source,
        "doc": case.doc.strip(),
    }


def checked(case: Case, variant: Variant, replay: str = "") -> Document:
    """A variant, what was found, and whether that was expected."""
    label = f"{case.name}/{variant.name}"
    values = {p.name: p.default for p in variant.design.parameters}
    check = Check(variant.design, catalog.integers(variant.design, values), variant.scenario)
    result = examined(check, label, replay, lambda done, states: None)
    found = result["property"] or result["verdict"]
    return {
        "variant": variant.name,
        "commit": variant.commit,
        "version": variant.version,
        "expected": variant.expected,
        "as_expected": found == variant.expected,
        "label": label,
        "request": f"--cases {label}",
        "scenario": variant.scenario.name,
        **result,
    }


def status(document: Document) -> int:
    """The exit status: 0 if every verdict is as expected, else 1."""
    return int(not all(v["as_expected"] for case in document["cases"] for v in case["variants"]))


# --- docs/cases.md


INTRODUCTION = """\
# Bugs that the checker finds again

Generated: `python -m faultpath.cases > docs/cases.md`. Each is a bug that the kernel had, restated as small protocols
([src/faultpath/cases](../src/faultpath/cases)) before its fix and after each. `faultpath check --cases` runs them all;
with a case's name it also prints what is below, with line numbers. The modelled core is the same for all of them: a bug
in the core itself takes the place of that one protocol.

*Holds* means: in this scenario, with these threads and pages, no interleaving breaks a rule. It does not say that the
driver has no other bug. *proposed* is not in the kernel.
"""


def markdown(document: Document) -> str:
    """``docs/cases.md``: the table, each case's story, and its counterexamples."""
    parts = [*INTRODUCTION.splitlines(), "", "```console", "$ faultpath check --cases", *table(document), "```", ""]
    for case in document["cases"]:
        parts += [f"## {case['name']}: {case['title']}", "", f"`{case['source']}`", "", case["doc"], ""]
        scenarios = {v.name: v.scenario for v in load(case["name"]).variants}
        before = ""
        for result in case["variants"]:
            doc = scenarios[result["variant"]].doc
            parts += _told(result, "" if doc == before else f" {doc}")
            before = doc
    return "\n".join(parts)


def _told(result: Document, scenario: str) -> list[str]:
    """One variant: what is tried, if that is new, and how it ends."""
    since = f" ({result['commit'] or result['version']})" if result["version"] else ""
    head = f"**{result['variant']}**{since}.{scenario}"
    if result["verdict"] != "violated":
        return [f"{head} Holds: {result['states']} states.", ""]
    message = re.sub(r"(\.py):\d+", r"\1", result["message"])
    shown = lines(result, numbered=False)
    return [f"{head} Violated, {result['property']}: {message}.", "", "```", *shown, "```", ""]
