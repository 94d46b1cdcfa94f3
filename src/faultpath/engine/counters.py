"""What is counted: one name and one definition each.

``docs/counters.md`` is generated from these tables: ``python -m faultpath.engine.counters > docs/counters.md``.

A counter is one word of the world (see :mod:`faultpath.engine.world`); gauges keep their present value in a word of
their own, so that a peak can be kept.
"""

from __future__ import annotations

COUNTERS: dict[str, str] = {
    "device_accesses": "page accesses by the device",
    "device_faults": "accesses that found no valid device PTE, or wrote through a read-only one",
    "device_faults_refused": "device faults the driver answered with an error: nothing was mapped",
    "fault_retries": "rounds of a driver's fault loop after the first (-EBUSY, or a sequence number that moved)",
    "invalidations": "mmu_notifier_invalidate_range_start calls, process exit aside",
    "callbacks": "calls of a driver's invalidate callback",
    "callbacks_empty": "callbacks during which no valid device PTE was cleared",
    "ptes_probed": "entries of the device page table, or of the driver's shadow of it, that callbacks looked at",
    "ptes_zapped": "valid device PTEs that callbacks cleared",
    "intervals_created": "interval notifiers inserted (mmu_interval_notifier_insert and its variants)",
    "intervals_removed": "interval notifiers taken out for good (remove, or put followed by release)",
    "intervals_updated": "interval notifiers whose bounds were changed (mmu_interval_notifier_update)",
    "intervals_peak": "most interval notifiers alive at once",
    "interval_bytes_peak": "most bytes held at once by interval objects and the tables allocated with them (C sizes)",
    "lookups": "searches for an interval or child by the driver, on faults, unmaps and teardown",
    "lookup_steps": "tree or xarray nodes read by those lookups",
    "walk_steps": "interval tree nodes read to find whom an invalidation concerns, by the core; by KVM, which memslots",
    "vma_steps": "VMA tree nodes read by find_vma on behalf of the driver or hmm_range_fault",
    "deferred_ops": "inserts, removals and updates parked on deferred_list until the last range_end",
    "work_items": "work items run (deferred destruction)",
    "device_commands": "commands that wait for the device: PFNMAP and PFNCLR ioctls, UMR posts",
    "allocs": "memory allocations by the driver",
    "allocs_atomic": "those of them with GFP_ATOMIC",
    "vmas_inferred": "mappings that no event announced, inferred from their first touch",
}

# What drivers count themselves, under the names they export: a design says which are its own (Design.counters), so that
# a real machine's numbers can be put beside them.
DRIVER_COUNTERS: dict[str, str] = {
    "page_faults": "pages mapped by faults, those of no effect included: `rdma statistic show mr`",
    "page_invalidations": "entries in the runs of MTTs that callbacks cleared, and one more for each run that is cut: "
    "`rdma statistic show mr`",
    "svm_pagefault_count": "faults on mirrored memory: Xe's `gtstats` in debugfs",
    "tlb_inval_count": "TLB invalidations sent to the GuC, by callbacks, unbinds and close: Xe's `gtstats`",
    "svm_tlb_inval_count": "ranges that callbacks zapped (a TLB invalidation may serve several): Xe's `gtstats`",
    "svm_4K_pagefault_count": "rounds of faults that found or made a range of 4 KiB: Xe's `gtstats`",
    "svm_64K_pagefault_count": "rounds of faults that found or made a range of 64 KiB: Xe's `gtstats`",
    "svm_2M_pagefault_count": "rounds of faults that found or made a range of 2 MiB: Xe's `gtstats`",
    "svm_4K_valid_pagefault_count": "rounds of faults that found a bound and valid range of 4 KiB: Xe's `gtstats`",
    "svm_64K_valid_pagefault_count": "rounds of faults that found a bound and valid range of 64 KiB: Xe's `gtstats`",
    "svm_2M_valid_pagefault_count": "rounds of faults that found a bound and valid range of 2 MiB: Xe's `gtstats`",
    "replayable_faults": "faults serviced, as often as they were: UVM's `fault_stats` (uvm_enable_debug_procfs)",
    "replayable_faults_bh": "runs of the bottom half, one for each fault here: UVM's `info` (uvm_enable_debug_procfs)",
    "replays_start": "replays after a batch, one for each fault here: `replays: start` in UVM's `fault_stats`",
    "pf_taken": "page faults of the guest that KVM took, those done again included: KVM's debugfs, all vCPUs",
    "pf_fixed": "those of them that made or changed an SPTE",
    "pf_emulate": "those of them outside every memslot: the access is emulated, here by an exit to user space (MMIO)",
    "pf_spurious": "those of them that found the SPTE as it would have become",
    "pf_fast": "those of them that were dealt with outside mmu_lock (fast_page_fault)",
    "pf_mmio_spte_created": "SPTEs made for addresses outside every memslot",
    "remote_tlb_flush_requests": "flushes of the vCPUs' TLBs that KVM asked for, by callbacks that zapped something",
    "kfd_page_fault_start": "ranges that a retry fault had validated and mapped: KFD's SMI event PAGE_FAULT_START",
    "kfd_page_fault_end": "those for which that is over, whatever came of it: SMI event PAGE_FAULT_END",
    "kfd_queue_eviction": "times that all queues of the process were stopped: SMI event QUEUE_EVICTION",
    "kfd_queue_restore": "times that they were started again, postponements aside: SMI event QUEUE_RESTORE",
    "kfd_unmap_from_gpu": "pieces of ranges that callbacks unmapped: SMI event UNMAP_FROM_GPU",
    "kfd_faults": "retry faults that reached the process's ranges: its `counters_*/faults` in sysfs",
}

GAUGES: dict[str, str] = {
    "intervals": "interval notifiers alive now",
    "interval_bytes": "bytes held now by interval objects and their tables",
}

# Costs of process exit: taken out of the counters above and reported on their own.
EXIT_COUNTERS: dict[str, str] = {
    "exit_callbacks": "callbacks that process exit (RELEASE, then UNMAP of everything) and exec cost",
    "exit_ptes_zapped": "device PTEs that those callbacks cleared",
}

LOCKS: dict[str, str] = {
    "mmap_lock": "the mm's `mmap_lock` (`mmap_sem` before 5.8), by mode; the process's own calls and faults included",
    "driver": "held around read_retry and the device PTE write: `svmm->mutex`, `umem_mutex`, `mmu_lock` ...",
    "driver_parent": "a driver's second, outer lock: `svm->mutex`, the parent MR's `umem_mutex`, `slots_lock` ...",
    "subscriptions": "`mmu_notifier_subscriptions.lock`, one per mm",
    "xa_lock": "the lock of an XArray: the device's mkeys, rxe's pool of MRs, a parent MR's children",
    "srcu": "SRCU read sections entered",
    "spinlock": "any other spinlock",
    "rwsem": "any other read-write semaphore; the lock of an application's cache of MRs",
}


def markdown() -> str:
    """``docs/counters.md``."""
    parts = ["# What is counted", "", "Generated from `faultpath/engine/counters.py`.", ""]
    for title, table in (
        ("Counters", COUNTERS),
        ("At exit and exec", EXIT_COUNTERS),
        ("What drivers export", DRIVER_COUNTERS),
        ("Lock acquisitions, by role", LOCKS),
    ):
        parts += [f"## {title}", "", "| name | what it is |", "|---|---|"]
        parts += [f"| `{name}` | {text} |" for name, text in table.items()]
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    print(markdown(), end="")
