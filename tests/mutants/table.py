"""The mutants: bugs seeded into correct designs, into the notifier core and into the CPU side.

Some are bugs that the kernel had; their commits are named. HARMLESS are changes that look like bugs and are none here:
what makes up for them is said.
"""

from __future__ import annotations

from faultpath.designs import drm_gpusvm as xe
from faultpath.designs import (
    full_va,
    kvm,
    mlx5_ib,
    mlx5_odp,
    mlx5_odp_srcu,
    odp_implicit,
    odp_implicit_fixed,
    uvm_hmm,
    uvm_va_block,
    uvm_va_space,
    xe_svm,
    xe_vm,
)
from faultpath.kernel import drm_gpusvm, hmm, kvm_main, mmu_notifier, srcu, umem_odp, workqueue
from faultpath.kernel.mm import fault, fork, madvise, mmap, mprotect, mremap, raising, reclaim
from faultpath.kernel.primitives import wait
from faultpath.protocol.program import Source
from faultpath.scenarios import SCENARIOS
from mutants import tracked
from mutants.designs import FULL_VA, GPUSVM, KVM, REFCOUNT, SRCU, TWO_PAGES, UVM, two_pages_fault
from mutants.engine import Edit, Mutant, Subject, mutated

SCENARIO = {scenario.name: scenario for scenario in SCENARIOS}


def bug(
    subject: Subject,
    name: str,
    target: Source,
    *edits: Edit,
    at: str,
    breaks: str,
    variant: tuple[Source, ...] = (),
    pending: str = "",
) -> Mutant:
    """A row: ``at`` names the scenario, ``breaks`` the property, or several with ``|`` between them."""
    return Mutant(name, subject, target, edits, SCENARIO[at], frozenset(breaks.split("|")), variant, pending)


FAULT = full_va.dmirror_range_fault
INVALIDATE = full_va.dmirror_interval_invalidate

