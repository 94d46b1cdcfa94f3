"""hmm_range_fault() spins for a folio's lock on the CPU that its holder waits for.

The page has gone to a device's memory, and a fault has to bring it back. do_swap_page() only tries the folio's lock; if
somebody has it, hmm_range_fault() walks again, and again. The holder, which migrates the same folio, waits for
lru_add_drain_all(): a work item on every CPU. On the one that spins it never runs, without preemption.

The fix sleeps until the folio is unlocked.

There are two CPUs: the fault's, which is busy while the fault runs and free while it sleeps, and any other. The only
work item is the one for the fault's CPU.
"""

from __future__ import annotations

import dataclasses

from faultpath.cases import mirror
from faultpath.cases.case import BUGGY, FINAL_FIX, HOLDS, Case, Variant, memory
from faultpath.driver import *
from faultpath.kernel.mm import fault as mm_fault
from faultpath.kernel.mm.fault import new_anon_page
from faultpath.kernel.primitives.pagetable import pt_cmpxchg
from faultpath.scenario import DEVICE, MM, Call, Scenario, address

DEVICE_PRIVATE = 1 << 15  # of a CPU's entry that is not valid: the page is in a device's memory


class Folio(Struct):
    """A device-private folio, and what the scheduler knows of the CPU that faults."""

    lock: Mutex
    busy: int
    lru_add_drain_work: Work


@protocol
def move_to_device(mm: Mm, page: int) -> None:
    """Page 0 went to the device's memory before. Its VMA remembers the folio: an entry has no room for a pointer."""
    vma = vma_at(mm, page)
    vma.file = embedded(Folio)
    pt_set(mm.pt, page, DEVICE_PRIVATE)


@protocol
def migrate_to_ram(mm: Mm, page: int) -> None:
    """dev_pagemap_ops.migrate_to_ram(), the folio's lock held."""
    pt_cmpxchg(mm.pt, page, DEVICE_PRIVATE, new_anon_page(mm, page) | WRITE)


@protocol
def folio_locked(folio: Folio) -> None:
    """What do_swap_page() does if it cannot have the lock, until 6.19: nothing."""
    return


@protocol(replaces=folio_locked)
def wait_on_locked(folio: Folio) -> None:
    """softleaf_entry_wait_on_locked(): sleep until it is unlocked, and others run on this CPU."""
    folio.busy = 0
    mutex_lock(folio.lock)
    mutex_unlock(folio.lock)
    folio.busy = 1


@protocol(replaces=mm_fault.handle_mm_fault)
def do_swap_page(mm: Mm, vma: Vma, page: int, write: int, since: int) -> int:
    """do_swap_page() of a device-private entry."""
    if not pt_get(mm.pt, page) & DEVICE_PRIVATE:
        return 0
    folio = Folio(vma.file)
    if mutex_trylock(folio.lock):
        migrate_to_ram(mm, page)
        mutex_unlock(folio.lock)
    else:
        folio_locked(folio)
    return 0


@protocol
def fault_on_cpu(gpu: mirror.Mirror, addr: int) -> int:
    """A device's fault, on a kernel without preemption."""
    folio = Folio(vma_at(gpu.mm, addr).file)
    folio.busy = 1
    ret = mirror.mirror_fault(gpu, addr, 1)
    folio.busy = 0
    return ret


@protocol
def lru_add_drain_per_cpu(folio: Folio) -> None:
    """lru_add_drain_per_cpu(), once the CPU has time for it."""
    wait_until(folio.busy == 0)


@protocol
def migrate_device_unmap(mm: Mm, page: int) -> None:
    """migrate_device_unmap() with the folio locked: lru_add_drain_all(), and it comes back."""
    folio = Folio(vma_at(mm, page).file)
    with mutex_lock(folio.lock):
        queue_work(folio.lru_add_drain_work, lru_add_drain_per_cpu, folio)
        flush_work(folio.lru_add_drain_work)
        migrate_to_ram(mm, page)


BEFORE = dataclasses.replace(mirror.design, replaces=[do_swap_page])
AFTER = dataclasses.replace(BEFORE, replaces=[*BEFORE.replaces, wait_on_locked])

SCENARIO = Scenario(
    "fault-vs-drain",
    "A device faults on a page in device memory while somebody migrates it back.",
    [*memory(1), Call("move", move_to_device, (MM, address(0)))],
    [Call("fault", fault_on_cpu, (DEVICE, address(0))), Call("migrate", migrate_device_unmap, (MM, address(0)))],
    pages=1,
)

case = Case(
    name="hmm-livelock",
    title="mm: Fix a hmm_range_fault() livelock / starvation problem",
    cve="",
    property="progress",
    source="mm/memory.c:do_swap_page(), mm/hmm.c:hmm_range_fault()",
    variants=[
        Variant(BUGGY, BEFORE, SCENARIO, "progress"),
        Variant(FINAL_FIX, AFTER, SCENARIO, HOLDS, "b570f37a2ce4", "7.0"),
    ],
    doc=__doc__,
)
