"""What runs at the same time: the threads that scenarios are made of. The CPU side's own are in kernel/mm."""

from __future__ import annotations

from faultpath.kernel.mirror import Device, device_close, device_fault
from faultpath.kernel.mm.mmap import mm_mmap, mm_munmap
from faultpath.kernel.mm.vma import MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE
from faultpath.kernel.mmu_notifier import Mm
from faultpath.kernel.primitives.ghost import device_stops
from faultpath.kernel.primitives.lists import work_pending
from faultpath.kernel.workqueue import process_one_work
from faultpath.protocol.language import protocol, wait_until


@protocol
def faulting(device: Device, addr: int, write: int) -> int:
    """The device could not access a page and tells the driver."""
    return device_fault(device.driver, device, addr, write)


@protocol
def closing(device: Device) -> int:
    """The device's file is closed."""
    device_stops(device)
    return device_close(device.driver, device)


@protocol
def mapping_again(mm: Mm, start: int, size: int) -> None:
    """munmap(), mmap() of private memory at the same place, munmap()."""
    mm_munmap(mm, start, size)
    mm_mmap(mm, start, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, 0, 0)
    mm_munmap(mm, start, size)


@protocol
def worker() -> None:
    """A kworker: sleeps until a work item is queued, and runs it."""
    while True:
        wait_until(work_pending())
        process_one_work()
