"""``faultpath record``: a process tree under ``perf record`` and the notifier tap, to a trace.

The program runs at full speed between events: ptrace stops it only at exec, fork, clone, signals and job control, perf
takes the rest. As under strace(1), set-user-ID programs do not gain privileges while they are recorded.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from faultpath.errors import FaultpathError
from faultpath.trace import perf, ptrace, tap
from faultpath.trace.readers.syscalls import TAP
from faultpath.trace.snapshot import Vma, as_rows, snapshot

KERNEL_THREADS = (
    "invalidations raised by others than the recorded processes (khugepaged, kswapd, compaction, another process that"
    " truncates a mapped file) were not recorded: perf follows the recorded tasks only"
)
_ENDING = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT})
_TERMINAL_STOPS = frozenset({signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
_BIRTHS = frozenset({ptrace.EVENT_FORK, ptrace.EVENT_VFORK, ptrace.EVENT_CLONE})
_GRACE_SECONDS = 2.0
_POLL_SECONDS = 0.02  # a stop is announced by SIGCHLD, which another thread of this process might take
_ATTACH_SECONDS = 10.0


def record(command: list[str] | None, pid: int | None, output: Path) -> int:
    """Record a program that is started (``command``) or runs already (``pid``), and write its trace to ``output``.

    :return: the exit status for the command line: the program's own, 128+N when signal N ended it or, for a program
        that goes on after the recording, when signal N ended the recording
    :raises FaultpathError: the request cannot be met; the program was not run, or goes on untouched
    """
    if (command is None) == (pid is None):
        raise FaultpathError(
            "nothing to record, or two things", "record", "give either a command after -- or --pid PID"
        )
    _check_output(output)
    with (
        _all_descriptors() as descriptors,
        tempfile.TemporaryDirectory(prefix=".faultpath-", dir=output.absolute().parent) as folder,
    ):
        with _Surroundings(descriptors) as around:
            perf.check()
            with _Session(Path(folder) / "perf.data", around) as session:
                status = session.run(command) if command is not None else session.follow(pid or 0)
        _write_trace(session, output, command)
    return status


def _write_trace(session: _Session, output: Path, command: list[str] | None) -> None:
    """Import what perf wrote, and add to its metadata what only the recorder knows."""
    # Heavy, and not needed before the program has ended.
    from faultpath.trace.importing import import_recording
    from faultpath.trace.schema import TraceWriter, open_trace

    imported = session.data.with_suffix(".trace")
    try:
        meta = import_recording(session.data, imported, extra_rows=as_rows(session.vmas))
    except FaultpathError as error:
        if session.said():
            mend = f"see that there is room in {output.absolute().parent}, then record again"
            raise FaultpathError("perf could not complete the recording", session.said(), mend) from error
        raise
    if meta.lost_events or meta.lost_samples:
        _say(f"{max(meta.lost_events, meta.lost_samples)} events were lost: perf could not keep up")
    missing = session.missing() + [said for said in meta.missing if "KVM descriptor" not in said]
    with TraceWriter(output) as writer:
        for columns in open_trace(imported).batches():
            writer.write(columns)
        writer.finish(replace(meta, missing=missing, command=command or []))


@contextlib.contextmanager
def _all_descriptors() -> Iterator[tuple[int, int]]:
    """Raise RLIMIT_NOFILE as far as it goes: a tap is held for each living process, and perf has one for each event and
    CPU. Gives the limits as they were."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    try:
        yield before
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


class _Surroundings:
    """What the recorder changes for itself, and the program gets as it was before.

    The recorder takes its signals one by one (sigtimedwait). ``descriptors`` is the program's limit of them.
    """

    def __init__(self, descriptors: tuple[int, int]) -> None:
        self._descriptors = descriptors

    def __enter__(self) -> _Surroundings:
        self._child_action = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would hide stops
        ignored = {number for number in _ENDING if signal.getsignal(number) == signal.SIG_IGN}
        self.ending = _ENDING - ignored
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, *self.ending, *_TERMINAL_STOPS})
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGCHLD, self._child_action)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def give_to_program(self) -> None:
        """In the child, before exec."""
        if b"LC_CTYPE=" not in Path("/proc/self/environ").read_bytes():
            os.environ.pop("LC_CTYPE", None)  # Python's own addition in the C locale (PEP 538)
        resource.setrlimit(resource.RLIMIT_NOFILE, self._descriptors)
        self.__exit__()
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them; programs do not expect that
            signal.signal(number, signal.SIG_DFL)

    def next_signal(self, seconds: float) -> signal.struct_siginfo | None:
        """The next signal, or None after ``seconds``."""
        return signal.sigtimedwait({signal.SIGCHLD, *self.ending}, seconds)