DRIVER = [
    bug(
        FULL_VA,
        "sequence number read after the pages were looked at",
        FAULT,
        ("seq = mmu_interval_read_begin(mni)", "seq = mni.invalidate_seq"),
        (
            "        up_read(mm.mmap_lock)\n",
            "        up_read(mm.mmap_lock)\n        seq = mmu_interval_read_begin(mni)\n",
        ),
        at="fault-vs-dontneed",
        breaks="coherence",
    ),
    bug(
        FULL_VA,
        "sequence number read under the driver's lock",
        FAULT,
        ("seq = mmu_interval_read_begin(mni)", "seq = mni.invalidate_seq"),
        (
            "        mutex_lock(dmirror.mutex)\n",
            "        mutex_lock(dmirror.mutex)\n        seq = mmu_interval_read_begin(mni)\n",
        ),
        at="fault-vs-dontneed",
        breaks="coherence|progress",
    ),
    bug(
        TWO_PAGES,
        "sequence number read again between two chunks (amdgpu, c08972f55594 mends it)",
        two_pages_fault,
        (
            "        if first >= 0:\n",
            "        if first >= 0:\n            seq = mmu_interval_read_begin(mni)\n",
        ),
        at="fault-vs-dontneed",
        breaks="coherence",
    ),
    bug(
        TWO_PAGES,
        "retried without reading the sequence number again (amdgpu, 342981fff328 mends it)",
        two_pages_fault,
        (
            "            second = hmm_range_fault(mm, mni, seq, addr + PAGE_SIZE, write)\n",
            "            second = hmm_range_fault(mm, mni, seq, addr + PAGE_SIZE, write)\n"
            "        while second == -EBUSY:\n"
            "            second = hmm_range_fault(mm, mni, seq, addr + PAGE_SIZE, write)\n",
        ),
        at="fault-vs-dontneed",
        breaks="progress",
    ),
    bug(
        FULL_VA,
        "sequence number read once, before the retry loop",
        FAULT,
        ("    while not timed_out():\n", "    seq = mmu_interval_read_begin(mni)\n    while True:\n"),
        ("        seq = mmu_interval_read_begin(mni)\n        down", "        down"),
        at="fault-vs-dontneed",
        breaks="progress",
    ),
    bug(
        FULL_VA,
        "retry check before the lock",
        FAULT,
        (
            "        mutex_lock(dmirror.mutex)\n        if not mmu_interval_read_retry(mni, seq):\n",
            "        ok = not mmu_interval_read_retry(mni, seq)\n        mutex_lock(dmirror.mutex)\n        if ok:\n",
        ),
        at="fault-vs-dontneed",
        breaks="coherence",
    ),
    bug(
        FULL_VA,
        "no retry check (xe, 0a98219bcc96 mends it)",
        FAULT,
        ("if not mmu_interval_read_retry(mni, seq):", "if True:"),
        at="fault-vs-munmap",
        breaks="coherence",
    ),
    bug(
        FULL_VA,
        "retry check the wrong way round",
        FAULT,
        ("if not mmu_interval_read_retry", "if mmu_interval_read_retry"),
        at="first-fault-vs-dontneed",
        breaks="coherence",
    ),
    bug(
        FULL_VA,
        "driver's lock dropped before the device PTE is written",
        FAULT,
        (
            "            pt_set(dmirror.pt, addr, pfn)\n            mutex_unlock(dmirror.mutex)\n",
            "            mutex_unlock(dmirror.mutex)\n            pt_set(dmirror.pt, addr, pfn)\n",
        ),
        at="fault-vs-reclaim",
        breaks="coherence",
    ),
    bug(
        FULL_VA,
        "driver's lock not given up on retry",
        FAULT,
        (
            '        mutex_unlock(dmirror.mutex)\n        count("fault_retries")\n',
            '        count("fault_retries")\n',
        ),
        at="fault-vs-dontneed",
        breaks="locks",
    ),
    bug(
        FULL_VA,
        "mmap_lock taken under the driver's lock",
        FAULT,
        ("        down_read(mm.mmap_lock)\n", "        mutex_lock(dmirror.mutex)\n        down_read(mm.mmap_lock)\n"),
        ("        if pfn == -EBUSY:\n", "        if pfn == -EBUSY:\n            mutex_unlock(dmirror.mutex)\n"),
        (
            "        if pfn < 0:\n            return pfn\n        mutex_lock(dmirror.mutex)\n",
            "        if pfn < 0:\n            mutex_unlock(dmirror.mutex)\n            return pfn\n",
        ),
        at="fault-vs-dontneed",
        breaks="locks",
    ),
    bug(
        FULL_VA,
        "pages looked at without mmap_lock",
        FAULT,
        ("        down_read(mm.mmap_lock)\n", ""),
        ("        up_read(mm.mmap_lock)\n", ""),
        at="fault-vs-munmap",
        breaks="lifetime",
    ),
    bug(
        FULL_VA,
        "mm_users not taken for the fault",
        full_va.dmirror_fault,
        ("    if not mmget_not_zero(mm):\n        return -EFAULT\n", ""),
        ("    mmput(mm)\n", ""),
        at="exit-vs-fault",
        breaks="coherence|lifetime",
    ),
    bug(
        FULL_VA,
        "mm_users not given back",
        full_va.dmirror_fault,
        ("    mmput(mm)\n", ""),
        at="teardown-vs-munmap",
        breaks="lifetime",
    ),
    bug(
        FULL_VA,
        "set_seq forgotten",
        INVALIDATE,
        ("    mmu_interval_set_seq(mni, cur_seq)\n", ""),
        at="fault-vs-dontneed",
        breaks="coherence",
    ),
    bug(
        FULL_VA,
        "set_seq after the lock",
        INVALIDATE,
        ("    mmu_interval_set_seq(mni, cur_seq)\n", ""),
        (
            "    mutex_unlock(dmirror.mutex)\n    return 1",
            "    mutex_unlock(dmirror.mutex)\n    mmu_interval_set_seq(mni, cur_seq)\n    return 1",
        ),
        at="fault-vs-dontneed",
        breaks="coherence",
    ),
    bug(
        FULL_VA,
        "zapped before the lock",
        INVALIDATE,
        ("    if range.blockable:\n", "    device_zap(dmirror.pt, range.start, range.end)\n    if range.blockable:\n"),
        ("    device_zap(dmirror.pt, range.start, (range.end & -PAGE_SIZE) + PAGE_SIZE)\n", ""),
        at="fault-vs-dontneed",
        breaks="coherence",
    ),
    bug(
        FULL_VA,
        "the last page of an event not zapped",
        INVALIDATE,
        ("(range.end & -PAGE_SIZE) + PAGE_SIZE", "range.end - PAGE_SIZE"),
        at="fault-vs-munmap-left",
        breaks="coherence",
    ),
    bug(
        FULL_VA,
        "the lock waited for in a non-blockable callback",
        INVALIDATE,
        (
            "    if range.blockable:\n        mutex_lock(dmirror.mutex)\n"
            "    elif not mutex_trylock(dmirror.mutex):\n        return 0\n",
            "    mutex_lock(dmirror.mutex)\n",
        ),
        at="oom-vs-munmap",
        breaks="locks",
    ),
    bug(
        FULL_VA,
        "a trylock that failed called a success",
        INVALIDATE,
        ("        return 0\n", "        return 1\n"),
        at="oom-vs-fault",
        breaks="coherence",
    ),
    bug(
        FULL_VA,
        "callback leaves the lock",
        INVALIDATE,
        ("    mutex_unlock(dmirror.mutex)\n", ""),
        at="fault-vs-dontneed",
        breaks="locks|progress",
    ),
    bug(
        FULL_VA,
        "freed with its interval registered",
        full_va.dmirror_fops_release,
        ("    mmu_interval_notifier_remove(dmirror.notifier)\n", ""),
        at="teardown-vs-munmap",
        breaks="lifetime",
    ),
    bug(
        FULL_VA,
        "freed before the interval is removed",
        full_va.dmirror_fops_release,
        (
            "    mmu_interval_notifier_remove(dmirror.notifier)\n    pt_free(dmirror.pt)\n    kfree(dmirror)\n",
            "    mni = dmirror.notifier\n"
            "    pt_free(dmirror.pt)\n"
            "    kfree(dmirror)\n"
            "    mmu_interval_notifier_remove(mni)\n",
        ),
        at="teardown-vs-munmap",
        breaks="lifetime",
    ),
    bug(
        FULL_VA,
        "the mirror not freed",
        full_va.dmirror_fops_release,
        ("    kfree(dmirror)\n", ""),
        at="teardown-vs-munmap",
        breaks="lifetime",
    ),
]

# destroy_unused_implicit_child_mr() that does not ask whether it was the one to take the child out of the xarray.
UNASKED = (
    ("found = xa_cmpxchg(imr.children, idx, mr, NULL, SCRATCH)", "xa_erase(imr.children, idx)"),
    ("if found == mr:", "if True:"),
)

