"""The perf script reader: against the perf.data its text is of, line by line, and against damage."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from perf_script import perf_script

from faultpath.errors import FaultpathError
from faultpath.trace.formats import recognise, record_command
from faultpath.trace.importing import import_recording
from faultpath.trace.ops import Op
from faultpath.trace.schema import COLUMNS, Columns, TraceMeta, open_trace

DATA = Path(__file__).parent / "data"
RECORDINGS = ["file", "pipe", "z"]
WHOLE = ["-F", "comm,pid,tid,cpu,time,event,trace", "--ns", "--header"]
RECORDS = ["--show-task-events", "--show-mmap-events", "--show-lost-events"]


def imported(path: Path, output: Path) -> tuple[Columns, TraceMeta]:
    meta = import_recording(path, output)
    pieces = list(open_trace(output).batches())
    return {n: np.concatenate([p[n] for p in pieces]) for n in COLUMNS} if pieces else {}, meta


def listed(columns: Columns, *names: str) -> list[tuple[int, ...]]:
    return list(zip(*(columns[name].astype(np.int64).tolist() for name in names), strict=True))


@pytest.mark.parametrize("name", RECORDINGS)
def test_bundled_text_gives_the_rows_of_its_recording(tmp_path: Path, name: str) -> None:
    """All but what only records of tasks and mappings tell; the texts are perf 6.1's, without them."""
    ours, meta = imported(DATA / f"{name}.txt", tmp_path / "t")
    theirs, of_binary = imported(DATA / f"{name}.perf.data", tmp_path / "b")
    told = ~np.isin(theirs["op"], [Op.FORK, Op.EXEC, Op.EXIT, Op.VMA])
    columns = ["time", "tid", "cpu", "op", "addr", "len", "arg", "aux"]
    rest = {n: c[told] for n, c in theirs.items()}
    kept = ~np.isin(ours["op"], [Op.FORK, Op.EXEC])
    assert listed({n: c[kept] for n, c in ours.items()}, *columns) == listed(rest, *columns)
    assert len(rest["time"]) > 40
    assert meta.dropped == of_binary.dropped
    assert (meta.format, meta.invalidations_from) == ("perf script", of_binary.invalidations_from)
    assert [p["comm"] for p in meta.processes] == ["work"] * len(meta.processes)


PROGRAM = [
    sys.executable,
    "-c",
    "import threading, subprocess, os; ts = [threading.Thread(target=bytearray, args=(1 << 22,)) for _ in range(8)];"
    "[t.start() for t in ts]; [subprocess.run(['true']) for _ in range(3)]; [t.join() for t in ts];"
    "os.fork() or (open('/proc/self/comm', 'w').write('a 1/1 [0] 1.5: '), bytearray(1 << 22), os._exit(0))",
]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("perf"):
        pytest.skip("perf is not installed")
    path = tmp_path_factory.mktemp("recording") / "perf.data"
    command = ["perf", "record", "-q", "-g", "-m", "8M", "-o", path, "-e", record_command().split()[3], "--", *PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True)
    if not path.exists() or not path.stat().st_size:
        pytest.skip(f"perf cannot record here: {done.stderr.strip()[:200]}")
    return path


def script(recording: Path, text: Path, *how: str) -> Path:
    with text.open("wb") as out:
        subprocess.run(["perf", "script", "-i", recording, *how], stdout=out, stderr=subprocess.DEVNULL, check=True)
    return text


LAYOUTS = {
    "all there is": [*WHOLE, *RECORDS],
    "call chains": ["-F", "+pid,+period", "--ns", *RECORDS],
    "threads only": ["-G", "--ns", *RECORDS],
    "microseconds": RECORDS,
}


