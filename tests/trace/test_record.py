"""Real recordings of real programs. What the kernel answers is known; the trace must say exactly that."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from faultpath.errors import FaultpathError
from faultpath.trace import perf
from faultpath.trace.ops import Event, Op
from faultpath.trace.record import KERNEL_THREADS, record
from faultpath.trace.schema import TraceMeta, open_trace
from faultpath.trace.snapshot import snapshot

PAGE = 4096
AREA, MOVED, HUGE_AREA = 0x200000100000, 0x200000180000, 0x200010000000
AREAS = range(0x200000000000, 0x200020000000)
DRIVER = """
import sys
from pathlib import Path
from faultpath.errors import FaultpathError
from faultpath.trace.record import record
output, *rest = sys.argv[1:]
try:
    status = record(None, int(rest[1]), Path(output)) if rest[0] == "--pid" else record(rest, None, Path(output))
except FaultpathError as error:
    print(f"faultpath: {error}", file=sys.stderr)
    status = 2
sys.exit(status)
"""


def _obstacle() -> str | None:
    try:
        perf.check()
    except FaultpathError as error:
        return str(error)
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "/dev/kvm: not there, or no right to it"
    return None


@pytest.fixture(scope="module")
def live() -> None:
    reason = _obstacle()
    if reason:
        pytest.skip(f"cannot record here: {reason}")


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    source = Path(__file__).with_name("programs.c")
    folder = tmp_path_factory.mktemp("programs")

    def compiled(*options: str) -> str:
        target = folder / ("programs" + "".join(options))
        if not target.exists():
            if shutil.which("cc") is None:
                pytest.skip("no C compiler (cc)")
            made = subprocess.run(
                ["cc", "-O1", "-pthread", *options, "-o", target, source], capture_output=True, text=True
            )
            if made.returncode:
                pytest.skip(f"cc {' '.join(options)} failed: {made.stderr[:200]}")
        return str(target)

    return compiled


@pytest.fixture(scope="module")
def programs(live: None, build: Callable[..., str]) -> str:
    return build()


@dataclass(frozen=True)
class Row:
    pid: int
    tid: int
    op: Op
    addr: int
    len: int
    arg: int
    aux: int

    @property
    def pages(self) -> tuple[int, int, int]:
        """Process and range, in pages from AREA."""
        first = (self.addr - AREA) // PAGE
        return self.pid, first, first + self.len // PAGE


@dataclass(frozen=True)
class Recorded:
    status: int
    meta: TraceMeta
    rows: list[Row]

    def of(self, *ops: Op) -> list[Row]:
        return [row for row in self.rows if row.op in ops]

    def here(self, op: Op) -> list[Row]:
        """Rows in the addresses that the test programs have for themselves."""
        return [row for row in self.rows if row.op == op and row.addr in AREAS]

    @property
    def untapped(self) -> list[str]:
        return [said for said in self.meta.missing if "process(es)" in said]

    @property
    def children(self) -> list[int]:
        return [row.arg for row in self.of(Op.FORK)]


def read(path: Path, status: int = 0) -> Recorded:
    trace = open_trace(path)
    rows = []
    for columns in trace.batches():
        names = ("pid", "tid", "op", "addr", "len", "arg", "aux")
        for pid, tid, op, addr, length, arg, aux in zip(*(columns[name].tolist() for name in names), strict=True):
            rows.append(Row(pid, tid, Op(op), addr, length, arg, aux))
    return Recorded(status, trace.meta, rows)


@pytest.fixture
def run(live: None, tmp_path: Path) -> Callable[..., Recorded]:
    def run(*command: str) -> Recorded:
        output = tmp_path / "a.trace"
        status = record(list(command), None, output)
        assert os.listdir(tmp_path) == ["a.trace"], "something temporary was left"
        return read(output, status)

    return run


def driver(output: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-c", DRIVER, str(output), *arguments]


@contextlib.contextmanager
def running(*command: str, **options: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def tracer_of(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("TracerPid:"):
            return int(line.split()[1])
    return 0


# -- what the tap shows ---------------------------------------------------------------------------------------------


@pytest.mark.live
@pytest.mark.parametrize("options", [(), ("-static",)], ids=["dynamic", "static"])
def test_the_tap_shows_exactly_the_ranges_the_kernel_raises(
    build: Callable[..., str], run: Callable[..., Recorded], options: tuple[str, ...]
) -> None:
    done = run(build(*options), "sequence")
    assert done.status == 0
    (child,) = done.children
    parent = done.of(Op.EXEC)[0].pid
    moved = (MOVED - AREA) // PAGE
    expected = [
        (parent, 4, 8, Op.MPROTECT, Event.PROTECTION_VMA),
        (parent, 4, 8, Op.MPROTECT, Event.PROTECTION_VMA),
        (parent, 16, 24, Op.MADVISE, Event.CLEAR),
        (parent, 32, 40, Op.MREMAP, Event.UNMAP),  # the page tables move,
        (parent, 32, 40, Op.MREMAP, Event.UNMAP),  # then the old range goes
        (parent, 0, 32, Op.FORK, Event.PROTECTION_PAGE),
        (parent, 40, 64, Op.FORK, Event.PROTECTION_PAGE),
        (parent, moved, moved + 8, Op.FORK, Event.PROTECTION_PAGE),
        (child, 0, 1, Op.FAULT, Event.CLEAR),
        (child, 1, 2, Op.FAULT, Event.CLEAR),
        (parent, 2, 3, Op.FAULT, Event.CLEAR),
        (parent, 3, 4, Op.FAULT, Event.CLEAR),
        (parent, moved, moved + 1, Op.FAULT, Event.CLEAR),
        (parent, 40, 44, Op.MMAP, Event.UNMAP),
        (parent, 0, 8, Op.MUNMAP, Event.UNMAP),
    ]
    assert [(*row.pages, row.aux, row.arg) for row in done.here(Op.INVALIDATE)] == expected
    faults = [(row.pid, (row.addr - AREA) // PAGE) for row in done.here(Op.FAULT)]
    assert faults[:64] == [(parent, page) for page in range(64)]
    assert faults[64:] == [(child, 0), (child, 1), (parent, 2), (parent, 3), (parent, moved)]
    assert done.meta.invalidations_from == "tap"
    assert [said for said in done.meta.missing if "nvalidation" in said] == [KERNEL_THREADS]
    assert done.meta.lost_events == 0
    assert done.meta.command[1:] == ["sequence"]


@pytest.mark.live
def test_a_huge_page_is_split_before_its_part_is_protected(programs: str, run: Callable[..., Recorded]) -> None:
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not enabled.exists() or "[never]" in enabled.read_text():
        pytest.skip("no transparent huge pages on this machine")
    done = run(programs, "huge")
    if len(done.here(Op.FAULT)) > 2:
        pytest.skip("no huge page was free")
    got = [(row.addr, row.len, row.arg) for row in done.here(Op.INVALIDATE)]
    assert got == [(HUGE_AREA, 2 << 20, Event.CLEAR), (HUGE_AREA + 16 * PAGE, 4 * PAGE, Event.PROTECTION_VMA)]


@pytest.mark.live
def test_a_forked_child_is_tapped_before_it_runs(programs: str, run: Callable[..., Recorded]) -> None:
    done = run(programs, "fork")
    assert done.status == 0
    (child,) = done.children
    assert [row.pages for row in done.here(Op.INVALIDATE)] == [(child, 0, 4)]
    assert [row.pid for row in done.here(Op.FAULT)] == [child] * 4


@pytest.mark.live
def test_a_posix_spawned_child_is_tapped_after_its_exec(programs: str, run: Callable[..., Recorded]) -> None:
    done = run(programs, "spawn")
    assert done.status == 0
    spawned, forked = done.children
    assert [row.pid for row in done.of(Op.EXEC)][1:] == [spawned]
    assert [row.pages for row in done.here(Op.INVALIDATE)] == [(forked, 0, 4)]


@pytest.mark.live
def test_threads_are_followed_and_share_one_tap(programs: str, run: Callable[..., Recorded]) -> None:
    done = run(programs, "threads")
    assert done.status == 0
    assert done.untapped == []
    (child,) = done.children
    raised = done.here(Op.INVALIDATE)
    parent = done.of(Op.EXEC)[0].pid
    own = [row for row in raised if row.aux == Op.MUNMAP and row.pid == parent]
    assert len({row.tid for row in own}) == 4
    assert sorted(row.pages[1] for row in own) == [(MOVED - AREA) // PAGE + 16 * i for i in range(4)]
    assert [row.pages for row in raised if row.pid == child and row.aux == Op.MUNMAP] == [(child, 0, 4)]


@pytest.mark.live
def test_exec_starts_anew_with_the_mappings_it_made(run: Callable[..., Recorded]) -> None:
    done = run("/bin/sh", "-c", "exec /bin/sh -c 'exit 3'")
    assert done.status == 3
    ops = [row.op for row in done.rows]
    first, second = (i for i, op in enumerate(ops) if op == Op.EXEC)
    assert first == 0, "the recorder's own start is not in the trace"
    for at in (first, second):
        vmas = [row for row in done.rows[at + 1 :] if row.op == Op.VMA]
        assert ops[at + 1] == Op.VMA
        assert any(row.arg & 4 for row in vmas)
        assert any(row.aux & 0x100 for row in vmas), "the stack"
    assert any(row.op == Op.INVALIDATE for row in done.rows[second:]), "the tap is made again"


@pytest.mark.live
def test_a_thread_may_exec(programs: str, run: Callable[..., Recorded]) -> None:
    done = run(programs, "exec_in_thread")
    assert done.status == 4
    assert len(done.of(Op.EXEC)) == 2
    assert len({row.pid for row in done.rows}) == 1


@pytest.mark.live
def test_a_seccomp_filter_does_not_meet_the_taps_calls(programs: str, run: Callable[..., Recorded]) -> None:
    done = run(programs, "filtered")
    assert done.status == 0
    (child,) = done.children
    assert [row.pages for row in done.here(Op.INVALIDATE)] == [(child, 0, 4)]


# -- the program does not notice ------------------------------------------------------------------------------------


@pytest.mark.live
@pytest.mark.parametrize(("script", "status"), [("exit 42", 42), ("kill -SEGV $$", 139)])
def test_exit_status_is_the_programs(run: Callable[..., Recorded], script: str, status: int) -> None:
    done = run("/bin/sh", "-c", script)
    assert done.status == status
    assert done.of(Op.EXIT)


@pytest.mark.live
def test_a_program_may_stop_and_be_continued(programs: str, run: Callable[..., Recorded]) -> None:
    assert run(programs, "stop").status == 0


@pytest.mark.live
def test_descriptors_signals_environment_and_streams_are_the_programs(live: None, tmp_path: Path) -> None:
    script = (
        "cat; ls /proc/self/fd; ulimit -n; grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status; env | grep -v ^_=; echo e >&2"
    )
    plain = subprocess.run(["/bin/sh", "-c", script], input="in\n", capture_output=True, text=True)
    command = driver(tmp_path / "a.trace", "/bin/sh", "-c", script)
    recorded = subprocess.run(command, input="in\n", capture_output=True, text=True)
    assert recorded.stdout == plain.stdout
    assert recorded.stderr == plain.stderr


@pytest.mark.live
def test_a_small_descriptor_limit_holds_for_the_program_only(live: None, tmp_path: Path) -> None:
    inner = driver(tmp_path / "a.trace", "/bin/sh", "-c", "ulimit -Sn; (:); exit 5")
    done = subprocess.run(["/bin/sh", "-c", 'ulimit -Sn 5; exec "$@"', "sh", *inner], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (5, "5\n", "")
    assert read(tmp_path / "a.trace").untapped == []


# -- ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.live
def test_ctrl_c_keeps_what_was_recorded(programs: str, tmp_path: Path) -> None:
    with running(*driver(tmp_path / "a.trace", programs, "serve", "60000"), start_new_session=True) as recorder:
        until(lambda: subprocess.run(["pgrep", "-P", str(recorder.pid), "programs"], capture_output=True).stdout)
        time.sleep(0.7)
        os.killpg(recorder.pid, signal.SIGINT)  # as a terminal does
        assert recorder.communicate(timeout=20) == ("", "")
        assert recorder.returncode == 130
    assert os.listdir(tmp_path) == ["a.trace"]
    assert read(tmp_path / "a.trace").here(Op.INVALIDATE)


@pytest.mark.live
def test_ctrl_c_ends_the_recording_of_a_program_that_ignores_it(live: None, tmp_path: Path) -> None:
    script = "trap '' INT; sleep 30"
    with running(*driver(tmp_path / "a.trace", "/bin/sh", "-c", script), start_new_session=True) as recorder:
        time.sleep(1.5)
        os.kill(recorder.pid, signal.SIGINT)
        time.sleep(0.1)
        os.kill(recorder.pid, signal.SIGINT)  # do not wait
        recorder.wait(20)
        assert recorder.returncode == 130
        os.killpg(recorder.pid, signal.SIGKILL)
        assert "the program goes on" in recorder.communicate()[1]
    assert read(tmp_path / "a.trace").of(Op.EXEC)


@pytest.mark.live
def test_attach_records_and_leaves_the_program_unharmed(programs: str, tmp_path: Path) -> None:
    with running(programs, "serve", "4000") as program:
        time.sleep(0.2)
        before = [(vma.start, vma.prot) for vma in snapshot(program.pid) if not AREA <= vma.start < MOVED]
        with running(*driver(tmp_path / "a.trace", "--pid", str(program.pid))) as recorder:
            until(lambda: tracer_of(program.pid))
            time.sleep(1.0)
            assert len(os.listdir(f"/proc/{program.pid}/fd")) == 3
            recorder.send_signal(signal.SIGINT)
            until(lambda: not tracer_of(program.pid))
            assert len(os.listdir(f"/proc/{program.pid}/fd")) == 3
            assert recorder.communicate(timeout=20) == ("", "")
            assert recorder.returncode == 130
        result, slept = program.communicate(timeout=20)[0].split()
        assert program.returncode == 0
    assert result == "0", "its sleep was interrupted"
    assert 4000 <= int(slept) < 6000
    done = read(tmp_path / "a.trace")
    assert {row.pid for row in done.rows} == {program.pid}
    assert set(before) <= {(row.addr, row.arg) for row in done.of(Op.VMA)}
    unmapped = [row.addr for row in done.here(Op.MUNMAP)]
    assert len(unmapped) > 5
    raised = [row.pages for row in done.here(Op.INVALIDATE)]
    assert set(raised) == {(program.pid, 0, 8)}
    assert len(raised) - len(unmapped) in (0, 1), "the recording may end inside a munmap"


@pytest.mark.live
def test_attach_ends_with_the_program(live: None, tmp_path: Path) -> None:
    with running("sleep", "1") as program:
        assert record(None, program.pid, tmp_path / "a.trace") == 0
    assert read(tmp_path / "a.trace").of(Op.EXIT)


# -- what cannot be recorded -----------------------------------------------------------------------------------------


@pytest.mark.live
def test_without_kvm_the_rest_is_recorded(programs: str, tmp_path: Path) -> None:
    hide = ["unshare", "-m", "/bin/sh", "-c", 'mount --bind /dev/null /dev/kvm && exec "$@"', "sh"]
    if subprocess.run([*hide, "true"], capture_output=True).returncode:
        pytest.skip("/dev/kvm cannot be hidden in a mount namespace here")
    done = subprocess.run([*hide, *driver(tmp_path / "a.trace", programs, "fork")], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert "/dev/kvm" in done.stderr
    trace = read(tmp_path / "a.trace")
    assert trace.meta.invalidations_from == "model"
    assert any("/dev/kvm" in said for said in trace.meta.missing)
    assert not trace.of(Op.INVALIDATE)
    assert len(trace.here(Op.FAULT)) == 4


@pytest.mark.live
def test_a_process_without_right_to_kvm_is_named(programs: str, tmp_path: Path, run: Callable[..., Recorded]) -> None:
    if shutil.which("setpriv") is None or os.stat("/dev/kvm").st_mode & 0o006:
        pytest.skip("no setpriv, or /dev/kvm is open to everybody")
    for folder in Path(programs).parents:
        if folder.owner() == "root" and not folder.stat().st_mode & 1:
            folder.chmod(folder.stat().st_mode | 1)
    done = run("setpriv", "--reuid=65534", "--clear-groups", programs, "fork")
    assert done.status == 0
    (said,) = done.untapped
    assert "2 process(es)" in said
    assert "/dev/kvm: Permission denied" in said


@pytest.mark.live
def test_an_unprivileged_user_reads_what_is_lacking(
    live: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    status = Path("/proc/self/status").read_text()
    monkeypatch.setattr(perf, "_read", lambda path: "CapEff:\t0\n" if path.endswith("status") else "2\n")
    assert "CapEff" in status
    with pytest.raises(FaultpathError, match="needs root or CAP_PERFMON"):
        record(["true"], None, tmp_path / "a.trace")


@pytest.mark.live
@pytest.mark.parametrize("command", ["no-such-program", "/", "/etc/hostname"])
def test_what_cannot_be_run_is_refused(live: None, tmp_path: Path, command: str) -> None:
    with pytest.raises(FaultpathError, match="cannot run it"):
        record([command], None, tmp_path / "a.trace")
    assert os.listdir(tmp_path) == []


@pytest.mark.live
def test_processes_that_cannot_be_followed_are_refused(live: None, tmp_path: Path) -> None:
    for pid, said in (
        (2**22, "no such process"),
        (os.getpid(), "itself"),
        (2, "no address space"),
        (-1, "no such process"),
    ):
        if pid == 2 and "kthreadd" not in Path("/proc/2/comm").read_text():
            continue
        with pytest.raises(FaultpathError, match=said):
            record(None, pid, tmp_path / "a.trace")
    assert os.listdir(tmp_path) == []


def _fake_perf(folder: Path, script: str) -> None:
    (folder / "perf").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "perf").chmod(0o755)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo perf version 4.19.1", "perf 4.19 is too old"),
        ("echo 'WARNING: perf not found for kernel 6.1' >&2; exit 2", "perf does not run"),
        (None, "perf is not installed"),
    ],
)
def test_perf_that_does_not_do_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str | None, said: str
) -> None:
    if script:
        _fake_perf(tmp_path, script)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin" if script else str(tmp_path))
    (tmp_path / "out").mkdir()
    with pytest.raises(FaultpathError, match=said):
        record(["true"], None, tmp_path / "out" / "a.trace")
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.live
def test_perfs_own_refusal_is_one_line_and_nothing_runs(
    live: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _fake_perf(tmp_path, '[ "$1" = --version ] && echo perf version 6.1 && exit; echo Permission denied >&2; exit 255')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "out").mkdir()
    with pytest.raises(FaultpathError, match="perf record failed: Permission denied"):
        record(["touch", str(tmp_path / "out" / "ran")], None, tmp_path / "out" / "a.trace")
    assert os.listdir(tmp_path / "out") == []
    assert capfd.readouterr() == ("", "")


def test_wrong_requests_are_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for output, said in (("folder", "folder"), ("none/a.trace", "no such folder")):
        with pytest.raises(FaultpathError, match=said):
            record(["true"], None, tmp_path / output)
    for command, pid in ((None, None), (["true"], 1)):
        with pytest.raises(FaultpathError, match="nothing to record, or two things"):
            record(command, pid, tmp_path / "a.trace")


def test_snapshot_shows_this_process() -> None:
    vmas = snapshot(os.getpid())
    assert all(vma.start < vma.end for vma in vmas)
    assert sum(1 for vma in vmas if vma.flags & 0x100) == 1, "one stack"
    assert any(vma.prot == 5 for vma in vmas)