ODP = [
    bug(
        REFCOUNT,
        "set_seq skipped when the child has no pages",
        mlx5_odp.mlx5_ib_invalidate_range,
        ("    mmu_interval_set_seq(mni, cur_seq)\n    if not umem.npages", "    if not umem.npages"),
        ("    mr = Mr(umem.private)\n", "    mmu_interval_set_seq(mni, cur_seq)\n    mr = Mr(umem.private)\n"),
        at="first-fault-vs-dontneed",
        breaks="coherence",
    ),
    bug(
        REFCOUNT,
        "a non-blockable event waits",
        mlx5_odp.mlx5_ib_invalidate_range,
        ("    if not range.blockable:\n        return 0\n", ""),
        at="oom-vs-munmap",
        breaks="locks",
    ),
    bug(
        REFCOUNT,
        "a child destroyed inside its callback",
        mlx5_odp.destroy_unused_implicit_child_mr,
        ("queue_work(mr.odp_destroy, free_implicit_child_mr_work, mr)", "free_implicit_child_mr_work(mr)"),
        at="fault-vs-dontneed",
        breaks="locks|progress",
    ),
    bug(
        REFCOUNT,
        "a child's destruction queued by every event that finds it empty",
        mlx5_odp.mlx5_ib_invalidate_range,
        ("    if not umem.npages:\n        mutex_unlock(umem.umem_mutex)\n        return 1\n", ""),
        at="dontneed-vs-reclaim",
        breaks="lifetime",
        variant=(mutated(mlx5_odp.destroy_unused_implicit_child_mr, UNASKED),),
    ),
    bug(
        REFCOUNT,
        "no reference to the parent while a child goes",
        mlx5_odp.destroy_unused_implicit_child_mr,
        ("    if not refcount_inc_not_zero(imr.usecount):\n        return\n", ""),
        at="teardown-vs-munmap",
        breaks="lifetime",
    ),
    bug(
        REFCOUNT,
        "child looked up, reference taken after the lock",
        odp_implicit.pagefault_implicit_mr,
        (
            "        if found := xa_load(imr.children, idx, LOOKUP_STEPS):\n"
            "            refcount_inc(Mr(found).usecount)\n"
            "        spin_unlock(imr.xa_lock)\n",
            "        found = xa_load(imr.children, idx, LOOKUP_STEPS)\n"
            "        spin_unlock(imr.xa_lock)\n"
            "        if found:\n"
            "            refcount_inc(Mr(found).usecount)\n",
        ),
        at="fault-vs-dontneed",
        breaks="lifetime",
    ),
    bug(
        REFCOUNT,
        "MR looked up, reference taken after the lock",
        odp_implicit.pagefault_single_data_segment,
        (
            "    refcount_inc(imr.usecount)\n    spin_unlock(dev.xa_lock)\n",
            "    spin_unlock(dev.xa_lock)\n    refcount_inc(imr.usecount)\n",
        ),
        at="teardown-vs-fault",
        breaks="lifetime",
    ),
    bug(
        REFCOUNT,
        "a new child with one reference",
        odp_implicit.implicit_get_child_mr,
        ("refcount_set(mr.usecount, 2)", "refcount_set(mr.usecount, 1)"),
        at="first-fault-vs-dontneed",
        breaks="lifetime",
    ),
    bug(
        REFCOUNT,
        "destruction does not wait for the faults in the child",
        mlx5_odp.free_implicit_child_mr_work,
        ("    mlx5r_deref_wait_odp_mkey(mr)\n", "    mlx5r_deref_odp_mkey(mr)\n"),
        at="fault-vs-dontneed",
        breaks="lifetime",
    ),
    bug(
        REFCOUNT,
        "the device's entry for a child that goes left as it is",
        mlx5_odp.free_implicit_child_mr_work,
        ("    update_ksm(imr, mr.umem.start >> imr.child_shift)\n", ""),
        at="fault-vs-dontneed",
        breaks="lifetime",
    ),
    bug(
        REFCOUNT,
        "the device's entries updated without a lock",
        mlx5_ib.update_ksm,
        ("    mutex_lock(imr.umem_mutex)\n", ""),
        ("    mutex_unlock(imr.umem_mutex)\n", ""),
        at="first-fault-vs-dontneed",
        breaks="lifetime",
    ),
    bug(
        REFCOUNT,
        "a umem freed with its interval registered",
        umem_odp.ib_umem_odp_release,
        ("    mmu_interval_notifier_remove(umem)\n", ""),
        at="teardown-vs-munmap",
        breaks="lifetime",
    ),
    bug(
        REFCOUNT,
        "umem_mutex not held when the fault returns",
        umem_odp.ib_umem_odp_map_dma_and_lock,
        (
            "        if mmu_interval_read_retry(umem, seq):\n"
            "            mutex_unlock(umem.umem_mutex)\n"
            '            count("fault_retries")\n'
            "            continue\n",
            "        if mmu_interval_read_retry(umem, seq):\n"
            "            mutex_unlock(umem.umem_mutex)\n"
            '            count("fault_retries")\n'
            "            continue\n"
            "        mutex_unlock(umem.umem_mutex)\n",
        ),
        ("    mmput_async(mm)\n    return 0", "    mmput_async(mm)\n    mutex_lock(umem.umem_mutex)\n    return 0"),
        at="fault-vs-reclaim",
        breaks="coherence",
    ),
    bug(
        REFCOUNT,
        "a mapped page not counted",
        umem_odp.ib_umem_odp_map_dma_and_lock,
        ("        umem.npages += 1\n", ""),
        at="first-fault-vs-dontneed",
        breaks="coherence",
    ),
    bug(
        REFCOUNT,
        "mmput() under umem_mutex (amdkfd, cf234231fcbc mends its like)",
        umem_odp.ib_umem_odp_map_dma_and_lock,
        ("    mmput_async(mm)\n    return 0", "    mmput(mm)\n    return 0"),
        at="exit-vs-fault",
        breaks="locks",
    ),
    bug(
        SRCU,
        "children loaded outside the SRCU section",
        odp_implicit.pagefault_single_data_segment,
        (
            "        value = pagefault_implicit_mr(imr, addr)\n        srcu_read_unlock(dev.odp_srcu, idx)\n",
            "        srcu_read_unlock(dev.odp_srcu, idx)\n        value = pagefault_implicit_mr(imr, addr)\n",
        ),
        at="fault-vs-dontneed",
        breaks="lifetime",
    ),
    bug(
        REFCOUNT,
        "the last user of a child wakes nobody",
        wait.dec_and_wake,
        ("return wake(w, queue) if dec_and_test(w, ref) else 0", "return dec_and_test(w, ref)"),
        at="fault-vs-munmap",
        breaks="progress",
    ),
    bug(
        SRCU,
        "the last deferred work wakes another queue",
        odp_implicit_fixed.deferred_work_done,
        ("imr.q_deferred_work", "imr.wait"),
        at="teardown-vs-munmap",
        breaks="progress",
    ),
    bug(
        SRCU,
        "destruction does not wait for a grace period",
        mlx5_odp_srcu.free_implicit_child_mr_srcu_work,
        ("    wait_srcu_gp(dev.odp_srcu, mr.rcu)\n", ""),
        at="fault-vs-dontneed",
        breaks="lifetime",
    ),
]

