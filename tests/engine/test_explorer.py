"""The checker against plain Python that explores the same scenarios one access at a time."""

from __future__ import annotations

import pytest

from engine.small import ODP, check
from oracles.explorer import Explorer

CASES = [
    ("full-va", "fault-munmap"),
    ("full-va", "fault-close"),
    ("full-va", "close-reclaim"),
    ("nouveau-v6", "fault-close"),
    ("nouveau-v6", "close-reclaim"),
    (ODP, "fault-close"),
    (f"{ODP},protection=srcu", "fault-close"),
    ("uvm-hmm:block=16K", "fault-close"),
]


@pytest.mark.parametrize("page_symmetry", [True, False])
@pytest.mark.parametrize(("design", "scenario"), CASES)
def test_the_same_states_steps_and_counterexample_as_plain_python(design, scenario, page_symmetry):
    ours = check(design, scenario, reduce=False, page_symmetry=page_symmetry)
    theirs = Explorer(ours).explore()
    found = ours.run()
    assert (found.verdict, found.status) == (theirs.verdict, theirs.status)
    assert (found.states, found.transitions, found.depth, found.finished) == (
        theirs.states,
        theirs.transitions,
        theirs.depth,
        theirs.finished,
    )
    assert found.path == theirs.path  # both breadth first, threads in order: the very same shortest one
