"""The CPU side of a process as a list of VMAs and a dict of pages: what each row of a trace does to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from faultpath.trace.ops import Event
from oracles.rbtree import Node, Tree

PAGE = 4096
PMD = 2 << 20
MAX = (1 << 62) - 1  # "to the end of everything", with room to add to it

READ, WRITE = 1, 2
PRIVATE, ANONYMOUS, GROWSDOWN = 2, 0x20, 0x100
KIND = 1 | PRIVATE | ANONYMOUS | GROWSDOWN
INFERRED = "inferred"  # flags of a mapping known from its faults alone

DONTUNMAP = 4
ZAPPING_ADVICE = {4, 9, 21, 24}  # DONTNEED, REMOVE, PAGEOUT, DONTNEED_LOCKED
ADVICE_FREE = 8
STACK_LIMIT = 8 << 20
MMAP_MIN_ADDR = 16 * PAGE

EFAULT, EPERM = 14, 1

Raise = Callable[[int, int, Event], None]


@dataclass(eq=False)
class Vma:
    start: int
    end: int
    prot: int
    flags: int | str
    node: Node = field(init=False)

    def __post_init__(self) -> None:
        self.node = Node(self.start, self.end - 1, self)

    @property
    def anonymous(self) -> bool:
        return self.flags == INFERRED or bool(int(self.flags) & ANONYMOUS)

    @property
    def private(self) -> bool:
        return self.flags == INFERRED or bool(int(self.flags) & PRIVATE)


class AddressSpace:
    """``raise_event`` is called for the invalidations that the calls raise, in order.

    :param as_kernel: raise what Linux 6.1 raises also where faultpath.kernel.mm simplifies (huge pages aside)
    """

    def __init__(self, raise_event: Raise, as_kernel: bool = False) -> None:
        self.raise_event = raise_event
        self.as_kernel = as_kernel
        self.vmas: list[Vma] = []  # disjoint, ascending
        self.tree = Tree()  # the same VMAs: only to tell how many nodes find_vma reads
        self.pages: dict[int, bool] = {}  # page address -> the CPU may write without a fault
        self.brk = 0
        self.inferred = 0

    # --- VMAs

    def link(self, vma: Vma) -> None:
        self.vmas.append(vma)
        self.vmas.sort(key=lambda v: v.start)
        self.tree.insert(vma.node)

    def unlink(self, vma: Vma) -> None:
        self.vmas.remove(vma)
        self.tree.remove(vma.node)

    def overlapping(self, start: int, end: int) -> list[Vma]:
        return [v for v in self.vmas if v.start < end and start < v.end]

    def at(self, address: int) -> Vma | None:
        return next(iter(self.overlapping(address, address + 1)), None)

    def pages_in(self, start: int, end: int) -> list[int]:
        return sorted(p for p in self.pages if start <= p < end)

    def cut(self, start: int, end: int) -> None:
        """Nothing is mapped at [start, end) afterwards; what sticks out on either side stays."""
        for vma in self.overlapping(start, end):
            self.unlink(vma)
            if vma.start < start:
                self.link(Vma(vma.start, start, vma.prot, vma.flags))
            if vma.end > end:
                self.link(Vma(end, vma.end, vma.prot, vma.flags))

    def add(self, start: int, end: int, prot: int, flags: int | str) -> None:
        """Map what is free; equal anonymous neighbours become one with it."""
        new = Vma(start, end, prot, flags)
        if new.anonymous:
            for other in [v for v in self.vmas if v.end == start or v.start == end]:
                if (other.prot, other.flags) == (prot, flags):
                    self.unlink(other)
                    start, end = min(start, other.start), max(end, other.end)
        self.link(Vma(start, end, prot, flags))

    def forget_pages(self, start: int, end: int) -> None:
        for page in self.pages_in(start, end):
            del self.pages[page]

    def write_protect(self, start: int, end: int) -> None:
        for page in self.pages_in(start, end):
            self.pages[page] = False

    # --- rows

    def vma(self, start: int, size: int, prot: int, flags: int) -> None:
        self.cut(start, start + size)
        self.add(start, start + size, prot, flags & KIND)

    def unmap(self, start: int, end: int) -> None:
        """do_munmap(): one UNMAP over the whole request if it meets any VMA."""
        if self.overlapping(start, end):
            self.raise_event(start, end, Event.UNMAP)
        self.forget_pages(start, end)
        self.cut(start, end)

    def mmap(self, start: int, size: int, prot: int, flags: int) -> None:
        self.unmap(start, start + size)
        self.add(start, start + size, prot, flags & KIND)

    def munmap(self, start: int, size: int) -> None:
        self.unmap(start, start + size)

    def mprotect(self, start: int, size: int, prot: int) -> None:
        end = start + size
        changed = []
        for vma in self.overlapping(start, end):
            first, upto = max(start, vma.start), min(end, vma.end)
            kind = PRIVATE | ANONYMOUS if vma.flags == INFERRED else vma.flags  # known from now on
            if vma.prot != prot:
                changed.append((first, upto))
            if (vma.prot, vma.flags) != (prot, kind):
                self.cut(first, upto)
                self.add(first, upto, prot, kind)
        for first, upto in changed if self.as_kernel else [(start, end)]:
            populated = self.pages_in(first, upto)
            if populated and self.as_kernel:  # change_pmd_range(): from the first populated PMD on
                first = max(first, populated[0] // PMD * PMD)
            if populated:
                self.raise_event(first, upto, Event.PROTECTION_VMA)
        if not prot & WRITE:
            self.write_protect(start, end)

    def madvise(self, start: int, size: int, advice: int) -> None:
        end = start + size
        if advice in ZAPPING_ADVICE or advice == ADVICE_FREE:
            parts = [(start, end)]
            if self.as_kernel:  # madvise_walk_vmas()
                parts = [(max(start, v.start), min(end, v.end)) for v in self.overlapping(start, end)]
            for first, upto in parts:
                self.raise_event(first, upto, Event.CLEAR)
        if advice in ZAPPING_ADVICE:
            self.forget_pages(start, end)

    def mremap(self, old: int, old_size: int, new: int, new_size: int, flags: int) -> None:
        source = self.at(old)
        prot, kind = (source.prot, source.flags) if source else (READ | WRITE, PRIVATE | ANONYMOUS)
        if new != old:
            self.unmap(new, new + new_size)
        if new_size < old_size:
            self.raise_event(old + new_size, old + old_size, Event.UNMAP)
            self.forget_pages(old + new_size, old + old_size)
            self.cut(old + new_size, old + old_size)
            old_size = new_size
        if new == old:
            if new_size > old_size:
                self.grow(old + old_size, old + new_size, prot, kind)
            return
        if old_size:  # 0 duplicates a shared mapping
            self.raise_event(old, old + old_size, Event.UNMAP)  # move_page_tables()
        for page in self.pages_in(old, old + old_size):
            self.pages[page - old + new] = self.pages.pop(page)
        if old_size and not flags & DONTUNMAP:
            self.raise_event(old, old + old_size, Event.UNMAP)  # do_munmap()
            self.cut(old, old + old_size)
        self.add(new, new + new_size, prot, kind)

    def grow(self, start: int, end: int, prot: int, flags: int | str) -> None:
        """The mapping that ends at ``start`` stays one; if it is anonymous it may merge, with the next one, too."""
        new = Vma(start, end, prot, flags)
        growing = self.at(start - 1)
        if new.anonymous or growing is None or growing.end != start:
            self.add(start, end, prot, flags)
        else:
            self.unlink(growing)
            self.link(Vma(growing.start, end, growing.prot, growing.flags))

    def set_brk(self, brk: int) -> None:
        old, new = (-(-b // PAGE) * PAGE for b in (self.brk, brk))
        if self.brk and new > old:
            self.add(old, new, READ | WRITE, PRIVATE | ANONYMOUS)
        elif self.brk and new < old:
            self.raise_event(new, old, Event.UNMAP)
            self.forget_pages(new, old)
            self.cut(new, old)
        self.brk = brk

    def fork(self) -> None:
        """Every private VMA that can be written and has pages is made copy-on-write."""
        for vma in list(self.vmas):
            if vma.private and vma.prot & WRITE and self.pages_in(vma.start, vma.end):
                self.raise_event(vma.start, vma.end, Event.PROTECTION_PAGE)
                self.write_protect(vma.start, vma.end)

    def fault(self, address: int, write: bool) -> None:
        """The CPU touches a page. A page of no known mapping must have had one: it is inferred."""
        page = address // PAGE * PAGE
        assert page >= MMAP_MIN_ADDR
        vma = self.at(page)
        if vma is None:
            above = next((v for v in self.vmas if v.start > page), None)
            if above and above.flags != INFERRED and int(above.flags) & GROWSDOWN and above.end - page <= STACK_LIMIT:
                self.unlink(above)
                self.link(Vma(page, above.end, above.prot, above.flags))
            else:
                self.inferred += 1
                self.add(page, page + PAGE, READ, INFERRED)
            vma = self.at(page)
        assert vma is not None
        if write and vma.flags == INFERRED and not vma.prot & WRITE:
            self.cut(page, page + PAGE)
            self.add(page, page + PAGE, READ | WRITE, INFERRED)
            vma = self.at(page)
            assert vma is not None
        if write and vma.prot & WRITE:
            if self.pages.get(page) is False:
                self.raise_event(page, page + PAGE, Event.CLEAR)  # copy-on-write is broken
            self.pages[page] = True
        elif not write and vma.prot & READ:
            self.pages.setdefault(page, False)

    # --- for drivers

    def find_vma(self, address: int) -> Vma | None:
        """The first VMA that ends above the address."""
        node = self.tree.first(address, MAX)
        found = node.payload if node else None
        assert found is next((v for v in self.vmas if v.end > address), None)
        return found

    def fault_for_device(self, page: int, write: bool) -> int:
        """hmm_range_fault(): 1 if the CPU may write the page, 0 if it may read, or -errno."""
        vma = self.find_vma(page)
        if vma is None or page < vma.start or not vma.prot & READ:
            return -EFAULT
        present = page in self.pages
        if not present or (write and not self.pages[page]):
            if write and not vma.prot & WRITE:
                return -EPERM
            self.pages[page] = write
        return int(self.pages[page])