@pytest.mark.live
@pytest.mark.parametrize("layout", LAYOUTS)
def test_live_text_gives_the_rows_of_its_recording(tmp_path: Path, recording: Path, layout: str) -> None:
    ours, meta = imported(script(recording, tmp_path / "text", *LAYOUTS[layout]), tmp_path / "t")
    theirs, of_binary = imported(recording, tmp_path / "b")
    rows = ("pid", "tid", "cpu", "op", "addr", "len", "arg")
    assert listed(ours, *rows) == listed(theirs, *rows)
    other = theirs["op"] != Op.VMA  # of a mapping's flags the text says whether it is shared
    assert (ours["aux"][other] == theirs["aux"][other]).all()
    # A record of a task is printed with the time at which perf wrote it; else the text's precision is what differs.
    late = ours["time"] - theirs["time"]
    told = ~np.isin(ours["op"], [Op.FORK, Op.EXIT])
    assert (abs(late[told]) < (1000 if layout == "microseconds" else 1)).all()
    assert (abs(late) < 100_000).all()
    assert meta.dropped == of_binary.dropped
    assert [p["parent"] for p in meta.processes] == [p["parent"] for p in of_binary.processes]
    if layout == "all there is":
        assert (meta.kernel, meta.arch) == (of_binary.kernel, of_binary.arch)
        assert meta.command == " ".join(of_binary.command).split()
        assert meta.missing[:-1] == of_binary.missing
        assert meta.invalidations_from == of_binary.invalidations_from == "model"  # no KVM descriptor: no tap


@pytest.mark.live
def test_a_hostile_name_is_only_a_name(tmp_path: Path, recording: Path) -> None:
    text = perf_script(recording)
    assert " a 1/1 [0] 1.5:" in text
    (tmp_path / "text").write_text(text)
    _, meta = imported(tmp_path / "text", tmp_path / "t")
    assert "a 1/1 [0] 1.5:" in {p["comm"] for p in meta.processes}
    assert meta.dropped.keys() <= {"failed mmap", "failed execve", "failed clone", "failed madvise"}


# Line by line.

FAULT = "exceptions:page_fault_user: address=0x1234 ip=0x5 error_code=0x6"


def head(second: float | str, pid: int = 10, tid: int | None = None) -> str:
    tid = pid if tid is None else tid
    return f"{'work':>16} {pid:>5}/{tid:<5} [001] {second:>12}: "


class Script:
    """Lines; those of an event get process 10, its first thread, and the number of the line as time in seconds."""

    def __init__(self, folder: Path, *lines: str | bytes) -> None:
        data = b""
        for number, line in enumerate(lines, 1):
            body = line.encode() if isinstance(line, str) else line
            own = body.startswith((b"exceptions:", b"syscalls:", b"kvm:", b"PERF_"))
            data += (head(f"{number}.000000").encode() if own else b"") + body + b"\n"
        (folder / "in.txt").write_bytes(data)
        self.columns, self.meta = imported(folder / "in.txt", folder / "out")
        names = [Op(o).name for o in self.columns["op"]]
        self.rows = [
            (o, *r) for o, r in zip(names, listed(self.columns, "pid", "tid", "addr", "len", "arg", "aux"), strict=True)
        ]


@pytest.mark.parametrize(
    ("line", "who"),
    [
        (f"            work    10/11    [001]     1.000002:  {FAULT}", (10, 11, 1, 1_000_002_000)),
        (f"            work    10/11    [001]     1.000000002:  {FAULT}", (10, 11, 1, 1_000_000_002)),
        (f"            work    10       [001]     1.000002:  {FAULT}", (10, 10, 1, 1_000_002_000)),
        (f"            work    10           1.000002:  {FAULT}", (10, 10, -1, 1_000_002_000)),
        (f"work 10 [001] 1.000002: {FAULT}", (10, 10, 1, 1_000_002_000)),
        (f"            work    10/11    [001]     1.000002:        1  {FAULT}", (10, 11, 1, 1_000_002_000)),
        (f" a b/1 [0] 12 3.5   10/11    [001]     1.000002: {FAULT}", (10, 11, 1, 1_000_002_000)),
        (f"                    10/11    [001]     1.000002: {FAULT}", (10, 11, 1, 1_000_002_000)),
        (f"   10/11    [127]     1.000002: {FAULT}\r", (10, 11, 127, 1_000_002_000)),
        (f"            \xff\xfe    10/11    [001]     1.000002: {FAULT}", (10, 11, 1, 1_000_002_000)),
        (f"   10/11    [001]     1.000002: {FAULT.replace('user:', 'user:u:')}", (10, 11, 1, 1_000_002_000)),
        (f"  1 1.000000: a:    10/11    [001]     1.000002: {FAULT}", (10, 11, 1, 1_000_002_000)),
    ],
)  # fmt: skip
def test_heads_of_lines(tmp_path: Path, line: str, who: tuple[int, ...]) -> None:
    found = Script(tmp_path, line.encode("latin1"))
    assert listed(found.columns, "pid", "tid", "cpu", "time") == [who]
    assert found.rows[0][3:] == (0x1234, 0, 6, 0)
    assert found.meta.dropped == {}


