"""What check says of a design in a scenario, for tests that ask once."""

from __future__ import annotations

from collections.abc import Sequence

from faultpath.design import Design
from faultpath.engine.check import Check, Verdict
from faultpath.engine.native import compiled_quickly
from faultpath.engine.status import VIOLATIONS
from faultpath.protocol.program import Source
from faultpath.scenario import Scenario


def verdict(design: Design, scenario: Scenario, *changes: Source, values: Sequence[int] = ()) -> Verdict:
    """Every interleaving of a design, with changes in place."""
    with compiled_quickly():
        return Check(design, values, scenario, replacements=changes).run()


def broken(found: Verdict) -> str:
    """The rule that is broken, or the verdict."""
    return VIOLATIONS[found.status][1] if found.verdict == "violated" else found.verdict
