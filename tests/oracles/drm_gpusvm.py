"""drm_gpusvm and Xe as lists of ranges in areas: an area is called back, a range is what comes and goes at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from faultpath.trace.ops import Event
from oracles.address_space import PAGE, WRITE, AddressSpace
from oracles.core import Counts, Driver
from oracles.rbtree import NIL, Node, Tree

ENOENT, EPERM = 2, 1
NAMES = {4 << 10: "4K", 64 << 10: "64K", 2 << 20: "2M"}


class Disjoint(Node):
    """One of intervals that do not overlap: in a subtree the last one reaches furthest."""

    def reach(self) -> int:
        node: Node = self
        while node.right:
            node = node.right
        return node.last


@dataclass(eq=False)
class Area:
    """A notifier: its place in the core's tree and in the driver's, and its ranges."""

    core: Node
    own: Node
    ranges: Tree = field(default_factory=Tree)


@dataclass(eq=False)
class Chunk:
    """A range. ``array``: its DMA addresses are allocated; ``bound``: the device's tables had it, zapped or not."""

    area: Area
    start: int
    size: int
    array: bool = False
    bound: bool = False
    zapped: bool = False
    dead: bool = False
    node: Node = NIL

    @property
    def pages(self) -> range:
        return range(self.start, self.start + self.size, PAGE)


