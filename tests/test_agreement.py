"""Derived invalidations against recorded ones: on the bundled recordings, and on random traces against the oracle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings

from faultpath.agreement import OUTSIDE, agreement
from faultpath.cli import cli
from faultpath.engine.derive import Derivation
from faultpath.errors import FaultpathError
from faultpath.kernel.mm.versions import LINUX_6_1, LINUX_6_12, LINUX_6_18, version_of
from faultpath.trace.ops import Event, Op
from faultpath.trace.schema import COLUMNS, TraceMeta, TraceWriter
from oracles.core import Machine
from oracles.designs import FullVa
from oracles.running import table
from oracles.sequences import lengths, make, possible, seeds

RECORDINGS = sorted((Path(__file__).parents[1] / "recordings").glob("*.trace"))
PAGE = 4096
AT = 1 << 30

Row = tuple[int, int, int, int, int, int, int]  # tid, op, addr, len, arg, aux, pid


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.stem)
def test_what_is_derived_of_a_real_program_is_what_was_recorded(recording: Path) -> None:
    (found,) = agreement([recording])["traces"]
    assert found["all"]["precision"] >= 0.999
    missed = sum(row["count"] for row in found["missed"] if row["within"] != OUTSIDE)
    within = found["all"]["tapped"] - sum(row["count"] for row in found["missed"] if row["within"] == OUTSIDE)
    assert missed <= within / 1000
    if recording.stem != "sqlite":  # its write-back is raised in no call that was recorded
        assert found["all"]["recall"] >= 0.999


@settings(deadline=None, max_examples=100, database=None)
@given(seed=seeds, length=lengths)
def test_the_oracle_derives_the_same(seed: int, length: int) -> None:
    machine = Machine(FullVa, raises=True, touched=False)
    rows = []
    for row in make(seed, length):
        if row[0] not in (Op.INVALIDATE, Op.EXEC, Op.EXIT, 100) and possible(machine, row):
            rows.append(row)
            machine.row(row)
    derived = [raised for _, raised in Derivation(1 << 47, LINUX_6_18).rows(table(rows))]
    assert [tuple(what) for raised in derived for what in raised.tolist()] == machine.events


def written(path: Path, rows: list[Row], invalidations_from: str = "tap", **processes: int) -> Path:
    columns = {name: np.zeros(len(rows), kind) for name, kind in COLUMNS.items()}
    columns["time"][:] = range(1, len(rows) + 1)
    for i, row in enumerate(rows):
        for name, value in zip(("tid", "op", "addr", "len", "arg", "aux", "pid"), row, strict=True):
            columns[name][i] = value
    with TraceWriter(path) as writer:
        writer.write(columns)
        known = [{"pid": pid, "parent": parent, "comm": name} for name, (pid, parent) in processes.items()]  # type: ignore[misc]
        writer.finish(TraceMeta("perf.data", invalidations_from=invalidations_from, processes=known))
    return path


def test_only_what_is_raised_in_the_same_call_over_the_same_range_agrees(tmp_path: Path) -> None:
    rows: list[Row] = [
        (1, Op.MMAP, AT, 8 * PAGE, 3, 0x22, 1),
        (1, Op.FAULT, AT, 0, 6, 0, 1),
        (1, Op.INVALIDATE, AT + PAGE, PAGE, Event.CLEAR, Op.FAULT, 1),  # not the page of the fault before it
        (2, Op.INVALIDATE, AT, PAGE, Event.CLEAR, Op.MADVISE, 1),  # another range than the call's
        (1, Op.INVALIDATE, AT, 8 * PAGE, Event.UNMAP, Op.MUNMAP, 1),
        (2, Op.MADVISE, AT, 2 * PAGE, 4, 0, 1),
        (1, Op.MUNMAP, AT, 8 * PAGE, 0, 0, 1),
        (2, Op.INVALIDATE, AT, PAGE, Event.CLEAR, Op.MADVISE, 1),  # of a call that never ends
    ]
    (found,) = agreement([written(tmp_path / "t.trace", rows)])["traces"]
    assert [(row["event"], row["tapped"], row["derived"], row["agreed"]) for row in found["events"]] == [
        ("unmap", 1, 1, 1),
        ("clear", 3, 1, 0),
    ]
    assert found["missed"] == [
        {"event": "clear", "within": "madvise", "count": 1},
        {"event": "clear", "within": OUTSIDE, "count": 2},
    ]
    assert found["extra"] == [{"event": "clear", "within": "madvise", "count": 1}]
    assert found["all"] == {"tapped": 4, "derived": 2, "agreed": 1, "precision": 0.5, "recall": 0.25}


def test_a_child_is_compared_from_its_exec_on(tmp_path: Path) -> None:
    rows: list[Row] = [
        (1, Op.MMAP, AT, PAGE, 3, 0x22, 1),
        (1, Op.FAULT, AT, 0, 6, 0, 1),
        (1, Op.FORK, 0, 0, 2, 0x11, 1),
        (2, Op.FAULT, AT, 0, 7, 0, 2),  # copies; there is no tap on it yet
        (2, Op.EXEC, 0, 0, 0, 0, 2),
        (2, Op.MMAP, AT, PAGE, 3, 0x22, 2),
        (2, Op.FAULT, AT, 0, 6, 0, 2),
        (2, Op.INVALIDATE, AT, PAGE, Event.UNMAP, Op.MUNMAP, 2),
        (2, Op.MUNMAP, AT, PAGE, 0, 0, 2),
    ]
    path = written(tmp_path / "t.trace", rows, parent=(1, 0), child=(2, 1))  # type: ignore[arg-type]
    (found,) = agreement([path], pid=2)["traces"]
    assert found["all"]["derived"] == found["all"]["agreed"] == 1


def test_without_the_tap_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    path = written(tmp_path / "t.trace", [(1, Op.FAULT, AT, 0, 6, 0, 1)], "model")
    with pytest.raises(FaultpathError, match="without the tap"):
        agreement([path])


def test_the_command_prints_a_table_or_one_document() -> None:
    path = str(next(r for r in RECORDINGS if r.stem == "luajit"))
    done = CliRunner().invoke(cli, ["agreement", path])
    assert done.exit_code == 0
    assert "protection_vma" in done.output
    document = json.loads(CliRunner().invoke(cli, ["agreement", path, "--json"]).output)
    assert document["schema"] == "faultpath/agreement/1"
    assert document["traces"][0]["all"]["recall"] == 1.0


@pytest.mark.parametrize(
    ("release", "version"),
    [("6.18.44", LINUX_6_18), ("7.0", LINUX_6_18), ("6.17.1-x", LINUX_6_12), ("6.1.0-29-amd64", LINUX_6_1),
     ("5.10", LINUX_6_1), ("", LINUX_6_18), ("unknown", LINUX_6_18)],
)  # fmt: skip
def test_the_recorded_kernel_chooses(release: str, version: int) -> None:
    assert version_of(release) == version