NO_RETRY = (
    "    if gpu.hmm_invalidate_seqnum != va_block.changed:  # hmm_range_fault_retry()\n"
    "        return MORE_PROCESSING_REQUIRED\n"
)

BLOCKS = [
    bug(
        UVM,
        "a block's own count is not looked at",
        uvm_hmm.hmm_make_resident_cpu,
        (NO_RETRY, ""),
        at="first-fault-vs-dontneed",
        breaks="coherence",
    ),
    bug(
        UVM,
        "a block's own count is not raised",
        uvm_va_block.hmm_invalidate,
        ("        va_block.changed += 1\n", ""),
        at="first-fault-vs-dontneed",
        breaks="coherence",
    ),
    bug(
        UVM,
        "a block's own count in place of read_begin as well",
        uvm_hmm.hmm_make_resident_cpu,
        ("mmu_interval_read_begin(va_block)", "va_block.invalidate_seq"),
        at="first-fault-vs-dontneed",
        breaks="coherence",
    ),
    bug(
        UVM,
        "a block's lock held over read_begin",
        uvm_hmm.hmm_make_resident_cpu,
        ("    mutex_unlock(va_block.lock)\n", ""),
        ("    mutex_lock(va_block.lock)\n", ""),
        at="two-invalidations",
        breaks="locks|progress",
    ),
    bug(
        UVM,
        "bottom halves are not waited for",
        uvm_va_space.uvm_va_space_mm_shutdown,
        ("    mutex_lock(gpu.service_lock)  # uvm_gpu_replayable_buffer_flush()\n", ""),
        ("    mutex_unlock(gpu.service_lock)\n", ""),
        at="teardown-vs-fault",
        breaks="lifetime",
    ),
    bug(
        UVM,
        "a block is freed before its notifier is removed",
        uvm_va_block.uvm_hmm_va_space_destroy,
        (
            "        mmu_interval_notifier_remove(va_block)\n        uvm_va_block_kill(va_block)\n",
            "        uvm_va_block_kill(va_block)\n        mmu_interval_notifier_remove(va_block)\n",
        ),
        at="teardown-vs-munmap",
        breaks="lifetime",
    ),
]

PLAIN = [
    bug(
        KVM,
        "a fault trusts the merged range alone",
        kvm_main.mmu_invalidate_retry_hva,
        ("return kvm.mmu_invalidate_seq != mmu_seq", "return 0"),
        at="fault-vs-dontneed",
        breaks="coherence",
    ),
    bug(
        KVM,
        "a fault trusts the sequence number alone",
        kvm_main.mmu_invalidate_retry_hva,
        ("if in_progress and hva >=", "if False and hva >="),
        at="fault-vs-dontneed",
        breaks="coherence",
    ),
    bug(
        KVM,
        "sequence number read after the page was looked up",
        kvm.direct_page_fault,
        ("    mmu_seq = kvm.mmu_invalidate_seq\n", ""),
        (
            "    read_lock(kvm.mmu_lock)\n    if mmu_inv",
            "    mmu_seq = kvm.mmu_invalidate_seq\n    read_lock(kvm.mmu_lock)\n    if mmu_inv",
        ),
        at="fault-vs-reclaim",
        breaks="coherence",
    ),
    bug(
        KVM,
        "an invalidation takes the place of the one in progress",
        kvm_main.kvm_mmu_invalidate_begin,
        ("if kvm.mmu_invalidate_in_progress == 1:", "if kvm.mmu_invalidate_in_progress:"),
        at="background",
        breaks="coherence",
    ),
    bug(
        KVM,
        "memslots swapped while an invalidation is in progress",
        kvm_main.kvm_swap_active_memslots,
        ("    while kvm.mn_active_invalidate_count:\n", "    while False:\n"),
        at="first-fault-vs-dontneed",
        breaks="coherence",
    ),
    bug(
        KVM,
        "range_end wakes nobody who changes memslots",
        kvm_main.kvm_mmu_notifier_invalidate_range_end,
        ("    if wake:\n        wake_up(kvm.mn_memslots_update_rcuwait)\n", ""),
        at="first-fault-vs-dontneed",
        breaks="progress",
    ),
]

