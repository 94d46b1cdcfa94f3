"""The built-in scenarios."""

from __future__ import annotations

from faultpath.kernel import mm as cpu
from faultpath.kernel.mirror import device_access
from faultpath.kernel.threads import faulting
from faultpath.scenario import DEVICE, MM, PAGE, Call, Scenario, address

PRIVATE_ANONYMOUS = 0x22


def mapped(page: int, pages: int) -> Call:
    return Call("mmap", cpu.mm_mmap, (MM, address(page), pages * PAGE, 3, PRIVATE_ANONYMOUS))


def fault(page: int, write: int = 1) -> Call:
    return Call("fault", faulting, (DEVICE, address(page), write))


def access(page: int, write: int = 1) -> Call:
    return Call("access", device_access, (DEVICE, address(page), write))


def munmap(page: int, pages: int) -> Call:
    return Call("munmap", cpu.mm_munmap, (MM, address(page), pages * PAGE))


def dontneed(page: int, pages: int) -> Call:
    return Call("DONTNEED", cpu.mm_madvise, (MM, address(page), pages * PAGE, cpu.MADV_DONTNEED))


SCENARIOS = [
    Scenario("s3", "", setup=[mapped(0, 4)], threads=[fault(1), fault(2), munmap(0, 4)]),
    Scenario("s4", "", setup=[mapped(0, 4)], threads=[fault(1), fault(2), dontneed(1, 1), munmap(0, 4)]),
    Scenario(
        "fault-vs-munmap",
        "A device fault against munmap of the whole mapping.",
        setup=[mapped(0, 4), access(2)],
        threads=[fault(1), munmap(0, 4)],
    ),
]
