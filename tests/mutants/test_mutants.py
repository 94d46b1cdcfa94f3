"""Every mutant is caught, by the property it is expected to break; what looks like a bug and is none is not."""

from __future__ import annotations

import pytest

from faultpath.scenario import Scenario
from mutants.designs import FULL_VA, GPUSVM, KVM, REFCOUNT, SRCU, TWO_PAGES
from mutants.engine import Mutant, Subject, checked, found
from mutants.table import HARMLESS, MUTANTS, SCENARIO


def row(mutant: Mutant) -> object:
    marks = [pytest.mark.xfail(reason=mutant.pending, strict=True)] if mutant.pending else []
    return pytest.param(mutant, id=mutant.name.replace(" ", "-"), marks=marks)


def test_there_are_enough() -> None:
    assert sum(not mutant.pending for mutant in MUTANTS) >= 40
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", [row(m) for m in MUTANTS])
def test_caught(mutant: Mutant) -> None:
    verdict = mutant.check()
    what = found(verdict)
    assert what != "holds", f"{mutant} survived {mutant.scenario.name}: {verdict.states:,} states, all in order"
    assert what in mutant.breaks, f"{mutant}: {what} in {mutant.scenario.name}, expected {sorted(mutant.breaks)}"
    assert verdict.path or not verdict.states


@pytest.mark.parametrize("mutant", [row(m) for m in HARMLESS])
def test_harmless(mutant: Mutant) -> None:
    verdict = mutant.check()
    assert found(verdict) == "holds", f"{mutant}: {found(verdict)} in {mutant.scenario.name}"
    assert verdict.finished


# Too large for a test: with odp-implicit these have from 0.3 to more than 10 million states.
LARGE = {"two-faults-one-mapping", "two-first-faults", "background", "fault-vs-cow", "device-cow", "two-clients"}
WORLDS = {
    FULL_VA: [s for s in SCENARIO if s not in ("teardown-vs-fault", "teardown-vs-both", "two-clients-hole")],
    TWO_PAGES: ["fault-vs-dontneed", "two-invalidations"],
    REFCOUNT: sorted({m.scenario.name for m in MUTANTS if m.subject is REFCOUNT} - LARGE),
    SRCU: sorted({m.scenario.name for m in MUTANTS if m.subject is SRCU} - LARGE),
    KVM: sorted({m.scenario.name for m in MUTANTS if m.subject is KVM}),
    GPUSVM: sorted({m.scenario.name for m in MUTANTS if m.subject is GPUSVM} - LARGE),
}


@pytest.mark.parametrize(
    ("subject", "scenario"),
    [pytest.param(d, SCENARIO[s], id=f"{d.name}-{s}".replace(" ", "-")) for d, names in WORLDS.items() for s in names],
)
def test_unmutated(subject: Subject, scenario: Scenario) -> None:
    verdict = checked(subject, scenario)
    assert found(verdict) == "holds", f"{subject.name} in {scenario.name}: {found(verdict)}"
    assert verdict.finished