@dataclass
class _Session:
    """One recording: the tracees by thread id, the perf process and the tap."""

    data: Path
    around: _Surroundings
    vmas: list[Vma] = field(default_factory=list)

    def __enter__(self) -> _Session:
        self._tracees: set[int] = set()
        self._unborn: set[int] = set()  # announced by their parent, not yet stopped
        self._unannounced: set[int] = set()  # the other way round
        self._fresh_exec: set[int] = set()
        self._root = 0
        self._unreleased = False  # the program exists, but has not run its first instruction
        self._status: int | None = None
        self._ended_by: int | None = None
        self._deadline: float | None = None
        self._options = ptrace.OPTIONS
        self._perf: perf.Perf | None = None
        self._missing: list[str] = []
        self._tap = self._open_tap()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self._unreleased:
            os.kill(self._root, signal.SIGKILL)
        if kind is None and self._tracees and self._options & ptrace.O_EXITKILL:
            _say("the recording ends here; the program goes on")
        with contextlib.suppress(ChildProcessError):
            self._detach_all()
        if self._perf is not None:
            self._perf.stop()
        if self._tap is not None:
            self._missing += [KERNEL_THREADS, *self._tap.missing()]
            self._tap.close()

    def missing(self) -> list[str]:
        """One sentence for each thing that was not recorded, and why."""
        return self._missing

    def said(self) -> str:
        """What perf has complained of."""
        return self._perf.said() if self._perf is not None else ""

    # -- the two ways to begin -------------------------------------------------------------------------------------

    def run(self, command: list[str]) -> int:
        """Start ``command`` and record it and its descendants until the last one ends."""
        self._options |= ptrace.O_EXITKILL
        stop = self._start(command)
        self._start_perf(self._root)
        self._unreleased = False
        ptrace.resume(stop, ptrace.PTRACE_SYSCALL)
        self._serve()
        if self._status is None:
            return 128 + (self._ended_by or 0)
        code = os.waitstatus_to_exitcode(self._status)
        return code if code >= 0 else 128 - code

    def follow(self, pid: int) -> int:
        """Record a running process until it ends or a signal ends the recording."""
        pid = self._root = _process_to_follow(pid)
        stops = self._seize_all(pid)
        self._start_perf(pid)
        self.vmas += snapshot(pid)
        if pid in stops:
            stops[pid] = self._attach_tap(stops[pid])
        for stop in stops.values():
            ptrace.resume(stop)
        self._serve()
        return 128 + self._ended_by if self._ended_by else 0

    def _start(self, command: list[str]) -> ptrace.Stop:
        """Fork, seize, exec; returns the exec stop, where the program has not run yet."""
        go_read, go_write = os.pipe()
        error_read, error_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(go_write)
            _become(command, self.around, go_read, error_write)
        os.close(go_read)
        os.close(error_write)
        self._root = pid
        self._tracees.add(pid)
        try:
            ptrace.seize(pid, self._options)
        except OSError as error:
            os.close(go_write)
            os.waitpid(pid, 0)
            self._tracees.clear()
            raise FaultpathError(
                f"cannot trace it with ptrace: {error.strerror}", command[0], "run it with sudo"
            ) from None
        os.close(go_write)
        while True:
            stop = ptrace.wait(pid)
            if stop.ended:
                self._tracees.clear()
                number = int(os.read(error_read, 16) or b"0")
                os.close(error_read)
                raise FaultpathError(
                    f"cannot run it: {os.strerror(number)}", command[0], "give a program that can be run"
                )
            if stop.event == ptrace.EVENT_EXEC:
                os.close(error_read)
                self._fresh_exec.add(pid)
                self._unreleased = True
                return stop
            ptrace.resume(stop)

    def _seize_all(self, pid: int) -> dict[int, ptrace.Stop]:
        """Seize and stop every thread of a process. Returns their stops."""
        stops: dict[int, ptrace.Stop] = {}
        deadline = time.monotonic() + _ATTACH_SECONDS
        while True:
            try:
                tids = {int(name) for name in os.listdir(f"/proc/{pid}/task")} - self._tracees
            except OSError:
                tids = set()
            if not tids:
                return stops
            for tid in tids:
                try:
                    ptrace.seize(tid, self._options)
                except ptrace.TraceeGoneError:
                    continue
                except OSError as error:
                    raise _cannot_attach(pid, error) from None
                self._tracees.add(tid)
                with contextlib.suppress(ptrace.TraceeGoneError):
                    ptrace.request(ptrace.PTRACE_INTERRUPT, tid)
            for tid in tids & self._tracees:
                while tid not in stops:
                    got, status = os.waitpid(tid, ptrace.WALL | os.WNOHANG)
                    if got and os.WIFSTOPPED(status):
                        stops[tid] = ptrace.Stop(got, status)
                    elif got:
                        self._tracees.discard(tid)
                        break
                    elif time.monotonic() > deadline:
                        raise FaultpathError(
                            "a thread does not stop (uninterruptible sleep)", f"thread {tid}", "try again later"
                        )
                    else:
                        time.sleep(0.0005)

    def _open_tap(self) -> tap.Tap | None:
        try:
            opened = tap.Tap()
        except OSError as error:
            reason = f"{error.filename or tap.KVM_PATH}: {error.strerror}"
        else:
            if perf.has_event(TAP):
                return opened
            opened.close()
            reason = f"this kernel has no tracepoint {TAP}"
        self._note(f"invalidations were not recorded, the mm model derives them from the system calls: {reason}")
        return None

    def _start_perf(self, pid: int) -> None:
        self._perf = perf.Perf(pid, self.data, with_tap=self._tap is not None)
        self._perf.enable()

    # -- events ----------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Answer every stop until no tracee is left or the recording is ended."""
        while self._tracees or self._unborn:
            stop = ptrace.wait_any()
            if stop is not None:
                self._on_report(stop)
                continue
            info = self.around.next_signal(_POLL_SECONDS)
            if info is not None and info.si_signo in _ENDING:
                self._on_ending_signal(info)
            if self._deadline is not None and time.monotonic() >= self._deadline:
                return

    def _on_ending_signal(self, info: signal.struct_siginfo) -> None:
        """Ctrl-C reaches the program too; it gets the time to end in its own way while it is still recorded."""
        now = time.monotonic()
        again = self._ended_by is not None
        self._ended_by = info.si_signo
        following = not self._options & ptrace.O_EXITKILL
        self._deadline = now if again or following else now + _GRACE_SECONDS
        sent_to_recorder_only = info.si_code <= 0  # SI_USER and the like; a terminal's are SI_KERNEL
        if sent_to_recorder_only and not following and self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._root, info.si_signo)

    def _on_report(self, stop: ptrace.Stop) -> None:
        if self._perf is not None and stop.tid == self._perf.process.pid:
            self._perf.process.returncode = os.waitstatus_to_exitcode(stop.status)
        elif stop.ended:
            self._on_end(stop)
        else:
            try:
                self._on_stop(stop)
            except ptrace.TraceeGoneError as gone:
                if gone.stop is not None:
                    self._on_end(gone.stop)

    def _on_end(self, stop: ptrace.Stop) -> None:
        self._tracees.discard(stop.tid)
        self._unborn.discard(stop.tid)
        self._fresh_exec.discard(stop.tid)
        if stop.tid == self._root:
            self._status = stop.status
        if self._tap is not None:
            self._tap.release(stop.tid)

    def _on_stop(self, stop: ptrace.Stop) -> None:
        tid = stop.tid
        if stop.event == ptrace.EVENT_EXEC:
            # A thread that calls exec takes over its leader's id, and its own vanishes without a report.
            former = ptrace.event_message(tid)
            if former != tid:
                self._tracees.discard(former)
            self._tracees.add(tid)
            self._fresh_exec.add(tid)
            ptrace.resume(stop, ptrace.PTRACE_SYSCALL)
        elif stop.at_syscall:
            # The exit of exec, which perf has just recorded: the snapshot comes after it in time.
            if tid in self._fresh_exec:
                self._fresh_exec.discard(tid)
                self.vmas += snapshot(tid)
                stop = self._attach_tap(stop)
            ptrace.resume(stop)
        elif stop.event in _BIRTHS:
            child = ptrace.event_message(tid)
            self._pair(child, self._unannounced, self._unborn)
            if self._tap is not None and stop.event != ptrace.EVENT_FORK and child in self._tracees | self._unborn:
                self._tap.share(child, tid)
            ptrace.resume(stop)
        elif tid not in self._tracees:
            self._tracees.add(tid)
            self._pair(tid, self._unborn, self._unannounced)
            ptrace.resume(self._on_birth(stop))
        else:
            ptrace.resume(stop)
            if stop.in_group_stop and tid == self._root and stop.signal in _TERMINAL_STOPS and self._shares_terminal():
                os.kill(os.getpid(), signal.SIGSTOP)  # so that the shell sees its job stop; fg continues both

    @staticmethod
    def _pair(tid: int, waiting: set[int], other: set[int]) -> None:
        """A birth is reported twice, by parent and child, in either order."""
        if tid in waiting:
            waiting.discard(tid)
        else:
            other.add(tid)

    def _shares_terminal(self) -> bool:
        return os.isatty(0) and os.getpgid(self._root) == os.getpgrp()

    def _on_birth(self, stop: ptrace.Stop) -> ptrace.Stop:
        """The first stop of a thread or process, before it runs its first instruction."""
        if self._tap is None or not tap.has_own_memory(stop.tid):
            return stop
        return self._attach_tap(stop)

    def _attach_tap(self, stop: ptrace.Stop) -> ptrace.Stop:
        return stop if self._tap is None else self._tap.attach(stop.tid, self._options)

    # -- the end ---------------------------------------------------------------------------------------------------

    def _detach_all(self) -> None:
        """Let every tracee that is left go on by itself."""
        for tid in list(self._tracees):
            with contextlib.suppress(ptrace.TraceeGoneError):
                ptrace.request(ptrace.PTRACE_INTERRUPT, tid)
        while self._tracees or self._unborn:
            tid, status = os.waitpid(-1, ptrace.WALL)
            stop = ptrace.Stop(tid, status)
            if stop.ended:
                self._on_report(stop)
                continue
            with contextlib.suppress(ptrace.TraceeGoneError):
                if stop.event in _BIRTHS:
                    self._pair(ptrace.event_message(tid), self._unannounced, self._unborn)
            if tid not in self._tracees:
                self._pair(tid, self._unborn, self._unannounced)
            self._tracees.discard(tid)
            with contextlib.suppress(ptrace.TraceeGoneError):
                ptrace.request(ptrace.PTRACE_DETACH, tid, 0, 0 if stop.event else stop.signal)

    def _note(self, sentence: str) -> None:
        """Something is not recorded: into the trace, and to the user now."""
        self._missing.append(sentence)
        _say(sentence)


