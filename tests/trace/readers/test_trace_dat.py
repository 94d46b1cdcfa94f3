"""The trace.dat reader against trace-cmd's own text, against perf, and against damage."""

from __future__ import annotations

import random
import re
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fuzzing
import pytest
import zstandard
from trace_cmd_report import dropped, ours, parse, report
from trace_dat_builder import (
    COMPRESS,
    EXECVE,
    FAULT,
    Made,
    data,
    extend,
    fault,
    fault_format,
    format_text,
    padding,
    page,
    small_files,
    stamp,
    word,
)

from faultpath.errors import FaultpathError
from faultpath.trace.formats import record_command, trace_cmd_command
from faultpath.trace.importing import import_recording
from faultpath.trace.ops import Event, Op
from faultpath.trace.readers import trace_dat
from faultpath.trace.readers.expand import expand
from faultpath.trace.readers.trace_dat import TraceDat
from faultpath.trace.schema import TraceMeta, open_trace

DATA = Path(__file__).parent / "data"
RECORDINGS = sorted(path.name.split(".")[0] for path in DATA.glob("*.trace.dat"))
CLONE_VM, CLONE_VFORK = 0x100, 0x4000

Row = tuple[int, int, int, str, int, int, int, int]


def bundled(name: str) -> Path:
    return DATA / f"{name}.trace.dat"


def imported(path: Path) -> tuple[TraceMeta, list[Row]]:
    """What the trace says, and its rows but for their times: pid, tid, cpu, op, addr, len, arg, aux."""
    output = path.with_suffix(".imported")
    meta = import_recording(path, output)
    found = []
    for columns in open_trace(output).batches():
        for values in zip(*(columns[n].tolist() for n in columns if n != "time"), strict=True):
            pid, tid, cpu, op, *rest = values
            found.append((pid, tid, cpu, Op(op).name, *rest))
    output.unlink()
    return meta, found


@pytest.fixture
def save(tmp_path: Path) -> Iterator:
    """Writes bytes to a file."""
    path = tmp_path / "trace.dat"

    def write(content: bytes) -> Path:
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("name", RECORDINGS)
def test_bundled_recording_agrees_with_trace_cmd(name: str) -> None:
    text = (DATA / f"{name}.report").read_text()
    golden = parse(text)
    assert len(golden) > 100
    assert ours(bundled(name)) == golden
    recording = TraceDat(bundled(name))
    list(recording.batches({}))
    assert recording.lost_events == dropped(text)


@pytest.mark.parametrize(
    ("name", "clock", "lost", "source", "comms"),
    [
        ("storm-lost", "local", 1130, "model", {"storm"}),  # which holds no KVM descriptor
        ("tasks-v6", "perf", 0, "tap", {"tasks", "exe"}),
        ("tasks-zstd", "mono", 0, "tap", {"tasks", "exe"}),
        ("work-v7", "boot", 0, "tap", {"work"}),
    ],
)
def test_what_the_file_says_of_itself(
    tmp_path: Path, name: str, clock: str, lost: int, source: str, comms: set[str]
) -> None:
    meta = import_recording(bundled(name), tmp_path / "out.trace")
    assert (meta.format, meta.kernel, meta.arch, meta.page_size) == ("trace.dat", "6.18.44", "x86_64", 4096)
    assert (meta.clock, meta.lost_events, meta.invalidations_from) == (clock, lost, source)
    assert {process["comm"] for process in meta.processes} == comms
    assert any("local to each" in said for said in meta.missing) == (clock == "local")


def test_the_same_file_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = tmp_path / "one.trace", tmp_path / "two.trace"
    for out in (one, two):
        import_recording(bundled("tasks-zstd"), out)
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("name", RECORDINGS)
def test_batches_of_any_size_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ours(bundled(name))
    for size in (1, 7, 64):
        monkeypatch.setattr(trace_dat, "BATCH", size)
        monkeypatch.setattr(trace_dat, "DECODED", 128)
        assert ours(bundled(name)) == whole


