"""What a scenario is: what happened before, and which threads run at the same time; and the words for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from faultpath.design import CLOSE_DURING_FAULT, PARALLEL_FAULTS
from faultpath.engine.arena import MAX_THREADS
from faultpath.kernel.mirror import device_access
from faultpath.kernel.mm.fault import mm_cpu_fault
from faultpath.kernel.mm.files import mm_truncate
from faultpath.kernel.mm.fork import mm_exit, mm_fork
from faultpath.kernel.mm.huge import mm_collapse, mm_split_huge
from faultpath.kernel.mm.ksm import mm_ksm_merge
from faultpath.kernel.mm.madvise import MADV_DONTNEED, MADV_MERGEABLE, mm_madvise
from faultpath.kernel.mm.migrate import mm_migrate, mm_numa_hinting
from faultpath.kernel.mm.mmap import mm_mmap, mm_munmap
from faultpath.kernel.mm.mprotect import mm_mprotect
from faultpath.kernel.mm.mremap import MREMAP_FIXED, mm_mremap
from faultpath.kernel.mm.reclaim import mm_oom_reap, mm_reclaim
from faultpath.kernel.mm.task_mmu import mm_clear_soft_dirty
from faultpath.kernel.mm.vma import MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE, UNKNOWN
from faultpath.kernel.primitives.pagetable import PAGE_SIZE
from faultpath.kernel.threads import closing, faulting, mapping_again
from faultpath.protocol.language import Protocol

PAGE = PAGE_SIZE
MAX_PAGES = 48  # one leaf of a page table, less what lies below
MAX_DEVICES = 2
SPAN = 0x10000  # page 0 of a scenario is here: above vm.mmap_min_addr

MM = "mm"
DEVICE = "device"
OTHER = "other device"

READ_WRITE = PROT_READ | PROT_WRITE
PRIVATE_ANONYMOUS = MAP_PRIVATE | MAP_ANONYMOUS

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
    """

    name: str
    doc: str
    setup: Sequence[Call]
    threads: Sequence[Call]
    pages: int = 4
    devices: int = 1
    failures: int = 0

    @property
    def needs(self) -> set[str]:
        """What must be possible with a driver for the scenario to apply to it, from its threads."""
        faults = [call.args[0] for call in self.threads if call.protocol in (faulting, device_access)]
        closed = {call.args[0] for call in self.threads if call.protocol is closing}
        parallel = {PARALLEL_FAULTS} if len(set(faults)) < len(faults) else set()
        return parallel | ({CLOSE_DURING_FAULT} if closed & set(faults) else set())


def problem(scenario: object) -> str:
    """Why something cannot serve as a scenario; "" if it can."""
    if not isinstance(scenario, Scenario):
        return f"{type(scenario).__name__} is no Scenario"
    if not isinstance(scenario.name, str) or not scenario.name.isprintable() or not scenario.name:
        return f"{scenario.name!r} is no name"
    if not isinstance(scenario.setup, list | tuple) or not isinstance(scenario.threads, list | tuple):
        return f"{scenario.name}: setup and threads are lists"
    if not 1 <= len(scenario.threads) <= MAX_THREADS - 1:
        return f"{scenario.name}: from 1 to {MAX_THREADS - 1} threads"
    for name, least, most in (("pages", 1, MAX_PAGES), ("devices", 1, MAX_DEVICES), ("failures", 0, 8)):
        if not isinstance(getattr(scenario, name), int) or not least <= getattr(scenario, name) <= most:
            return f"{scenario.name}: {name} from {least} to {most}"
    for call in [*scenario.setup, *scenario.threads]:
        if not isinstance(call, Call) or not isinstance(call.protocol, Protocol):
            return f"{scenario.name}: {call!r} is no Call of a protocol"
        if len(call.args) != len(call.protocol.parameters):
            names = ", ".join(name for name, _ in call.protocol.parameters)
            return f"{scenario.name}: {call.protocol.__name__} takes ({names})"
        for arg in call.args:
            if arg not in (MM, DEVICE, OTHER) and not isinstance(arg, int):
                return f"{scenario.name}: {arg!r} is no argument: a number, MM, DEVICE or OTHER"
    return ""


