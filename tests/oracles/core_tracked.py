"""An interval for each VMA that the device uses, made by the core: it listens to an AddressSpace's VMAs."""

from __future__ import annotations

from faultpath.trace.ops import Event
from oracles.address_space import PAGE, AddressSpace, Vma
from oracles.core import Counts, Driver
from oracles.rbtree import Node

EFAULT = 14


class CoreTracked(Driver):
    BYTES = 136

    def __init__(self, space: AddressSpace, counts: Counts) -> None:
        super().__init__(space, counts)
        self.writable: dict[int, bool] = {}
        self.of: dict[Vma, Node] = {}
        self.waiting: list[Node] = []  # until a munmap() has told the device
        self.unmaps = self.resizes = False
        counts.alloc()  # the mirror
        self.listen(space)

    def listen(self, space: AddressSpace) -> None:
        """Stand before the functions by which VMAs change."""
        part, resize, unlink, unmap = space.part, space.resize, space.unlink, space.unmap
        take_in, hand_over = space.take_in, space.hand_over

        def parted(vma: Vma, start: int, end: int) -> None:
            part(vma, start, end)
            self.gains(next(v for v in space.vmas if v.start == start and v is not vma), start, end, vma)

        def resized(vma: Vma, start: int, end: int) -> None:
            self.resizes = True
            resize(vma, start, end)
            self.resizes = False
            if vma in self.of:
                self.lock("subscriptions")
                self.cover(self.of[vma], start, end)

        def unlinked(vma: Vma) -> None:
            unlink(vma)
            if vma in self.of and not self.resizes:
                node = self.of.pop(vma)
                if self.unmaps:
                    self.waiting.append(node)
                else:
                    self.retire(node)

        def unmapped(start: int, end: int, heap: bool = False) -> None:
            self.unmaps = True
            unmap(start, end, heap)
            self.unmaps = False
            while self.waiting:
                self.retire(self.waiting.pop())

        def taken_in(vma: Vma, other: Vma) -> None:
            self.gains(vma, min(vma.start, other.start), max(vma.end, other.end), other)
            take_in(vma, other)

        def handed_over(vma: Vma, rest: tuple[int, int], taker: Vma, whole: tuple[int, int]) -> None:
            self.gains(taker, *whole, vma)
            hand_over(vma, rest, taker, whole)

        # The space is to tell of each change: mypy wants no method assigned to.
        space.part, space.resize, space.unlink, space.unmap = parted, resized, unlinked, unmapped  # type: ignore[method-assign]
        space.take_in, space.hand_over = taken_in, handed_over  # type: ignore[method-assign]

    # --- intervals

    def gains(self, vma: Vma, start: int, end: int, donor: Vma) -> None:
        if donor not in self.of:
            return
        if vma not in self.of:
            self.create(vma, start, end)
            return
        self.counts.n["lookup_steps"] += 2  # before the lock, in case memory is needed, and under it
        self.lock("subscriptions")
        self.cover(self.of[vma], start, end)

    def create(self, vma: Vma, start: int, end: int) -> None:
        self.counts.alloc()
        self.counts.bytes(self.BYTES)
        self.of[vma] = Node(start, end - 1)
        self.insert(self.of[vma])

    def cover(self, node: Node, start: int, end: int) -> None:
        if (node.start, node.last) != (start, end - 1):
            self.counts.n["intervals_updated"] += 1
            self.tree.remove(node)
            node.start, node.last = start, end - 1
            self.tree.insert(node)

    def retire(self, node: Node) -> None:
        self.lock("subscriptions")  # for its number
        self.lock("subscriptions")
        self.tree.remove(node)
        self.removed()
        self.counts.bytes(-self.BYTES)

    # --- the driver

    def mapped(self, page: int) -> bool | None:
        return self.writable.get(page)

    def fault(self, page: int, write: bool) -> int:
        self.lock("driver_parent")
        self.lock("mmap_lock read")
        self.counts.n["lookups"] += 1
        self.space.tree.steps = 0
        vma = self.space.find_vma(page)
        self.counts.n["vma_steps"] += self.space.tree.steps
        if vma is None or page < vma.start:
            return -EFAULT
        if vma in self.of:
            self.counts.n["lookup_steps"] += 1
        else:
            self.create(vma, vma.start, vma.end)
        self.read_begin()
        result = self.hmm_range_fault(page, write)
        if result < 0:
            return result
        self.lock("driver")
        self.counts.n["device_commands"] += 1
        self.writable[page] = bool(result)
        return 0

    def callback(self, node: Node, start: int, end: int, event: Event) -> None:
        self.lock("driver")
        self.counts.n["device_commands"] += 1
        for page in range(max(start, node.start) // PAGE * PAGE, min(end, node.last + 1), PAGE):
            if self.writable.pop(page, None) is not None:
                self.counts.n["ptes_probed"] += 1
                self.counts.n["ptes_zapped"] += 1

    def close(self) -> None:
        for node in self.of.values():
            self.retire(node)
