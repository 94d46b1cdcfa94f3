"""What a scenario is: what happened before, and which threads run at the same time; and the words for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from faultpath.kernel import mm as cpu
from faultpath.kernel.mirror import device_access
from faultpath.kernel.threads import closing, faulting, mapping_again
from faultpath.protocol.language import Protocol

PAGE = 4096
SPAN = 0x10000  # page 0 of a scenario is here: above vm.mmap_min_addr

MM = "mm"
DEVICE = "device"
OTHER = "other device"

READ_WRITE = 3
PRIVATE_ANONYMOUS = 0x22
SHARED_FILE = 0x01
WRITE_FAULT = 6  # the processor's error code: user, write

Argument = int | str


@dataclass(frozen=True)
class Call:
    """A protocol and its arguments; ``MM``, ``DEVICE`` and ``OTHER`` stand for the scenario's own.

    :param name: what a thread that runs it is called in a counterexample
    """

    name: str
    protocol: Protocol
    args: tuple[Argument, ...]


@dataclass(frozen=True)
class Scenario:
    """A small situation in which everything that can happen is tried.

    :param name: how users call it
    :param doc: one sentence
    :param setup: what happened before, in order, undisturbed
    :param threads: what then happens at the same time
    :param pages: pages of address space that matter, from 0
    :param devices: device files open on the mm
    :param failures: how many atomic allocations may fail
    :param parallel_faults: it has faults of one device at the same time, which not every driver serves
    """

    name: str
    doc: str
    setup: Sequence[Call]
    threads: Sequence[Call]
    pages: int = 4
    devices: int = 1
    failures: int = 0
    parallel_faults: bool = False


def address(page: int) -> int:
    """Address of a scenario's page."""
    return SPAN + page * PAGE


# --- the process


def map_memory(page: int, pages: int) -> Call:
    """mmap() of private memory that may be written."""
    return Call("mmap", cpu.mm_mmap, (MM, address(page), pages * PAGE, READ_WRITE, PRIVATE_ANONYMOUS))


def map_file(page: int, pages: int) -> Call:
    """mmap() of a file, shared, that may be written."""
    return Call("mmap", cpu.mm_mmap, (MM, address(page), pages * PAGE, READ_WRITE, SHARED_FILE))


def munmap(page: int, pages: int) -> Call:
    return Call("munmap", cpu.mm_munmap, (MM, address(page), pages * PAGE))


def dontneed(page: int, pages: int) -> Call:
    """madvise(MADV_DONTNEED)."""
    return Call("DONTNEED", cpu.mm_madvise, (MM, address(page), pages * PAGE, cpu.MADV_DONTNEED))


def protect_read(page: int, pages: int) -> Call:
    """mprotect(PROT_READ)."""
    return Call("mprotect", cpu.mm_mprotect, (MM, address(page), pages * PAGE, cpu.PROT_READ))


def mremap(page: int, pages: int, to: int) -> Call:
    """mremap() that moves a mapping."""
    return Call("mremap", cpu.mm_mremap, (MM, address(page), pages * PAGE, address(to), pages * PAGE))


def remap_twice(page: int, pages: int) -> Call:
    """munmap(), mmap() at the same place, munmap()."""
    return Call("munmap", mapping_again, (MM, address(page), pages * PAGE))


def fork() -> Call:
    return Call("fork", cpu.mm_fork, (MM, 0))


def cpu_access(page: int) -> Call:
    """The process writes to a page."""
    return Call("write", cpu.mm_cpu_fault, (MM, address(page), WRITE_FAULT))


def exit_process() -> Call:
    """exit_mm()."""
    return Call("exit", cpu.mm_exit, (MM,))


# --- what others do to it


def reclaim(page: int) -> Call:
    """kswapd takes a page."""
    return Call("kswapd", cpu.mm_reclaim, (MM, address(page)))


def truncate(page: int, pages: int) -> Call:
    """Another process cuts the file."""
    return Call("truncate", cpu.mm_truncate, (MM, address(page), pages * PAGE))


def oom_reap() -> Call:
    """The OOM reaper."""
    return Call("oom_reaper", cpu.mm_oom_reap, (MM,))


# --- the device


def fault(page: int, write: int = 1, device: str = DEVICE) -> Call:
    """A device could not access a page."""
    return Call("fault", faulting, (device, address(page), write))


def access(page: int, write: int = 1, device: str = DEVICE) -> Call:
    """A device accesses a page, and faults if it must."""
    return Call("access", device_access, (device, address(page), write))


def close(device: str = DEVICE) -> Call:
    """The device's file is closed."""
    return Call("close", closing, (device,))