CORE = [
    bug(
        FULL_VA,
        "range_start does not make the sequence number odd",
        mmu_notifier.mn_itree_inv_start_range,
        ("        subs.invalidate_seq = subs.invalidate_seq | 1\n", "        pass\n"),
        at="fault-vs-dontneed",
        breaks="progress|coherence",
    ),
    bug(
        FULL_VA,
        "callbacks get the sequence number from before it was made odd",
        mmu_notifier.mn_itree_inv_start_range,
        ("    if first := Int", "    range.cur_seq = subs.invalidate_seq\n    if first := Int"),
        ("    range.cur_seq = subs.invalidate_seq\n    spin_unlock", "    spin_unlock"),
        at="fault-vs-dontneed",
        breaks="coherence",
    ),
    bug(
        FULL_VA,
        "range_start does not count itself",
        mmu_notifier.mn_itree_inv_start_range,
        ("    subs.active_invalidate_ranges += 1\n", ""),
        at="fault-vs-dontneed",
        breaks="progress",
    ),
    bug(
        FULL_VA,
        "range_start counts itself without the lock",
        mmu_notifier.mn_itree_inv_start_range,
        (
            "    spin_lock(subs.lock)\n    subs.active_invalidate_ranges += 1\n",
            "    subs.active_invalidate_ranges += 1\n    spin_lock(subs.lock)\n",
        ),
        at="two-invalidations",
        breaks="coherence|progress",
    ),
    bug(
        FULL_VA,
        "any range_end ends the epoch, not the last",
        mmu_notifier.mn_itree_inv_end,
        ("if subs.active_invalidate_ranges or not mn_itree", "if not mn_itree"),
        at="two-invalidations",
        breaks="coherence",
    ),
    bug(
        FULL_VA,
        "range_end leaves the sequence number odd",
        mmu_notifier.mn_itree_inv_end,
        ("subs.invalidate_seq += 1", "subs.invalidate_seq += 2"),
        at="teardown-vs-munmap",
        breaks="progress",
    ),
    bug(
        FULL_VA,
        "range_end forgets what was deferred",
        mmu_notifier.mn_itree_inv_end,
        ("        if rb_empty_node(sub):\n", "        break\n        if rb_empty_node(sub):\n"),
        at="exit-vs-teardown",
        breaks="lifetime",
    ),
    bug(
        REFCOUNT,
        "range_end forgets a deferred insertion",
        mmu_notifier.mn_itree_inv_end,
        ("            itree_insert(subs.itree, sub)\n", "            pass\n"),
        at="second-client",
        breaks="coverage",
    ),
    bug(
        FULL_VA,
        "range_end lets waiters go before it does what was deferred, unlocked",
        mmu_notifier.mn_itree_inv_end,
        (
            "    subs.invalidate_seq += 1\n",
            "    subs.invalidate_seq += 1\n    spin_unlock(subs.lock)\n    spin_lock(subs.lock)\n",
        ),
        at="teardown-vs-munmap",
        breaks="lifetime",
    ),
    bug(
        FULL_VA,
        "what was deferred stays on the list",
        mmu_notifier.mn_itree_inv_end,
        ("        hlist_del(sub.deferred_item)\n", ""),
        at="exit-vs-one-teardown",
        breaks="lifetime|structure",
    ),
    bug(
        FULL_VA,
        "a deferred removal taken for an insertion",
        mmu_notifier.mn_itree_inv_end,
        ("if rb_empty_node(sub):", "if not rb_empty_node(sub):"),
        at="teardown-vs-munmap",
        breaks="structure",
    ),
    bug(
        FULL_VA,
        "read_begin does not wait",
        mmu_notifier.mmu_interval_read_begin,
        ("    if is_invalidating:\n        wait_event(subs.wq, subs.invalidate_seq != seq)\n", ""),
        at="fault-vs-dontneed",
        breaks="coherence",
    ),
    bug(
        FULL_VA,
        "the end of an epoch wakes nobody",
        mmu_notifier.mn_itree_inv_end,
        ("    wake_up(subs.wq)\n", ""),
        at="fault-vs-dontneed",
        breaks="progress",
    ),
    bug(
        FULL_VA,
        "waiters are woken before the number is even",
        mmu_notifier.mn_itree_inv_end,
        ("    wake_up(subs.wq)\n", ""),
        ("    spin_lock(subs.lock)\n", "    wake_up(subs.wq)\n    spin_lock(subs.lock)\n"),
        at="fault-vs-dontneed",
        breaks="progress",
    ),
    bug(
        FULL_VA,
        "only an epoch with something deferred wakes the waiters",
        mmu_notifier.mn_itree_inv_end,
        ("    wake_up(subs.wq)\n", ""),
        ("        hlist_del(sub.deferred_item)\n", "        hlist_del(sub.deferred_item)\n        wake_up(subs.wq)\n"),
        at="fault-vs-munmap",
        breaks="progress",
    ),
    bug(
        FULL_VA,
        "read_begin returns the number as it is after waiting",
        mmu_notifier.mmu_interval_read_begin,
        ("    return seq\n", "    return sub.invalidate_seq\n"),
        at="fault-vs-dontneed",
        breaks="coherence",
    ),
    bug(
        FULL_VA,
        "read_retry compares with the mm's number",
        mmu_notifier.mmu_interval_read_retry,
        ("sub.invalidate_seq != seq", "sub.mm.notifier_subscriptions.invalidate_seq == seq"),
        at="fault-vs-dontneed",
        breaks="coherence",
    ),
    bug(
        FULL_VA,
        "only the first interval is called back",
        mmu_notifier.mn_itree_invalidate,
        ("        sub = mn_itree_inv_next(sub, range)\n", "        sub = IntervalNotifier(0)\n"),
        at="two-clients",
        breaks="coherence",
    ),
    bug(
        FULL_VA,
        "a refused range_start leaves its epoch open",
        mmu_notifier.mn_itree_invalidate,
        ("            mn_itree_inv_end(subs)\n", ""),
        at="oom-vs-dontneed",
        breaks="progress",
    ),
    bug(
        FULL_VA,
        "a refusal ignored",
        mmu_notifier.mn_itree_invalidate,
        ("            return -EAGAIN\n", "            return 0\n"),
        at="oom-vs-fault",
        breaks="coherence",
    ),
    bug(
        FULL_VA,
        "RELEASE leaves its epoch open",
        mmu_notifier.mn_itree_release,
        ("    mn_itree_inv_end(subs)\n", ""),
        at="exit-vs-teardown",
        breaks="progress",
    ),
    bug(
        REFCOUNT,
        "inserted during an invalidation, the sequence number stays even",
        mmu_notifier.mmu_interval_notifier_insert,
        ("            subs.invalidate_seq = subs.invalidate_seq | 1\n", ""),
        at="first-fault-vs-dontneed",
        breaks="progress",
    ),
    bug(
        REFCOUNT,
        "inserted during an invalidation, taken for not concerned",
        mmu_notifier.mmu_interval_notifier_insert,
        ("        sub.invalidate_seq = subs.invalidate_seq\n    else", "        sub.invalidate_seq = 1\n    else"),
        at="first-fault-vs-dontneed",
        breaks="coherence",
    ),
    bug(
        REFCOUNT,
        "inserted while nothing runs, taken for concerned",
        mmu_notifier.mmu_interval_notifier_insert,
        ("sub.invalidate_seq = subs.invalidate_seq - 1", "sub.invalidate_seq = subs.invalidate_seq"),
        at="first-fault-vs-dontneed",
        breaks="progress",
    ),
    bug(
        REFCOUNT,
        "inserted into a tree that somebody walks",
        mmu_notifier.mmu_interval_notifier_insert,
        ("        if mn_itree_is_invalidating(subs):\n", "        if False:\n"),
        at="second-client",
        breaks="structure",
    ),
    bug(
        FULL_VA,
        "the end of the deferred work seen without the lock (319561669a59 mends it)",
        mmu_notifier.mmu_interval_notifier_remove,
        ("        while not mmu_interval_seq_released(subs, seq):\n            wait", "        wait"),
        at="teardown-vs-munmap",
        breaks="lifetime|structure",
    ),
    bug(
        FULL_VA,
        "removal does not wait for the callback",
        mmu_notifier.mmu_interval_notifier_remove,
        ("    if seq:\n", "    if False:\n"),
        at="teardown-vs-munmap",
        breaks="lifetime|structure",
    ),
    bug(
        FULL_VA,
        "removed at once, though an invalidation runs",
        mmu_notifier.mmu_interval_notifier_remove,
        ("    if mn_itree_is_invalidating(subs):\n", "    if False:\n"),
        at="teardown-vs-munmap",
        breaks="lifetime|structure",
    ),
    bug(
        FULL_VA,
        "removal reads which epoch to wait for after it let the lock go",
        mmu_notifier.mmu_interval_notifier_remove,
        ("            seq = subs.invalidate_seq\n", "            seq = 1\n"),
        ("    if seq:\n", "    if seq:\n        seq = subs.invalidate_seq\n"),
        at="teardown-vs-munmap",
        breaks="progress",
    ),
    bug(
        FULL_VA,
        "removal does not drop its mm",
        mmu_notifier.mmu_interval_notifier_remove,
        ("    mmdrop(mm)\n", ""),
        at="teardown-vs-munmap",
        breaks="lifetime",
    ),
    bug(
        REFCOUNT,
        "insertion does not hold the lock",
        mmu_notifier.mmu_interval_notifier_insert,
        ("    spin_lock(subs.lock)\n", ""),
        ("    spin_unlock(subs.lock)\n", ""),
        at="first-fault-vs-dontneed",
        breaks="coherence|progress",
    ),
    bug(
        SRCU,
        "synchronize_srcu() returns at once",
        srcu.synchronize_srcu,
        ("    wait_srcu_gp(srcu, get_state_synchronize_srcu(srcu))\n", "    return\n"),
        at="teardown-vs-fault",
        breaks="lifetime",
    ),
    bug(
        SRCU,
        "a grace period ends with a reader inside",
        srcu.srcu_gp_end,
        ("            return 1\n", "            pass\n"),
        at="teardown-vs-fault",
        breaks="lifetime",
    ),
    bug(
        REFCOUNT,
        "the worker touches an item after its handler",
        workqueue.process_one_work,
        (
            "    work_function(start_work(work), obj)\n",
            "    work_function(start_work(work), obj)\n    start_work(work)\n",
        ),
        at="fault-vs-dontneed",
        breaks="lifetime",
    ),
]