# Tasks


def without(content: bytes, *events: str) -> bytes:
    """The recording as if ``events`` had not been recorded: their formats name others."""
    for event in events:
        old = f"name: {event}\n".encode()
        assert content.count(old) == 1
        content = content.replace(old, f"name: {'x' * len(event)}\n".encode())
    return content


def test_every_thread_finds_its_process() -> None:
    """As births.c makes them: four threads that fork, vfork and posix_spawn, and an exec by a second thread."""
    meta, rows = imported(bundled("tasks-v6"))
    by_tid: dict[int, set[int]] = {}
    for pid, tid, _, op, *_ in rows:
        if op != "FORK":
            by_tid.setdefault(tid, set()).add(pid)
    first = rows[0][0]
    threads = [tid for tid, pids in by_tid.items() if pids == {first} and tid != first]
    assert len(threads) == 4
    # The children of vfork and posix_spawn (CLONE_VM) run in their parent's memory until they exec or exit.
    assert sum(pids == {first, tid} != {first} for tid, pids in by_tid.items()) == 2
    assert [sum(row[3] == op for row in rows) for op in ("FORK", "EXEC", "EXIT")] == [7, 3, 8]
    assert not any("each is taken to be" in said for said in meta.missing)
    assert [p["parent"] for p in meta.processes] == [-1] + [first] * 7


@pytest.mark.parametrize(
    ("gone", "source"),
    [
        (("sched_process_fork",), ""),
        (("task_newtask",), "sched:sched_process_fork"),
        (("task_newtask", "sched_process_fork"), "what clone, fork and vfork returned"),
        (("task_newtask", "sched_process_fork", "sched_process_exec"), "what clone, fork and vfork returned"),
    ],
)
def test_births_are_told_by_what_was_recorded(save, gone: tuple[str, ...], source: str) -> None:  # type: ignore[no-untyped-def]
    _, expected = imported(bundled("tasks-v6"))
    meta, rows = imported(save(without(bundled("tasks-v6").read_bytes(), *gone)))
    if not source:
        assert rows == expected
        return
    assert any(f"births are taken from {source}, and a child of clone3" in said for said in meta.missing)
    # A thread seems to be a process in its parent's memory, which is born and ends. All else is the same.
    tasks = ("FORK", "EXIT")
    assert [row for row in rows if row[3] not in tasks] == [row for row in expected if row[3] not in tasks]
    born, expected_born = ({row[6] for row in some if row[3] == "FORK"} for some in (rows, expected))
    assert expected_born < born
    assert len(born - expected_born) == 5
    assert {row[6]: row[7] for row in rows if row[3] == "FORK"}.items() >= {
        (row[6], row[7]) for row in expected if row[3] == "FORK" and row[7] != CLONE_VM | CLONE_VFORK
    }


def test_a_recording_without_tasks_says_what_it_assumes(save) -> None:  # type: ignore[no-untyped-def]
    names = re.findall(
        rb"name: (sys_\w+_(?:clone3?|v?fork|execve|execveat)|sched_\w+|task_\w+)\n", bundled("tasks-v6").read_bytes()
    )
    meta, rows = imported(save(without(bundled("tasks-v6").read_bytes(), *(n.decode() for n in names))))
    assert {row[3] for row in rows} <= {"FAULT", "MMAP", "MUNMAP", "MPROTECT", "BRK", "MADVISE", "INVALIDATE"}
    assert all(pid == tid for pid, tid, *_ in rows)
    assert any(re.search(r"The process of 1[0-9] threads older than the recording", said) for said in meta.missing)
    assert "Ends of processes: sched:sched_process_exit was not recorded." in meta.missing


# Pages, made up, with trace-cmd as the witness where it is installed


