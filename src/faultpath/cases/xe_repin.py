"""xe: what an interrupted pass has left on its list is freed there.

The callback puts an invalidated userptr on a list. Whoever submits work moves it from there to a list of what is to be
pinned again, and pins one after the other. If that fails half way, the rest stays on the second list; and a VMA that is
destroyed takes itself off the first only. The next pass walks over freed memory.

The fix puts what is left back on the first list.

One userptr; pinning fails when its time is up.
"""

from __future__ import annotations

import dataclasses

from faultpath.cases import mirror
from faultpath.cases.case import BUGGY, FINAL_FIX, HOLDS, Case, Variant, memory
from faultpath.driver import *
from faultpath.kernel.primitives.lists import hlist_unhashed
from faultpath.scenario import DEVICE, SPAN, Call, Scenario, reclaim


class Vm(Device):
    """``struct xe_vm``."""

    notifier_lock: Mutex  # a semaphore in C
    invalidated_lock: SpinLock
    invalidated: HlistHead
    repin_list: HlistHead
    uptr: int  # the one there is
    pt: PageTable


class Uptr(IntervalNotifier):
    """``struct xe_userptr_vma``."""

    vm: Vm
    destroyed: int  # XE_VMA_DESTROYED
    invalidate_link: HlistNode
    repin_link: HlistNode


@protocol
def vma_userptr_invalidate(mni: IntervalNotifier, range: Range, cur_seq: int) -> int:
    """vma_userptr_invalidate()."""
    uptr = Uptr(mni)
    vm = uptr.vm
    with mutex_lock(vm.notifier_lock):
        mmu_interval_set_seq(mni, cur_seq)
        if not uptr.destroyed:
            with spin_lock(vm.invalidated_lock):
                if hlist_unhashed(uptr.invalidate_link):
                    hlist_add_head(uptr.invalidate_link, vm.invalidated)
        device_zap(vm.pt, range.start, range.end)
    return 1


vma_userptr_notifier_ops = Ops("vma_userptr_notifier_ops", invalidate=vma_userptr_invalidate)


@protocol
def xe_vm_create(mm: Mm) -> Vm:
    """xe_vm_create(), and xe_vma_create() of a userptr."""
    vm = kmalloc(Vm, GFP_KERNEL)
    if not vm:
        return NULL
    vm.mm = mm
    pt_init(vm.pt, 0, mm.task_size)
    uptr = kmalloc(Uptr, GFP_KERNEL)
    uptr.vm = vm
    vm.uptr = uptr
    mmu_interval_notifier_insert(uptr, mm, SPAN, PAGE_SIZE, vma_userptr_notifier_ops)
    return vm


@protocol
def xe_vma_userptr_pin_pages(uptr: Uptr) -> int:
    """xe_vma_userptr_pin_pages()."""
    vm = uptr.vm
    mm = vm.mm
    while not timed_out():
        seq = mmu_interval_read_begin(uptr)
        with down_read(mm.mmap_lock):
            pfn = hmm_range_fault(mm, uptr, seq, SPAN, 1)
        if pfn >= 0:
            with mutex_lock(vm.notifier_lock):
                if not mmu_interval_read_retry(uptr, seq):
                    pt_set(vm.pt, SPAN, pfn)
                    return 0
    return -EBUSY


@protocol
def restore(vm: Vm) -> None:
    """Until 6.13 the rest stays where it is."""
    return


@protocol(replaces=restore)
def restore_invalidation_list(vm: Vm) -> None:
    """After e043dc16c28c."""
    with spin_lock(vm.invalidated_lock):
        while hlist_first(vm.repin_list):
            uptr = container_of(Uptr, "repin_link", hlist_first(vm.repin_list))
            hlist_del(uptr.repin_link)
            if hlist_unhashed(uptr.invalidate_link):
                hlist_add_head(uptr.invalidate_link, vm.invalidated)


@protocol
def xe_vm_userptr_pin(vm: Vm) -> int:
    """xe_vm_userptr_pin(), under vm->lock."""
    with spin_lock(vm.invalidated_lock):
        while hlist_first(vm.invalidated):
            uptr = container_of(Uptr, "invalidate_link", hlist_first(vm.invalidated))
            hlist_del(uptr.invalidate_link)
            hlist_add_head(uptr.repin_link, vm.repin_list)
    while hlist_first(vm.repin_list):
        uptr = container_of(Uptr, "repin_link", hlist_first(vm.repin_list))
        if err := xe_vma_userptr_pin_pages(uptr):
            restore(vm)
            return err
        hlist_del(uptr.repin_link)
    return 0


@protocol
def xe_vma_destroy(vm: Vm) -> None:
    """xe_vma_destroy() and xe_vma_destroy_late()."""
    uptr = Uptr(vm.uptr)
    with mutex_lock(vm.notifier_lock):
        uptr.destroyed = 1
        device_zap(vm.pt, SPAN, SPAN + PAGE_SIZE)
    with spin_lock(vm.invalidated_lock):
        if not hlist_unhashed(uptr.invalidate_link):
            hlist_del(uptr.invalidate_link)
    mmu_interval_notifier_remove(uptr)
    kfree(uptr)


@protocol
def exec_unbind_exec(vm: Vm) -> int:
    """Work is submitted, the userptr is unbound, work is submitted again."""
    xe_vm_userptr_pin(vm)
    xe_vma_destroy(vm)
    return xe_vm_userptr_pin(vm)


@protocol
def gpu_walk(vm: Vm, addr: int) -> int:
    """What the GPU finds."""
    return pt_get(vm.pt, addr)


BEFORE = dataclasses.replace(
    mirror.design, name="xe vm", open=xe_vm_create, walk=gpu_walk, ops=[vma_userptr_notifier_ops]
)
AFTER = dataclasses.replace(BEFORE, replaces=[*BEFORE.replaces, restore_invalidation_list])

SCENARIO = Scenario(
    "exec-vs-reclaim",
    "Work is submitted, a userptr unbound, work submitted again, while kswapd takes its page.",
    memory(1),
    [Call("exec", exec_unbind_exec, (DEVICE,)), reclaim(0)],
    pages=1,
)

case = Case(
    name="xe-repin",
    title="drm/xe/userptr: restore invalidation list on error",
    cve="",
    property="lifetime",
    source="drivers/gpu/drm/xe/xe_vm.c:xe_vm_userptr_pin()",
    variants=[
        Variant(BUGGY, BEFORE, SCENARIO, "lifetime"),
        Variant(FINAL_FIX, AFTER, SCENARIO, HOLDS, "e043dc16c28c", "6.14-rc5"),
    ],
    doc=__doc__,
)
