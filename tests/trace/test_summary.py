"""The summary of an address space against a dict of pages, by hand, and against what a replay counts."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from faultpath.errors import FaultpathError
from faultpath.trace.info import trace_info
from faultpath.trace.ops import Event, Op
from faultpath.trace.processes import in_effect, survey
from faultpath.trace.schema import COLUMNS, TraceMeta, TraceWriter, open_trace
from oracles.pmap import PAGE, Pmap, Row

RECORDINGS = sorted((Path(__file__).resolve().parents[2] / "recordings").glob("*.trace"))
MIB = 1 << 20
BASE = 0x7F00_0000_0000 - 16 * PAGE  # just below a boundary of every block size
ANON, FILE, SHARED, STACK = 0x22, 0x02, 0x01, 0x122
ROWS = 1_500


def trace(path: Path, rows: list[Row], tap: bool = True) -> Path:
    columns = {name: np.array([row.get(name, 0) for row in rows], dtype) for name, dtype in COLUMNS.items()}
    with TraceWriter(path) as writer:
        writer.write(columns)
        processes = [{"pid": 7, "parent": -1, "comm": "a"}, {"pid": 8, "parent": 7, "comm": "b"}]
        writer.finish(
            TraceMeta(format="synthetic", invalidations_from="tap" if tap else "model", processes=processes)
        )
    return path


def row(op: Op, addr: int = 0, length: int = 0, arg: int = 0, aux: int = 0, **more: int) -> Row:
    return {"pid": 7, "tid": 7, "op": int(op), "addr": addr, "len": length, "arg": arg, "aux": aux, **more}


def timed(rows: list[Row]) -> list[Row]:
    return [{"time": 1000 * i, **r} for i, r in enumerate(rows)]


def summary(path: Path, **options: Any) -> dict[str, Any]:
    found = trace_info(path, **options)["address_space"]
    assert found is not None
    return found


def some_rows(chance: random.Random, count: int, tap: bool) -> list[Row]:
    """Calls over five hundred pages on both sides of a boundary, and over three thousand at times."""

    def somewhere(most: int = 40) -> tuple[int, int]:
        reach = 3000 if chance.random() < 0.02 else 500
        first = chance.randrange(reach)
        return BASE - 250 * PAGE + first * PAGE, chance.randrange(1, 2 * reach if reach > 500 else most) * PAGE

    rows = [row(Op.VMA, BASE - 400 * PAGE, 4 * PAGE, 3, ANON), row(Op.BRK, BASE - 396 * PAGE)]
    heap = BASE - 396 * PAGE
    for _ in range(count):
        addr, length = somewhere()
        prot = chance.choice([0, 1, 3, 3, 5, 7])
        match chance.choices(range(11), [40, 4, 3, 4, 3, 3, 2, 1, 10, 1, 2])[0]:
            case 0:
                at = addr + chance.randrange(PAGE) if chance.random() < 0.98 else chance.randrange(1 << 17)
                rows.append(row(Op.FAULT, at, arg=chance.choice([4, 6, 6])))
            case 1:
                rows.append(row(Op.MMAP, addr, length, prot, chance.choice([ANON, ANON, FILE, SHARED, 0x21, STACK])))
            case 2:
                rows.append(row(Op.MUNMAP, addr, length))
            case 3:
                rows.append(row(Op.MPROTECT, addr, length, prot))
            case 4:
                rows.append(row(Op.MADVISE, addr, length, chance.choice([4, 4, 8, 9, 14])))
            case 5:
                to, new = somewhere()
                if chance.random() < 0.4:
                    to = addr
                elif addr < to + new and to < addr + length:
                    continue  # the kernel refuses it (mremap_to)
                rows.append(row(Op.MREMAP, addr, length, to, new | (4 if to != addr and chance.random() < 0.2 else 0)))
            case 6:
                heap = BASE - (396 - chance.randrange(100)) * PAGE + chance.randrange(PAGE)
                rows.append(row(Op.BRK, heap))
            case 7:
                rows.append(row(Op.FORK, arg=99, aux=chance.choice([0x11, 0x100])))
            case 8:
                if tap:
                    if chance.random() < 0.05:
                        addr, length = BASE // (2 * MIB) * 2 * MIB, 2 * MIB
                    rows.append(
                        row(
                            Op.INVALIDATE, addr, length, chance.choice(list(Event)),
                            chance.choice([Op.MUNMAP, Op.MPROTECT, Op.MADVISE]),
                        )
                    )  # fmt: skip
            case 9:
                rows.append(row(Op.VMA, addr, length, prot, chance.choice([ANON, FILE])))
            case 10:
                rows.append(row(Op.MBIND, addr, length))
    return timed(rows)


def agree(found: dict[str, Any], rows: list[Row], tap: bool, every_row: bool = True) -> Pmap:
    """Run the oracle and compare everything."""
    pmap = Pmap(raises=not tap)
    slices = found["timeline"]
    peak: dict[str, int] = {"vmas": 0, "mapped_bytes": 0, "touched_pages": 0}
    fullest: dict[str, Any] = {"touched": -1}
    at, calls = 0, 0

    def stand() -> None:
        nonlocal at
        assert {name: slices[at][name] for name in pmap.now()} == pmap.now(), at
        seen = {
            "faults": sum(pmap.faults.values()),
            "first_touches": sum(n for (_, met), n in pmap.faults.items() if met == "first"),
            "calls": calls,
            "invalidations": len(pmap.invalidations),
            "useful": sum(one["counted"]["useful"] for one in pmap.invalidations),
        }
        assert {name: sum(line[name] for line in slices[: at + 1]) for name in seen} == seen, at
        look()
        at += 1

    def look() -> None:
        if len(pmap.present) > fullest["touched"]:
            fullest.update(touched=len(pmap.present), kinds=pmap.kinds(), blocks=pmap.blocks())

    for r in rows:
        while at + 1 < len(slices) and r["time"] - found["start_ns"] >= slices[at]["end_ns"]:
            stand()
        pmap.row(r)
        calls += r["op"] not in (Op.FAULT, Op.INVALIDATE, Op.VMA)
        if every_row:
            peak = {name: max(value, pmap.now()[name]) for name, value in peak.items()}
    while at < len(slices):
        stand()

    met = ("first", "unmapped", "invalidated", "present", "refused")
    assert found["faults"] == {name: sum(n for (_, m), n in pmap.faults.items() if m == name) for name in met}
    if every_row:
        assert {name: found["peaks"][name]["value"] for name in peak} == peak
    assert found["churn"]["pages_unmapped"] == pmap.taken
    assert found["fullest"]["touched_pages"] == fullest["touched"]
    kinds = {line["kind"]: line for line in found["kinds"]}
    of_mappings = {
        name: dict(zip(("vmas", "used", "bytes", "touched"), _mapping_numbers(line), strict=True))
        for name, line in kinds.items()
        if line["vmas"]
    }
    assert of_mappings == fullest["kinds"]
    for name, line in kinds.items():
        assert line["faults"] == {m: pmap.faults[name, m] for m in met}
    everywhere = pmap.blocks()
    for line, wanted, last in zip(found["blocks"], fullest["blocks"], everywhere, strict=True):
        assert line == {**wanted, "touched_ever": last["touched_ever"]}
    raised = found["invalidations"]
    assert raised["count"] == len(pmap.invalidations)
    assert {(k,): v for k, v in raised["by_event"].items()} == pmap.grouped("event")
    assert {(k,): v for k, v in raised["by_size"].items()} == pmap.grouped("size")
    by_kind = {(k,): line["invalidations"] for k, line in kinds.items() if line["invalidations"]["count"]}
    assert by_kind == pmap.grouped("kind")
    by_operation = {
        (line["operation"], line["event"]): {n: v for n, v in line.items() if n not in ("operation", "event")}
        for line in raised["by_operation"]
    }
    assert by_operation == pmap.grouped("operation", "event")
    ranges = pmap.top_ranges()
    top = [{n: line[n] for n in ("kind", "start", "end", "count", "useful", "by_event")} for line in raised["top_ranges"]]
    assert [line["count"] for line in top] == [line["count"] for line in ranges[:10]]
    assert all(line in ranges for line in top)
    return pmap


def _mapping_numbers(line: dict[str, Any]) -> tuple[int, int, int, int]:
    return line["vmas"], line["vmas_touched"], line["bytes"], line["touched_pages"]


@pytest.mark.parametrize("tap", [True, False], ids=["tap", "model"])
@pytest.mark.parametrize("seed", range(25))
def test_random_rows_agree_with_a_dict_of_pages(tmp_path: Path, seed: int, tap: bool) -> None:
    rows = some_rows(random.Random(seed), 250, tap)
    if not any(r["op"] == Op.FAULT for r in rows):
        pytest.skip("nothing touched")
    agree(summary(trace(tmp_path / "t.trace", rows, tap)), rows, tap)
