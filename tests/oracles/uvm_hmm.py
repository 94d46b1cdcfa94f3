"""NVIDIA's UVM by HMM: which blocks there are, and which pages of them the GPU has."""

from __future__ import annotations

from collections.abc import Callable

from faultpath.trace.ops import Event
from oracles.address_space import PAGE, READ, WRITE, AddressSpace
from oracles.core import Counts, Driver
from oracles.rbtree import Node, Tree

EACCES, EFAULT = 13, 14


def uvm(size: int) -> Callable[[AddressSpace, Counts], Driver]:
    return lambda space, counts: UvmHmm(space, counts, size)


class UvmHmm(Driver):
    """Aligned blocks of ``size`` bytes that a fault makes and only the end takes away."""

    def __init__(self, space: AddressSpace, counts: Counts, size: int) -> None:
        super().__init__(space, counts)
        self.size = size
        self.bytes = BLOCK + NODE_STATE + GPU_STATE + 8 * (size // PAGE)
        self.blocks: dict[int, Node] = {}  # by number: the interval
        self.ranges = Tree()  # the driver's own, for how far one has to look
        self.gpu: dict[int, bool] = {}  # page -> whether the GPU may write it
        counts.alloc()

    def mapped(self, page: int) -> bool | None:
        return self.gpu.get(page)

    def search(self, address: int) -> None:
        """One search for the block of an address: down to it, or to where it would be."""
        self.counts.n["lookups"] += 1
        here = self.ranges.root
        while here:
            self.counts.n["lookup_steps"] += 1
            if here.start <= address <= here.last:
                break
            here = here.left if address < here.start else here.right

    def fault(self, page: int, write: bool) -> int:
        n = self.counts.n
        for name in ("replayable_faults", "replayable_faults_bh", "replays_start"):
            n[name] += 1
        for role in ("driver_parent", "spinlock", "spinlock", "mmap_lock read", "rwsem", "spinlock"):
            self.lock(role)  # service_lock, the channel, the mm, its lock, the va_space, and the mm given back
        self.space.tree.steps = 0
        vma = self.space.find_vma(page)
        n["vma_steps"] += self.space.tree.steps
        if vma is None or page < vma.start or not vma.prot & READ:
            return -EFAULT
        self.block_of(page)
        self.lock("driver_parent")  # migrate_lock
        self.lock("driver")
        if write and not vma.prot & WRITE:
            return -EACCES
        self.read_begin()
        writable = self.hmm_range_fault(page, bool(vma.prot & WRITE))
        self.lock("driver")
        if writable < 0:
            return writable
        self.counts.alloc()  # a chunk for the page
        n["device_commands"] += 1
        self.gpu[page] = bool(writable)
        return 0

    def block_of(self, page: int) -> None:
        self.lock("driver_parent")
        self.search(page)
        number = page // self.size
        if number in self.blocks:
            return
        self.search(page)  # for the hole around it
        first = number * self.size
        for _ in ("block", "node states", "node state", "GPU state", "chunks of the GPU"):
            self.counts.alloc()
        self.counts.bytes(self.bytes)
        self.blocks[number] = Node(first, first + self.size - 1, number)
        self.insert(self.blocks[number])
        self.ranges.insert(Node(first, first + self.size - 1))

    def callback(self, node: Node, start: int, end: int, event: Event) -> None:
        if event in (Event.SOFT_DIRTY, Event.RELEASE):
            return
        for _ in ("context", "node masks", "page mask"):
            self.counts.alloc()
        self.lock("driver")
        gone = [page for page in self.gpu if start <= page < end and page // self.size == node.payload]
        for page in gone:
            del self.gpu[page]
        self.counts.n["ptes_probed"] += len(gone)
        self.counts.n["ptes_zapped"] += len(gone)
        self.counts.n["device_commands"] += bool(gone)

    def close(self) -> None:
        for node in self.blocks.values():
            self.tree.remove(node)
            self.removed()
            self.counts.bytes(-self.bytes)


# sizeof() of the structures in C.
BLOCK, NODE_STATE, GPU_STATE = 2976, 136 + 8, 480
