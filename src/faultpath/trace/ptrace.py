"""ptrace(2) on x86-64, and system calls run inside a stopped tracee.

Only what the recorder needs: events of PTRACE_SEIZE, never a stop per system call, so that tracees run at full speed.
Sources: ptrace(2), signal(7), Linux include/uapi/linux/ptrace.h and arch/x86/kernel/signal.c.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long

PTRACE_CONT = 7
PTRACE_GETREGS = 12
PTRACE_SETREGS = 13
PTRACE_DETACH = 17
PTRACE_SYSCALL = 24
PTRACE_SETOPTIONS = 0x4200
PTRACE_GETEVENTMSG = 0x4201
PTRACE_SEIZE = 0x4206
PTRACE_INTERRUPT = 0x4207
PTRACE_LISTEN = 0x4208
PTRACE_GETSIGMASK = 0x420A
PTRACE_SETSIGMASK = 0x420B
PTRACE_GET_RSEQ_CONFIGURATION = 0x420F

O_TRACESYSGOOD = 0x01
O_TRACEFORK = 0x02
O_TRACEVFORK = 0x04
O_TRACECLONE = 0x08
O_TRACEEXEC = 0x10
O_EXITKILL = 0x100000
O_SUSPEND_SECCOMP = 0x200000
OPTIONS = O_TRACESYSGOOD | O_TRACEFORK | O_TRACEVFORK | O_TRACECLONE | O_TRACEEXEC

EVENT_FORK = 1
EVENT_VFORK = 2
EVENT_CLONE = 3
EVENT_EXEC = 4
EVENT_STOP = 128
STOPPING_SIGNALS = frozenset({signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
WALL = 0x40000000

_RSEQ_FIELDS = ("pointer", "size", "signature", "flags", "pad")
_RSEQ_CS_OFFSET = 8
_NOT_IN_SYSCALL = 0xFFFFFFFFFFFFFFFF
_SYSCALL_INSTRUCTION = b"\x0f\x05"
_USER32_CS = 0x23
_MAX_ERRNO = 4095
_AT_SYSINFO_EHDR = 33
_VDSO_BYTES = 16384  # more than any; a read ends with the mapping


class TraceeGoneError(Exception):
    """The tracee died (SIGKILL can end any stop); ``stop`` is its wait status when it was already collected."""

    def __init__(self, tid: int, stop: Stop | None = None) -> None:
        super().__init__(tid)
        self.stop = stop


class InjectionRefusedError(Exception):
    """No system call can be run in this tracee; the message says why."""


class Registers(ctypes.Structure):
    """``struct user_regs_struct``, arch/x86/include/asm/user_64.h."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in [
            "r15",
            "r14",
            "r13",
            "r12",
            "rbp",
            "rbx",
            "r11",
            "r10",
            "r9",
            "r8",
            "rax",
            "rcx",
            "rdx",
            "rsi",
            "rdi",
            "orig_rax",
            "rip",
            "cs",
            "eflags",
            "rsp",
            "ss",
            "fs_base",
            "gs_base",
            "ds",
            "es",
            "fs",
            "gs",
        ]
    ]


class _RseqConfiguration(ctypes.Structure):
    """``struct ptrace_rseq_configuration``, uapi/linux/ptrace.h, Linux 5.13."""

    _fields_ = [(name, ctypes.c_uint64 if name == "pointer" else ctypes.c_uint32) for name in _RSEQ_FIELDS]


class _KernelSigset(ctypes.Structure):
    _fields_ = [("bits", ctypes.c_uint64)]


@dataclass(frozen=True)
class Stop:
    """One report of waitpid(2): a ptrace-stop, or the end of a tracee."""

    tid: int
    status: int

    @property
    def ended(self) -> bool:
        return not os.WIFSTOPPED(self.status)

    @property
    def event(self) -> int:
        """PTRACE_EVENT_* number, 0 for a signal-delivery or system call stop."""
        return self.status >> 16

    @property
    def signal(self) -> int:
        return os.WSTOPSIG(self.status)

    @property
    def at_syscall(self) -> bool:
        return self.event == 0 and self.signal == signal.SIGTRAP | 0x80

    @property
    def in_group_stop(self) -> bool:
        return self.event == EVENT_STOP and self.signal in STOPPING_SIGNALS


