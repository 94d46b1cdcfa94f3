"""The notifier tap: a KVM virtual machine on the address space of an unmodified program.

KVM_CREATE_VM registers an mmu_notifier on the caller's mm, and KVM's tracepoint ``kvm:kvm_unmap_hva_range`` then prints
every ``invalidate_range_start`` of that mm before it looks at memory slots (virt/kvm/kvm_main.c,
kvm_mmu_notifier_invalidate_range_start, Linux 5.14 to 6.18). No vCPU and no guest memory is ever made.

The call must come from the program itself, so it is run there while the program is stopped; the descriptor is then
moved to the recorder (pidfd_getfd, Linux 5.6). The program keeps no descriptor: none to inherit over fork, to see in
/proc/self/fd, or to lose to closefrom(). A program that is itself a KVM user has a second notifier and shows each
range once for each.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import resource
from collections.abc import Iterator

from faultpath.trace import ptrace

KVM_PATH = "/dev/kvm"
KVM_CREATE_VM = 0xAE01

CLONE_VM = 0x100
CLONE_THREAD = 0x10000
_O_RDWR_CLOEXEC = os.O_RDWR | os.O_CLOEXEC
_NR_CLOSE, _NR_IOCTL, _NR_CLONE, _NR_VFORK, _NR_OPENAT = 3, 16, 56, 58, 257
_NR_PIDFD_OPEN, _NR_CLONE3, _NR_CLOSE_RANGE, _NR_PIDFD_GETFD = 434, 435, 436, 438
_AT_FDCWD = -100
_X32_BIT = 0x40000000
_EINTR_TRIES = 5

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _Refused(Exception):
    """A system call of the tap failed."""

    def __init__(self, what: str, number: int) -> None:
        super().__init__(f"{what}: {os.strerror(number)}")
        self.errno = number


class Tap:
    """The taps of one recording, one for each address space.

    Raises OSError when this machine gives no KVM virtual machine to the recorder itself.
    """

    def __init__(self) -> None:
        self._kvm = os.open(KVM_PATH, _O_RDWR_CLOEXEC)
        try:
            os.close(fcntl.ioctl(self._kvm, KVM_CREATE_VM, 0))
        except OSError as error:
            os.close(self._kvm)
            error.filename = f"{KVM_PATH} (KVM_CREATE_VM)"
            raise
        self._vms: dict[int, int] = {}
        self._untapped: dict[str, list[int]] = {}
        self._own_filters = ptrace.status_field("self", "Seccomp_filters") or 0

    def attach(self, pid: int, options: int) -> ptrace.Stop:
        """Tap the address space of the stopped process ``pid``; returns the stop that it is in afterwards.

        ``options`` are the tracee's PTRACE_O_* flags. A process that cannot be tapped is noted and left as it was.
        """
        self.release(pid)
        injection = ptrace.Injection(pid, options, self._own_filters)
        try:
            with injection:
                self._vms[pid] = self._create_vm(injection)
        except ProcessLookupError:
            raise ptrace.TraceeGoneError(pid) from None
        except (ptrace.InjectionRefusedError, _Refused) as refusal:
            self._untapped.setdefault(str(refusal), []).append(pid)
        return injection.last

    def share(self, child: int, maker: int) -> None:
        """Thread ``maker`` is stopped in the call that made ``child``. On one address space, one tap serves both."""
        if birth_flags(maker) & (CLONE_VM | CLONE_THREAD) == CLONE_VM and child not in self._vms:
            vm = self._vms.get(ptrace.thread_group(maker) or 0)
            if vm is not None:
                self._vms[child] = vm

    def release(self, pid: int) -> None:
        """The process left its address space (exec, exit); its tap ends with the last process on it."""
        vm = self._vms.pop(pid, None)
        if vm is not None and vm not in self._vms.values():
            os.close(vm)

    def close(self) -> None:
        for pid in list(self._vms):
            self.release(pid)
        os.close(self._kvm)

    def missing(self) -> list[str]:
        """One sentence for each reason that some process could not be tapped."""
        return [
            f"invalidations of {len(pids)} process(es), first {pids[0]}, were not recorded: {reason}"
            for reason, pids in self._untapped.items()
        ]

    def _create_vm(self, injection: ptrace.Injection) -> int:
        """The whole injected sequence. Returns the recorder's own descriptor of the virtual machine."""
        opened: list[int] = []
        with _room_for_descriptors(injection.tid):
            try:
                try:
                    kvm = self._lend_kvm(injection, opened)
                except _Refused:
                    # Another namespace, dropped privileges or an old filter: it may still open the device itself.
                    kvm = _open_kvm(injection)
                    opened.append(kvm)
                vm = _call(injection, "ioctl(KVM_CREATE_VM)", _NR_IOCTL, kvm, KVM_CREATE_VM, 0)
                opened.append(vm)
                return _take_descriptor(injection.tid, vm)
            finally:
                _close(injection, opened)

    def _lend_kvm(self, injection: ptrace.Injection, opened: list[int]) -> int:
        """Give the tracee the recorder's /dev/kvm; touches none of its memory. Returns its descriptor there."""
        opened.append(_call(injection, "pidfd_open", _NR_PIDFD_OPEN, os.getpid(), 0))
        opened.append(_call(injection, "pidfd_getfd", _NR_PIDFD_GETFD, opened[0], self._kvm, 0))
        return opened[1]


