"""The events a trace is made of, by their names in a recording: faults, the tap, system calls.

Field names are the parameters of the kernel's ``SYSCALL_DEFINE`` (mm/mmap.c, mm/mprotect.c, mm/madvise.c,
mm/mempolicy.c, kernel/fork.c, Linux 6.1 to 6.18), which is where the kernel takes the tracepoints' field names from.
"""

from __future__ import annotations

from dataclasses import dataclass

from faultpath.trace.ops import Event, Op


@dataclass(frozen=True)
class Syscall:
    """:ivar fields: arguments that are needed
    :ivar op: what an invalidation raised inside it is said to come from
    :ivar event: the notifier event its invalidations are, unless they are a huge page's pre-split (``rows``)
    """

    name: str
    fields: tuple[str, ...]
    op: Op
    event: Event


SYSCALLS = (
    Syscall("mmap", ("addr", "len", "prot", "flags"), Op.MMAP, Event.UNMAP),
    Syscall("munmap", ("addr", "len"), Op.MUNMAP, Event.UNMAP),
    Syscall("mremap", ("addr", "old_len", "new_len", "flags", "new_addr"), Op.MREMAP, Event.UNMAP),
    Syscall("mprotect", ("start", "len", "prot"), Op.MPROTECT, Event.PROTECTION_VMA),
    Syscall("pkey_mprotect", ("start", "len", "prot"), Op.MPROTECT, Event.PROTECTION_VMA),
    Syscall("madvise", ("start", "len_in", "behavior"), Op.MADVISE, Event.CLEAR),
    Syscall("mbind", ("start", "len", "mode"), Op.MBIND, Event.CLEAR),
    Syscall("brk", ("brk",), Op.BRK, Event.UNMAP),
    Syscall("clone", ("clone_flags",), Op.FORK, Event.PROTECTION_PAGE),
    Syscall("clone3", (), Op.FORK, Event.PROTECTION_PAGE),
    Syscall("fork", (), Op.FORK, Event.PROTECTION_PAGE),
    Syscall("vfork", (), Op.FORK, Event.PROTECTION_PAGE),
    Syscall("execve", (), Op.EXEC, Event.UNMAP),
    Syscall("execveat", (), Op.EXEC, Event.UNMAP),
    Syscall("exit_group", (), Op.EXIT, Event.UNMAP),
)
FAULT = "exceptions:page_fault_user"
FAULT_FIELDS = ("address", "error_code")
TAP = "kvm:kvm_unmap_hva_range"
TAP_FIELDS = ("start", "end")

#: Kinds of event as the compiled half knows them: a fault, the tap, then the entry and the exit of each system call.
K_NONE, K_FAULT, K_TAP, K_ENTER = 0, 1, 2, 16
K_EXIT = K_ENTER + len(SYSCALLS)


def kind_of(name: str) -> tuple[int, tuple[str, ...]] | None:
    """Kind and needed fields of the event ``system:name``, or None when a trace has no use for it."""
    if name == FAULT:
        return K_FAULT, FAULT_FIELDS
    if name == TAP:
        return K_TAP, TAP_FIELDS
    for number, call in enumerate(SYSCALLS):
        if name == f"syscalls:sys_enter_{call.name}":
            return K_ENTER + number, call.fields
        if name == f"syscalls:sys_exit_{call.name}":
            return K_EXIT + number, ("ret",)
    return None


def recording_events() -> list[str]:
    """Every event a good recording has, for ``perf record -e``."""
    calls = [
        f"syscalls:sys_{way}_{call.name}"
        for call in SYSCALLS
        for way in ("enter", "exit")
        if (way, call.name) != ("exit", "exit_group")
    ]
    return [FAULT, *calls, TAP]