def check_made(save, made: Made, seen: list[tuple[int, int, int]]) -> None:  # type: ignore[no-untyped-def]
    """``seen``: time, processor and address of each fault, from every way to write the file."""
    ways = [made.version_6(), *(made.version_7(codec) for codec in ("none", "zlib", "zstd"))]
    ways.append(made.version_7("zstd", chunk=1))
    for number, content in enumerate(ways):
        path = save(content)
        found = ours(path)
        assert [(time, cpu, fields["address"]) for _, cpu, time, _, fields in found] == seen, number
        if shutil.which("trace-cmd") and number != 2:  # which may lack zlib
            assert parse(report(path)) == found


T = 10**9
A = 4096


def test_records_of_every_kind(save) -> None:  # type: ignore[no-untyped-def]
    big = (1 << 40) + 3
    records = [
        data(fault(A), 5),
        extend(big),
        data(fault(2 * A), 7, long_form=True),
        padding(40, 11),
        data(fault(3 * A), 2),
        stamp(T + 2 * big),
        data(fault(4 * A), 1),
        data(struct.pack("<Hxxi", 99, 1) + b"\0" * 100, 3),  # an event that nobody asked for
        data(fault(5 * A), 0),
    ]
    times = [T + 5, T + big + 12, T + big + 25, T + 2 * big + 1, T + 2 * big + 4]
    seen = [(time, 0, A * (i + 1)) for i, time in enumerate(times)]
    check_made(save, Made({"": {0: page(T, *records)}}), seen)


def test_a_recording_without_events_is_refused(tmp_path: Path) -> None:
    for content in (small(b"").version_6(), small(b"").version_7(), Made({"x": {0: b""}}).version_7()):
        assert "a recording without events" in refused(tmp_path, content)


def test_formats_of_events_that_do_not_occur_prove_nothing(save) -> None:  # type: ignore[no-untyped-def]
    """trace-cmd extract keeps the formats of all events."""
    tap = format_text("kvm_unmap_hva_range", 77, [("unsigned long start", 8, 0), ("unsigned long end", 8, 0)])
    formats = [("exceptions", [fault_format()]), ("kvm", [tap])]
    nothing, _ = imported(save(small(page(T), formats=formats).version_7()))
    assert nothing.invalidations_from == "model"
    assert any("page_fault_user was not recorded, or none occurred" in said for said in nothing.missing)
    range_ = struct.pack("<HBBiQQ", 77, 0, 0, 100, A, 3 * A)
    both, rows = imported(save(small(page(T, data(fault(A)), data(range_)), formats=formats).version_7()))
    assert both.invalidations_from == "tap"
    assert [row[3] for row in rows] == ["FAULT", "INVALIDATE"]
    assert not any("occurred" in said for said in both.missing)


def test_padding_without_a_size_ends_the_page(save) -> None:  # type: ignore[no-untyped-def]
    rest = word(29, 0) + b"\xee" * 32
    pages = page(T, data(fault(A)), rest) + page(T + 1, data(fault(2 * A)))
    path = save(Made({"": {0: pages}}).version_7())
    assert [fields["address"] for *_, fields in ours(path)] == [A, 2 * A]


def test_a_time_stamp_takes_its_highest_bits_from_the_page(save) -> None:  # type: ignore[no-untyped-def]
    high = 3 << 59
    check_made(save, Made({"": {0: page(high + 5, stamp(high + 9), data(fault(A), 1))}}), [(high + 10, 0, A)])


def test_equal_times_go_by_processor_and_streams_may_be_empty(save) -> None:  # type: ignore[no-untyped-def]
    def one(*addresses: int) -> bytes:
        return page(T, *(data(fault(address * A)) for address in addresses))

    cpus = {0: b"", 1: one(10, 11), 2: one(20), 5: page(T - 1, data(fault(50 * A)), data(fault(51 * A), 1)), 6: page(T)}
    seen = [(T - 1, 5, 50), (T, 1, 10), (T, 1, 11), (T, 2, 20), (T, 5, 51)]
    check_made(save, Made({"": cpus}), [(time, cpu, address * A) for time, cpu, address in seen])