CPU_SIDE = [
    bug(
        FULL_VA,
        "zapped after range_end",
        madvise.madvise_vma,
        (
            "        else:\n            zap_pages(mm, start, end)\n        raise_end(range)\n",
            "        raise_end(range)\n        zap_pages(mm, start, end)\n",
        ),
        at="fault-vs-dontneed",
        breaks="coherence",
    ),
    bug(
        FULL_VA,
        "zapped before range_start",
        madvise.madvise_vma,
        ("        range = raise", "        zap_pages(mm, start, end)\n        range = raise"),
        ("        else:\n            zap_pages(mm, start, end)\n", ""),
        at="fault-vs-dontneed",
        breaks="coherence",
    ),
    bug(
        FULL_VA,
        "zapped without an event (khugepaged, CVE-2022-48991)",
        raising.zap_range,
        ("raise_start(mm, start, end, event, RAISES_CALLS)", "Range(0)"),
        at="fault-vs-truncate",
        breaks="coherence",
    ),
    bug(
        FULL_VA,
        "an event over the last page only (ARM's range TLBI, mended in 6.14)",
        raising.zap_range,
        ("raise_start(mm, start, end,", "raise_start(mm, end - 4096, end,"),
        at="fault-vs-munmap",
        breaks="coherence",
    ),
    bug(
        FULL_VA,
        "a fault writes a PTE that somebody else wrote meanwhile (pte_same)",
        fault.handle_mm_fault,
        (
            "pt_cmpxchg(mm.pt, page, pte, new_anon_page",
            "pt_cmpxchg(mm.pt, page, pt_get(mm.pt, page), new_anon_page",
        ),
        at="first-touch",
        breaks="coherence",
    ),
    bug(
        FULL_VA,
        "copy-on-write broken without an event",
        fault.wp_page_copy,
        ("raise_start(mm, page, page + PAGE_SIZE, CLEAR, since)", "raise_start(mm, page, page + PAGE_SIZE, CLEAR, 9)"),
        at="fault-vs-cow",
        breaks="coherence",
    ),
    bug(
        FULL_VA,
        "the copy mapped after range_end",
        fault.wp_page_copy,
        (
            "    pt_cmpxchg(mm.pt, page, pte, entry | WRITE)\n    raise_end(range)\n",
            "    raise_end(range)\n    pt_cmpxchg(mm.pt, page, pte, entry | WRITE)\n",
        ),
        at="fault-vs-cow",
        breaks="coherence",
    ),
    bug(
        REFCOUNT,
        "a read-only page taken for one that may be written",
        hmm.hmm_vma_handle_pte,
        ("    if pte & VALID and (pte & WRITE or not write):\n", "    if pte & VALID:\n"),
        at="fault-vs-cow",
        breaks="coherence",
    ),
    bug(
        FULL_VA,
        "VMAs changed after the downgrade",
        mmap.do_vmi_align_munmap,
        ("    drop_vmas(mm, start, end)\n", ""),
        ("    zap_range", "    drop_vmas(mm, start, end)\n    zap_range"),
        at="fault-vs-munmap",
        breaks="lifetime",
    ),
    bug(
        FULL_VA,
        "the write lock given up that had been downgraded",
        mmap.mm_munmap,
        (
            "    mmap_unlock(mm, ret)\n",
            "    up_write(mm.mmap_lock)\n",
        ),
        at="fault-vs-munmap",
        breaks="locks",
    ),
    bug(
        FULL_VA,
        "mprotect changes PTEs before range_start",
        mprotect.change_protection,
        ("            range = raise", "            pt_write_protect(mm.pt, first, upto)\n            range = raise"),
        at="fault-vs-mprotect",
        breaks="coherence",
    ),
    bug(
        FULL_VA,
        "fork write-protects without an event",
        fork.mm_fork,
        (
            "raise_start(mm, vma.start, vma.last + 1, PROTECTION_PAGE, RAISES_CALLS)",
            "raise_start(mm, vma.start, vma.last + 1, PROTECTION_PAGE, 9)",
        ),
        at="fault-vs-fork",
        breaks="coherence",
    ),
    bug(
        FULL_VA,
        "mremap moves PTEs without an event",
        mremap.move_vma,
        (
            "adjusted_end(vma, old, old + old_size), UNMAP, RAISES_CALLS)",
            "adjusted_end(vma, old, old + old_size), UNMAP, 9)",
        ),
        at="fault-vs-mremap",
        breaks="coherence",
    ),
    bug(
        FULL_VA,
        "reclaim unmaps after range_end",
        reclaim.mm_reclaim,
        (
            "    pt_unmap_frame(mm.pt, page, (pte & DEVICE_BITS) >> FRAME_SHIFT)\n    raise_end(range)\n",
            "    raise_end(range)\n    pt_unmap_frame(mm.pt, page, (pte & DEVICE_BITS) >> FRAME_SHIFT)\n",
        ),
        at="fault-vs-reclaim",
        breaks="coherence",
    ),
    bug(
        FULL_VA,
        "the reaper zaps what it was refused",
        reclaim.mm_oom_reap,
        (
            "                ret = -EAGAIN\n",
            "                ret = -EAGAIN\n                pt_clear(mm.pt, vma.start, vma.last + 1)\n",
        ),
        at="oom-vs-fault",
        breaks="coherence",
    ),
    bug(
        FULL_VA,
        "the reaper ends what it was refused",
        reclaim.mm_oom_reap,
        (
            "                ret = -EAGAIN\n",
            "                ret = -EAGAIN\n                mmu_notifier_invalidate_range_end(range)\n",
        ),
        at="oom-vs-dontneed",
        breaks="coherence|progress",
    ),
    bug(
        FULL_VA,
        "mmget_not_zero() raises a count of zero",
        fork.mmget_not_zero,
        ("    return refcount_inc_not_zero(mm.mm_users)\n", "    refcount_inc(mm.mm_users)\n    return 1\n"),
        at="exit-vs-fault",
        breaks="lifetime",
    ),
]

