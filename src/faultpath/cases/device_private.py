"""A CPU's fault on a page in device memory goes on with a page that it does not hold.

The entry says which page it is; the fault handler took no reference, and went to the driver with it. Meanwhile the
driver evicts the page: it is migrated back, its last reference goes, even its pgmap may. The handler looks into what
is left: page->pgmap->ops->migrate_to_ram.

The fix takes a reference under the page table's lock, where the entry is known to be still there, and gives the page on
to the driver.
"""

from __future__ import annotations

import dataclasses

from faultpath.cases import mirror
from faultpath.cases.case import BUGGY, FINAL_FIX, HOLDS, Case, Variant, memory
from faultpath.driver import *
from faultpath.kernel.mm import fault as mm_fault
from faultpath.kernel.mm.fault import new_anon_page
from faultpath.kernel.primitives.pagetable import pt_cmpxchg
from faultpath.scenario import MM, Call, Scenario, address, cpu_access

DEVICE_PRIVATE = 1 << 15  # of a CPU's entry that is not valid: the page is in a device's memory


class Page(Struct):
    """``struct page`` of device memory."""

    refcount: RefCount
    zone_device_data: int


class PageTablePage(Struct):
    """What belongs to the page table of page 0: its lock, and the page that its entry names."""

    ptl: SpinLock
    page: Page
    migrate_lock: Mutex  # the page's lock, which migration takes


@protocol
def move_to_device(mm: Mm, addr: int) -> None:
    """Page 0 went to the device's memory before. Its VMA remembers it: an entry has no room for a pointer."""
    table = embedded(PageTablePage)
    page = kmalloc(Page, GFP_KERNEL)
    refcount_set(page.refcount, 1)
    table.page = page
    vma_at(mm, addr).file = table
    pt_set(mm.pt, addr, DEVICE_PRIVATE)


@protocol
def put_page(page: Page) -> None:
    """put_page(), and free_zone_device_page()."""
    if refcount_dec_and_test(page.refcount):
        kfree(page)


@protocol
def migrate_back(mm: Mm, table: PageTablePage, addr: int) -> None:
    """migrate_vma_setup() to migrate_vma_finalize(): the entry names other memory, whose reference takes its place."""
    with mutex_lock(table.migrate_lock):
        with spin_lock(table.ptl):
            found = pt_cmpxchg(mm.pt, addr, DEVICE_PRIVATE, new_anon_page(mm, addr) | WRITE)
        if found == DEVICE_PRIVATE:
            put_page(table.page)


@protocol
def migrate_to_ram(mm: Mm, table: PageTablePage, page: Page, addr: int) -> None:
    """page->pgmap->ops->migrate_to_ram()."""
    if not page.zone_device_data:
        migrate_back(mm, table, addr)


@protocol
def fault_on_page(mm: Mm, table: PageTablePage, addr: int) -> None:
    """do_swap_page() of a device-private entry, until 6.0."""
    migrate_to_ram(mm, table, table.page, addr)


@protocol(replaces=fault_on_page)
def fault_on_page_held(mm: Mm, table: PageTablePage, addr: int) -> None:
    """do_swap_page() after 16ce101db85d."""
    with spin_lock(table.ptl):
        if not pt_get(mm.pt, addr) & DEVICE_PRIVATE:
            return
        page = table.page
        refcount_inc(page.refcount)
    migrate_to_ram(mm, table, page, addr)
    put_page(page)


@protocol(replaces=mm_fault.handle_mm_fault)
def handle_mm_fault(mm: Mm, vma: Vma, page: int, write: int, since: int) -> int:
    """handle_mm_fault(): the entry is looked at without a lock."""
    if pt_get(mm.pt, page) & DEVICE_PRIVATE:
        fault_on_page(mm, PageTablePage(vma.file), page)
    return 0


@protocol
def dmem_evict(mm: Mm, addr: int) -> None:
    """nouveau_dmem_evict_chunk(): the device's memory is wanted, or goes."""
    migrate_back(mm, PageTablePage(vma_at(mm, addr).file), addr)


BEFORE = dataclasses.replace(mirror.design, replaces=[handle_mm_fault])
AFTER = dataclasses.replace(BEFORE, replaces=[*BEFORE.replaces, fault_on_page_held])

SCENARIO = Scenario(
    "cpu-fault-vs-evict",
    "The process touches a page in device memory while the driver evicts it.",
    [*memory(1), Call("move", move_to_device, (MM, address(0)))],
    [cpu_access(0), Call("evict", dmem_evict, (MM, address(0)))],
    pages=1,
)

case = Case(
    name="device-private",
    title="mm/memory.c: fix race when faulting a device private page",
    cve="CVE-2022-3523",
    property="lifetime",
    source="mm/memory.c:do_swap_page()",
    variants=[
        Variant(BUGGY, BEFORE, SCENARIO, "lifetime"),
        Variant(FINAL_FIX, AFTER, SCENARIO, HOLDS, "16ce101db85d", "6.1-rc1"),
    ],
    doc=__doc__,
)
