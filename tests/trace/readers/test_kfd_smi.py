"""Logs of amdkfd's SMI events: what each line becomes, against plain Python on the same lines, and against damage."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import fuzzing
import kfd_sample as sample
import numpy as np
import pytest
from kfd_sample import GPU, HEAP, OTHER_GPU, PID

from faultpath.compare import compare
from faultpath.errors import FaultpathError
from faultpath.trace.formats import recognise
from faultpath.trace.importing import import_recording
from faultpath.trace.ops import Event, Op
from faultpath.trace.readers import extents, kfd_smi
from faultpath.trace.readers.kfd_smi import KfdSmiLog
from faultpath.trace.schema import COLUMNS, Columns, TraceMeta, TraceWriter, check_rows, open_trace

PAGE = 4096


def imported(folder: Path, text: str | bytes) -> tuple[Columns, TraceMeta]:
    """A trace's rows, written and read again."""
    path = folder / "in"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    meta = import_recording(path, folder / "out.trace")
    pieces = list(open_trace(folder / "out.trace").batches())
    return {n: np.concatenate([p[n] for p in pieces]) for n in COLUMNS}, meta


def story(columns: Columns) -> list[tuple]:
    """(time, op, page from the heap, pages, arg, aux) of each row."""
    return [
        (int(t), Op(o).name, int(a) // PAGE - HEAP, int(n) // PAGE, int(g), int(x))
        for t, o, a, n, g, x in zip(*(columns[n] for n in ("time", "op", "addr", "len", "arg", "aux")), strict=True)
    ]


def test_the_story_of_a_range(tmp_path: Path) -> None:
    columns, meta = imported(tmp_path, sample.STORY)
    assert story(columns) == [
        (1200, "VMA", 0, 0x400, 3, 0x22),
        (1200, "INVALIDATE", 0, 0x200, Event.MIGRATE, Op.FAULT),  # the migration that the fault makes
        (1400, "ACCESS", 5, 0, 1, 0),
        (2100, "ACCESS", 0x207, 0, 0, 0),
        (3100, "INVALIDATE", 0, 0x200, Event.MIGRATE, Op.FAULT),
        (4000, "INVALIDATE", 0x200, 0x10, Event.CLEAR, Op.FAULT),
        (5000, "INVALIDATE", 0, 0x400, Event.UNMAP, Op.MUNMAP),
    ]
    assert {*columns["pid"]} == {*columns["tid"]} == {PID}
    assert {*columns["cpu"]} == {-1}
    assert meta.dropped == {
        "vmfault": 1,
        "migrate end": 2,
        "page fault end": 2,
        "queue eviction": 1,
        "queue restore": 1,
        "migrate start to a device": 1,
        "migrate start from a device: unmap from gpu tells": 1,
    }
    assert (meta.format, meta.clock, meta.invalidations_from, meta.lost_events) == ("kfd-smi", "boottime", "device", 17)


def lines(*events: str) -> str:
    return "".join(f"{event}\n" for event in events)


def fault(time: int, page: int, how: str = "R", gpu: int = GPU) -> str:
    return f"{'7' if how in 'RW' else '8'} {time} -{PID} @{HEAP + page:x}({gpu:x}) {how}"


def unmap(time: int, page: int, trigger: int = 0, gpu: int = GPU) -> str:
    return f"b {time} -{PID} @{HEAP + page:x}(8) {gpu:x} {trigger}"


def test_without_ends_a_fault_stands_at_its_start(tmp_path: Path) -> None:
    columns, meta = imported(tmp_path, lines(fault(1, 0, "W"), fault(2, 1)))
    assert story(columns)[1:] == [(1, "ACCESS", 0, 0, 1, 0), (2, "ACCESS", 1, 0, 0, 0)]
    assert meta.dropped == {}


def test_faults_that_were_not_answered(tmp_path: Path) -> None:
    text = lines(fault(1, 0, "W"), fault(2, 1), fault(3, 1, "U"), fault(4, 9, "M"), fault(5, 2))
    columns, meta = imported(tmp_path, text)
    assert story(columns)[1:] == [(3, "ACCESS", 1, 0, 0, 0)]
    assert meta.dropped["page fault without an end: not answered"] == 2
    assert meta.dropped["page fault end without a start"] == 1


def test_devices_fault_at_the_same_time(tmp_path: Path) -> None:
    text = lines(fault(1, 0, "W"), fault(2, 1, gpu=OTHER_GPU), fault(3, 0, "U"), fault(4, 1, "M", OTHER_GPU))
    columns, meta = imported(tmp_path, text)
    assert story(columns)[1:] == [(3, "ACCESS", 0, 0, 1, 0), (4, "ACCESS", 1, 0, 0, 0)]
    assert "Which device: 2 devices are taken for one." in meta.missing


def test_an_invalidation_of_several_devices_is_one(tmp_path: Path) -> None:
    text = [unmap(1, 0), unmap(2, 0, gpu=OTHER_GPU), unmap(3, 0), unmap(4, 0, gpu=OTHER_GPU)]
    columns, meta = imported(tmp_path, lines(*text))
    assert [row[0] for row in story(columns)[1:]] == [1, 3]
    assert meta.dropped == {"unmap from gpu on another device": 2}
    # After an access, or with another reason, or of another range, it is another one.
    for between in (fault(2, 0), unmap(2, 0, 1), unmap(2, 1)):
        columns, meta = imported(tmp_path, lines(unmap(1, 0), between, unmap(3, 0, gpu=OTHER_GPU)))
        assert len(columns["time"]) == 4
        assert meta.dropped == {}


def test_without_unmaps_migrations_to_system_memory_stand_for_them(tmp_path: Path) -> None:
    migrate = f"5 {{}} -{PID} @{HEAP:x}(10) {{}} 0:0 2"
    text = lines(migrate.format(1, f"0->{GPU:x}"), fault(2, 0), migrate.format(3, f"{GPU:x}->0"),
                 migrate.format(4, f"{GPU:x}->{OTHER_GPU:x}"))  # fmt: skip
    columns, meta = imported(tmp_path, text)
    assert story(columns)[1:] == [(2, "ACCESS", 0, 0, 0, 0), (3, "INVALIDATE", 0, 16, Event.MIGRATE, Op.FAULT)]
    assert meta.dropped == {"migrate start to a device": 2}
    assert any("no UNMAP_FROM_GPU" in said for said in meta.missing)


def test_without_faults_it_says_why(tmp_path: Path) -> None:
    _, meta = imported(tmp_path, lines(unmap(1, 0)))
    assert any("HSA_XNACK=1" in said for said in meta.missing)


def test_holes_below_2_mib_are_mapped(tmp_path: Path) -> None:
    columns, _ = imported(tmp_path, lines(fault(1, 0), fault(2, 0x200), fault(3, 0x402)))
    assert [row[2:4] for row in story(columns) if row[1] == "VMA"] == [(0, 0x201), (0x402, 1)]


def test_lines_of_several_descriptors_are_put_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns, meta = imported(tmp_path, lines(fault(30, 3), fault(40, 4), fault(10, 1), fault(20, 2)))
    assert [(row[0], row[2]) for row in story(columns)[1:]] == [(10, 1), (20, 2), (30, 3), (40, 4)]
    assert not any("events late" in said for said in meta.missing)
    monkeypatch.setattr(kfd_smi, "WINDOW", 1)
    monkeypatch.setattr(kfd_smi, "CHUNK", 40)
    columns, meta = imported(tmp_path, lines(fault(30, 3), fault(40, 4), fault(50, 5), fault(60, 6), fault(10, 1)))
    times = [row[0] for row in story(columns)[1:]]
    assert times == sorted(times)
    assert any("1 events that come more than 1 events late" in said for said in meta.missing)


def test_a_last_line_that_was_cut_is_not_used(tmp_path: Path) -> None:
    columns, meta = imported(tmp_path, lines(fault(1, 0)) + fault(2, 1))
    assert len(columns["time"]) == 2
    assert meta.dropped == {"last line, cut off": 1}


def test_line_ends_of_either_kind_and_empty_lines(tmp_path: Path) -> None:
    columns, meta = imported(tmp_path, f"{fault(1, 0)}\r\n\r\n\n{fault(2, 1)}\r\n")
    assert len(columns["time"]) == 3
    assert meta.dropped == {}


def test_events_that_are_newer_than_this(tmp_path: Path) -> None:
    _, meta = imported(tmp_path, lines(fault(1, 0), f"d 5 -{PID} anything", f"1f 5 -{PID}", f"1f 6 -{PID}"))
    assert meta.dropped == {"event d": 1, "event 1f": 2}


BODY = re.compile(r"(\d+) -(\d+) @([0-9a-f]+)\(([0-9a-f]+)\) (.*)")


def oracle(text: str) -> list[tuple]:
    """(time, op, page, pages, arg) of each row but VMAs, restated with regular expressions and a dictionary."""
    rows, started = [], {}
    for line in text.splitlines():
        kind, _, body = line.partition(" ")
        if kind not in "78b":
            continue
        time, pid, page, number, rest = BODY.fullmatch(body).groups()
        if kind == "7":
            started[pid, page, number] = rest == "W"
        elif kind == "8":
            rows.append((int(time), Op.ACCESS, int(page, 16), 0, int(started.pop((pid, page, number)))))
        else:
            event = (Event.CLEAR, Event.MIGRATE, Event.UNMAP)[int(rest.split()[1])]
            rows.append((int(time), Op.INVALIDATE, int(page, 16), int(number, 16), event))
    return sorted(rows)


def test_a_storm_agrees_with_plain_python(tmp_path: Path) -> None:
    text = "".join(sample.storm(5000))
    columns, meta = imported(tmp_path, text)
    mapped = columns["op"] == Op.VMA
    names = ("time", "op", "addr", "len", "arg")
    ours = sorted(tuple(int(v) for v in row) for row in zip(*(columns[n][~mapped] for n in names), strict=True))
    assert ours == [(t, op, page * PAGE, size * PAGE, arg) for t, op, page, size, arg in oracle(text)]
    assert sum(meta.dropped.values()) + len(ours) == text.count("\n")
    # Every address lies in a mapping.
    starts, ends = columns["addr"][mapped], columns["addr"][mapped] + columns["len"][mapped]
    which = np.searchsorted(starts, columns["addr"][~mapped], "right") - 1
    assert (columns["addr"][~mapped] + columns["len"][~mapped] <= ends[which]).all()


@pytest.mark.parametrize("chunk", [1, 17, 4096])
def test_chunks_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    text = "".join(sample.storm(400))
    imported(tmp_path, text)
    expected = (tmp_path / "out.trace").read_bytes()
    monkeypatch.setattr(kfd_smi, "CHUNK", chunk)
    imported(tmp_path, text)
    assert (tmp_path / "out.trace").read_bytes() == expected


def test_interpreted_it_is_the_same(tmp_path: Path) -> None:
    """numpy checks every index: nothing is read outside an array, which compiled code would not notice."""
    imported(tmp_path, sample.STORY + "".join(sample.storm(300)) + "b 1")
    run = "import sys, pathlib, faultpath.trace.importing as i; i.import_recording(*map(pathlib.Path, sys.argv[1:]))"
    command = [sys.executable, "-c", run, tmp_path / "in", tmp_path / "plain.trace"]
    subprocess.run(command, env={**os.environ, "FAULTPATH_NO_JIT": "1"}, check=True)
    assert (tmp_path / "plain.trace").read_bytes() == (tmp_path / "out.trace").read_bytes()


def test_progress_goes_from_nothing_to_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kfd_smi, "CHUNK", 1000)
    (tmp_path / "in").write_text("".join(sample.storm(200)))
    seen: list[int] = []
    import_recording(tmp_path / "in", tmp_path / "t.trace", lambda done, total: seen.append(done))
    assert seen == sorted(seen)
    assert seen[-1] == (tmp_path / "in").stat().st_size