RANGES = [
    bug(
        GPUSVM,
        "a bind committed without asking for the pages",
        xe_vm.xe_vm_range_rebind,
        (
            "    if not drm_gpusvm_range_pages_valid(r):\n        up_read(vm.notifier_lock)\n        return -EAGAIN\n",
            "",
        ),
        at="first-fault-vs-dontneed",
        breaks="coherence",
    ),
    bug(
        GPUSVM,
        "pages taken without asking for the sequence number",
        drm_gpusvm.map_pages,
        (
            "        if mmu_interval_read_retry(r.notifier, seq):\n"
            "            up_read(gpusvm.notifier_lock)\n"
            "            return -EAGAIN\n",
            "",
        ),
        at="first-fault-vs-dontneed",
        breaks="coherence",
    ),
    bug(
        GPUSVM,
        "a callback that leaves the pages valid",
        xe_svm.xe_svm_range_notifier_event_end,
        ("    drm_gpusvm_range_unmap_pages(r)\n", ""),
        at="first-fault-vs-dontneed",
        breaks="coherence",
    ),
    bug(
        GPUSVM,
        "pages got for a range that is to go",
        drm_gpusvm.map_pages,
        ("        if r.unmapped:\n            up_read(gpusvm.notifier_lock)\n            return -EFAULT\n", ""),
        at="background",
        breaks="coherence",
    ),
    bug(
        GPUSVM,
        "a range taken from the tree without the lock",
        drm_gpusvm.drm_gpusvm_range_remove,
        ("    down_read(gpusvm.notifier_lock)\n", ""),
        ("    up_read(gpusvm.notifier_lock)\n", ""),
        at="unmapped-twice",
        breaks="lifetime|structure",
    ),
    bug(
        GPUSVM,
        "a notifier freed that is still registered",
        drm_gpusvm.drm_gpusvm_range_remove,
        ("        if not notifier.removed:\n            mmu_interval_notifier_remove(notifier)\n", ""),
        at="fault-vs-munmap",
        breaks="lifetime",
    ),
    bug(
        GPUSVM,
        "a range on the garbage collector's list twice",
        xe_svm.xe_svm_garbage_collector_add_range,
        ("    if list_empty(r.garbage_collector_link):\n", "    if vm.size:\n"),
        at="unmapped-twice",
        breaks="structure",
    ),
    bug(
        GPUSVM,
        "closed without the notifier lock",
        xe.xe_vm_close,
        ("    down_read(vm.notifier_lock)\n", ""),
        ("    up_read(vm.notifier_lock)\n", ""),
        at="teardown-vs-munmap",
        breaks="lifetime",
    ),
    bug(
        GPUSVM,
        "closed without waiting for the garbage collector",
        xe.xe_vm_close_and_put,
        ("    flush_work(vm.gc_work)\n", ""),
        at="teardown-vs-munmap",
        breaks="lifetime",
    ),
    bug(
        GPUSVM,
        "VM looked up, reference taken after the lock",
        xe.xe_pagefault_service,
        (
            "    refcount_inc(vm.refcount)\n    up_read(xe.usm_lock)\n",
            "    up_read(xe.usm_lock)\n    refcount_inc(vm.refcount)\n",
        ),
        at="teardown-vs-fault",
        breaks="lifetime",
    ),
    bug(
        GPUSVM,
        "a callback that must not block takes the lock",
        drm_gpusvm.drm_gpusvm_notifier_invalidate,
        ("    if not mmu_range.blockable:\n        return 0\n", ""),
        at="oom-vs-munmap",
        breaks="locks",
    ),
]

