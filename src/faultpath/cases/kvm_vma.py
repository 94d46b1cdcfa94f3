"""KVM on arm64: what was read of a VMA is used although the VMA has gone.

A guest's fault looks up the VMA, for how large a mapping may be, under mmap_lock; lets it go; reads the notifier's
sequence number; gets the page; and maps it if the number has not moved. Between the first and the second a VMA of huge
pages may be replaced by one of small ones. All of that came before the number was read, so nothing seems to have
happened, and a huge mapping is made of a small page.

The fix reads the number before mmap_lock is let go.

A huge page is two pages here, which share a frame; what is mapped is one page or two.
"""

from __future__ import annotations

import dataclasses

from faultpath.cases import mirror
from faultpath.cases.case import BUGGY, FINAL_FIX, HOLDS, Case, Variant, unmap
from faultpath.driver import *
from faultpath.kernel.mm.fault import new_anon_page
from faultpath.kernel.mm.mmap import map_vma
from faultpath.scenario import MM, PRIVATE_ANONYMOUS, READ_WRITE, Call, Scenario, address, fault


class Kvm(Device):
    """``struct kvm``, with the stage-2 tables."""

    mmu_notifier: Member[Notifier]
    mmu_lock: SpinLock  # a rwlock in C
    mmu_invalidate_seq: int
    mmu_invalidate_in_progress: int
    pt: PageTable


@protocol
def kvm_mmu_notifier_invalidate_range_start(mn: Notifier, range: Range) -> int:
    """kvm_mmu_notifier_invalidate_range_start()."""
    kvm = container_of(Kvm, "mmu_notifier", mn)
    with spin_lock(kvm.mmu_lock):
        kvm.mmu_invalidate_in_progress += 1
        device_zap(kvm.pt, range.start, range.end)
    return 0


@protocol
def kvm_mmu_notifier_invalidate_range_end(mn: Notifier, range: Range) -> int:
    """kvm_mmu_notifier_invalidate_range_end()."""
    kvm = container_of(Kvm, "mmu_notifier", mn)
    with spin_lock(kvm.mmu_lock):
        kvm.mmu_invalidate_seq += 1
        kvm.mmu_invalidate_in_progress -= 1
    return 0


kvm_mmu_notifier_ops = Ops(
    "kvm_mmu_notifier_ops",
    invalidate_range_start=kvm_mmu_notifier_invalidate_range_start,
    invalidate_range_end=kvm_mmu_notifier_invalidate_range_end,
)


@protocol
def kvm_init(kvm: Kvm, mm: Mm) -> None:
    """What every VM begins with: tables, and the notifier, not yet registered."""
    kvm.mm = mm
    pt_init(kvm.pt, 0, mm.task_size)
    kvm.mmu_notifier.ops = kvm_mmu_notifier_ops


@protocol
def kvm_create_vm(mm: Mm) -> Kvm:
    """kvm_create_vm()."""
    kvm = kmalloc(Kvm, GFP_KERNEL)
    if not kvm:
        return NULL
    kvm_init(kvm, mm)
    mmu_notifier_register(kvm.mmu_notifier, mm)
    return kvm


@protocol
def seq_under_mmap_lock(kvm: Kvm) -> int:
    """Until 6.2 it is not read there."""
    return 0


@protocol
def seq_after_mmap_lock(kvm: Kvm, seq: int) -> int:
    """Until 6.2 it is read here."""
    return kvm.mmu_invalidate_seq


@protocol(replaces=seq_under_mmap_lock)
def read_under_mmap_lock(kvm: Kvm) -> int:
    """After 13ec9308a857."""
    return kvm.mmu_invalidate_seq


@protocol(replaces=seq_after_mmap_lock)
def not_read_again(kvm: Kvm, seq: int) -> int:
    """After 13ec9308a857."""
    return seq


@protocol
def user_mem_abort(kvm: Kvm, addr: int, write: int) -> int:
    """user_mem_abort(), and the guest that faults again until it is mapped."""
    mm = kvm.mm
    while not timed_out():
        with down_read(mm.mmap_lock):
            vma = vma_at(mm, addr)
            if not vma:
                return -EFAULT
            pagesize = vma.last + 1 - vma.start  # vma_shift
            seq = seq_under_mmap_lock(kvm)
        seq = seq_after_mmap_lock(kvm, seq)
        with down_read(mm.mmap_lock):
            pfn = get_user_pages(mm, addr, write)  # __gfn_to_pfn_memslot()
        if pfn < 0:
            return pfn
        with spin_lock(kvm.mmu_lock):
            if not kvm.mmu_invalidate_in_progress and kvm.mmu_invalidate_seq == seq:
                end = addr + pagesize
                while addr < end:
                    pt_set(kvm.pt, addr, pfn)  # kvm_pgtable_stage2_map()
                    addr += PAGE_SIZE
                return 0
        count("fault_retries")
    return -EBUSY


@protocol
def stage2_walk(kvm: Kvm, addr: int) -> int:
    """What stage 2 finds."""
    return pt_get(kvm.pt, addr)


@protocol
def map_huge(mm: Mm, start: int) -> None:
    """A VMA of huge pages, with one in it."""
    map_vma(mm, start, start + 2 * PAGE_SIZE, READ_WRITE, PRIVATE_ANONYMOUS, 0, 0)
    entry = new_anon_page(mm, start) | WRITE
    pt_set(mm.pt, start, entry)
    pt_set(mm.pt, start + PAGE_SIZE, entry)


@protocol
def replace_by_small(mm: Mm, start: int) -> None:
    """munmap(), and mmap() of small pages in its place, less the second."""
    unmap(mm, start, 2 * PAGE_SIZE)
    with down_write(mm.mmap_lock):
        map_vma(mm, start, start + PAGE_SIZE, READ_WRITE, PRIVATE_ANONYMOUS, 0, 0)


BEFORE = dataclasses.replace(
    mirror.design,
    name="kvm",
    open=kvm_create_vm,
    fault=user_mem_abort,
    walk=stage2_walk,
    ops=[kvm_mmu_notifier_ops],
)
AFTER = dataclasses.replace(BEFORE, replaces=[*BEFORE.replaces, read_under_mmap_lock, not_read_again])

SCENARIO = Scenario(
    "abort-vs-mmap",
    "A guest faults while its VMM maps small pages in place of the huge ones.",
    [Call("mmap", map_huge, (MM, address(0)))],
    [fault(0), Call("mmap", replace_by_small, (MM, address(0)))],
    pages=2,
)

case = Case(
    name="kvm-vma",
    title="KVM: arm64: Retry fault if vma_lookup() results become invalid",
    cve="",
    property="coherence",
    source="arch/arm64/kvm/mmu.c:user_mem_abort()",
    variants=[
        Variant(BUGGY, BEFORE, SCENARIO, "coherence"),
        Variant(FINAL_FIX, AFTER, SCENARIO, HOLDS, "13ec9308a857", "6.3"),
    ],
    doc=__doc__,
)
