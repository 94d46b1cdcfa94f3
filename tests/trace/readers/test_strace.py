"""The strace reader: against perf's record of the same run, line by line, and against damage."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import perf_script
import pytest

from faultpath.errors import FaultpathError
from faultpath.trace.formats import recognise, record_command
from faultpath.trace.importing import import_recording
from faultpath.trace.ops import Op
from faultpath.trace.schema import TraceMeta, open_trace

DATA = Path(__file__).parent / "data"
#: data/tasks.c under strace 6.1 on Linux 6.18: -f -ttt to a file, and with -T -y to standard error. Beside each the
#: system calls that perf 6.1 recorded of the same run, as perf script prints them (-F as in perf_script.py).
SAMPLES = ["tasks", "tasks-stderr"]
NOW = 1700000000

Row = tuple[str, int, int, int, int, int, int]


def imported(path: Path, output: Path) -> tuple[list[Row], TraceMeta]:
    """(op, pid, tid, addr, len, arg, aux) of each row."""
    meta = import_recording(path, output)
    columns = ("pid", "tid", "addr", "len", "arg", "aux")
    rows = [
        (Op(op).name, *(int(c[name][i]) for name in columns))
        for c in open_trace(output).batches()
        for i, op in enumerate(c["op"])
    ]
    return rows, meta


class Strace:
    """Lines, imported: those that begin with a call or a note get a thread and a time."""

    def __init__(self, folder: Path, *lines: str | bytes, prefix: str = "10 ") -> None:
        data = b""
        for number, line in enumerate(lines):
            body = line.encode() if isinstance(line, str) else line
            data += (
                body
                if re.match(rb"[0-9,)]|\[pid| <| >|strace", body)
                else f"{prefix}{NOW}.{number:06} ".encode() + body
            )
            data += b"\n"
        (folder / "in.strace").write_bytes(data)
        self.rows, self.meta = imported(folder / "in.strace", folder / "out.trace")
        pieces = list(open_trace(folder / "out.trace").batches())
        self.times = [int(t) - NOW * 10**9 for p in pieces for t in p["time"]]


MEMORY = ("mmap", "munmap", "mremap", "mprotect", "pkey_mprotect", "madvise", "mbind", "brk")
PAGE = 4095


def rows_of_perf(text: str) -> tuple[dict[int, list[Row]], set[tuple[int, int]], list[int]]:
    """By thread, the rows that perf script's text of the same run makes of memory calls; forks (parent's thread,
    child); processes that called exec. Plain, and by nothing that the reader uses."""
    rows: dict[int, list[Row]] = {}
    forks, execs = set(), []
    entered: dict[int, tuple[str, tuple[int, ...]]] = {}
    for pid, tid, _, _, event, numbers in perf_script.parse(text):
        way, _, call = event.removeprefix("syscalls:sys_").partition("_")
        if way == "enter":
            entered[tid] = (call, numbers)
            continue
        ret = numbers[0]
        name, args = entered.pop(tid, ("", ()))
        if ret >= 1 << 63:
            continue
        if call.startswith("exec"):
            execs.append(pid)
        elif call in ("fork", "vfork", "clone", "clone3"):
            if ret and not (call == "clone" and args[0] & 0x10000):
                forks.add((tid, ret))
        elif name == call and call in MEMORY:
            addr, length = args[0], (args[1] + PAGE & ~PAGE) if len(args) > 1 else 0
            arg = args[2] if len(args) > 2 else 0
            aux = 0
            if call == "mmap":
                addr, aux = ret, args[3]
                length = 2 << 20 if aux & 0x40000 else length  # the one huge page of data/tasks.c
            elif call == "mremap":
                arg, aux = ret, (args[2] + PAGE & ~PAGE) | args[3]
            elif call == "brk":
                addr = ret
            if length or call == "brk":
                rows.setdefault(tid, []).append((call.removeprefix("pkey_").upper(), pid, tid, addr, length, arg, aux))
    return rows, forks, execs


def agree(rows: list[Row], perf_text: str) -> None:
    expected, forks, execs = rows_of_perf(perf_text)
    assert len(expected) > 5
    found: dict[int, list[Row]] = {}
    for row in rows:
        if row[0].lower() in MEMORY:
            found.setdefault(row[2], []).append(row)
    assert found == expected
    made = {(row[2], row[5]) for row in rows if row[0] == "FORK"}
    threads = {child for _, child in forks} - {child for _, child in made}  # by clone3, whose flags perf does not show
    assert made <= forks
    pids = {row[1] for of_thread in expected.values() for row in of_thread}
    assert not threads & pids
    assert sorted(row[1] for row in rows if row[0] == "EXEC") == sorted(execs)
    assert {row[1] for row in rows if row[0] == "EXIT"} == pids | {child for _, child in made}


@pytest.mark.parametrize("name", SAMPLES)
def test_bundled_sample_agrees_with_perf(tmp_path: Path, name: str) -> None:
    rows, meta = imported(DATA / f"{name}.strace", tmp_path / "t.trace")
    agree(rows, (DATA / f"{name}.txt").read_text())
    assert (meta.format, meta.invalidations_from, meta.clock) == ("strace", "model", "realtime")
    again = {"failed clone": 1} if name == "tasks-stderr" else {}  # interrupted, and called again
    assert meta.dropped == {"failed munmap": 9, "failed execve": 2, "mbind of nothing": 1, **again}
    assert {p["comm"] for p in meta.processes} <= {"exe", "tasks"}
    first = meta.processes[0]["pid"]
    assert all(p["parent"] == first for p in meta.processes[1:])


FORMS = {
    "file": ["-o", "OUT"],
    "stderr": [],
    "raw": ["-X", "raw", "-o", "OUT"],
    "verbose": ["-X", "verbose", "-T"],
    "decorated": ["-y", "-Y", "-T", "-o", "OUT"],
    "addresses and numbers": ["-i", "-n"],
    "both times": ["-r", "-o", "OUT"],
}


@pytest.mark.live
@pytest.mark.parametrize("form", FORMS)
def test_live_recording_agrees_with_perf(tmp_path: Path, form: str) -> None:
    if not shutil.which("perf") or not shutil.which("strace") or not shutil.which("cc"):
        pytest.skip("perf, strace or a C compiler is not installed")
    subprocess.run(["cc", "-O1", "-pthread", "-o", tmp_path / "tasks", DATA / "tasks.c"], check=True)
    out = tmp_path / "strace"
    events = ",".join(e for e in record_command().split()[3].split(",") if e.startswith("syscalls"))
    strace = ["strace", "-f", "-ttt", *(str(out) if word == "OUT" else word for word in FORMS[form])]
    perf = ["perf", "record", "-q", "-m", "4M", "-o", tmp_path / "perf.data", "-e", events, "--"]
    done = subprocess.run([*perf, *strace, tmp_path / "tasks"], capture_output=True)
    if not (tmp_path / "perf.data").exists():
        pytest.skip(f"perf cannot record here: {done.stderr.decode().strip()[:200]}")
    if "OUT" not in FORMS[form]:
        out.write_bytes(done.stderr)
    if not out.exists() or b"execve" not in out.read_bytes():
        pytest.skip("strace cannot trace here")
    rows, _ = imported(out, tmp_path / "t.trace")
    text = perf_script.perf_script(tmp_path / "perf.data")
    traced = {row[2] for row in rows} | {row[5] for row in rows if row[0] == "FORK"}
    mine = [line for line in text.split("\n") if (m := re.search(r"(\d+) +\[", line)) and int(m[1]) in traced]
    # strace's own child execs the program: what it did before is not in strace's text.
    start = next(i for i, line in enumerate(mine) if "sys_exit_execve: 0x0" in line)
    agree(rows, "\n".join(mine[start:]))


# Line by line.

ONE = "mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f0000001000"


def one(folder: Path, line: str | bytes) -> Row | None:
    first, *found = Strace(folder, ONE, line).rows
    assert first[0] == "MMAP"
    assert len(found) <= 1
    return found[0] if found else None


@pytest.mark.parametrize(
    ("line", "row"),
    [
        (ONE, ("MMAP", 0x7F0000001000, 4096, 3, 0x22)),
        ("mmap(NULL, 5, 0x3, 0x22, -1, 0) = 0x7f0000001000", ("MMAP", 0x7F0000001000, 4096, 3, 0x22)),
        (
            "mmap(NULL, 5, 0x3 /* PROT_READ|PROT_WRITE */, 0x20022 /* MAP_PRIVATE|... */, -1 /* ) = 7 */, 0) = 0x1000",
            ("MMAP", 0x1000, 4096, 3, 0x20022),
        ),
        (
            "mmap(NULL, 4096, PROT_READ, MAP_PRIVATE|0x10 /* MAP_??? */, 3, 0) = 0x1000",
            ("MMAP", 0x1000, 4096, 1, 0x12),
        ),
        ("mmap(0x1000, 4096, PROT_NONE, MAP_SHARED, 3</a) = 9, \"b>, 0) = 0x1000", ("MMAP", 0x1000, 4096, 0, 1)),
        (
            "mmap(NULL, 4096, PROT_NONE, MAP_SHARED, 3<TCP:[1.2.3.4:5->6.7.8.9:10]>, 0) = 0x1000",
            ("MMAP", 0x1000, 4096, 0, 1),
        ),
        (
            "mmap(NULL, 1, PROT_READ, MAP_PRIVATE|MAP_HUGETLB|30<<MAP_HUGE_SHIFT, -1, 0) = 0x40000000",
            ("MMAP", 1 << 30, 1 << 30, 1, 0x40002 | 30 << 26),
        ),
        ("mmap2(NULL, 4096, PROT_EXEC, MAP_PRIVATE, 3, 0) = 0xf7000000", ("MMAP", 0xF7000000, 4096, 4, 2)),
        ("munmap(0x1000, 8192)                    = 0", ("MUNMAP", 0x1000, 8192, 0, 0)),
        ("munmap(0x1000, 8192) = 0 <0.000012>", ("MUNMAP", 0x1000, 8192, 0, 0)),
        ("munmap(0x1000, 8192) = 0\r", ("MUNMAP", 0x1000, 8192, 0, 0)),
        ("munmap(0x1000, 8192) = 0 (DELAYED)", ("MUNMAP", 0x1000, 8192, 0, 0)),
        ("munmap(0x1000, 8192) = 0 (INJECTED)", None),
        ("munmap(0x1000, 8192) = -1 EINVAL (Invalid argument)", None),
        ("munmap(0x1000, 8192) = ?", None),
        ("munmap(0x1000, 8192) = ? ERESTARTSYS (To be restarted if SA_RESTART is set)", None),
        ("mremap(0x1000, 4096, 5000, MREMAP_MAYMOVE) = 0x9000", ("MREMAP", 0x1000, 4096, 0x9000, 8192 | 1)),
        (
            "mremap(0x1000, 4096, 4096, MREMAP_MAYMOVE|MREMAP_FIXED, 0x9000) = 0x9000",
            ("MREMAP", 0x1000, 4096, 0x9000, 4096 | 3),
        ),
        ("mremap(0x1000, 4096, 5000, 0x1 /* MREMAP_MAYMOVE */) = 0x9000", ("MREMAP", 0x1000, 4096, 0x9000, 8193)),
        ("mremap(0x1000, 4096, 4096, 0) = 0x1000", ("MREMAP", 0x1000, 4096, 0x1000, 4096)),
        ("mprotect(0x1000, 4096, PROT_READ|PROT_GROWSDOWN) = 0", ("MPROTECT", 0x1000, 4096, 0x1000001, 0)),
        ("pkey_mprotect(0x1000, 4096, PROT_READ, 1) = 0", ("MPROTECT", 0x1000, 4096, 1, 0)),
        ("madvise(0x1000, 4096, MADV_DONTNEED) = 0", ("MADVISE", 0x1000, 4096, 4, 0)),
        ("madvise(0x1000, 4096, 0x77 /* MADV_??? */) = 0", ("MADVISE", 0x1000, 4096, 0x77, 0)),
        ("mbind(0x1000, 4096, MPOL_BIND|MPOL_F_STATIC_NODES, [0], 4, 0) = 0", ("MBIND", 0x1000, 4096, 0x8002, 0)),
        ("brk(NULL)               = 0x5000", ("BRK", 0x5000, 0, 0, 0)),
        ("brk(0x5d40)             = 0x5d40", ("BRK", 0x5D40, 0, 0, 0)),
        ("[   9] [00007f65c724bad7] brk(NULL) = 0x5000", ("BRK", 0x5000, 0, 0, 0)),
        ("(+     0.000974) brk(NULL) = 0x5000", ("BRK", 0x5000, 0, 0, 0)),
        ("brk(0x5d40 <unfinished ...>", None),
        ("brk(0x5d40 <detached ...>", None),
        ("fork()                  = 11", ("FORK", 0, 0, 11, 17)),
        ("vfork()                 = 11", ("FORK", 0, 0, 11, 0x4111)),
        ("clone(child_stack=NULL, flags=CLONE_FS|SIGCHLD, child_tidptr=0x7) = 11", ("FORK", 0, 0, 11, 0x211)),
        ("clone(child_stack=NULL, flags=0x1000000 /* C */|17 /* S */) = 11", ("FORK", 0, 0, 11, 0x1000011)),
        ("clone3({flags=CLONE_VM|CLONE_VFORK, exit_signal=SIGCHLD, stack=0x7}, 88) = 11", ("FORK", 0, 0, 11, 0x4111)),
        ("clone(child_stack=0x7, flags=CLONE_VM|CLONE_THREAD) = 11", None),
        ("fork() = 3 /* 11 in strace's PID NS */", ("FORK", 0, 0, 11, 17)),
        ("fork() = 11<sh>", ("FORK", 0, 0, 11, 17)),
        ('execve("/bin/a) = -1 \\"b", ["(", "\\\\"], 0x7 /* 5 vars */) = 0', ("EXEC", 0, 0, 0, 0)),
        ('execve("/none", ["x"...], 0x7 /* 5 vars */) = -1 ENOENT (No such file or directory)', None),
        ("+++ exited with 0 +++", ("EXIT", 0, 0, 0, 0)),
        ("+++ killed by SIGSEGV (core dumped) +++", ("EXIT", 0, 0, 0, 0)),
        ("--- SIGSEGV {si_signo=SIGSEGV, si_code=SEGV_MAPERR, si_addr=0x8} ---", None),
        ('write(1, "munmap(0x1000, 8192) = 0", 24) = 24', None),
    ],
)  # fmt: skip
def test_a_line_and_its_row(tmp_path: Path, line: str, row: tuple | None) -> None:
    found = one(tmp_path, line)
    assert (found if found is None else (found[0], *found[3:])) == row
    assert found is None or found[1:3] == (10, 10)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("munmap(0x1000, 8192) = -1 EINVAL (Invalid argument)", "failed munmap"),
        ("munmap(0x1000, 8192) = 0 (INJECTED)", "failed munmap"),
        ("madvise(0x1000, 0, MADV_DONTNEED) = 0", "madvise of nothing"),
        ("madvise(0x1000, 4096, MADV_UNHEARD_OF) = 0", "madvise not understood"),
        ("mmap(NULL, 4096) = 0x1000", "mmap not understood"),
        ("mmap(NULL, 99999999999999999999999, PROT_READ, MAP_PRIVATE, 3, 0) = 0x1000", "mmap not understood"),
        ("clone(child_stack=NULL) = 11", "clone not understood"),
        ("<... munmap resumed>) = 0", "munmap left, entry not seen"),
        ("10 this is a line of the program's own", "lines not strace's"),
    ],
)
def test_what_makes_no_row_is_counted(tmp_path: Path, line: str, reason: str) -> None:
    found = Strace(tmp_path, ONE, line)
    assert (len(found.rows), found.meta.dropped) == (1, {reason: 1})


OWN = ["strace: Process 11 attached with 2 threads", "strace: [ Process PID=10 runs in 32 bit mode. ]"]


def test_lines_of_other_things_are_nothing(tmp_path: Path) -> None:
    found = Strace(
        tmp_path, ONE, " > /lib/x.so(munmap+0x7) [0x1]", "futex(0x7, FUTEX_WAIT", "", "?", "[ Process PID=10 ]"
    )
    assert (len(found.rows), found.meta.dropped) == (1, {})


def test_times(tmp_path: Path) -> None:
    """In one line: the beginning, plus the duration where it is told. In two: that of the second."""
    found = Strace(
        tmp_path,
        f"10 {NOW}.000001 brk(NULL) = 0x5000",
        f"10 {NOW}.000002 brk(NULL) = 0x5000 <0.000005>",
        f"10 {NOW}.000010 brk(NULL <unfinished ...>",
        f"10 {NOW}.000020 <... brk resumed>) = 0x5000 <0.000010>",
        f"10 {NOW}.000030123 brk(NULL) = 0x5000",
        f"10 {NOW}.000025 brk(NULL) = 0x5000",  # a clock set back: rows do not go back
    )
    assert found.times == [1000, 7000, 20000, 30123, 30123]
    assert not [said for said in found.meta.missing if "-T" in said]


def test_calls_of_two_threads_interleave(tmp_path: Path) -> None:
    found = Strace(
        tmp_path,
        "clone(child_stack=0x7, flags=CLONE_VM|CLONE_THREAD) = 11",
        "mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, 3</lib/x>, 0 <unfinished ...>",
        f"11 {NOW}.1 munmap(0x1000, 4096 <unfinished ...>",
        "<... mmap resumed>) = 0x2000",
        f"11 {NOW}.2 <... munmap resumed>) = 0",
    )
    assert [row[:4] for row in found.rows] == [("MMAP", 10, 10, 0x2000), ("MUNMAP", 10, 11, 0x1000)]


CLONES = {
    "clone": ("clone(child_stack=0x7, flags=CLONE_VM|%s", ", parent_tid=[11]) = 11"),
    "clone3": ("clone3({flags=CLONE_VM|%s, stack=0x7, tls=0x8}", " => {parent_tid=[11]}, 88) = 11"),
}


@pytest.mark.parametrize("call", CLONES)
@pytest.mark.parametrize("pending", [1, 2])
def test_a_thread_may_be_seen_before_its_clone_returns(tmp_path: Path, call: str, pending: int) -> None:
    """Of several clones under way, it is the one whose result it is."""
    before, after = CLONES[call]
    lines = [f"8 {NOW}.1 {before % 'CLONE_FS'} <unfinished ...>"] if pending == 2 else []
    found = Strace(
        tmp_path,
        "getpid() = 10",
        *lines,
        f"{before % 'CLONE_THREAD'} <unfinished ...>",
        f"11 {NOW}.2 brk(NULL) = 0x5000",
        f"<... {call} resumed>{after}",
        f"11 {NOW}.3 +++ exited with 0 +++",
        "+++ exited with 0 +++",
    )
    assert [row[:3] for row in found.rows] == [("BRK", 10, 11), ("EXIT", 10, 10)]


def test_without_f_only_the_first_thread_is_seen(tmp_path: Path) -> None:
    found = Strace(tmp_path, "clone(child_stack=0x7, flags=CLONE_VM|CLONE_THREAD) = 11", "+++ exited with 0 +++")
    assert [row[:3] for row in found.rows] == [("EXIT", 10, 10)]


def test_a_child_under_another_number_is_the_only_clones(tmp_path: Path) -> None:
    """In a pid namespace of its own, the result is not the number strace puts before the child's lines."""
    found = Strace(
        tmp_path, "fork( <unfinished ...>", f"777 {NOW}.2 brk(NULL) = 0x5000", "<... fork resumed>) = 2", ONE
    )
    assert [row[:3] for row in found.rows] == [("FORK", 10, 10), ("BRK", 777, 777), ("MMAP", 10, 10)]
    assert found.rows[0][5] == 777