MUTANTS = [*DRIVER, *ODP, *BLOCKS, *RANGES, *PLAIN, *CORE, *CPU_SIDE, *tracked.MUTANTS]

HARMLESS = [
    # Whatever it reads was so at some moment, and a number read too early only makes the fault retry. (Memory is
    # sequentially consistent here: in the kernel the lock also orders.)
    bug(
        FULL_VA,
        "read_begin without the lock",
        mmu_notifier.mmu_interval_read_begin,
        ("    spin_lock(subs.lock)\n", ""),
        ("    spin_unlock(subs.lock)\n", ""),
        at="two-invalidations",
        breaks="holds",
    ),
    # The walk goes on for nothing; the check under the driver's lock is what counts.
    bug(
        FULL_VA,
        "hmm does not look at the sequence number",
        hmm.hmm_range_fault,
        ("        if sub.invalidate_seq != seq:  # mmu_interval_check_retry()\n            return -EBUSY\n", ""),
        at="fault-vs-dontneed",
        breaks="holds",
    ),
    # A fault that has not come to its check yet retries; one that has is over before the zap, which waits for the lock.
    bug(
        FULL_VA,
        "set_seq before the lock",
        INVALIDATE,
        ("    mmu_interval_set_seq(mni, cur_seq)\n", ""),
        ("    if range.blockable:\n", "    mmu_interval_set_seq(mni, cur_seq)\n    if range.blockable:\n"),
        at="two-invalidations",
        breaks="holds",
    ),
    # mmap_lock, held for writing, keeps every fault out until the PTEs are changed.
    bug(
        FULL_VA,
        "mprotect changes PTEs after range_end",
        mprotect.change_protection,
        ("            raise_end(range)\n", ""),
        ("            if not vma.prot", "            raise_end(range)\n            if not vma.prot"),
        at="fault-vs-mprotect",
        breaks="holds",
    ),
    # As before 4.20: slower.
    bug(
        FULL_VA,
        "munmap without its downgrade",
        mmap.mm_munmap,
        ("start + size, 1)", "start + size, 0)"),
        at="fault-vs-munmap",
        breaks="holds",
    ),
    # mm_users is zero: no fault maps anything, and either of exit's two events clears all.
    bug(
        FULL_VA,
        "no RELEASE at exit",
        mmap.exit_mmap,
        ("    mmu_notifier_release(mm, range)\n", ""),
        at="exit-vs-fault",
        breaks="holds",
    ),
    # The same.
    bug(
        FULL_VA,
        "no UNMAP at exit",
        mmap.exit_mmap,
        ("    mmu_notifier_invalidate_range_start(range)\n", ""),
        ("    mmu_notifier_invalidate_range_end(range)\n", ""),
        at="exit-vs-fault",
        breaks="holds",
    ),
    # The device is told of each copy. What is lost is a write of the process, and data is not modelled.
    bug(
        FULL_VA,
        "a copy written over another",
        fault.wp_page_copy,
        (
            "pt_cmpxchg(mm.pt, page, pte, entry | WRITE)",
            "pt_cmpxchg(mm.pt, page, pt_get(mm.pt, page), entry | WRITE)",
        ),
        at="device-cow",
        breaks="holds",
    ),
    # The release that follows empties the child under its mutex, and an invalidation between the two finds the child
    # gone from the xarray.
    bug(
        REFCOUNT,
        "a child's private left set",
        mlx5_odp.mlx5_ib_dereg_mr,
        ("    umem.private = NULL\n", ""),
        at="teardown-vs-munmap",
        breaks="holds",
    ),
    # An invalidation of its block that the fault raises makes hmm_range_fault() give up by itself.
    bug(
        UVM,
        "a fault's own invalidations make it retry",
        uvm_va_block.hmm_invalidated,
        ("mutex_is_mine(gpu.service_lock)", "0"),
        at="fault-vs-cow",
        breaks="holds",
    ),
    # A memslot is only ever added, which is one step here, and whoever still reads the other copy may see it or not.
    bug(
        KVM,
        "the other copy of the memslots changed without waiting for its readers",
        kvm_main.kvm_swap_active_memslots,
        ("    synchronize_srcu(kvm.srcu)\n", ""),
        at="first-fault-vs-dontneed",
        breaks="holds",
    ),
]