def _say(sentence: str) -> None:
    print(f"faultpath: {sentence}", file=sys.stderr, flush=True)


def _check_output(output: Path) -> None:
    """Find out before the program runs that its trace could not be written."""
    folder = output.absolute().parent
    if output.is_dir():
        raise FaultpathError("the output is a folder", str(output), "give a file name with -o")
    if not folder.is_dir():
        raise FaultpathError("no such folder", str(folder), "make it, or give another file with -o")
    if not os.access(folder, os.W_OK):
        raise FaultpathError("the folder cannot be written", str(folder), "give another file with -o")


def _process_to_follow(pid: int) -> int:
    """The process that ``pid`` (or a thread id) names. Raises FaultpathError when it cannot be recorded."""
    group = ptrace.thread_group(pid) if pid > 0 else None
    if group is None:
        raise FaultpathError("no such process", f"--pid {pid}", "give the id of a running process")
    if group == os.getpid():
        raise FaultpathError("faultpath cannot record itself", f"--pid {pid}", "give the id of another process")
    tracer = ptrace.status_field(group, "TracerPid")
    if tracer:
        raise FaultpathError(f"it is already traced by process {tracer}", f"--pid {pid}", "end that debugger first")
    try:
        if not Path(f"/proc/{group}/maps").read_text(errors="replace"):
            raise FaultpathError(
                "it has no address space (a kernel thread or a zombie)", f"--pid {pid}", "give another"
            )
    except OSError as error:
        raise _cannot_attach(pid, error) from None
    return group


def _cannot_attach(pid: int, error: OSError) -> FaultpathError:
    return FaultpathError(
        f"cannot attach to it: {error.strerror}",
        f"--pid {pid}",
        "run it with sudo (or as its user, where ptrace is allowed)",
    )


def _become(command: list[str], around: _Surroundings, go: int, error: int) -> None:
    """In the child: wait until the recorder has seized it, then become the program. Never returns."""
    try:
        os.read(go, 1)
        around.give_to_program()
        os.execvp(command[0], command)
    except OSError as failure:
        os.write(error, str(failure.errno).encode())
    finally:
        os._exit(127)