def address(page: int) -> int:
    """Address of a scenario's page."""
    return SPAN + page * PAGE


# --- the process


def map_memory(page: int, pages: int) -> Call:
    """mmap() of private memory that may be written."""
    return Call("mmap", mm_mmap, (MM, address(page), pages * PAGE, READ_WRITE, PRIVATE_ANONYMOUS, 0, 0))


def map_file(page: int, pages: int) -> Call:
    """mmap() of a file, shared, that may be written."""
    return Call("mmap", mm_mmap, (MM, address(page), pages * PAGE, READ_WRITE, MAP_SHARED, UNKNOWN, 0))


def munmap(page: int, pages: int) -> Call:
    return Call("munmap", mm_munmap, (MM, address(page), pages * PAGE))


def dontneed(page: int, pages: int) -> Call:
    """madvise(MADV_DONTNEED)."""
    return Call("DONTNEED", mm_madvise, (MM, address(page), pages * PAGE, MADV_DONTNEED))


def protect_read(page: int, pages: int) -> Call:
    """mprotect(PROT_READ)."""
    return Call("mprotect", mm_mprotect, (MM, address(page), pages * PAGE, PROT_READ))


def mremap(page: int, pages: int, to: int) -> Call:
    """mremap() that moves a mapping."""
    return Call("mremap", mm_mremap, (MM, address(page), pages * PAGE, address(to), pages * PAGE, MREMAP_FIXED))


def remap_twice(page: int, pages: int) -> Call:
    """munmap(), mmap() at the same place, munmap()."""
    return Call("munmap", mapping_again, (MM, address(page), pages * PAGE))


def fork() -> Call:
    return Call("fork", mm_fork, (MM,))


def cpu_access(page: int) -> Call:
    """The process writes to a page."""
    return Call("write", mm_cpu_fault, (MM, address(page), 1))


def exit_process() -> Call:
    """exit_mm()."""
    return Call("exit", mm_exit, (MM,))


# --- what others do to it


def reclaim(page: int) -> Call:
    """kswapd takes a page."""
    return Call("kswapd", mm_reclaim, (MM, address(page)))


def migrate(page: int) -> Call:
    """A page moves to other memory."""
    return Call("migration", mm_migrate, (MM, address(page)))


def numa_hinting(page: int, pages: int) -> Call:
    """NUMA balancing looks who uses pages."""
    return Call("numa", mm_numa_hinting, (MM, address(page), pages * PAGE))


def collapse(page: int, pages: int) -> Call:
    """khugepaged makes a huge page, for which these stand."""
    return Call("khugepaged", mm_collapse, (MM, address(page), pages * PAGE))


def split_huge(page: int, pages: int) -> Call:
    """A huge page, for which these stand, is split."""
    return Call("split", mm_split_huge, (MM, address(page), pages * PAGE))


def ksm_merge(page: int) -> Call:
    """ksmd puts a page of equal content in place of one (after madvise(MADV_MERGEABLE))."""
    return Call("ksmd", mm_ksm_merge, (MM, address(page)))


def mergeable(page: int, pages: int) -> Call:
    """madvise(MADV_MERGEABLE)."""
    return Call("MERGEABLE", mm_madvise, (MM, address(page), pages * PAGE, MADV_MERGEABLE))


def clear_soft_dirty() -> Call:
    """Somebody writes 4 to /proc/PID/clear_refs."""
    return Call("clear_refs", mm_clear_soft_dirty, (MM,))


def truncate(page: int, pages: int) -> Call:
    """Another process cuts the file."""
    return Call("truncate", mm_truncate, (MM, address(page), pages * PAGE))


def oom_reap() -> Call:
    """The OOM reaper."""
    return Call("oom_reaper", mm_oom_reap, (MM,))


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
