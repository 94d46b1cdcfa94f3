"""A page becomes writable, and the IOMMU's TLB is not told.

An SMMU that shares the process's page table has a TLB of its own. Its driver heard of what was taken away, but when a
page became writable, only the CPUs' TLBs were flushed: on most machines a TLB that still says read-only just faults,
and looks again. The device faults, the driver asks for the page to be made writable, which it is, so nothing is done;
the device tries again, finds the old entry, and faults, for ever.

The fix tells the secondary TLBs wherever the architecture flushes its own.

A page that has been written to is read-only at first, as after a fork whose child is gone. Nothing is unmapped here.
"""

from __future__ import annotations

import dataclasses

from faultpath.cases import mirror
from faultpath.cases.case import BUGGY, FINAL_FIX, HOLDS, Case, Variant, memory
from faultpath.driver import *
from faultpath.kernel.mm import fault as mm_fault
from faultpath.kernel.mm.fault import EXCLUSIVE, handle_mm_fault
from faultpath.kernel.mm.raising import RAISES_ALL
from faultpath.kernel.primitives.pagetable import DEVICE_BITS, pt_cmpxchg
from faultpath.kernel.primitives.tlb import tlb_access, tlb_flush
from faultpath.protocol.language import hook
from faultpath.scenario import DEVICE, MM, Call, Scenario, address, cpu_access


@hook("arch_invalidate_secondary_tlbs")
def ops_arch_invalidate_secondary_tlbs(ops: int, sub: Notifier, mm: Mm, start: int, end: int) -> int:
    """mmu_notifier_ops.arch_invalidate_secondary_tlbs."""


class Smmu(Device):
    """``struct arm_smmu_mmu_notifier``, and the SMMU's TLB."""

    tlb: PageTable


class SmmuNotifier(Notifier):
    """Its mmu_notifier."""

    smmu: Smmu


@protocol
def arm_smmu_mm_invalidate(sub: Notifier, mm: Mm, start: int, end: int) -> int:
    """arm_smmu_mm_arch_invalidate_secondary_tlbs()."""
    tlb_flush(SmmuNotifier(sub).smmu.tlb, start, end)
    return 0


@protocol
def nothing_before(sub: Notifier, range: Range) -> int:
    """There is none: the table is the process's. It is here since the checker takes a device without for uncovered."""
    return 0


arm_smmu_mmu_notifier_ops = Ops(
    "arm_smmu_mmu_notifier_ops",
    arch_invalidate_secondary_tlbs=arm_smmu_mm_invalidate,
    invalidate_range_start=nothing_before,
)


@protocol
def arm_smmu_sva_bind(mm: Mm) -> Smmu:
    """__arm_smmu_sva_bind()."""
    smmu = kmalloc(Smmu, GFP_KERNEL)
    if not smmu:
        return NULL
    smmu.mm = mm
    pt_init(smmu.tlb, 0, mm.task_size)
    mn = kmalloc(SmmuNotifier, GFP_KERNEL)
    mn.smmu = smmu
    mn.ops = arm_smmu_mmu_notifier_ops
    mmu_notifier_register(mn, mm)
    return smmu


@protocol
def flush_tlb_page(mm: Mm, page: int) -> None:
    """flush_tlb_page() until 6.5: the CPUs', of which there is nothing to see here."""
    return


@protocol(replaces=flush_tlb_page)
def flush_tlbs_of_all(mm: Mm, page: int) -> None:
    """flush_tlb_page() and mmu_notifier_arch_invalidate_secondary_tlbs(), Linux 6.6."""
    with srcu_read_lock(mm.srcu):
        for sub in hlist_for_each_entry(Notifier, "hlist", mm.notifier_subscriptions.list):
            if has_op(sub.ops, "arch_invalidate_secondary_tlbs"):
                ops_arch_invalidate_secondary_tlbs(sub.ops, sub, mm, page, page + PAGE_SIZE)


@protocol(replaces=mm_fault.do_wp_page)
def wp_page_reuse(mm: Mm, vma: Vma, page: int, pte: int, since: int) -> None:
    """wp_page_reuse() and ptep_set_access_flags()."""
    pt_cmpxchg(mm.pt, page, pte, pte | WRITE | EXCLUSIVE)
    flush_tlb_page(mm, page)


@protocol
def iommu_sva_handle_iopf(smmu: Smmu, addr: int, write: int) -> int:
    """iommu_sva_handle_iopf()."""
    mm = smmu.mm
    ret = -EFAULT
    with down_read(mm.mmap_lock):
        if vma := vma_at(mm, addr):
            ret = handle_mm_fault(mm, vma, addr, write, RAISES_ALL)
    return ret


@protocol
def device_write(smmu: Smmu, addr: int) -> int:
    """A device writes to a page through the SMMU, which stalls it until the fault is handled, and tries again."""
    while not timed_out():
        if tlb_access(smmu.tlb, smmu.mm.pt, addr) & WRITE:
            return 0
        count("fault_retries")
        if iommu_sva_handle_iopf(smmu, addr, 1):
            return -EFAULT
    return -EBUSY


@protocol
def smmu_walk(smmu: Smmu, addr: int) -> int:
    """What the SMMU finds."""
    entry = pt_get(smmu.tlb, addr)
    if entry & VALID:
        return entry
    return pt_get(smmu.mm.pt, addr) & DEVICE_BITS


@protocol
def read_only(mm: Mm, start: int, size: int) -> None:
    """The page may not be written to, though it is the process's alone."""
    pt_write_protect(mm.pt, start, start + size)


BEFORE = dataclasses.replace(
    mirror.design,
    name="smmu",
    open=arm_smmu_sva_bind,
    fault=iommu_sva_handle_iopf,
    walk=smmu_walk,
    ops=[arm_smmu_mmu_notifier_ops],
    replaces=[wp_page_reuse],
)
AFTER = dataclasses.replace(BEFORE, replaces=[*BEFORE.replaces, flush_tlbs_of_all])

SCENARIO = Scenario(
    "device-write-vs-write",
    "A device and the process write to a page that is read-only.",
    [*memory(1), Call("protect", read_only, (MM, address(0), PAGE_SIZE))],
    [Call("device", device_write, (DEVICE, address(0))), cpu_access(0)],
    pages=1,
)

case = Case(
    name="secondary-tlb",
    title="mmu_notifiers: call invalidate_range() when invalidating TLBs",
    cve="",
    property="progress",
    source="arch/*/include/asm/tlbflush.h, mm/memory.c:wp_page_reuse()",
    variants=[
        Variant(BUGGY, BEFORE, SCENARIO, "progress"),
        Variant(FINAL_FIX, AFTER, SCENARIO, HOLDS, "6bbd42e2df8f", "6.6-rc1"),
    ],
    doc=__doc__,
)