def test_many_processors_are_merged_as_sorting_would(save) -> None:  # type: ignore[no-untyped-def]
    random_ = random.Random(4)
    cpus, expected = {}, []
    for cpu in range(40):
        pages, time = b"", T
        for _ in range(random_.randrange(4)):
            start, records = time, []
            for _ in range(random_.randrange(90)):
                delta = random_.choice((0, 0, 1, 50, 3000))
                time += delta
                records.append(data(fault(A * (len(expected) + 1)), delta))
                expected.append((time, cpu, A * (len(expected) + 1)))
            pages += page(start, *records)
        cpus[cpu] = pages
    expected.sort(key=lambda seen: seen[:2])
    check_made(save, Made({"": cpus}), expected)


@pytest.mark.parametrize("size", [2048, 65536])
def test_pages_of_other_sizes(save, size: int) -> None:  # type: ignore[no-untyped-def]
    """Sub-buffers of several pages (buffer_subbuf_size_kb, Linux 6.8), and machines with other pages."""
    many = [data(fault(A * i), 1) for i in range(1, 50 if size == 2048 else 1500)]
    pages = page(T, *many, size=size) + page(2 * T, data(fault(A)), size=size)
    made = Made({"": {0: pages}}, page_size=size, machine_page=size)
    seen = [(T + i, 0, A * i) for i in range(1, len(many) + 1)]
    check_made(save, made, [*seen, (2 * T, 0, A)])


def test_a_machine_with_longs_of_four_bytes(save) -> None:  # type: ignore[no-untyped-def]
    pages = page(T, data(fault(0xBEEF0000, long=4)), lost=9, long=4)
    made = Made({"": {0: pages}}, [("exceptions", [fault_format(4)])], long=4)
    check_made(save, made, [(T, 0, 0xBEEF0000)])
    assert imported(save(made.version_7()))[0].lost_events == 9


def test_cycles_become_nanoseconds(save) -> None:  # type: ignore[no-untyped-def]
    mult, shift = 0x6AAA_AAAB, 32  # of a TSC of 2.4 GHz
    option = (14, struct.pack("<IIQ", mult, shift, 0))
    start = (1 << 45) + 12345
    made = Made({"": {0: page(start, data(fault(A), 77))}}, clock="tsc2nsec", options=[option])
    low, high = (start + 77) & 0xFFFFFFFF, (start + 77) >> 32
    check_made(save, made, [((low * mult >> shift) + (high * mult << 32 - shift), 0, A)])


def test_losses_are_counted_once(save) -> None:  # type: ignore[no-untyped-def]
    """Pages tell of losses before them, statistics of all; a page that had no room says only that there were some."""
    full = page(T, data(fault(A)), lost=0, stored=False) + page(T + 1, data(fault(A)), lost=7)
    stats = b"CPU: 0\nentries: 1\noverrun: %d\ncommit overrun: 0\nbytes: 9\ndropped events: 2\nread events: 0\n\0"
    for overrun, lost in ((0, 8), (6, 8), (100, 102)):
        path = save(Made({"": {0: full}}, options=[(2, stats % overrun)]).version_7())
        assert imported(path)[0].lost_events == lost


def test_instances_are_read_with_the_first_buffer(save) -> None:  # type: ignore[no-untyped-def]
    formats = [
        ("exceptions", [fault_format()]),
        (
            "syscalls",
            [
                format_text(f"sys_{way}_execve", EXECVE + way_id * 100, [("long ret", 8, 1)])
                for way_id, way in enumerate(("enter", "exit"))
            ],
        ),
    ]
    execve = struct.pack("<HBBiq", EXECVE + 100, 0, 0, 100, 0)
    made = Made({"": {0: page(T, data(fault(A)))}, "calls": {1: page(T - 1, data(execve))}}, formats)
    for content in (made.version_6(), made.version_7(), made.version_7("zstd")):
        _, rows = imported(save(content))
        assert [(row[2], row[3]) for row in rows] == [(1, "EXEC"), (0, "FAULT")]


# Damage


