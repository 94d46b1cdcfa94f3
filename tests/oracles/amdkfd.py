"""amdkfd's SVM as pieces of address space: what munmap cuts off waits, in order, for the work that follows the row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from faultpath.trace.ops import Event
from oracles.address_space import MAX, PAGE, READ, WRITE, AddressSpace
from oracles.core import Counts, Driver
from oracles.rbtree import Node, Tree

EPERM, EFAULT, EBUSY = 1, 14, 16
RANGE_BYTES = 544
GIB = 1 << 30


@dataclass(eq=False)
class Piece:
    """``[start, end)``. ``gone``: munmap took it. Only one that is registered has nodes, whose bounds may be old."""

    start: int
    end: int
    mapped: bool = False  # the driver thinks that the GPU has something of it
    array: bool = False  # of DMA addresses
    gone: bool = False
    invalid: bool = False
    queued: bool = False
    own: Node | None = None
    core: Node | None = None
    cut_off: list[Piece] = field(default_factory=list)

    @property
    def array_bytes(self) -> int:
        return (self.end - self.start) // PAGE * 8 if self.array else 0


def amdkfd(xnack: bool, granularity: int, fixed: bool) -> Callable[[AddressSpace, Counts], Driver]:
    design = AmdkfdFixed if fixed else Amdkfd
    return lambda space, counts: design(space, counts, xnack, PAGE << granularity if xnack else GIB)


class Amdkfd(Driver):
    FIXED = False

    def __init__(self, space: AddressSpace, counts: Counts, xnack: bool, window: int) -> None:
        super().__init__(space, counts)
        self.xnack = xnack
        self.window = window
        self.ptes: dict[int, bool] = {}
        self.pieces: list[Piece] = []  # registered, in order of that
        self.own = Tree()
        self.waiting: list[Piece] = []  # for deferred work
        self.draining = False
        self.stopped = False  # the queues
        self.exiting = False
        counts.alloc()  # the process
        self.lock("mmap_lock write")  # its mmu_notifier is registered
        self.lock("subscriptions")

    def mapped(self, page: int) -> bool | None:
        return None if self.stopped else self.ptes.get(page)

    # --- pieces

    def new_piece(self, start: int, end: int, like: Piece | None = None) -> Piece:
        self.counts.alloc()
        self.counts.bytes(RANGE_BYTES)
        return Piece(start, end, mapped=bool(like and like.mapped))

    def register(self, piece: Piece) -> None:
        piece.own = Node(piece.start, piece.end - 1, piece)
        piece.core = Node(piece.start, piece.end - 1, piece)
        self.own.insert(piece.own)
        self.insert(piece.core)

    def take_out(self, piece: Piece) -> None:
        self.own.remove(piece.own)
        self.lock("subscriptions")
        self.tree.remove(piece.core)
        self.removed()

    def forget(self, piece: Piece) -> None:
        if piece.own:
            self.take_out(piece)
            self.pieces.remove(piece)
        self.counts.bytes(-piece.array_bytes)
        self.counts.bytes(-RANGE_BYTES)

    def cut(self, piece: Piece, start: int, end: int) -> Piece:
        """Take one end off a piece."""
        other = self.new_piece(start, end, piece)
        if piece.array:  # two new arrays, and only then the old one goes
            whole = piece.array_bytes
            other.array = True
            self.counts.alloc()
            self.counts.alloc()
            self.counts.bytes(whole)
            self.counts.bytes(-whole)
        if start == piece.start:
            piece.start = end
        else:
            piece.end = start
        return other

    # --- what munmap and others do

    def invalidate(self, start: int, end: int, event: Event) -> None:
        super().invalidate(start, end, event)
        if (start, end, event) == (0, MAX, Event.RELEASE):
            self.exiting = True
        self.lock("srcu")  # there is a plain notifier, with nothing to tell: asked at start, and at end
        self.lock("srcu")

    def callback(self, node: Node, start: int, end: int, event: Event) -> None:
        piece: Piece = node.payload
        if event == Event.RELEASE:
            return
        start, end = max(start, node.start), min(end, node.last + 1)
        self.lock("driver")
        if event == Event.UNMAP:
            if not self.exiting:
                self.unmap(piece, start, end)
        else:
            self.evict(piece, start, end)

    def evict(self, piece: Piece, start: int, end: int) -> None:
        if not self.xnack:
            self.stop(piece, start, end)
            return
        for one in [*piece.cut_off, piece]:
            if one is not piece:
                self.lock("driver")
            self.clear(one, start, end)

    def clear(self, piece: Piece, start: int, end: int) -> None:
        start, end = max(start, piece.start), min(end, piece.end)
        if start >= end or not piece.mapped:
            return
        if (start, end) == (piece.start, piece.end):
            piece.mapped = False
        self.counts.n["kfd_unmap_from_gpu"] += 1
        self.counts.n["device_commands"] += 1
        for page in [p for p in self.ptes if start <= p < end]:
            del self.ptes[page]
            self.counts.n["ptes_probed"] += 1
            self.counts.n["ptes_zapped"] += 1

    def unmap(self, piece: Piece, start: int, end: int) -> None:
        self.lock("srcu")
        self.draining = True
        whole = start <= piece.start and piece.end <= end
        for one in piece.cut_off:  # which grows meanwhile, and what is new is looked at as well
            self.lock("driver")
            self.clear(one, start, end)
            if not one.gone and one.start < end and start < one.end:
                if start <= one.start and one.end <= end:
                    one.gone = True
                else:
                    self.split(piece, one, start, end)
        self.clear(piece, start, end)
        if not piece.gone and not whole and piece.start < end and start < piece.end:
            self.split(piece, piece, start, end)
        self.lock("spinlock")
        self.lock("spinlock")
        piece.gone = piece.gone or whole
        if not piece.queued:
            piece.queued = True
            self.waiting.append(piece)
        self.queue(self.deferred_work)

    def split(self, parent: Piece, piece: Piece, start: int, end: int) -> None:
        if piece.start < start and end < piece.end:
            rest = self.cut(piece, start, piece.end)
            hole = self.cut(rest, start, end)
            parent.cut_off += [hole, rest]
        else:
            hole = self.cut(piece, max(start, piece.start), min(end, piece.end))
            parent.cut_off.append(hole)
        hole.gone = True

    def queue(self, work: Callable[[], None]) -> None:
        if work not in self.work:
            self.work.append(work)

    def deferred_work(self) -> None:
        self.lock("spinlock")
        while self.waiting:
            piece = self.waiting.pop(0)
            self.lock("mmap_lock write")
            if self.draining:
                self.draining = False
                self.lock("mmap_lock write")
            self.lock("spinlock")
            self.lock("driver_parent")
            self.lock("driver_parent")
            piece.queued = False
            self.finish(piece)
            piece.cut_off = []
            self.lock("spinlock")

    def finish(self, piece: Piece) -> None:
        for one in piece.cut_off:
            if one.gone:
                self.forget(one)
            else:
                self.pieces.append(one)
                self.register(one)
        if piece.gone:
            self.forget(piece)
        elif (piece.start, piece.end - 1) != (piece.core.start, piece.core.last):
            self.move(piece)

    def move(self, piece: Piece) -> None:
        self.take_out(piece)
        self.register(piece)

    # --- mapping

    def find(self, page: int) -> Piece | None:
        self.lock("driver_parent")
        self.counts.n["lookups"] += 1
        self.own.steps = 0
        node = self.own.first(page, page)
        self.counts.n["lookup_steps"] += self.own.steps
        if not node:
            return None
        return next((p for p in [node.payload, *node.payload.cut_off] if p.start <= page < p.end), None)

    def find_vma(self, page: int):
        self.space.tree.steps = 0
        vma = self.space.find_vma(page)
        self.counts.n["vma_steps"] += self.space.tree.steps
        return vma if vma and vma.start <= page else None

    def create(self, page: int) -> Piece | None:
        vma = self.find_vma(page)
        if vma is None:
            return None
        low = page // self.window * self.window
        start, end = max(vma.start, low), min(vma.end, low + self.window)
        self.counts.n["lookups"] += 1
        self.own.steps = 0
        right = self.own.first(page + PAGE, MAX)
        steps = self.own.steps
        left = None
        if right:  # the node before it in order: the last one in its left subtree, or the first ancestor at the left
            end = min(end, right.start)
            node = right.left
            if node:
                steps += 1
                while node.right:
                    node = node.right
                    steps += 1
            else:
                came, node = right, right.parent
                while node and node.left is came:
                    steps += 1
                    came, node = node, node.parent
                steps += bool(node)
            left = node
        else:
            node = self.own.root
            while node:
                steps += 1
                left, node = node, node.right
        self.counts.n["lookup_steps"] += steps
        if left:
            if left.last >= page:
                return None
            start = max(start, left.last + 1)
        piece = self.new_piece(start, end)
        self.pieces.append(piece)
        self.register(piece)
        return piece

    def map(self, piece: Piece) -> int:
        start = piece.start
        while start < piece.end:
            vma = self.find_vma(start)
            if vma is None:
                return -EFAULT
            end = min(vma.end, piece.end)
            self.counts.alloc()  # hmm_range
            self.counts.alloc()  # hmm_pfns
            self.read_begin()
            self.space.tree.steps = 0
            self.space.find_vma(start)
            self.counts.n["vma_steps"] += self.space.tree.steps
            for page in range(start, end, PAGE):
                found = self.space.fault_for_device(page, bool(vma.prot & WRITE))
                if found < 0:
                    return found
            if not piece.array:
                piece.array = True
                self.counts.alloc()
                self.counts.bytes(piece.array_bytes)
            self.lock("driver")
            self.counts.n["device_commands"] += 1
            for page in range(start, end, PAGE):
                self.ptes[page] = self.space.pages[page].writable
            piece.mapped = piece.mapped or end == piece.end or self.FIXED
            start = end
        return 0

    def fault(self, page: int, write: bool) -> int:
        self.lock("srcu")
        return self.retry_fault(page, write) if self.xnack else self.access(page, write)

    def retry_fault(self, page: int, write: bool) -> int:
        self.lock("mmap_lock read")
        piece = self.find(page)
        if piece is None:
            self.lock("mmap_lock write")
            piece = self.find(page) or self.create(page)
        self.counts.n["kfd_faults"] += 1
        if piece is None:
            return -EFAULT
        self.lock("driver_parent")
        self.lock("spinlock")
        vma = self.find_vma(page)
        if vma is None:
            return 0
        if not vma.prot & READ or (write and not vma.prot & WRITE):
            return -EPERM
        self.counts.n["kfd_page_fault_start"] += 1
        result = self.map(piece)
        self.counts.n["kfd_page_fault_end"] += 1
        return result

    # --- without retry faults

    def stop(self, piece: Piece, start: int, end: int) -> None:
        concerned = piece.mapped
        for one in piece.cut_off:
            if one.mapped:
                concerned = True
                self.lock("driver")
                one.invalid = one.invalid or (one.start < end and start < one.end)
        if not concerned:
            return
        piece.invalid = piece.invalid or (piece.start < end and start < piece.end)
        if self.FIXED:
            self.lock("driver_parent")
        if not self.stopped:
            self.stopped = True
            if not self.exiting:
                self.lock("srcu")
                self.counts.n["kfd_queue_eviction"] += 1
                self.counts.n["device_commands"] += 1
            self.queue(self.restore)

    def restore(self) -> None:
        if not self.stopped:
            return
        self.lock("mmap_lock write")
        if self.waiting:
            self.queue(self.restore)
            return
        self.lock("driver_parent")
        for piece in self.pieces:
            if piece.invalid:
                self.lock("driver_parent")
                if self.map(piece) < 0:
                    return
                piece.invalid = False
        self.stopped = False
        self.lock("srcu")
        self.counts.n["kfd_queue_restore"] += 1
        self.counts.n["device_commands"] += 1

    def all_work(self) -> None:
        while self.work:
            self.counts.n["work_items"] += 1
            self.work.pop(0)()

    def access(self, page: int, write: bool) -> int:
        if self.stopped:
            self.queue(self.restore)
            self.all_work()
        if self.stopped:
            return -EBUSY
        if page in self.ptes and (self.ptes[page] or not write):
            return 0
        self.all_work()
        self.lock("mmap_lock write")
        piece = None if self.find(page) else self.create(page)
        if piece is None:
            return -EFAULT
        self.lock("driver_parent")
        return self.map(piece)

    def close(self) -> None:
        for piece in list(self.pieces):
            self.forget(piece)


class AmdkfdFixed(Amdkfd):
    """A new interval before the old one goes; what is cut off is evicted."""

    FIXED = True

    def finish(self, piece: Piece) -> None:
        while piece.cut_off:
            one = piece.cut_off[0]
            self.lock("driver")
            if not one.gone:
                self.evict(piece, one.start, one.end)
            piece.cut_off.remove(one)
            if one.gone:
                self.forget(one)
            else:
                self.pieces.append(one)
                self.register(one)
        super().finish(piece)

    def move(self, piece: Piece) -> None:
        old = piece.core
        self.own.remove(piece.own)
        self.register(piece)
        self.lock("subscriptions")
        self.tree.remove(old)
        self.removed()
