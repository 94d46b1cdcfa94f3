"""The oracles on the bundled recordings: every counter of every design, row for row what the replay was given.

The oracles walk lists: the first ROWS rows of each process take them a minute, whole recordings ten.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from against_oracle import CASES, Options, oracle

from faultpath.engine import feed
from faultpath.trace.processes import survey
from faultpath.trace.schema import open_trace
from oracles.core import Row
from oracles.running import Run, differences, table

RECORDINGS = sorted((Path(__file__).resolve().parents[2] / "recordings").glob("*.trace"))
ROWS = 3_000
NAMES = (
    "nouveau-v6",
    "nouveau-v6-fixed",
    "odp-implicit:child=1048576K,protection=refcount",
    "full-va",
    "uvm-hmm:block=2048K",
    "nouveau-upstream",
    "core-tracked",
    "drm-gpusvm:notifier_size=524288K,chunk=2048K,middle=64K",
)


def listed(rows: feed.Rows) -> list[Row]:
    columns = (rows.ops, rows.addrs, rows.sizes, rows.args, rows.auxs)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_every_counter_agrees_on_a_recording(path: Path) -> None:
    trace = open_trace(path)
    found = survey(trace)
    pid = found.choose(None, path.name).pid
    before = [row for rows in feed.inherited(trace, found, pid) for row in listed(rows)]
    own = [row for rows in feed.batches(trace, pid, resident=False) for row in listed(rows)][:ROWS]
    assert own
    for name in NAMES:
        case = CASES[name]
        options = Options(raises=False)
        machine = oracle(case, options)
        run = Run(case.design, case.values, raises=False, accesses=options.accesses)
        if before:
            run.rows(table(before))
            for row in before:
                machine.row(row)
        machine.open()
        run.open()
        run.rows(table(own))
        for row in own:
            if not machine.row(row):
                break
        assert not differences(run, machine), name
