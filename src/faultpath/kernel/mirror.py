"""The device's side of a process: accesses through its MMU, faults into the driver, exit."""

from __future__ import annotations

from faultpath.kernel.mm.fork import mm_exit
from faultpath.kernel.mmu_notifier import Mm
from faultpath.kernel.primitives.pagetable import PAGE_SIZE, VALID, WRITE, pt_free, pt_get, pt_init, pt_next, pt_set
from faultpath.kernel.workqueue import process_one_work
from faultpath.protocol.language import count, hook, protocol
from faultpath.protocol.struct import PageTable, Struct


class Device(Struct):
    """The device as its hardware and its interrupts know it. A design's own structure begins with this.

    It is there before the driver's mirror of an mm and after it: what a fault has to go by to find the mirror.
    """

    mm: Mm
    driver: int  # the design's table of function pointers
    used: PageTable  # pages the device uses, and whether it writes them; kept for --accesses resident


@hook("device_walk")
def device_walk(driver: int, device: Device, addr: int) -> int:
    """What the device's MMU finds for an address: VALID, WRITE and frame bits."""


@hook("device_fault")
def device_fault(driver: int, device: Device, addr: int, write: int) -> int:
    """The driver's fault path: 0, or -errno when the access is refused."""


@hook("device_close")
def device_close(driver: int, device: Device) -> int:
    """The device file is closed: the mirror goes, the device stays."""


@protocol
def run_work() -> None:
    """Run work items until none is pending."""
    while process_one_work():
        pass


@protocol
def attach(mm: Mm, device: Device, driver: int) -> None:
    """What follows a successful open: the device knows its driver, and nothing is in use."""
    device.driver = driver
    pt_init(device.used, 0, mm.task_size)


@protocol
def device_access(device: Device, page: int, write: int) -> None:
    """The device accesses a page; it faults if its MMU finds nothing valid, or a read-only entry for a write."""
    count("device_accesses")
    entry = device_walk(device.driver, device, page)
    if entry & VALID and (entry & WRITE or not write):
        return
    count("device_faults")
    if device_fault(device.driver, device, page, write) < 0:
        count("device_faults_refused")


@protocol
def device_use(device: Device, page: int, write: int) -> None:
    """Note that the device uses a page from now on."""
    entry = pt_get(device.used, page) | VALID
    if write:
        entry = entry | WRITE
    pt_set(device.used, page, entry)


@protocol
def device_reaccess(device: Device, start: int, end: int) -> None:
    """The device goes over the pages it uses in ``[start, end)`` again; those the process has no more, it forgets."""
    page = pt_next(device.used, start, end)
    while page < end:
        entry = pt_get(device.used, page)
        if pt_get(device.mm.pt, page) & VALID:
            device_access(device, page, entry & WRITE)
        else:
            pt_set(device.used, page, 0)
        page = pt_next(device.used, page + PAGE_SIZE, end)


@protocol
def process_exit(mm: Mm, device: Device) -> None:
    """exit_mm() drops the mm while the driver's file is still open, exit_files() closes it; work runs in between."""
    mm_exit(mm)
    run_work()
    if device:
        device_close(device.driver, device)
        run_work()
        pt_free(device.used)
