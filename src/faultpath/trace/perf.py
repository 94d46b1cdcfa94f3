"""One ``perf record`` at work: whether this machine lets it, what it is told, how it starts and ends."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

from faultpath.errors import FaultpathError
from faultpath.trace.readers.syscalls import TAP, recording_events

# Younger or configurable: a kernel without the tracepoint has no such call.
_CALLS_IF_THERE = ("pkey_mprotect", "mbind", "clone3", "fork", "vfork", "execveat")

OLDEST_PERF = (5, 9)  # --control with acknowledgement
_TRACEFS = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
_BUFFER_BYTES = 1 << 28  # for all CPUs together
_CAP_IPC_LOCK, _CAP_SYS_ADMIN, _CAP_PERFMON = 14, 21, 38
_PR_SET_PDEATHSIG = 1
_PROGRESS = ("[ perf record", "Events disabled", "Events enabled")
_STOP_SECONDS = 600.0


def check() -> None:
    """Raise FaultpathError when this machine or this user cannot record; nothing is started."""
    machine = os.uname()
    if machine.sysname != "Linux" or machine.machine != "x86_64":
        raise FaultpathError(
            f"recording needs Linux on x86-64, this is {machine.sysname} on {machine.machine}",
            "record",
            "record there, then use `faultpath import` here",
        )
    _check_version()
    _check_privilege()
    missing = [event for event in _required_events() if not has_event(event)]
    if missing:
        raise FaultpathError(
            f"this kernel has no tracepoint {missing[0]}",
            str(_events_folder()),
            "use a kernel with CONFIG_FTRACE_SYSCALLS and CONFIG_PERF_EVENTS",
        )


def has_event(name: str) -> bool:
    return (_events_folder() / name.replace(":", "/")).is_dir()


def _required_events() -> list[str]:
    optional = {f"syscalls:sys_{side}_{call}" for call in _CALLS_IF_THERE for side in ("enter", "exit")} | {TAP}
    return [event for event in recording_events() if event not in optional]


def _check_version() -> None:
    if shutil.which("perf") is None:
        raise FaultpathError(
            "perf is not installed", "PATH", "install your distribution's perf (linux-perf, linux-tools)"
        )
    answer = subprocess.run(
        ["perf", "--version"], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    found = re.search(r"perf version (\d+)\.(\d+)", answer.stdout)
    if answer.returncode != 0 or found is None:
        complaint = (answer.stderr or answer.stdout).strip().partition("\n")[0]
        raise FaultpathError("perf does not run", complaint or "perf --version", "install the perf of this kernel")
    if (int(found[1]), int(found[2])) < OLDEST_PERF:
        raise FaultpathError(f"perf {found[1]}.{found[2]} is too old", "perf --version", "install perf 5.9 or later")


def _check_privilege() -> None:
    may_trace = _capable(_CAP_SYS_ADMIN) or _capable(_CAP_PERFMON)
    try:
        paranoid = int(_read("/proc/sys/kernel/perf_event_paranoid"))
    except OSError:
        raise FaultpathError(
            "this kernel has no perf events", "/proc/sys/kernel", "use one with CONFIG_PERF_EVENTS"
        ) from None
    if not may_trace and paranoid > -1:
        raise FaultpathError(
            f"recording page faults needs root or CAP_PERFMON (kernel.perf_event_paranoid is {paranoid})",
            f"user {os.geteuid()}",
            "run it with sudo",
        )
    try:
        lockdown = _read("/sys/kernel/security/lockdown")
    except OSError:
        lockdown = ""
    if "[confidentiality]" in lockdown:
        raise FaultpathError(
            "the kernel is locked down (confidentiality) and gives out no tracepoints",
            "/sys/kernel/security/lockdown",
            "boot with lockdown=integrity or none",
        )
    folder = _events_folder()
    if not os.access(folder, os.R_OK | os.X_OK):
        raise FaultpathError(f"tracepoints are not readable for user {os.geteuid()}", str(folder), "run it with sudo")


def _capable(capability: int) -> bool:
    """Whether this process has a capability(7) in effect."""
    return bool(int(_read("/proc/self/status").partition("CapEff:")[2].split()[0], 16) >> capability & 1)


def _read(path: str) -> str:
    return Path(path).read_text()


def _events_folder() -> Path:
    for place in _TRACEFS:
        try:
            if (Path(place) / "events").is_dir():
                return Path(place) / "events"
        except PermissionError:
            return Path(place) / "events"
    raise FaultpathError("tracefs is not mounted", _TRACEFS[0], "mount -t tracefs none /sys/kernel/tracing")


def _buffer_pages() -> int:
    """Pages of each CPU's buffer, a power of two: a fault every microsecond for a third of a second, on 1 to 4 CPUs."""
    pages = _BUFFER_BYTES // os.sysconf("SC_PAGE_SIZE") // (os.cpu_count() or 1)
    return 1 << max(7, min(14, pages.bit_length() - 1))


def _before_exec() -> None:
    """In the child: hear the signals that the recorder blocks, and end with it."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Perf:
    """A ``perf record`` of one process, its threads and all their descendants, stopped at first.

    It runs in a session of its own, so that a Ctrl-C at the terminal does not end it before the programs it records.
    """

    def __init__(self, pid: int, data: Path, with_tap: bool) -> None:
        events = [event for event in recording_events() if has_event(event) and (with_tap or event != TAP)]
        control_read, self._control = os.pipe()
        self._answer, answer_write = os.pipe()
        command = ["perf", "record", "-B", "-N", "--no-bpf-event", "-k", "CLOCK_MONOTONIC", "-D", "-1"]
        if _capable(_CAP_IPC_LOCK):  # others get what kernel.perf_event_mlock_kb lets them have
            command += ["-m", str(_buffer_pages())]
        command += ["--control", f"fd:{control_read},{answer_write}", "-p", str(pid), "-o", str(data)]
        command += ["-e", ",".join(events)]
        self._chatter = os.memfd_create("perf")  # in memory: a full disk is one of the things it tells of
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._chatter,
            stderr=self._chatter,
            pass_fds=(control_read, answer_write),
            start_new_session=True,
            preexec_fn=_before_exec,
        )
        os.close(control_read)
        os.close(answer_write)

    def enable(self) -> None:
        """Start recording; returns when every event is on. Raises FaultpathError when perf could not open them."""
        answer = b""
        try:
            os.write(self._control, b"enable\n")
            while b"ack" not in answer:
                part = os.read(self._answer, 64)
                if not part:
                    break
                answer += part
        except BrokenPipeError:
            pass
        if b"ack" not in answer:
            self.process.wait()
            raise FaultpathError("perf record failed", self.said(), "mend that, then record again")

    def stop(self) -> None:
        """End the recording and wait until perf.data is complete."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(_STOP_SECONDS)
        os.close(self._control)
        os.close(self._answer)

    def said(self) -> str:
        """perf's own words, one line; empty when it only reported its progress."""
        lines = os.pread(self._chatter, 1 << 16, 0).decode(errors="replace").splitlines()
        said = " ".join(line.strip() for line in lines if line.strip() and not line.startswith(_PROGRESS))
        return said[:300] or (
            "" if self.process.returncode in (0, -signal.SIGINT) else f"status {self.process.returncode}"
        )