def request(what: int, tid: int, addr: int = 0, data: int = 0) -> None:
    """One ptrace(2) call. Raises TraceeGoneError for ESRCH, else OSError."""
    ctypes.set_errno(0)
    if _libc.ptrace(what, tid, addr, data) == -1:
        error = ctypes.get_errno()
        if error == 3:  # ESRCH: killed, or not in a ptrace-stop
            raise TraceeGoneError(tid)
        raise OSError(error, os.strerror(error))


def seize(tid: int, options: int) -> None:
    request(PTRACE_SEIZE, tid, 0, options)


def wait(tid: int) -> Stop:
    """The next report of one tracee; blocks."""
    try:
        got, status = os.waitpid(tid, WALL)
    except ChildProcessError:
        raise TraceeGoneError(tid) from None
    return Stop(got, status)


def wait_any() -> Stop | None:
    """The next report of any child, None when nothing is reported now. Raises ChildProcessError without children."""
    tid, status = os.waitpid(-1, WALL | os.WNOHANG)
    return Stop(tid, status) if tid else None


def resume(stop: Stop, how: int = PTRACE_CONT) -> None:
    """Let a stopped tracee go on as it would without a tracer: signals are delivered, a group-stop lasts."""
    with contextlib.suppress(TraceeGoneError):
        if stop.in_group_stop:
            request(PTRACE_LISTEN, stop.tid)
        elif stop.event or stop.at_syscall:
            request(how, stop.tid)
        else:
            request(how, stop.tid, 0, stop.signal)


def event_message(tid: int) -> int:
    message = ctypes.c_ulong()
    request(PTRACE_GETEVENTMSG, tid, 0, ctypes.addressof(message))
    return message.value


def registers(tid: int) -> Registers:
    regs = Registers()
    request(PTRACE_GETREGS, tid, 0, ctypes.addressof(regs))
    return regs


def thread_group(tid: int) -> int | None:
    """The process a thread belongs to, None when it is gone. proc_pid_status(5)."""
    return status_field(tid, "Tgid")