def test_compare_uses_the_accesses_of_the_log(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_text(sample.STORY)
    trace = compare([path], ["full-va", "odp-implicit"])["traces"][0]
    assert (trace["accesses"], trace["invalidations_from"], trace["lost_events"]) == ("recorded", "device", 17)
    for result in trace["results"]:
        counters = result["counters"]
        assert (counters["device_accesses"], counters["device_faults_refused"], counters["invalidations"]) == (2, 0, 4)
    # The migration back takes page 5, the unmap at the end page 0x207.
    assert trace["results"][0]["counters"]["ptes_zapped"] == 2


def test_calls_raise_nothing_where_the_device_tells(tmp_path: Path) -> None:
    """invalidations_from: of a device's recording none are derived, of a model's they are."""
    raised = {}
    for where in ("device", "model"):
        columns = {name: np.zeros(3, dtype) for name, dtype in COLUMNS.items()}
        columns["op"][:] = Op.VMA, Op.ACCESS, Op.MUNMAP
        columns["addr"][:] = HEAP * PAGE
        columns["len"][:] = PAGE, 0, PAGE
        columns["arg"][:] = 3, 1, 0
        columns["aux"][0] = 0x22
        with TraceWriter(tmp_path / "t.trace") as writer:
            writer.write(columns)
            writer.finish(TraceMeta("made", invalidations_from=where))
        trace = compare([tmp_path / "t.trace"], ["full-va"])["traces"][0]
        counters = trace["results"][0]["counters"]
        raised[trace["invalidations_from"]] = (counters["device_faults"], counters["invalidations"])
    assert raised == {"device": (1, 0), "model": (1, 1)}


# --- what is refused


def test_more_devices_processes_or_memory_than_there_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(text: str, words: str) -> None:
        with pytest.raises(FaultpathError, match=words):
            imported(tmp_path, text)

    refused(lines(*(fault(1, 0, gpu=gpu) for gpu in range(257))), "more than 256 devices")
    monkeypatch.setattr(extents, "MOST_PIECES", 2)
    refused(lines(*(fault(1, page) for page in (0, 1 << 20, 2 << 20))), "more than 2 separate pieces")
    monkeypatch.setattr(extents, "MOST_PROCESSES", 2)
    refused(lines(*(f"7 1 -{pid} @1(1) R" for pid in (1, 2, 3))), "more than 2 processes")


@pytest.mark.parametrize(
    "head",
    [
        "hello world\n",
        "5\n",
        "3 1\n4 1\n",  # resets alone: nothing about memory, and anything could look like this
        "7 1 -1 @1(1) R extra words that no such line has\n",
        "7 1 -1 @1(1)\n",
        "7f4a00000-7f4a00100 r-xp 00000000 fe:01 131\n",
        "zz\n" + lines(fault(1, 0)),
    ],
)
def test_other_text_is_not_taken_for_a_log(tmp_path: Path, head: str) -> None:
    (tmp_path / "in").write_text(head)
    with pytest.raises(FaultpathError, match="not a recording that is known"):
        recognise(tmp_path / "in")


def test_straces_text_is_straces(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("7 1000 brk(NULL) = 0x5581\n")
    assert recognise(tmp_path / "in") == "strace"


def test_a_log_may_begin_with_other_events(tmp_path: Path) -> None:
    (tmp_path / "in").write_text(lines("3 1", f"1 {PID:x}:a b", "2 8:1f", fault(1, 0)))
    assert recognise(tmp_path / "in") == "kfd-smi"


NUMBER = 1 << 60


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("hello", "not a line of amdkfd's SMI events (hello)"),
        ("0 1", "not a line"),
        ("20 1", "not a line"),
        ("7", "not a line"),
        ("7  1 -1 @1(1) R", "not a line"),
        ("7 1 1 @1(1) R", "not a line"),
        ("7 1 -1 1(1) R", "not a line"),
        ("7 1 -1 @1(1) X", "not a line"),
        ("7 1 -1 @1(1) M", "not a line"),
        ("8 1 -1 @1(1) R", "not a line"),
        ("7 1 -1 @1(1) R ", "not a line"),
        ("7 1 -1 @G(1) R", "not a line"),
        (f"7 1 -{1 << 22} @1(1) R", "not a line"),
        (f"7 {NUMBER * 1000} -1 @1(1) R", "not a line"),
        ("7 1 -1 @fffffffffffffffff(1) R", "not a line"),
        (f"7 1 -1 @{1 << 44:x}(1) R", "a range that is not in user space"),
        ("b 1 -1 @1(0) 1 0", "a range that is not in user space"),
        (f"b 1 -1 @1({1 << 44:x}) 1 0", "a range that is not in user space"),
        ("b 1 -1 @1(1) 1 3", "not a line"),
        ("b 1 -1 @1(1) 1", "not a line"),
        ("5 1 -1 @1(1) 1", "not a line"),
        ("5 1 -1 @1(1) 1-2 0:0 1", "not a line"),
        ("5 1 -1 @1(1) 1->2", "not a line"),
        ("c 1 -1 x", "not a line"),
        ("b 1 -1 @1(1", "not a line"),
        ("\x1b[31m" + "\xff" * 200, "\\x1b[31m"),
        ("1 " + "x" * 5000, "a line of more than 4096 bytes"),
    ],
)
def test_lines_that_cannot_be(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "in"
    path.write_bytes(lines(fault(1, 0), fault(2, 0), line).encode("latin-1"))
    with pytest.raises(FaultpathError) as caught:
        import_recording(path, tmp_path / "out.trace")
    assert words in str(caught.value)
    assert ", line 3: " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.trace").exists()


def read(path: Path) -> bool:
    """Whether the reader took it; every row it makes must keep the rules of the schema."""
    last = 0
    try:
        log = KfdSmiLog(path)
        for rows in log.rows():
            check_rows(rows, 0, last, PAGE, "made from an accepted recording")
            last = int(rows["time"][-1]) if len(rows["time"]) else last
        log.meta()._check("made from an accepted recording")
    except FaultpathError as error:
        if error.where.startswith("made from") or "\n" in str(error):
            raise AssertionError(str(error)) from error
        return False
    return True


def test_mutated_logs() -> None:
    seeds = [sample.STORY.encode(), "".join(sample.storm(40)).encode(), "".join(sample.storm(40, 2)).encode()]
    tried, accepted = fuzzing.run("kfd-smi", 50_000, 1, seconds=3, seeds=seeds)
    assert tried > 300
    assert 0 < accepted < tried


def test_mutated_numbers(tmp_path: Path) -> None:
    """Lines stay lines, but numbers become others."""
    draw = random.Random(4)
    values = ["0", "1", "ffffffffffffff", str(NUMBER), "7f4a00005", str(GPU), "9" * 18, "9" * 40, ""]
    accepted = 0
    for _ in range(400):
        text = sample.STORY
        for _ in range(draw.choice((1, 1, 3))):
            where = draw.choice([*re.finditer(r"[0-9a-f]+", text)])
            text = text[: where.start()] + draw.choice(values) + text[where.end() :]
        (tmp_path / "in").write_text(text)
        accepted += read(tmp_path / "in")
    assert 0 < accepted < 400
