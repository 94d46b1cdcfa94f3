"""Mutants: a function of the model with a piece of its text changed, in its place everywhere."""

from __future__ import annotations

import inspect
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from faultpath import driver
from faultpath.catalog import find, integers
from faultpath.design import Design
from faultpath.engine.check import Check, Verdict
from faultpath.engine.native import compiled_quickly
from faultpath.engine.status import VIOLATIONS
from faultpath.protocol.language import Helper, Primitive, Protocol
from faultpath.protocol.program import Source
from faultpath.scenario import Scenario
from mutants.cuts import CUT, cuts
from mutants.explicit import written_out

Edit = tuple[str, str]

MOST_STATES = 1_000_000  # a search that finds more is given up


@dataclass(frozen=True)
class Subject:
    """A correct design as it is checked here.

    :param name: what the table of mutants calls it
    :param request: a built-in one, as users name it
    :param replacements: what stands for other functions
    """

    name: str
    request: str
    replacements: tuple[Source, ...] = ()

    def load(self) -> tuple[Design, list[int]]:
        design, values = find(self.request, small=True)
        return design, integers(design, values)


@dataclass(frozen=True)
class Mutant:
    """A seeded bug.

    :param name: what is wrong, in a few words
    :param subject: the design in which it is looked for
    :param target: the function that is changed
    :param edits: old and new text; the old text stands in the function exactly once, locks and unlocks written out
    :param scenario: where it shows
    :param breaks: the properties of which it may be the first to break one
    :param variant: what stands for other functions besides
    :param pending: why the checker cannot find it yet
    """

    name: str
    subject: Subject
    target: Source
    edits: tuple[Edit, ...]
    scenario: Scenario
    breaks: frozenset[str]
    variant: tuple[Source, ...] = field(default=())
    pending: str = ""

    def __str__(self) -> str:
        return self.name

    def source(self) -> Source:
        return mutated(self.target, self.edits)

    def check(self) -> Verdict:
        """Every interleaving of the design with this bug."""
        return checked(self.subject, self.scenario, [*self.variant, self.source()])


def checked(subject: Subject, scenario: Scenario, replacements: Sequence[Source] = ()) -> Verdict:
    """Every interleaving of a design."""
    design, values = subject.load()
    changed = {r.replaces for r in replacements}
    others = [r for r in (*subject.replacements, *cuts(scenario)) if r.replaces not in changed]
    with compiled_quickly():
        check = Check(design, values, scenario, replacements=[*others, *replacements])
    return check.run(_not_too_many)


def _not_too_many(done: int, states: int) -> None:
    if states > MOST_STATES:
        raise RuntimeError(f"{states:,} states and no end")


def found(verdict: Verdict) -> str:
    """What a search found: the property that does not hold, or the verdict."""
    if verdict.status == CUT:
        return "comes to what was cut away"
    return VIOLATIONS[verdict.status][0] if verdict.verdict == "violated" else verdict.verdict


@cache
def mutated(target: Source, edits: tuple[Edit, ...]) -> Source:
    """The function with its text changed, to stand for itself.

    Its text lies in a file of its own, about on the lines of the original: a function's tree is made from its file.
    """
    lines, first = inspect.getsourcelines(target.fn)
    text = textwrap.dedent("".join(lines))
    head = text.index("def ")
    first += text[:head].count("\n")
    text = written_out(text[head:])
    for old, new in edits:
        if text.count(old) != 1:
            raise ValueError(f"{target.__name__}: {old!r} stands there {text.count(old)} times")
        text = text.replace(old, new)
    text = "from __future__ import annotations\n" + "\n" * (first - 2) + text
    path = _folder() / f"{target.__module__.rpartition('.')[2]}.{target.__name__}.{abs(hash(edits)):x}.py"
    path.write_text(text)
    scope: dict[str, Any] = {**vars(driver), **target.fn.__globals__}  # a bug may call what the right code does not
    exec(compile(text, str(path), "exec"), scope)
    fn = scope[target.fn.__name__]
    scope[target.fn.__name__] = target
    if isinstance(target, Protocol):
        return Protocol(fn, replaces=target)
    if isinstance(target, Primitive):
        return Primitive(fn, target.blocks, target.has_role, replaces=target)
    return Helper(fn, replaces=target, raw=target.raw)


_keep: list[tempfile.TemporaryDirectory[str]] = []


def _folder() -> Path:
    """Where the changed functions lie while the tests run."""
    if not _keep:
        _keep.append(tempfile.TemporaryDirectory(prefix="faultpath-mutants-"))
    return Path(_keep[0].name)