def test_a_thread_from_before_the_recording_is_said(tmp_path: Path) -> None:
    found = Strace(tmp_path, ONE, f"11 {NOW}.2 brk(NULL) = 0x5000")
    assert [row[1] for row in found.rows] == [10, 11]
    assert any("Whose threads 2 of the numbers are" in said for said in found.meta.missing)


def test_a_vfork_child_is_the_parents_until_it_execs(tmp_path: Path) -> None:
    found = Strace(
        tmp_path,
        "vfork( <unfinished ...>",
        f"11 {NOW}.2 munmap(0x1000, 4096) = 0",
        f'11 {NOW}.3 execve("/bin/a", ["a"], 0x7 /* 1 var */ <unfinished ...>',
        "<... vfork resumed>) = 11",
        f"11 {NOW}.4 <... execve resumed>) = 0",
        f"11 {NOW}.5 munmap(0x1000, 4096) = 0",
    )
    assert [row[:2] for row in found.rows] == [("FORK", 10), ("MUNMAP", 10), ("EXEC", 11), ("MUNMAP", 11)]
    assert found.meta.processes == [{"pid": 10, "parent": -1, "comm": ""}, {"pid": 11, "parent": 10, "comm": "a"}]


@pytest.mark.parametrize("changed", ["<unfinished ...>", "<pid changed to 10 ...>"])
def test_exec_by_a_thread_that_does_not_lead(tmp_path: Path, changed: str) -> None:
    found = Strace(
        tmp_path,
        "clone(child_stack=0x7, flags=CLONE_VM|CLONE_THREAD) = 11",
        f'11 {NOW}.1 execve("/a/\\303\\244\\x62", ["b"], 0x7 /* 1 var */ {changed}',
        f"10 {NOW}.2 +++ superseded by execve in pid 11 +++",
        f"10 {NOW}.3 <... execve resumed>) = 0",
        f"10 {NOW}.4 brk(NULL) = 0x5000",
        f"10 {NOW}.5 +++ exited with 0 +++",
    )
    assert [row[:3] for row in found.rows] == [("EXEC", 10, 10), ("BRK", 10, 10), ("EXIT", 10, 10)]
    assert found.meta.processes[0]["comm"] == "äb"