@pytest.mark.parametrize(
    ("call", "fields", "ret", "row"),
    [
        ("mmap", "addr: 0x00000000, len: 0x00001001, prot: 0x00000003, flags: 0x00000022, fd: 0xffffffff, off: 0x0",
         "0x7f0000001000", ("MMAP", 0x7F0000001000, 8192, 3, 0x22)),
        ("munmap", "addr: 0x1000, len: 0x1000", "0x0", ("MUNMAP", 0x1000, 4096, 0, 0)),
        ("mremap", "addr: 0x1000, old_len: 0x1000, new_len: 0x2000, flags: 0x00000001, new_addr: 0x00000000", "0x9000",
         ("MREMAP", 0x1000, 4096, 0x9000, 8193)),
        ("mprotect", "start: 0x1000, len: 0x1000, prot: 0x00000001", "0x0", ("MPROTECT", 0x1000, 4096, 1, 0)),
        ("madvise", "start: 0x1000, len_in: 0x1000, behavior: 0x00000004", "0x0", ("MADVISE", 0x1000, 4096, 4, 0)),
        ("mbind", "start: 0x1000, len: 0x1000, mode: 0x2, nmask: 0x0, maxnode: 0x0, flags: 0x0", "0x0",
         ("MBIND", 0x1000, 4096, 2, 0)),
        ("brk", "brk: 0x00005d40", "0x5d40", ("BRK", 0x5D40, 0, 0, 0)),
        ("clone", "clone_flags: 0x01200011, newsp: 0x00000000", "0xb", ("FORK", 0, 0, 11, 0x1200011)),
        ("execve", 'filename: 0x7ffd "a: 0x1, b", argv: 0x7f, envp: 0x7f', "0x0", ("EXEC", 0, 0, 0, 0)),
        ("munmap", "addr: 0x1000, len: 0x1000", "0xfffffffffffffff4", None),
    ],
)  # fmt: skip
def test_a_call_and_its_row(tmp_path: Path, call: str, fields: str, ret: str, row: tuple | None) -> None:
    found = Script(tmp_path, FAULT, f"syscalls:sys_enter_{call}: {fields}", f"syscalls:sys_exit_{call}: {ret}")
    assert [(r[0], *r[3:]) for r in found.rows[1:]] == ([] if row is None else [row])
    assert found.columns["time"].tolist() == [1_000_000_000, 3_000_000_000][: len(found.rows)]


def test_invalidations(tmp_path: Path) -> None:
    tap = "kvm:kvm_unmap_hva_range: mmu notifier unmap range: 0x00001000 -- 0x00003000"
    found = Script(tmp_path, FAULT, tap)
    assert found.rows[1] == ("INVALIDATE", 10, 10, 0x1000, 0x2000, 1, Op.FAULT)
    assert found.meta.invalidations_from == "tap"


def test_records_of_tasks_and_mappings(tmp_path: Path) -> None:
    found = Script(
        tmp_path,
        FAULT,
        "PERF_RECORD_FORK(11:11):(10:10)",
        "PERF_RECORD_COMM exec: a:1/2: b:11/11",
        "PERF_RECORD_MMAP2 11/11: [0x400000(0x1001) @ 0x1000 fe:00 338944 0]: rw-p /a ]: r-xs b",
        "PERF_RECORD_MMAP2 11/11: [0x500000(0x1000) @ 0x1000 <0123456789abcdef>]: --xs /a",
        "PERF_RECORD_MMAP 11/11: [0x600000(0x1000) @ 0x1000]: x /a",
        "PERF_RECORD_MMAP -1/0: [0xffffffff81000000(0x120bb08) @ 0xffffffff81000000]: x [kernel.kallsyms]_text",
        "PERF_RECORD_EXIT(11:11):(10:10)",
        "PERF_RECORD_LOST lost 17",
        "PERF_RECORD_LOST_SAMPLES lost 5",
        "PERF_RECORD_UNHEARD_OF 7",
    )
    assert found.rows[1:] == [
        ("FORK", 10, 10, 0, 0, 11, 0),
        ("EXEC", 11, 11, 0, 0, 0, 0),
        ("VMA", 11, 11, 0x400000, 0x2000, 3, 2),
        ("VMA", 11, 11, 0x500000, 0x1000, 4, 1),
        ("VMA", 11, 11, 0x600000, 0x1000, 5, 0),
        ("EXIT", 11, 11, 0, 0, 0, 0),
    ]
    assert (found.meta.lost_events, found.meta.lost_samples, found.meta.dropped) == (17, 5, {})


