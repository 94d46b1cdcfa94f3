"""The summary of an address space against a dict of pages, by hand, and against what a replay counts."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from faultpath.engine.derive import with_derived
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
ROWS = 1_000


def trace(path: Path, rows: list[Row]) -> Path:
    columns = {name: np.array([row.get(name, 0) for row in rows], dtype) for name, dtype in COLUMNS.items()}
    with TraceWriter(path) as writer:
        writer.write(columns)
        processes = [{"pid": 7, "parent": -1, "comm": "a"}, {"pid": 8, "parent": 7, "comm": "b"}]
        writer.finish(TraceMeta(format="synthetic", invalidations_from="tap", processes=processes))
    return path


def row(op: Op, addr: int = 0, length: int = 0, arg: int = 0, aux: int = 0, **more: int) -> Row:
    return {"pid": 7, "tid": 7, "op": int(op), "addr": addr, "len": length, "arg": arg, "aux": aux, **more}


def timed(rows: list[Row]) -> list[Row]:
    return [{"time": 1000 * i, **r} for i, r in enumerate(rows)]


def summary(path: Path, **options: Any) -> dict[str, Any]:
    found = trace_info(path, derive=with_derived, **options)["address_space"]
    assert found is not None
    return found


def some_rows(chance: random.Random, count: int) -> list[Row]:
    """Calls over five hundred pages on both sides of a boundary, and over three thousand at times."""

    def somewhere(most: int = 40) -> tuple[int, int]:
        reach = 3000 if chance.random() < 0.02 else 500
        first = chance.randrange(reach)
        return BASE - 250 * PAGE + first * PAGE, chance.randrange(1, 2 * reach if reach > 500 else most) * PAGE

    # The stack is out of the calls' reach: one that grows until it meets another is two VMAs, which no dict tells.
    stack = BASE + 12_000 * PAGE
    rows = [row(Op.VMA, stack, 4 * PAGE, 3, STACK), row(Op.FAULT, stack)]
    heap = BASE - 396 * PAGE
    rows += [row(Op.VMA, heap - 4 * PAGE, 4 * PAGE, 3, ANON), row(Op.BRK, heap)]
    for _ in range(count):
        addr, length = somewhere()
        prot = chance.choice([0, 1, 3, 3, 5, 7])
        match chance.choices(range(12), [40, 4, 3, 4, 3, 3, 2, 1, 10, 1, 2, 2])[0]:
            case 0:
                at = addr + chance.randrange(PAGE) if chance.random() < 0.98 else chance.randrange(1 << 17)
                rows.append(row(Op.FAULT, at, arg=chance.choice([4, 6, 6])))
            case 1:
                rows.append(row(Op.MMAP, addr, length, prot, chance.choice([ANON, ANON, FILE, SHARED, 0x21])))
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
            case 11:
                stack -= chance.randrange(3 * PAGE)
                rows.append(row(Op.FAULT, stack, arg=6))
    return timed(rows)


def agree(found: dict[str, Any], rows: list[Row], every_row: bool = True) -> Pmap:
    """Run the oracle and compare everything."""
    pmap = Pmap()
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
    top = [
        {n: line[n] for n in ("kind", "start", "end", "count", "useful", "by_event")} for line in raised["top_ranges"]
    ]
    assert [line["count"] for line in top] == [line["count"] for line in ranges[:10]]
    assert all(line in ranges for line in top)
    return pmap


def _mapping_numbers(line: dict[str, Any]) -> tuple[int, int, int, int]:
    return line["vmas"], line["vmas_touched"], line["bytes"], line["touched_pages"]


@pytest.mark.parametrize("seed", range(24))
def test_random_rows_agree_with_a_dict_of_pages(tmp_path: Path, seed: int) -> None:
    rows = some_rows(random.Random(seed), 250)
    agree(summary(trace(tmp_path / "t.trace", rows)), rows)


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_recordings_agree_with_a_dict_of_pages(tmp_path: Path, path: Path) -> None:
    recorded = open_trace(path)
    pid = survey(recorded).choose(None, path.name).pid
    names = ("time", "op", "addr", "len", "arg", "aux")
    lists = [[columns[name].tolist() for name in names] for columns in in_effect(recorded.batches(pid))]
    rows = [
        {**dict(zip(names, values, strict=True)), "pid": 7, "tid": 7}
        for piece in lists
        for values in zip(*piece, strict=True)
    ]
    rows = [r for r in rows if r["op"] != Op.EXEC][:ROWS]
    # Already in the order of effect, which is not quite that of time: the trace is to be read as it stands.
    for r, time in zip(rows, sorted(r["time"] for r in rows), strict=True):
        r["time"], r["tid"] = time, len(rows)
    agree(summary(_apart(tmp_path / "t.trace", rows)), rows, every_row=False)


def _apart(path: Path, rows: list[Row]) -> Path:
    """Each row in a thread of its own, so that none is moved."""
    return trace(path, [{**r, "tid": 10 + i} for i, r in enumerate(rows)])


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_useful_invalidations_are_those_a_replay_finds_something_for(path: Path) -> None:
    """nouveau-v6 zaps exactly what is invalidated: what finds nothing there finds nothing in any design."""
    from faultpath.compare import compare

    counters = compare([path], ["nouveau-v6"])["traces"][0]["results"][0]["counters"]
    found = summary(path)
    invalidations = found["invalidations"]
    assert invalidations["count"] == counters["invalidations"]
    assert invalidations["useful"] == counters["callbacks"] - counters["callbacks_empty"]
    assert invalidations["pages_useful"] == counters["ptes_zapped"]
    assert found["faults"]["refused"] == counters["device_faults_refused"]
    assert sum(found["faults"].values()) == counters["device_accesses"]


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_without_the_tap_the_same_is_derived_as_in_a_replay(tmp_path: Path, path: Path) -> None:
    from faultpath.compare import compare

    recorded = open_trace(path)
    copy = tmp_path / "t.trace"
    recorded.meta.invalidations_from = "model"
    with TraceWriter(copy) as writer:
        for columns in recorded.batches():
            keep = columns["op"] != Op.INVALIDATE
            writer.write({name: column[keep] for name, column in columns.items()})
        writer.finish(recorded.meta)
    counters = compare([copy], ["nouveau-v6"])["traces"][0]["results"][0]["counters"]
    invalidations = summary(copy)["invalidations"]
    assert invalidations["count"] == counters["invalidations"]
    assert invalidations["useful"] == counters["callbacks"] - counters["callbacks_empty"]
    assert invalidations["pages_useful"] == counters["ptes_zapped"]


def test_vmas_made_and_gone_and_their_age(tmp_path: Path) -> None:
    rows = timed(
        [
            row(Op.VMA, 0x1000_0000, 8 * PAGE, 1, FILE),  # found, not made
            row(Op.MMAP, 0x2000_0000, 8 * PAGE, 3, ANON),  # made
            row(Op.FAULT, 0x2000_0000, arg=6),
            row(Op.MMAP, 0x2000_8000, 8 * PAGE, 3, ANON),  # merged
            row(Op.MPROTECT, 0x2000_0000, PAGE, 1),  # split: one made
            row(Op.MPROTECT, 0x2000_0000, PAGE, 3),  # merged: one gone
            row(Op.MPROTECT, 0x1000_0000, 8 * PAGE, 3),  # neither
            row(Op.MUNMAP, 0x2000_1000, PAGE),  # a hole: one made
            row(Op.MUNMAP, 0x2000_0000, PAGE, time=2_000_000),  # gone at 2 ms, of age
            row(Op.MUNMAP, 0x1000_0000, 4 * PAGE, time=2_000_000),  # shrunk
            row(Op.MMAP, 0x1000_4000, 4 * PAGE, 3, FILE, time=2_000_000),  # one replaced by another
        ]
    )
    churn = summary(trace(tmp_path / "t.trace", rows))["churn"]
    assert (churn["vmas_made"], churn["vmas_gone"]) == (4, 3)
    assert {age: n for age, n in churn["unmapped_by_age_ns"].items() if n} == {str(10**7): 2}
    assert churn["pages_unmapped"] == 1
    assert churn["calls"] == {"mmap": 3, "munmap": 3, "mprotect": 3}


def test_a_child_begins_with_its_parents_mappings_and_nothing_touched(tmp_path: Path) -> None:
    rows = timed(
        [
            row(Op.MMAP, 0x2000_0000, 8 * PAGE, 3, ANON),
            row(Op.FAULT, 0x2000_0000, arg=6),
            row(Op.FAULT, 0x2000_1000, arg=6),
            row(Op.FORK, arg=8, aux=0x11),
            row(Op.FAULT, 0x2000_0000, arg=6, pid=8, tid=8),
            row(Op.INVALIDATE, 0x2000_0000, 2 * PAGE, int(Event.CLEAR), int(Op.FAULT), pid=8, tid=9),
            row(Op.FAULT, 0x2000_0000, arg=6),  # the parent's
        ]
    )
    path = trace(tmp_path / "t.trace", rows)
    found = summary(path, pid=8)
    assert (found["pid"], found["comm"], found["touched_pages"]) == (8, "b", 1)
    assert found["faults"]["first"] == 1
    assert found["fullest"]["touched_pages"] == 2  # one of them its parent's
    assert [(k["kind"], k["vmas"], k["bytes"]) for k in found["kinds"]] == [("anonymous", 1, 8 * PAGE)]
    assert found["churn"]["vmas_made"] == 0
    assert (found["invalidations"]["useful"], found["invalidations"]["pages_useful"]) == (1, 1)
    assert summary(path)["pid"] == 7
    with pytest.raises(FaultpathError, match="no process 9"):
        trace_info(path, pid=9)


def test_exec_begins_a_new_address_space_and_exit_ends_it(tmp_path: Path) -> None:
    rows = timed(
        [
            row(Op.MMAP, 0x2000_0000, 8 * PAGE, 3, ANON),
            *(row(Op.FAULT, 0x2000_0000 + i * PAGE, arg=6) for i in range(3)),
            row(Op.EXEC),
            row(Op.VMA, 0x2000_0000, 4 * PAGE, 3, FILE),
            row(Op.FAULT, 0x2000_0000, arg=4),
            row(Op.EXIT),
            row(Op.FAULT, 0x2000_1000, arg=4),  # of another that got the number
        ]
    )
    found = summary(trace(tmp_path / "t.trace", rows))
    assert found["faults"]["first"] == found["touched_pages"] == 4
    assert found["peaks"]["touched_pages"]["value"] == found["fullest"]["touched_pages"] == 3
    assert (found["timeline"][-1]["vmas"], found["timeline"][-1]["mapped_bytes"]) == (1, 4 * PAGE)
    assert found["blocks"][0]["touched_ever"] == 2  # the same block in two address spaces


def test_accesses_of_the_trace_s_own_are_the_device_s(tmp_path: Path) -> None:
    rows = timed(
        [
            row(Op.MMAP, 0x2000_0000, 8 * PAGE, 3, ANON),
            row(Op.FAULT, 0x2000_0000, arg=6),
            row(Op.INVALIDATE, 0x2000_0000, PAGE, int(Event.CLEAR), int(Op.MADVISE)),
            row(Op.ACCESS, 0x2000_0000, arg=1),
            row(Op.INVALIDATE, 0x2000_0000, PAGE, int(Event.CLEAR), int(Op.MADVISE)),
        ]
    )
    found = summary(trace(tmp_path / "t.trace", rows))
    assert found["accesses"] == "recorded"
    assert (found["invalidations"]["touched"], found["invalidations"]["useful"]) == (2, 1)


def test_a_trace_without_rows_has_no_address_space(tmp_path: Path) -> None:
    """One of calls alone, as strace's, has one that nobody touches."""
    found = summary(trace(tmp_path / "t.trace", timed([row(Op.MUNMAP, 0x1000_0000, PAGE)])))
    assert sum(found["faults"].values()) == 0
    assert trace_info(trace(tmp_path / "u.trace", []))["address_space"] is None


