"""The bookkeeping of the designs: intervals, children and device pages as nodes, dicts and sets."""

from __future__ import annotations

from collections.abc import Callable

from faultpath.trace.ops import Event
from oracles.address_space import MAX, PAGE, AddressSpace
from oracles.core import Counts, Driver
from oracles.rbtree import Node

ENOENT = 2


class FullVa(Driver):
    """lib/test_hmm.c: one interval from open to release."""

    def __init__(self, space: AddressSpace, counts: Counts) -> None:
        super().__init__(space, counts)
        self.ptes: dict[int, bool] = {}
        counts.alloc()  # struct dmirror, with the notifier inside
        counts.bytes(88)
        self.interval = Node(0, MAX // PAGE * PAGE - 1)
        self.insert(self.interval)

    def mapped(self, page: int) -> bool | None:
        return self.ptes.get(page)

    def callback(self, node: Node, start: int, end: int, event: Event) -> None:
        self.lock("driver")
        for page in [p for p in self.ptes if start // PAGE <= p // PAGE <= end // PAGE]:  # the end, too
            del self.ptes[page]
            self.counts.n["ptes_probed"] += 1
            self.counts.n["ptes_zapped"] += 1

    def fault(self, page: int, write: bool) -> int:
        self.read_begin()
        self.lock("mmap_lock read")
        writable = self.hmm_range_fault(page, write)
        if writable < 0:
            return writable
        self.lock("driver")
        self.ptes[page] = bool(writable)
        return 0

    def close(self) -> None:
        self.tree.remove(self.interval)
        self.removed()
        self.counts.bytes(-88)


class NouveauV6(Driver):
    """PATCH v6 5/6: an interval for about each VMA that the device faulted in."""

    BYTES = 112

    def __init__(self, space: AddressSpace, counts: Counts) -> None:
        super().__init__(space, counts)
        self.ptes: dict[int, bool] = {}
        self.updates: dict[Node, tuple[int, int]] = {}
        self.puts: list[Node] = []
        counts.alloc()  # struct nouveau_svmm
        self.lock("driver_parent")  # its channel is told

    def mapped(self, page: int) -> bool | None:
        return self.ptes.get(page)

    def find(self, start: int, last: int) -> Node | None:
        """mmu_interval_notifier_find(): the first in order of start; all intervals are ours."""
        self.counts.n["lookups"] += 1
        self.lock("subscriptions")
        self.tree.steps = 0
        node = self.tree.first(start, last)
        self.counts.n["lookup_steps"] += self.tree.steps
        return node or None

    def left_neighbour(self, start: int, last: int) -> Node | None:
        """The series takes what find() returns, the lowest."""
        return self.find(start, last)

    def create(self, start: int, last: int) -> None:
        self.counts.alloc(atomic=True)
        self.counts.bytes(self.BYTES)
        self.insert(Node(start, last))

    def release(self) -> None:
        self.removed()
        self.counts.bytes(-self.BYTES)

    def fault(self, page: int, write: bool) -> int:
        self.lock("driver_parent")  # whose channel it is
        self.lock("mmap_lock read")
        self.lock("driver")
        if not self.find(page, page + PAGE - 1):
            self.space.tree.steps = 0
            vma = self.space.find_vma(page)
            self.counts.n["vma_steps"] += self.space.tree.steps
            if vma is None or page < vma.start:
                return -ENOENT
            right = self.find(page + PAGE, vma.end - 1)
            left = self.left_neighbour(vma.start, page - 1)
            self.create(left.last + 1 if left else vma.start, right.start - 1 if right else vma.end - 1)
        self.read_begin()
        writable = self.hmm_range_fault(page, write)
        if writable < 0:
            return writable
        self.lock("driver")
        self.counts.n["device_commands"] += 1
        self.ptes[page] = bool(writable)
        return 0

    def callback(self, node: Node, start: int, end: int, event: Event) -> None:
        self.lock("driver")
        self.counts.n["device_commands"] += 1
        for page in [p for p in self.ptes if start <= p < end]:  # the event's range, not the interval's
            del self.ptes[page]
            self.counts.n["ptes_probed"] += 1
            self.counts.n["ptes_zapped"] += 1
        if event == Event.UNMAP:
            self.unmap(node, start, end)

    def unmap(self, node: Node, start: int, end: int) -> None:
        """nouveau_svmm_do_unmap()."""
        last = node.last
        if node.start >= start:
            if last <= end:
                self.lock("subscriptions")
                self.defer(lambda: (self.tree.remove(node), self.puts.append(node)))
            else:
                self.update(node, end, last)
            return
        self.update(node, node.start, start - 1)
        if last >= end:
            self.create(end, last)

    def update(self, node: Node, start: int, last: int) -> None:
        assert start < last  # with whole pages the series' WARN_ON never fires
        self.counts.n["intervals_updated"] += 1
        self.lock("subscriptions")

        def act() -> None:
            self.tree.remove(node)
            node.start, node.last = start, last
            self.tree.insert(node)

        self.defer(act)

    def after_invalidation(self) -> None:
        while self.puts:
            self.puts.pop()
            self.release()

    def close(self) -> None:
        while node := self.find(0, MAX):
            self.tree.remove(node)
            self.release()


class NouveauV6Fixed(NouveauV6):
    """The series mended: alone, a process meets only the larger structure and the nearest left neighbour."""

    BYTES = 136

    def left_neighbour(self, start: int, last: int) -> Node | None:
        """mmu_interval_notifier_find_last(): down the tree by start; it may end before the VMA begins."""
        self.counts.n["lookups"] += 1
        self.lock("subscriptions")
        node = self.tree.root
        while node:
            self.counts.n["lookup_steps"] += 1
            node = node.right if node.start <= last else node.left
        return max(self.tree.overlapping(start, last), key=lambda n: n.last, default=None)


class Child:
    """One chunk of the address space that has, or had, pages mapped."""

    def __init__(self, index: int, size: int) -> None:
        self.index = index
        self.start = index * size
        self.end = self.start + size
        self.pages: set[int] = set()
        self.node = Node(self.start, self.end - 1, self)


def runs(pages: list[int], start: int) -> int:
    """UMR posts for these present pages, ascending, of a child from ``start``.

    Between two of them all entries are absent. They are posted together unless one of those has an index that is a
    multiple of eight: only there is a run cut.
    """
    indices = [(p - start) // PAGE for p in pages]
    return sum(1 for i, index in enumerate(indices) if i == 0 or (index - 1) // 8 * 8 > indices[i - 1])


class Xarray:
    """How many nodes a load reads: those above some entry, in a tree no higher than its highest index needs."""

    def __init__(self) -> None:
        self.entries: set[int] = set()

    def nodes_read(self, index: int) -> int:
        height = next(h for h in range(9) if max(self.entries, default=0) < 64**h)
        if index >= 64**height:
            return 0
        return sum(any(e // 64**level == index // 64**level for e in self.entries) for level in range(1, height + 1))


def odp(size: int, srcu: bool) -> Callable[[AddressSpace, Counts], Driver]:
    return lambda space, counts: OdpImplicit(space, counts, size, srcu)


class OdpImplicit(Driver):
    """mlx5's implicit MR: aligned chunks of ``size`` bytes, made by the first fault, gone with their last page."""

    def __init__(self, space: AddressSpace, counts: Counts, size: int, srcu: bool) -> None:
        super().__init__(space, counts)
        self.size = size
        self.srcu = srcu
        self.children: dict[int, Child] = {}
        self.ksm: dict[int, Child] = {}  # as the device sees them
        self.xarray = Xarray()
        self.bytes = 240 + 16 * (size // PAGE)
        counts.alloc()
        counts.n["device_commands"] += 1
        self.lock("xa_lock")  # the mkey is published

    def mapped(self, page: int) -> bool | None:
        child = self.ksm.get(page // self.size)
        return True if child and page in child.pages else None  # the MR may be written: so may every MTT

    def update_ksm(self, index: int) -> None:
        self.lock("driver_parent")
        self.counts.n["device_commands"] += 1
        if index in self.children:
            self.ksm[index] = self.children[index]
        else:
            self.ksm.pop(index, None)

    def fault(self, page: int, write: bool) -> int:
        index = page // self.size
        self.counts.n["lookups"] += 1
        self.counts.n["lookup_steps"] += self.xarray.nodes_read(index)
        if self.srcu:
            self.lock("srcu")  # around it all
        else:
            self.lock("xa_lock")  # of the mkeys
            self.lock("xa_lock")  # of the children
        child = self.children.get(index)
        created = child is None
        if child is None:
            child = self.create(index)
        result = self.map(child, page)
        if created:
            self.update_ksm(index)
        return result

    def create(self, index: int) -> Child:
        child = Child(index, self.size)
        for _ in ("umem", "pfn_list", "dma_list", "mr"):
            self.counts.alloc()
        self.counts.bytes(self.bytes)
        self.insert(child.node)
        self.counts.n["device_commands"] += 1  # ZAP | ENABLE
        self.lock("xa_lock")
        self.children[index] = child
        self.xarray.entries.add(index)
        return child

    def map(self, child: Child, page: int) -> int:
        self.read_begin()
        self.lock("mmap_lock read")
        result = self.hmm_range_fault(page, True)  # for writing, whatever the access is
        if result < 0:
            return result
        self.lock("driver")
        child.pages.add(page)
        self.counts.n["device_commands"] += 1
        self.counts.n["page_faults"] += 1
        return 0

    def callback(self, node: Node, start: int, end: int, event: Event) -> None:
        child: Child = node.payload
        self.lock("driver")
        if not child.pages:
            return
        start, end = max(start, child.start), min(end, child.end)
        present = sorted(p for p in child.pages if start <= p < end)
        self.counts.n["device_commands"] += runs(present, child.start)
        self.counts.n["ptes_probed"] += (end - start) // PAGE
        self.counts.n["ptes_zapped"] += len(present)
        child.pages -= set(present)
        if not child.pages:
            self.lock("xa_lock")
            if self.children.get(child.index) is child:
                del self.children[child.index]
                self.xarray.entries.remove(child.index)
                self.work.append(lambda: self.destroy(child))

    def destroy(self, child: Child) -> None:
        if self.srcu:
            self.lock("srcu")
        self.update_ksm(child.index)
        self.dereg(child)

    def dereg(self, child: Child) -> None:
        self.lock("driver")  # to stop the device
        self.counts.n["device_commands"] += 1
        self.lock("driver")  # to unmap
        self.lock("subscriptions")
        self.tree.remove(child.node)
        self.removed()
        self.counts.bytes(-self.bytes)

    def close(self) -> None:
        for child in list(self.children.values()):
            self.dereg(child)