def refused(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "bad.trace.dat"
    path.write_bytes(content)
    with pytest.raises(FaultpathError) as caught:
        import_recording(path, tmp_path / "out.trace")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.trace.dat"], "something was left behind"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def small(pages: bytes | None = None, **how) -> Made:  # type: ignore[no-untyped-def]
    return Made({"": {0: page(T, data(fault(A))) if pages is None else pages}}, **how)


def replaced(name: str, old: bytes, new: bytes) -> bytes:
    content = bundled(name).read_bytes()
    assert old in content
    assert len(old) == len(new)
    return content.replace(old, new)


V7 = small().version_7("zstd")
TWO = Made({name: {0: page(T, data(fault(A)))} for name in ("", "b")}).version_7()
CLOCKS = TWO.replace(b"b\0mono\0", b"b\0boot\0")
OVERLAP = TWO.replace(
    struct.pack("<QQ", TWO.index(page(T, data(fault(A)))), 4096), struct.pack("<QQ", 0, len(TWO) & ~4095)
)
CHUNK = 4096  # where its one chunk of pages begins: count, compressed size, size, data


def crowd() -> bytes:
    """A thousand ring buffers with the same table of forty processors."""
    place = 0
    while True:
        options = [(3, struct.pack("<Q", place) + b"x\0")] * 1000
        content = Made({"": {39: page(T, data(fault(A)))}}, options=options).version_6()
        if place == content.index(b"flyrecord\0"):
            return content
        place = content.index(b"flyrecord\0")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x17\x08\x44tracing", "ends early|end early|unterminated"),
        (small().version_7().replace(b"tracing7", b"tracing8", 1), "version '8'"),
        (small().version_7().replace(b"tracing7\0\0", b"tracing7\0\1", 1), "big-endian"),
        (small(machine_page=3000).version_7(), "pages of 3000 bytes"),
        (small(clock="x86-tsc").version_7(), "'x86-tsc', which are not nanoseconds.*mono"),
        (small(clock="tsc2nsec").version_7(), "not nanoseconds"),
        (small(clock="counter").version_6(), "'counter'"),
        (small(clock="uptime").version_6(), "'uptime'"),
        (small().version_6().replace(b"flyrecord\0", b"latency  \0"), "text instead of events"),
        (small().version_6().replace(b"flyrecord\0", b"flyrec..d\0"), "neither events nor text"),
        (small(options=[(22, b"\0" * 10)]).version_7(), "text instead of events"),
        (small().version_7().replace(b"none\0001\0", b"lz4_\0001\0"), "'lz4_'.*trace-cmd convert"),
        (small().version_7().replace(b"header_page\0", b"header_pagf\0"), "lack b'header_page"),
        (small().version_7().replace(b"stamp;\toffset:0;\tsize:8", b"stamp;\toffset:0;\tsize:4"), "begin unlike"),
        (small(b"\0" * 100).version_7(), "the last is cut off"),
        (crowd(), "processors in all ring buffers"),
        (OVERLAP, "more bytes than the file has"),
        (CLOCKS, "different trace clocks .boot, mono"),
        (small(page(T, b"\0" * 8)).version_7(), "record whose size is wrong.*CPU 0"),
        (small(page(T, word(20, 0))).version_7(), "record whose size is wrong"),
        (small(page(T, data(struct.pack("<Hxxi", FAULT, 1)))).version_7(), "too short for the fields"),
        (small(page((1 << 63) + 1, data(fault(A)))).version_7(), "impossible time"),
        (small(page(T)[:8] + struct.pack("<Q", 4081) + bytes(4080)).version_7(), "fuller than it is large"),
        (TWO, "in several ring buffers"),
        (small(formats=[("x", [fault_format()])]).version_7(), "no exceptions:page_fault_user.*trace-cmd record"),
        (replaced("work-v7", b"long address;", b"long addresz;"), "no number 'address'"),
        (replaced("work-v7", b"name: page_fault_user", b"name: page_fault_xxxx"), "page_fault_user"),
        (V7[: CHUNK + 8] + struct.pack("<I", 8192) + V7[CHUNK + 12 :], "4096 bytes compressed where 8192"),
        (V7[: CHUNK + 8] + struct.pack("<I", 1 << 31) + V7[CHUNK + 12 :], "chunk of 2147483648 bytes"),
        (V7[: CHUNK + 4] + struct.pack("<I", 1 << 31) + V7[CHUNK + 8 :], "chunk that is cut off"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_damage_is_refused_in_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    assert re.search(words, refused(tmp_path, content))


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("codec", ["zstd", "zlib"])
@pytest.mark.parametrize("where", ["section", "chunk"])
def test_nothing_expands_further_than_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, codec: str, known: bool
) -> None:
    """Sixty-four megabytes of nothing, whether or not the compressed data say that this is what they hold."""
    bomb = zstandard.ZstdCompressor(level=19, write_content_size=known).compress(bytes(1 << 26))
    bomb = zlib.compress(bytes(1 << 26)) if codec == "zlib" else bomb
    plain = COMPRESS[codec]
    monkeypatch.setitem(COMPRESS, codec, lambda body: bomb if where == "section" or len(body) == 4096 else plain(body))
    content = small().version_7(codec)
    words = "more than the announced|cannot expand|bytes compressed where"
    assert re.search(words, refused(tmp_path, content))
    tracemalloc.start()
    with pytest.raises(FaultpathError, match=words):
        expand(codec, memoryview(bomb), 4096, "")
    assert tracemalloc.get_traced_memory()[1] < 1 << 18
    tracemalloc.stop()


def test_sections_of_options_that_go_round_are_refused(tmp_path: Path) -> None:
    content = bytearray(small().version_7())
    first = struct.unpack_from("<Q", content, content.index(b"none\0001\0") + 7)[0]
    struct.pack_into("<Q", content, len(content) - 8, first)
    assert "without an end" in refused(tmp_path, bytes(content))


TINY = small(page(T, data(fault(A)), size=512), page_size=512, machine_page=512)


@pytest.mark.parametrize("content", [TINY.version_6(), *(TINY.version_7(codec) for codec in ("none", "zlib", "zstd"))])
def test_truncation_at_every_byte(save, content: bytes) -> None:  # type: ignore[no-untyped-def]
    for size in range(1, len(content)):
        with pytest.raises(FaultpathError):
            imported(save(content[:size]))


@pytest.mark.parametrize("name", RECORDINGS)
def test_truncated_recordings_are_refused_or_whole(save, name: str) -> None:  # type: ignore[no-untyped-def]
    """What lies behind the last thing needed, as the names of sections, may be missing."""
    content = bundled(name).read_bytes()
    whole = ours(bundled(name))
    for size in range(1, len(content), 101):
        try:
            found = ours(save(content[:size]))
        except FaultpathError:
            continue
        assert found == whole
        assert size > len(content) - 200


def test_mutated_recordings_never_crash_the_reader() -> None:
    tried, accepted = fuzzing.run("trace.dat", 1 << 30, seed=7, seconds=4)
    small = fuzzing.run("trace.dat", 1 << 30, seed=8, seconds=4, seeds=small_files())
    assert small[0] > small[1] > 0
    assert tried > 300
    assert 0 < accepted < tried


# Live

PROGRAMS = {
    "true": ["true"],
    "threads and processes": [
        sys.executable,
        "-c",
        "import threading, subprocess\n"
        "ts = [threading.Thread(target=bytearray, args=(1 << 22,)) for _ in range(8)]\n"
        "[t.start() for t in ts]; [subprocess.run(['true']) for _ in range(3)]; [t.join() for t in ts]",
    ],
    "shell": ["sh", "-c", "for i in 1 2 3 4; do ls / | cat > /dev/null & done; wait"],
}
INSTANCE = "faultpath-test"


def trace_cmd_record(path: Path, how: list[str], program: list[str]) -> None:
    """Record into a ring buffer of its own, so that nobody else's tracing is disturbed.

    -d and -k leave alone what a container may not write: the function tracer and its filters.
    """
    if not shutil.which("trace-cmd"):
        pytest.skip("trace-cmd is not installed")
    events = trace_cmd_command().split()[4:-1]
    command = ["trace-cmd", "record", "-q", "-d", "-k", "-B", INSTANCE, "-o", path, *how, *events, *program]
    buffer = Path("/sys/kernel/tracing/instances", INSTANCE)
    for _ in range(5):
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        finally:
            if buffer.is_dir():
                buffer.rmdir()
        if done.returncode or not path.exists():
            pytest.skip(f"trace-cmd cannot record here: {done.stderr.strip()[:200]}")
        if "can not stat" not in done.stderr:  # its recorders had not begun when a short program was over
            break


@pytest.mark.live
@pytest.mark.parametrize(
    "how",
    [["--file-version", "6"], ["--compression", "none"], ["--compression", "any"], ["-b", "8"], ["-C", "mono"]],
    ids=lambda words: words[-1],
)
@pytest.mark.parametrize("program", PROGRAMS)
def test_live_recording_agrees_with_trace_cmd(tmp_path: Path, program: str, how: list[str]) -> None:
    path = tmp_path / "trace.dat"
    trace_cmd_record(path, how, PROGRAMS[program])
    text = report(path)
    assert ours(path) == parse(text)
    meta, rows = imported(path)
    assert len(rows) > 40
    assert meta.lost_events >= dropped(text)


def without_last_words(rows: list[Row], golden: list[Row]) -> list[Row]:
    """Trace-cmd's rows, but for one CLEAR of a page that a thread has behind all that perf has of it.

    A thread that ends writes to its clear_child_tid. If another has forked meanwhile, that breaks copy-on-write, and
    perf has left the thread by then (seen on Linux 6.18).
    """
    told = Counter(row[1] for row in golden)
    seen: Counter[int] = Counter()
    kept = []
    for row in rows:
        seen[row[1]] += 1
        if seen[row[1]] != told[row[1]] + 1 or row[3:4] + row[5:] != ("INVALIDATE", 4096, Event.CLEAR, Op.FAULT):
            kept.append(row)
    return kept


@pytest.mark.live
@pytest.mark.parametrize("program", ["work", "births"])
def test_perf_and_trace_cmd_tell_the_same_story(tmp_path: Path, program: str) -> None:
    """Both record the same run; what perf cannot tell of clone3, and of threads that end, is left out."""
    if not shutil.which("perf"):
        pytest.skip("perf is not installed")
    binary = tmp_path / program
    subprocess.run(["cc", "-static", "-O1", "-w", "-pthread", "-o", binary, DATA / f"{program}.c"], check=True)
    theirs, path = tmp_path / "perf.data", tmp_path / "trace.dat"
    perf = ["perf", "record", "-q", "-o", str(theirs), "-e", record_command().split()[3], "--", str(binary)]
    trace_cmd_record(path, ["-C", "perf"], perf)
    if not theirs.exists():
        pytest.skip("perf cannot record here")
    meta, golden = imported(theirs)
    _, rows = imported(path)
    family = {process["pid"] for process in meta.processes}
    golden, rows = ([row for row in some if row[0] in family and row[3] != "VMA"] for some in (golden, rows))
    rows = without_last_words(rows[next(i for i, row in enumerate(rows) if row[3] == "EXEC") :], golden)
    assert len(rows) == len(golden) > 60
    for some in (rows, golden):  # the two stamp an event one after the other: what two processors do may change places
        some.sort(key=lambda row: row[1])
    odd = [(mine, perfs) for mine, perfs in zip(rows, golden, strict=True) if mine != perfs]
    # posix_spawn: CLONE_VM | CLONE_VFORK, which only task_newtask tells, and the child's faults before its exec.
    assert all((mine[3] == "FORK" and mine[7] & CLONE_VFORK) or mine[3] == "FAULT" for mine, _ in odd)
    assert len(odd) <= (0 if program == "work" else 4)
