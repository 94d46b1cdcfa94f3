"""nouveau since 2019: one notifier that clears what an event covers, and an interval for as long as a fault takes."""

from __future__ import annotations

from faultpath.trace.ops import Event
from oracles.address_space import MAX, PAGE, AddressSpace
from oracles.core import Counts, Driver
from oracles.rbtree import Node


class NouveauUpstream(Driver):
    def __init__(self, space: AddressSpace, counts: Counts) -> None:
        super().__init__(space, counts)
        self.writable: dict[int, bool] = {}
        self.hears = True
        counts.alloc()  # struct nouveau_svmm
        for role in ("mmap_lock write", "subscriptions", "driver_parent"):  # registered; its channel is told
            self.lock(role)

    def mapped(self, page: int) -> bool | None:
        return self.writable.get(page)

    def fault(self, page: int, write: bool) -> int:
        node = Node(page, page + PAGE - 1)
        self.lock("driver_parent")
        self.insert(node)
        self.read_begin()
        self.lock("mmap_lock read")
        result = self.hmm_range_fault(page, write)
        if result >= 0:
            self.lock("driver")
            self.counts.n["device_commands"] += 1
            self.writable[page] = bool(result)
        self.lock("subscriptions")
        self.tree.remove(node)
        self.removed()
        return min(result, 0)

    def invalidate(self, start: int, end: int, event: Event) -> None:
        super().invalidate(start, end, event)  # no fault is under way: it concerns no interval
        if event == Event.RELEASE and end == MAX:
            self.hears = False  # exit empties the list, though there is no release to call
        if not self.hears:
            return
        self.lock("srcu")
        self.lock("srcu")  # at the end, again, though there is nothing to tell
        self.lock("driver")
        n = self.counts.n
        n["callbacks"] += 1
        n["device_commands"] += 1
        gone = [page for page in self.writable if start <= page < end]
        n["callbacks_empty"] += not gone
        for page in gone:
            del self.writable[page]
        n["ptes_probed"] += len(gone)
        n["ptes_zapped"] += len(gone)

    def close(self) -> None:
        pass