def test_lines_without_a_number_are_the_only_processs(tmp_path: Path) -> None:
    """On standard error: the first process's until there are two, then the one that is left."""
    found = Strace(
        tmp_path,
        f"{NOW}.1 brk(NULL) = 0x5000",
        f"{NOW}.2 clone(child_stack=NULL, flags=SIGCHLDstrace: Process 11 attached",
        " <unfinished ...>",
        f"[pid 11] {NOW}.3 brk(NULL <unfinished ...>",
        f"[pid 10] {NOW}.4 <... clone resumed>, child_tidptr=0x7) = 11",
        f"[pid 11] {NOW}.5 <... brk resumed>) = 0x6000",
        f"[pid 10] {NOW}.6 +++ exited with 0 +++",
        f"{NOW}.7 brk(NULL) = 0x7000",
        f"{NOW}.8 +++ exited with 0 +++",
    )
    assert [row[:2] for row in found.rows] == [
        ("BRK", 10), ("FORK", 10), ("BRK", 11), ("EXIT", 10), ("BRK", 11), ("EXIT", 11),
    ]  # fmt: skip
    assert found.meta.dropped == {}


def test_lines_broken_by_straces_own_messages_go_on(tmp_path: Path) -> None:
    found = Strace(
        tmp_path,
        f"{NOW}.1 set_tid_address(0x7) = 10",
        f"{NOW}.2 clone(child_stack=NULL, flags=SIGCHLDstrace: Process 11 attached",
        "strace: Process 12 attached",
        ", child_tidptr=0x7) = 11",
        f"[pid 10] {NOW}.3 mremap(0x1000, 4096, 8192, 0x1 /* MREMAP_MAYMOVE */strace: Process 13 attached",
        " <unfinished ...>",
        f"[pid 11] {NOW}.4 brk(NULLstrace: Process 14 attached",
        ") = 0x5000 <0.000010>",
        f"[pid 10] {NOW}.5 <... mremap resumed>) = 0x2000",
    )
    assert [row[:3] for row in found.rows] == [("FORK", 10, 10), ("BRK", 11, 11), ("MREMAP", 10, 10)]
    assert found.meta.dropped == {}


