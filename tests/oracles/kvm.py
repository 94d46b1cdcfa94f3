"""KVM's bookkeeping: memslots as blocks of the address space, guest pages as a dict."""

from __future__ import annotations

from collections.abc import Callable

from faultpath.trace.ops import Event
from oracles.address_space import EFAULT, MAX, AddressSpace
from oracles.core import Counts, Driver
from oracles.rbtree import Node, Tree


def kvm(block: int) -> Callable[[AddressSpace, Counts], Driver]:
    return lambda space, counts: Kvm(space, counts, block)


class Kvm(Driver):
    """One plain notifier; guest memory in aligned blocks, each set up by the first access."""

    def __init__(self, space: AddressSpace, counts: Counts, block: int) -> None:
        super().__init__(space, counts)
        self.block = block
        self.slots = Tree()
        self.known: set[int] = set()  # blocks by number
        self.guest: dict[int, bool] = {}  # page -> whether it may be written
        self.registered = True
        counts.alloc()
        self.lock("mmap_lock write")  # mmu_notifier_register()
        self.lock("subscriptions")

    def mapped(self, page: int) -> bool | None:
        return self.guest.get(page)

    def zap(self, start: int, end: int) -> int:
        gone = [page for page in self.guest if start <= page < end]
        for page in gone:
            del self.guest[page]
        self.counts.n["ptes_probed"] += len(gone)
        self.counts.n["ptes_zapped"] += len(gone)
        return len(gone)

    def slots_met(self, start: int, end: int, all_of_them: bool) -> int:
        """How many memslots a range meets; the nodes read to find the first one, or all."""
        self.slots.steps = 0
        node = self.slots.first(start, end - 1)
        met = 0
        while node:
            met += 1
            node = self.slots.next(node, start, end - 1) if all_of_them else None
        self.counts.n["walk_steps"] += self.slots.steps
        return met

    def invalidate(self, start: int, end: int, event: Event) -> None:
        if not self.registered:
            return
        if (start, end, event) == (0, MAX, Event.RELEASE):  # the mm goes: .release
            self.zap(0, end)
            self.registered = False
            return
        for begins in (True, False):
            for role in ("subscriptions", "srcu", "srcu", "spinlock"):  # the core's SRCU and KVM's
                self.lock(role)
            if begins:
                self.counts.n["callbacks"] += 1
            zapped = 0
            if self.slots_met(start, end, begins):
                self.lock("driver")
                zapped = self.zap(start, end) if begins else 0
            if begins:
                self.counts.n["callbacks_empty"] += not zapped
            if zapped:
                self.counts.n["remote_tlb_flush_requests"] += 1
                self.counts.n["device_commands"] += 1

    def exit_to_kvm(self, page: int) -> bool:
        """A page fault of the guest; whether there is a memslot."""
        self.counts.n["pf_taken"] += 1
        self.counts.n["lookups"] += 1
        self.lock("srcu")
        self.slots.steps = 0
        self.slots.first(page, page)
        self.counts.n["lookup_steps"] += self.slots.steps
        return page // self.block in self.known

    def fault(self, page: int, write: bool) -> int:
        if not self.exit_to_kvm(page):
            self.lock("driver")
            self.counts.n["pf_mmio_spte_created"] += 1
            self.counts.n["pf_emulate"] += 1
            self.new_slot(page // self.block)
            assert self.exit_to_kvm(page)
        writable = self.page_of_host(page, write)
        if writable < 0:
            return writable
        self.lock("driver")
        unchanged = self.guest.get(page) == bool(writable)
        self.counts.n["pf_spurious" if unchanged else "pf_fixed"] += 1
        self.guest[page] = bool(writable)
        return 0

    def new_slot(self, number: int) -> None:
        self.known.add(number)
        self.slots.insert(Node(number * self.block, (number + 1) * self.block - 1))
        self.counts.alloc()
        self.lock("driver_parent")  # slots_lock, slots_arch_lock
        self.lock("driver_parent")
        self.lock("spinlock")

    def page_of_host(self, page: int, write: bool) -> int:
        present = self.space.pages.get(page)
        if present and present.writable:
            return 1
        self.lock("mmap_lock read")
        writable = self.hmm_range_fault(page, write)
        if writable >= 0:
            return writable
        self.lock("mmap_lock read")  # to see whether it is a device's memory
        self.space.tree.steps = 0
        self.space.find_vma(page)
        self.counts.n["vma_steps"] += self.space.tree.steps
        return -EFAULT

    def close(self) -> None:
        pass