def birth_flags(tid: int) -> int:
    """CLONE_* flags of a birth, from its maker's stop at the event, or from the newborn's very first stop.

    Both have the registers of the call. clone(2), Linux uapi/linux/sched.h.
    """
    regs = ptrace.registers(tid)
    number = regs.orig_rax & ~_X32_BIT
    if number == _NR_VFORK:
        return CLONE_VM
    if number == _NR_CLONE:
        return int(regs.rdi)
    if number == _NR_CLONE3:
        with contextlib.suppress(OSError):
            return int.from_bytes(ptrace.read_memory(tid, regs.rdi, 8), "little")
    return 0


def has_own_memory(tid: int) -> bool:
    """Whether a newborn at its very first stop is a process with an address space of its own.

    A thread is known by its group: the flags of clone3 are on its maker's stack, and may be overwritten by now.
    """
    return not birth_flags(tid) & CLONE_VM and ptrace.thread_group(tid) == tid


def _close(injection: ptrace.Injection, opened: list[int]) -> None:
    """Close the tracee's descriptors again, in one call where they lie side by side (close_range, Linux 5.9)."""
    side_by_side = opened and sorted(opened) == list(range(min(opened), max(opened) + 1))
    if side_by_side and injection.call(_NR_CLOSE_RANGE, min(opened), max(opened), 0) == 0:
        return
    for descriptor in opened:
        injection.call(_NR_CLOSE, descriptor)


def _call(injection: ptrace.Injection, what: str, number: int, *arguments: int) -> int:
    for _ in range(_EINTR_TRIES):
        value = injection.call(number, *arguments)
        if value >= 0:
            return value
        if value != -errno.EINTR:  # mm_take_all_locks gives up when a signal is pending
            break
    raise _Refused(what, -value)


def _open_kvm(injection: ptrace.Injection) -> int:
    """Open the device by its path, lent for the moment to the top of the tracee's stack."""
    path = KVM_PATH.encode() + b"\0"
    sp = injection.stack_pointer
    try:
        saved = ptrace.read_memory(injection.tid, sp, len(path))
        ptrace.write_memory(injection.tid, sp, path)
    except OSError as error:
        raise _Refused("its stack cannot be written", error.errno or errno.EIO) from None
    try:
        return _call(injection, KVM_PATH, _NR_OPENAT, _AT_FDCWD, sp, _O_RDWR_CLOEXEC, 0)
    finally:
        ptrace.write_memory(injection.tid, sp, saved)


def _take_descriptor(pid: int, descriptor: int) -> int:
    """Duplicate a descriptor of another process into this one."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        raise _Refused("pidfd_open", error.errno or errno.EIO) from None
    try:
        taken = int(_libc.syscall(_NR_PIDFD_GETFD, pidfd, descriptor, 0))
        if taken < 0:
            raise _Refused("pidfd_getfd", ctypes.get_errno())
        return taken
    finally:
        os.close(pidfd)


@contextlib.contextmanager
def _room_for_descriptors(pid: int) -> Iterator[None]:
    """Let the tracee open three descriptors more than its RLIMIT_NOFILE, while it is stopped."""
    try:
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    except PermissionError:  # another user's, without CAP_SYS_RESOURCE
        soft = hard = resource.RLIM_INFINITY
    if soft == resource.RLIM_INFINITY:
        yield
        return
    for limits in ((soft + 3, max(soft + 3, hard)), (min(soft + 3, hard), hard)):  # the first needs CAP_SYS_RESOURCE
        with contextlib.suppress(OSError, ValueError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
            break
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
