"""The bundled recordings: whole, anonymous, and counted the same by every design as by hand."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from faultpath.trace.info import trace_info
from faultpath.trace.ops import Op
from faultpath.trace.schema import open_trace

FOLDER = Path(__file__).resolve().parent.parent / "recordings"
RECORDINGS = sorted(FOLDER.glob("*.trace"))
DESIGNS = ["nouveau-v6", "odp-implicit", "full-va"]
each = pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)


def compare() -> str:
    command = [sys.executable, "-c", "from faultpath.cli import main; main()", "compare", "--json"]
    done = subprocess.run([*command, *map(str, RECORDINGS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def compared() -> str:
    return compare()


@pytest.fixture(scope="module")
def by_name(compared: str) -> dict[str, Any]:
    return {trace["name"]: trace for trace in json.loads(compared)["traces"]}


def strings(value: Any) -> list[str]:
    """Every string in a JSON value, keys included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [s for pair in value.items() for part in pair for s in strings(part)]
    return [s for part in value for s in strings(part)] if isinstance(value, list) else []


def test_there_are_at_least_eight_kinds_of_programs() -> None:
    assert len(RECORDINGS) >= 8


@each
def test_a_recording_is_whole(path: Path) -> None:
    trace = open_trace(path)
    assert sum(len(columns["time"]) for columns in trace.batches()) == trace.rows > 5000
    found = trace_info(path)
    assert (found["lost_events"], found["lost_samples"]) == (0, 0)
    assert found["invalidations_from"] == "tap"
    assert found["ops"]["invalidate"] > 100
    assert path.stat().st_size <= 1.1e6


@each
def test_a_recording_names_no_path_host_or_user(path: Path) -> None:
    metadata = pq.read_metadata(path).metadata
    assert set(metadata) == {b"faultpath"}, "Arrow's own copy of the schema, or another program's keys"
    document = json.loads(metadata[b"faultpath"])
    for text in strings(document):
        assert not re.search(r"[/@\\]", text), text
    assert re.fullmatch(r"\d+\.\d+\.\d+", document["kernel"]), "the release without what a machine adds to it"


@each
def test_a_recording_is_explained_in_the_readme(path: Path) -> None:
    assert f"`{path.name}`" in (FOLDER / "README.md").read_text()


@each
def test_designs_meet_the_events_that_the_columns_hold(path: Path, by_name: dict[str, Any]) -> None:
    found = by_name[path.name]
    table = {name: column.to_numpy() for name, column in zip(*_columns(path), strict=True)}
    faults = table["pid"][table["op"] == Op.FAULT]
    pids, counts = np.unique(faults, return_counts=True)
    pid = pids[np.argmax(counts)]
    assert found["pid"] == pid
    ops = table["op"][table["pid"] == pid]
    ops = ops[: np.flatnonzero(ops == Op.EXIT)[0]]
    wanted = {"device_accesses": np.sum(ops == Op.FAULT), "invalidations": np.sum(ops == Op.INVALIDATE)}
    assert [result["design"] for result in found["results"]] == DESIGNS
    for result in found["results"]:
        counters = result["counters"]
        assert {name: counters[name] for name in wanted} == wanted
        assert counters["device_faults_refused"] <= counters["device_faults"] <= counters["device_accesses"]
        assert counters["callbacks_empty"] <= counters["callbacks"]
        # A program recorded from its start has no mapping that was not seen; java probes a page that is not mapped.
        assert counters["vmas_inferred"] == 0


def _columns(path: Path) -> tuple[list[str], list[Any]]:
    table = pq.read_table(path)
    return table.column_names, table.columns


def test_compare_gives_the_same_bytes_again(compared: str) -> None:
    def timeless(text: str) -> str:
        return re.sub(r'("\w+_(?:seconds|per_second)": )[-+.e\d]+', r"\1_", text)

    again = compare()
    assert timeless(again) == timeless(compared)
    assert '"replay_seconds": _' in timeless(again)