class Gpusvm(Driver):
    """``sizes``: those above 4 KiB, largest first."""

    def __init__(self, space: AddressSpace, counts: Counts, area: int, sizes: list[int]) -> None:
        super().__init__(space, counts)
        self.area = area
        self.sizes = sizes
        self.areas = Tree()
        self.ptes: set[int] = set()
        self.garbage: list[Chunk] = []
        counts.alloc()  # the VM
        self.lock("rwsem")  # its ASID

    def mapped(self, page: int) -> bool | None:
        return True if page in self.ptes else None  # all are got for writing

    def find(self, tree: Tree, first: int, last: int) -> Node:
        self.counts.n["lookups"] += 1
        tree.steps = 0
        node = tree.first(first, last)
        self.counts.n["lookup_steps"] += tree.steps
        return node

    # --- the fault

    def fault(self, page: int, write: bool) -> int:
        self.lock("rwsem")
        self.lock("driver_parent")
        self.counts.n["svm_pagefault_count"] += 1
        self.collect()
        chunk = self.chunk_for(page)
        if isinstance(chunk, int):
            return chunk
        if chunk.size in NAMES:
            self.counts.n[f"svm_{NAMES[chunk.size]}_pagefault_count"] += 1
        error = self.get_pages(chunk)
        if not error:
            self.bind(chunk)
        return error

    def chunk_for(self, page: int) -> Chunk | int:
        node = self.find(self.areas, page, page)
        if node:
            area = node.payload
        else:
            start = page // self.area * self.area
            area = Area(Node(start, start + self.area - 1), Disjoint(start, start + self.area - 1))
            area.core.payload = area.own.payload = area
            self.counts.alloc()
            self.counts.bytes(200)
            self.insert(area.core)
        self.lock("mmap_lock read")
        found = self.chunk_in(area, page)
        if not node and isinstance(found, int):
            self.drop(area)
        elif not node:
            self.areas.insert(area.own)
        return found

    def chunk_in(self, area: Area, page: int) -> Chunk | int:
        self.space.tree.steps = 0
        vma = self.space.find_vma(page)
        self.counts.n["vma_steps"] += self.space.tree.steps
        if vma is None or page < vma.start:
            return -ENOENT
        if not vma.prot & WRITE:
            return -EPERM
        node = self.find(area.ranges, page, page)
        if node:
            found: Chunk = node.payload
            return found
        chunk = Chunk(area, page, PAGE)
        for size in self.sizes:
            start = page // size * size
            inside = vma.start <= start and start + size <= vma.end and size <= self.area
            if inside and not self.find(area.ranges, start, start + size - 1):
                chunk = Chunk(area, start, size)
                break
        self.counts.alloc()
        self.counts.bytes(144)
        self.lock("driver")
        chunk.node = Disjoint(chunk.start, chunk.start + chunk.size - 1, chunk)
        area.ranges.insert(chunk.node)
        return chunk

    def get_pages(self, chunk: Chunk) -> int:
        self.read_begin()
        if chunk.array:
            self.lock("driver")
            self.free_array(chunk)
        pages = len(chunk.pages)
        self.counts.alloc()
        self.counts.bytes(8 * pages)  # what hmm_range_fault() fills
        self.lock("mmap_lock read")
        error = self.populate(chunk)
        if not error:
            self.lock("driver")  # and there is no array yet
            self.counts.alloc()
            self.counts.bytes(16 * pages)
            chunk.array = True
            self.lock("driver")
        self.counts.bytes(-8 * pages)
        return error

    def populate(self, chunk: Chunk) -> int:
        """Every page of it, for writing; the first that cannot be had ends it."""
        self.space.tree.steps = 0
        self.space.find_vma(chunk.start)
        self.counts.n["vma_steps"] += self.space.tree.steps
        results = (self.space.fault_for_device(page, True) for page in chunk.pages)
        return next((result for result in results if result < 0), 0)

    def bind(self, chunk: Chunk) -> None:
        self.lock("driver")  # what is to be written
        self.lock("driver")  # and writing it
        self.counts.n["device_commands"] += 1
        self.ptes.update(chunk.pages)
        chunk.bound, chunk.zapped = True, False

    # --- the callback

    def callback(self, node: Node, start: int, end: int, event: Event) -> None:
        self.lock("driver")
        ranges = node.payload.ranges
        first, last = max(start, node.start), min(end - 1, node.last)
        self.find(ranges, first, last)
        touched = [found.payload for found in ranges.overlapping(first, last)]
        alive = [chunk for chunk in touched if chunk.bound and not chunk.zapped and not chunk.dead]
        for chunk in alive:
            assert self.ptes.issuperset(chunk.pages)
            self.ptes.difference_update(chunk.pages)
            self.counts.n["ptes_probed"] += len(chunk.pages)
            self.counts.n["ptes_zapped"] += len(chunk.pages)
            self.counts.n["svm_tlb_inval_count"] += 1
            chunk.zapped = True
        if alive:
            self.counts.n["device_commands"] += 1
            self.counts.n["tlb_inval_count"] += 1
        for chunk in touched if event == Event.UNMAP else ():
            self.lock("spinlock")
            if not chunk.dead:
                self.garbage.append(chunk)
            chunk.dead = True
            if self.collector not in self.work:
                self.work.append(self.collector)

    # --- the end of ranges

    def collector(self) -> None:
        self.lock("driver_parent")
        self.collect()

    def collect(self) -> None:
        self.lock("spinlock")
        for chunk in self.garbage:
            self.remove(chunk)
            self.lock("spinlock")
        self.garbage = []

    def remove(self, chunk: Chunk) -> None:
        area = chunk.area
        if chunk.bound:
            self.lock("driver")
            self.counts.n["device_commands"] += 1
            self.counts.n["tlb_inval_count"] += 1
        assert self.find(self.areas, chunk.start, chunk.start).payload is area
        self.lock("driver")
        self.free_array(chunk)
        area.ranges.remove(chunk.node)
        self.counts.bytes(-144)
        if not area.ranges.root:
            self.drop(area)
            self.areas.remove(area.own)

    def free_array(self, chunk: Chunk) -> None:
        if chunk.array:
            self.counts.bytes(-16 * len(chunk.pages))
            chunk.array = False

    def drop(self, area: Area) -> None:
        self.lock("subscriptions")
        self.tree.remove(area.core)
        self.removed()
        self.counts.bytes(-200)

    def close(self) -> None:
        for chunk in [node.payload for area in self.areas for node in area.payload.ranges]:
            self.remove(chunk)


def gpusvm(area: int, *sizes: int) -> Callable[[AddressSpace, Counts], Driver]:
    return lambda space, counts: Gpusvm(space, counts, area, list(sizes))
