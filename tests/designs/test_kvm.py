"""kvm by hand: memslots, what takes mmap_lock, what KVM's own statistics say."""

from __future__ import annotations

from faultpath.designs import kvm
from faultpath.trace.ops import Event, Op
from oracles.core import Row
from oracles.running import Run, table

PAGE = 4096
SLOT = 64 * PAGE
AT = 1 << 30
RW = (Op.MMAP, AT, 4 * SLOT, 3, 0x22)
READ, WRITE = 0, 1


def cpu(page: int, write: bool = True) -> Row:
    return (Op.FAULT, AT + page * PAGE, 0, 4 | 2 * write, 0)


def guest(page: int, write: int = WRITE) -> Row:
    return (Op.ACCESS, AT + page * PAGE, 0, write, 0)


def event(first: int, pages: int) -> Row:
    return (Op.INVALIDATE, AT + first * PAGE, pages * PAGE, Event.CLEAR, 0)


class Vm:
    """What a replay counts."""

    def __init__(self, *rows: Row) -> None:
        run = Run(kvm.design, [SLOT], raises=False, accesses=0)
        run.open()
        run.rows(table(rows))
        self.counts = run.counters() | run.driver_counters()
        self.locks = run.locks()

    def __getitem__(self, counter: str) -> int:
        return self.counts[counter]

    def lock(self, role: str, mode: str = "acquired") -> int:
        return self.locks.get(role, {}).get(mode, 0)


def test_the_first_access_to_a_slot_exits_to_user_space_and_is_done_again() -> None:
    vm = Vm(RW, guest(0), guest(1), guest(63), guest(64))
    assert vm["device_faults"] == 4
    assert (vm["pf_taken"], vm["pf_fixed"], vm["pf_emulate"], vm["pf_mmio_spte_created"]) == (6, 4, 2, 2)
    assert vm["allocs"] == 1 + 2  # the VM and the slots
    assert vm["fault_retries"] == 0


def test_what_the_process_has_mapped_writable_costs_no_mmap_lock() -> None:
    before = Vm(RW, cpu(0), cpu(1), cpu(2, write=False))
    vm = Vm(RW, cpu(0), cpu(1), cpu(2, write=False), guest(0), guest(1, READ))
    assert vm.lock("mmap_lock", "read") == before.lock("mmap_lock", "read")
    assert vm["vma_steps"] == 0
    # The zero page, for reading: not writable, so the slow way. For writing it is replaced.
    vm = Vm(RW, cpu(0), cpu(1), cpu(2, write=False), guest(2, READ), guest(2))
    assert vm.lock("mmap_lock", "read") == before.lock("mmap_lock", "read") + 2
    assert (vm["device_faults"], vm["pf_taken"], vm["pf_fixed"]) == (2, 3, 2)


def test_a_page_read_is_mapped_writable_if_the_process_may_write_it() -> None:
    assert Vm(RW, cpu(0), guest(0, READ), guest(0))["device_faults"] == 1
    assert Vm(RW, cpu(0, write=False), guest(0, READ), guest(0))["device_faults"] == 2


def test_what_is_refused_takes_mmap_lock_twice() -> None:
    vm = Vm(guest(0))
    assert (vm["device_faults_refused"], vm["pf_taken"], vm["pf_fixed"], vm["pf_emulate"]) == (1, 2, 0, 1)
    assert vm.lock("mmap_lock", "read") == 2


def test_an_event_without_a_slot_calls_back_and_leaves_mmu_lock_alone() -> None:
    none = Vm(RW, guest(0))
    vm = Vm(RW, guest(0), event(64, 9))
    assert (vm["callbacks"], vm["callbacks_empty"]) == (1, 1)
    assert vm.lock("driver") == none.lock("driver")
    assert vm.lock("srcu") - none.lock("srcu") == 4  # the notifier core's and KVM's, at start and end
    assert vm.lock("spinlock") - none.lock("spinlock") == 2


def test_an_event_in_a_slot_takes_mmu_lock_at_start_and_end_and_flushes_only_what_was_mapped() -> None:
    none = Vm(RW, guest(0), guest(7))
    empty = Vm(RW, guest(0), guest(7), event(1, 2))
    assert empty.lock("driver") - none.lock("driver") == 2
    assert (empty["callbacks_empty"], empty["remote_tlb_flush_requests"]) == (1, 0)
    vm = Vm(RW, guest(0), guest(7), event(0, 64))
    assert vm.lock("driver") - none.lock("driver") == 2
    assert (vm["ptes_zapped"], vm["remote_tlb_flush_requests"], vm["device_commands"]) == (2, 1, 1)


def test_one_flush_for_all_the_slots_of_an_event() -> None:
    vm = Vm(RW, guest(0), guest(64), guest(128), event(0, 256))
    assert (vm["ptes_zapped"], vm["remote_tlb_flush_requests"], vm["callbacks"]) == (3, 1, 1)
    # At start: root, leftmost and leftmost as a child, then root, right one, root again; at the end only to the first.
    assert vm["walk_steps"] == 6 + 3


def test_release_takes_the_whole_guest_and_is_no_callback() -> None:
    vm = Vm(RW, guest(0), guest(64), (Op.EXIT, 0, 0, 0, 0))
    assert (vm["exit_callbacks"], vm["exit_ptes_zapped"], vm["callbacks"]) == (0, 2, 0)


def test_exec_gives_a_vm_without_slots() -> None:
    vm = Vm(RW, guest(0), (Op.EXEC, 0, 0, 0, 0), RW, guest(0))
    assert (vm["pf_taken"], vm["pf_emulate"]) == (4, 2)
