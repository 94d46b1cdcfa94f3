"""What others do to a process's memory while a device faults: the events suffice, and without them it is found out."""

from __future__ import annotations

import pytest

from faultpath.catalog import find
from faultpath.engine.check import Check
from faultpath.engine.status import VIOLATIONS
from faultpath.kernel.mm import huge, ksm, migrate, task_mmu
from faultpath.scenario import (
    Scenario,
    access,
    clear_soft_dirty,
    collapse,
    fault,
    ksm_merge,
    map_memory,
    mergeable,
    numa_hinting,
    split_huge,
)
from faultpath.scenario import migrate as migration
from mutants.engine import mutated

USED = [map_memory(0, 2), mergeable(0, 2), access(0)]
OTHERS = {
    "migration": (migration(0), migrate.mm_migrate),
    "collapse": (collapse(0, 2), huge.mm_collapse),
    "ksm": (ksm_merge(0), ksm.mm_ksm_merge),
    "soft dirty": (clear_soft_dirty(), task_mmu.mm_clear_soft_dirty),
    "numa": (numa_hinting(0, 2), None),
    "split": (split_huge(0, 2), None),
}
# The last event that each raises.
SILENCED = {
    "migration": "raise_start(mm, page, page + PAGE_SIZE, CLEAR, RAISES_CALLS)",
    "collapse": "raise_start(mm, start, end, CLEAR, RAISES_CALLS)",
    "ksm": " | VALID\n        range = raise_start(mm, page, page + PAGE_SIZE, CLEAR, RAISES_CALLS)",
    "soft dirty": "raise_start(mm, 0, ULONG_MAX, SOFT_DIRTY, RAISES_CALLS)",
}


def run(what: str, *replacements):
    design, _ = find("full-va")
    scenario = Scenario(what, "", USED, [fault(0, write=0), OTHERS[what][0]], pages=2)
    return Check(design, [], scenario, replacements=list(replacements)).run()


@pytest.mark.parametrize("what", OTHERS)
def test_a_driver_that_listens_stays_coherent(what: str) -> None:
    verdict = run(what)
    assert verdict.verdict == "holds"
    assert verdict.finished


@pytest.mark.parametrize("what", SILENCED)
def test_without_the_event_it_does_not(what: str) -> None:
    target = OTHERS[what][1]
    raised = SILENCED[what]
    silent = raised[: raised.index("raise_start")] + "raise_start(mm, 0, 1, 0, 9)"
    verdict = run(what, mutated(target, ((raised, silent),)))
    assert verdict.verdict == "violated"
    assert VIOLATIONS[verdict.status][0] == "coherence"