def test_a_thread_alone_finds_its_process_in_the_records(tmp_path: Path) -> None:
    alone = f"            work    11    [001]     9.000000: {FAULT}"
    assert Script(tmp_path, "PERF_RECORD_FORK(10:11):(10:10)", alone).rows == [("FAULT", 10, 11, 0x1234, 0, 6, 0)]
    guessed = Script(tmp_path, alone)
    assert guessed.rows == [("FAULT", 11, 11, 0x1234, 0, 6, 0)]
    assert any("The process of 1 events" in said for said in guessed.meta.missing)


def test_half_of_a_call_is_not_used(tmp_path: Path) -> None:
    """Inside a call that never ends, an invalidation would get a wrong type."""
    tap = "kvm:kvm_unmap_hva_range: mmu notifier unmap range: 0x00001000 -- 0x00003000"
    found = Script(tmp_path, FAULT, "syscalls:sys_enter_munmap: addr: 0x1000, len: 0x2000", tap)
    assert found.rows[1][5:] == (1, Op.FAULT)
    exits = Script(tmp_path, FAULT, "syscalls:sys_exit_munmap: 0x0", tap)
    assert (exits.meta.dropped, len(exits.rows)) == ({}, 2)
    assert any("munmap" in said and "not recorded, or did not occur" in said for said in exits.meta.missing)


def test_what_makes_no_row_is_counted(tmp_path: Path) -> None:
    found = Script(
        tmp_path,
        FAULT,
        "# a comment",
        "",
        "\tffffffff821f5340 exc_page_fault+0x2f0 ([kernel.kallsyms])",
        "syscalls:sys_enter_read: fd: 0x00000003",
        "exceptions:page_fault_user: address=__per_cpu_end ip=0x5 error_code=0x6",
        "kvm:kvm_unmap_hva_range: mmu notifier unmap range: here -- there",
        "PERF_RECORD_FORK(11:11)",
        "not a line of perf's",
        b"\0\xff" * 50,
    )
    assert len(found.rows) == 1
    assert found.meta.dropped == {"lines not understood": 3, "lines not perf script's": 2}


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    said = " ".join(Script(tmp_path, FAULT).meta.missing)
    assert "--show-task-events" in said
    assert "--show-mmap-events" in said
    assert "did not occur" in said
    (tmp_path / "cut").write_text(head("1.000000") + FAULT)
    assert "stops inside a line" in imported(tmp_path / "cut", tmp_path / "t")[1].missing[-1]


def test_without_page_faults_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").write_text(head("1.000000") + "exceptions:page_fault_kernel: address=0x1 ip=0x5 error_code=0x6\n")
    with pytest.raises(FaultpathError, match="closest: exceptions:page_fault_kernel"):
        import_recording(tmp_path / "in", tmp_path / "t")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    "line",
    [
        "            work-10    [001]     1.000002: sys_enter_mmap: addr: 0x1",
        "            work-10    [001] d..1.    1.000002: sys_mmap(addr: 1)",
        "[    1.000002] e820: BIOS-provided physical RAM map:",
        "     1.000002      120.50 msec task-clock                #    0.997 CPUs utilized",
    ],
)
def test_other_tools_text_is_not_recognised(tmp_path: Path, line: str) -> None:
    (tmp_path / "in").write_text(line + "\n")
    with pytest.raises(FaultpathError, match="not a recording"):
        recognise(tmp_path / "in")


def test_addresses_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FaultpathError, match="not canonical"):
        Script(tmp_path, "exceptions:page_fault_user: address=0x4000000000000000 ip=0x5 error_code=0x6")
    assert not (tmp_path / "out").exists()