def test_a_single_process_without_a_number_is_called_0(tmp_path: Path) -> None:
    found = Strace(tmp_path, ONE, prefix="")
    assert found.rows[0][1] == 0
    assert any("called 0" in said for said in found.meta.missing)
    assert Strace(tmp_path, "getpid() = 42", ONE, prefix="").rows[0][1] == 42


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    whole = Strace(tmp_path, "brk(NULL) = 0x5000 <0.000001>", "+++ exited with 0 +++").meta
    said = " ".join(whole.missing)
    assert "Page faults" in said
    assert "derived from the system calls" in said
    assert whole.invalidations_from == "model"
    path = tmp_path / "cut"
    path.write_text(f"10 {NOW}.1 brk(NULL) = 0x5000\n10 {NOW}.1 brk(NU")
    cut = imported(path, tmp_path / "t")[1]
    assert len(set(cut.missing) - set(whole.missing)) == 3  # durations, ends, the cut
    assert "stops inside a line" in cut.missing[-1]


@pytest.mark.parametrize(
    "line", ["brk(NULL) = 0x5000", "12:13:14 brk(NULL) = 0x5000", "12:13:14.123456 brk(NULL) = 0x5000",
             "     0.000123 brk(NULL) = 0x5000", "10 brk(NULL) = 0x5000", "1700000000 brk(NULL) = 0x5000"],
)  # fmt: skip
def test_other_times_are_refused_with_the_command(tmp_path: Path, line: str) -> None:
    path = tmp_path / "in"
    path.write_text(line + "\n")
    assert recognise(path) == "strace"
    with pytest.raises(FaultpathError, match="strace -f -ttt"):
        import_recording(path, tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_ranges_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for size in (1 << 57, (1 << 63) - 1, (1 << 64) - 1):
        with pytest.raises(FaultpathError, match="not in user space"):
            Strace(tmp_path, f"mremap(0x1000, 4096, {size}, MREMAP_MAYMOVE) = 0x2000")
    assert not (tmp_path / "out.trace").exists()


@pytest.mark.parametrize(
    "data", [b"foo(bar) = baz\n", b"x = f(1) = 2\n", b"#include <a.h>\nint main(void)\n", b"\0" * 99]
)
def test_other_text_is_not_recognised(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "in"
    path.write_bytes(data)
    with pytest.raises(FaultpathError, match="not a recording"):
        recognise(path)


def test_bytes_of_any_kind_do_no_harm(tmp_path: Path) -> None:
    noise = bytes(range(256)) * 3
    found = Strace(tmp_path, ONE, b'write(1, "' + noise.replace(b"\n", b"") + b'", 3) = 3', noise, ONE)
    assert len(found.rows) == 2