def test_tables_grow_as_the_address_space_does(tmp_path: Path) -> None:
    """Ten thousand mappings, each in a block of its own and invalidated, then all moved elsewhere."""
    count, far = 10_000, 1 << 40
    rows = [row(Op.MMAP, (1 + i) << 21, PAGE, 3, FILE) for i in range(count)]
    rows += [row(Op.FAULT, (1 + i) << 21, arg=6) for i in range(count)]
    rows += [row(Op.INVALIDATE, (1 + i) << 21, PAGE, int(Event.UNMAP), int(Op.MREMAP)) for i in range(count)]
    rows.append(row(Op.MREMAP, 1 << 21, count << 21, far, count << 21))
    found = summary(trace(tmp_path / "t.trace", timed(rows)))
    assert found["peaks"]["vmas"]["value"] == count
    assert found["invalidations"]["useful"] == count
    assert found["timeline"][-1]["touched_pages"] == count
    assert found["timeline"][-1]["vmas"] == 1
    assert found["invalidations"]["top_ranges"][0]["count"] == count


@pytest.mark.parametrize("page", [16 << 10, 64 << 10])
def test_larger_pages(tmp_path: Path, page: int) -> None:
    rows = [row(Op.MMAP, 0x2000_0000, 64 * page, 3, ANON)]
    rows += [row(Op.FAULT, 0x2000_0000 + i * page, arg=6) for i in range(64)]
    rows += [row(Op.INVALIDATE, 0x2000_0000, 2 * MIB, int(Event.CLEAR), int(Op.MADVISE))]
    columns = {name: np.array([r.get(name, 0) for r in timed(rows)], dtype) for name, dtype in COLUMNS.items()}
    with TraceWriter(tmp_path / "t.trace") as writer:
        writer.write(columns)
        writer.finish(TraceMeta(format="synthetic", invalidations_from="tap", page_size=page))
    found = summary(tmp_path / "t.trace")
    blocks = {block["bytes"]: (block["touched"], block["pages"]) for block in found["blocks"]}
    assert blocks == {
        64 << 10: (64 * page // (64 << 10), 64),
        2 * MIB: (-(-64 * page // (2 * MIB)), 64),
        512 * MIB: (1, 64),
        1024 * MIB: (1, 64),
    }
    assert found["invalidations"]["by_size"]["2MiB"]["pages_useful"] == min(64, 2 * MIB // page)