def status_field(pid: int | str, name: str) -> int | None:
    """An integer of /proc/PID/status; None when the process or the field is not there."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return None
    found = re.search(rf"^{name}:\s*(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else None


def read_memory(pid: int, addr: int, count: int) -> bytes:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as mem:
        return os.pread(mem.fileno(), count, addr)


def write_memory(pid: int, addr: int, data: bytes) -> None:
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as mem:
        os.pwrite(mem.fileno(), data, addr)


def _find_syscall_instruction(pid: int) -> int:
    """Address of a ``syscall`` instruction in the vDSO.

    Reading the page through /proc also maps it, so running the instruction raises no page fault of its own.
    """
    try:
        auxv = Path(f"/proc/{pid}/auxv").read_bytes()
    except OSError:
        raise TraceeGoneError(pid) from None
    base = dict(struct.iter_unpack("=QQ", auxv[: len(auxv) & ~15])).get(_AT_SYSINFO_EHDR)
    if base is None:
        raise InjectionRefusedError("it has no vDSO")
    try:
        offset = read_memory(pid, base, _VDSO_BYTES).find(_SYSCALL_INSTRUCTION)
    except OSError:
        raise InjectionRefusedError("its vDSO cannot be read") from None
    if offset < 0:
        raise InjectionRefusedError("its vDSO has no syscall instruction")
    return int(base) + offset


class Injection:
    """Runs system calls in a tracee that is in a ptrace-stop, and leaves it as it was.

    Signals are blocked meanwhile, so none is lost or delivered to the wrong registers. On the way out the tracee is
    stopped once more in the kernel's signal path (PTRACE_INTERRUPT) before its registers return: a system call that the
    stop had interrupted is then restarted by the kernel as usual (arch_do_signal_or_restart). ``last`` is that stop.

    ``own_filters`` is the number of seccomp filters that the recorder itself runs under.
    """

    def __init__(self, tid: int, options: int, own_filters: int) -> None:
        self.tid = tid
        self.last = Stop(tid, (EVENT_STOP << 16) | (signal.SIGTRAP << 8) | 0x7F)
        self._options = options
        self._own_filters = own_filters

    def __enter__(self) -> Injection:
        self._saved = registers(self.tid)
        if self._saved.cs == _USER32_CS:
            raise InjectionRefusedError("it is a 32-bit program")
        self._at = _find_syscall_instruction(self.tid)
        self._suspended = (status_field(self.tid, "Seccomp_filters") or 0) > self._own_filters
        if self._suspended:
            # A filter might kill the tracee for calls that are not its own.
            try:
                request(PTRACE_SETOPTIONS, self.tid, 0, self._options | O_SUSPEND_SECCOMP)
            except OSError:
                raise InjectionRefusedError("it runs under a seccomp filter that cannot be suspended") from None
        self._mask = _KernelSigset()
        request(PTRACE_GETSIGMASK, self.tid, ctypes.sizeof(self._mask), ctypes.addressof(self._mask))
        self._set_mask(_KernelSigset(0xFFFFFFFFFFFFFFFF))
        self._save_critical_section()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if isinstance(error, TraceeGoneError):
            return
        request(PTRACE_INTERRUPT, self.tid)
        request(PTRACE_CONT, self.tid)
        self.last = self._wait()
        request(PTRACE_SETREGS, self.tid, 0, ctypes.addressof(self._saved))
        self._set_mask(self._mask)
        if self._critical_section is not None:
            write_memory(self.tid, *self._critical_section)
        if self._suspended:
            request(PTRACE_SETOPTIONS, self.tid, 0, self._options)

    @property
    def stack_pointer(self) -> int:
        return int(self._saved.rsp)

    def call(self, number: int, *arguments: int) -> int:
        """Run one system call. Returns its value, or -errno."""
        regs = Registers.from_buffer_copy(self._saved)
        regs.rip, regs.rax = self._at, number
        regs.orig_rax = _NOT_IN_SYSCALL  # nothing to restart on the way there
        for name, value in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), arguments, strict=False):
            setattr(regs, name, value & 0xFFFFFFFFFFFFFFFF)
        request(PTRACE_SETREGS, self.tid, 0, ctypes.addressof(regs))
        for _ in ("entry", "exit"):
            request(PTRACE_SYSCALL, self.tid)
            while not self._wait().at_syscall:
                request(PTRACE_SYSCALL, self.tid)  # a group-stop passes by; __exit__ meets it again
        value = int(registers(self.tid).rax)
        return value - (1 << 64) if value >= (1 << 64) - _MAX_ERRNO else value

    def _save_critical_section(self) -> None:
        """The kernel drops a restartable sequence (rseq) that the tracee was in, for its address is elsewhere now."""
        self._critical_section: tuple[int, bytes] | None = None
        if self._saved.orig_rax != _NOT_IN_SYSCALL:
            return
        rseq = _RseqConfiguration()
        with contextlib.suppress(OSError):
            request(PTRACE_GET_RSEQ_CONFIGURATION, self.tid, ctypes.sizeof(rseq), ctypes.addressof(rseq))
            if rseq.pointer:
                at = rseq.pointer + _RSEQ_CS_OFFSET
                found = read_memory(self.tid, at, 8)
                if any(found):
                    self._critical_section = at, found

    def _set_mask(self, mask: _KernelSigset) -> None:
        request(PTRACE_SETSIGMASK, self.tid, ctypes.sizeof(mask), ctypes.addressof(mask))

    def _wait(self) -> Stop:
        stop = wait(self.tid)
        if stop.ended:
            raise TraceeGoneError(self.tid, stop)
        return stop
