"""The CPU side of a process as a list of VMAs, a dict of pages and two sets of tables: what each row of a trace does.

Told from Linux 6.18's mm/ as the kernel-side protocols are, but by plain Python on plain objects. VMAs are linked and
unlinked in the kernel's order, for what find_vma() reads depends on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from faultpath.trace.ops import Event
from oracles.rbtree import Node, Tree

PAGE = 4096
MIB2 = 2 << 20
GIB = 1 << 30
TIB_HALF = 512 << 30
MAX = (1 << 62) - 1  # "to the end of everything", with room to add to it

READ, WRITE = 1, 2
SHARED, PRIVATE, FIXED_PLACE, ANONYMOUS, GROWSDOWN, NORESERVE, STACK = 1, 2, 0x10, 0x20, 0x100, 0x4000, 0x20000
KIND = SHARED | PRIVATE | ANONYMOUS | GROWSDOWN | NORESERVE

FIXED, DONTUNMAP = 2, 4
DONTNEED, FREE, REMOVE, DONTNEED_LOCKED = 4, 8, 9, 24
# What the other advice adds to a mapping and takes away.
ADVICE: dict[int, tuple[set[str], set[str]]] = {
    10: ({"unforked"}, set()),
    11: (set(), {"unforked"}),
    12: ({"mergeable"}, set()),
    13: (set(), {"mergeable"}),
    14: ({"huge"}, {"small"}),
    15: ({"small"}, {"huge"}),
    16: ({"undumped"}, set()),
    17: (set(), {"undumped"}),
    18: ({"wiped"}, set()),
    19: (set(), {"wiped"}),
}
STACK_LIMIT = 8 << 20
MMAP_MIN_ADDR = 16 * PAGE
PRESENT = 1  # bit of a fault's error code

EFAULT, EPERM = 14, 1

Raise = Callable[[int, int, Event], None]


@dataclass(eq=False)
class Vma:
    """``flags``: MAP_* in KIND; the rest in words: inferred, charged (VM_ACCOUNT), unforked, wiped."""

    start: int
    end: int
    prot: int
    flags: int
    file: int = 0  # 0: none
    offset: int = 0  # of its start in the file; without a file the address
    anon: int = 0  # its anon_vma, 0: none yet
    words: frozenset[str] = frozenset()
    node: Node = field(init=False)

    @property
    def kind(self) -> tuple[object, ...]:
        return self.prot, self.flags, self.words, self.file

    def goes_on_in(self, other: Vma) -> bool:
        """Whether the other one begins where this one ends, in the file, too."""
        return self.end == other.start and self.offset + self.end - self.start == other.offset


def friends(*vmas: Vma) -> bool:
    """Whether there is at most one anon_vma among them."""
    return len({v.anon for v in vmas} - {0}) < 2


@dataclass
class Page:
    """What the CPU's page table maps."""

    writable: bool
    anonymous: bool = False
    own: bool = False  # no fork has shared it, or nobody has it any more
    born_after: int = 0  # forks


class AddressSpace:
    """``raise_event`` is called for the invalidations that the calls raise, in order."""

    def __init__(self, raise_event: Raise) -> None:
        self.raise_event = raise_event
        self.vmas: list[Vma] = []  # disjoint, ascending
        self.tree = Tree()  # the same VMAs: only to tell how many nodes find_vma reads
        self.pages: dict[int, Page] = {}
        self.leaves: set[int] = set()  # 2 MiB with a PTE table
        self.tables: set[int] = set()  # GiB with a PMD table
        self.brk = 0
        self.inferred = 0
        self.files = 0
        self.anons = 0
        self.forks = 0
        self.children: set[int] = set()

    # --- VMAs

    def link(self, vma: Vma) -> None:
        vma.node = Node(vma.start, vma.end - 1, vma)
        self.vmas.append(vma)
        self.vmas.sort(key=lambda v: v.start)
        self.tree.insert(vma.node)

    def unlink(self, vma: Vma) -> None:
        self.vmas.remove(vma)
        self.tree.remove(vma.node)

    def resize(self, vma: Vma, start: int, end: int) -> None:
        self.unlink(vma)
        vma.offset += start - vma.start
        vma.start, vma.end = start, end
        self.link(vma)

    def part(self, vma: Vma, start: int, end: int) -> None:
        """A new VMA of what the old one maps at [start, end)."""
        offset = vma.offset + start - vma.start
        self.link(Vma(start, end, vma.prot, vma.flags, vma.file, offset, vma.anon, vma.words))

    def overlapping(self, start: int, end: int) -> list[Vma]:
        return [v for v in self.vmas if v.start < end and start < v.end]

    def at(self, address: int) -> Vma | None:
        return next(iter(self.overlapping(address, address + 1)), None)

    def before(self, vma: Vma) -> Vma | None:
        return next((v for v in self.vmas if v.end == vma.start), None)

    def after(self, vma: Vma) -> Vma | None:
        return next((v for v in self.vmas if v.start == vma.end), None)

    def forget(self, start: int, end: int) -> None:
        """Nothing is known to be mapped at [start, end) afterwards; what sticks out on either side stays."""
        for vma in self.overlapping(start, end):
            if vma.start < start:
                if vma.end > end:
                    self.part(vma, end, vma.end)
                self.resize(vma, vma.start, start)
            elif vma.end > end:
                self.resize(vma, end, vma.end)
            else:
                self.unlink(vma)

    def boundary(self, vma: Vma, address: int) -> None:
        """A VMA will end or begin inside another one: whoever maps a huge page across it is told."""
        block = address // MIB2 * MIB2
        inside = vma.start <= block and block + MIB2 <= vma.end
        if address != block and inside and address // GIB in self.tables:
            self.raise_event(block, block + MIB2, Event.CLEAR)

    def split(self, vma: Vma, address: int) -> None:
        self.boundary(vma, address)
        self.part(vma, address, vma.end)
        self.resize(vma, vma.start, address)

    def take_in(self, vma: Vma, other: Vma) -> None:
        vma.anon = vma.anon or other.anon
        start, end = min(vma.start, other.start), max(vma.end, other.end)
        self.unlink(other)
        self.resize(vma, start, end)

    def merge(self, vma: Vma) -> Vma:
        """With what lies on either side, if it is alike; returns what is there then."""
        left, right = self.before(vma), self.after(vma)
        if left and not (left.goes_on_in(vma) and left.kind == vma.kind and friends(left, vma)):
            left = None
        if right and not (vma.goes_on_in(right) and right.kind == vma.kind and friends(vma, right)):
            right = None
        if left and right and not friends(left, right):
            right = None
        for taker in filter(None, (right, left)):
            self.take_in(taker, vma)
            vma = taker
        return vma

    def add(
        self, start: int, end: int, prot: int, flags: int, file: int, offset: int, anon: int, words: frozenset[str]
    ) -> Vma:
        vma = Vma(start, end, prot, flags, file, offset, anon, words)
        self.link(vma)
        return self.merge(vma)

    def new_mapping(self, start: int, end: int, prot: int, flags: int, file: int, offset: int = 0) -> None:
        charged = prot & WRITE and not flags & (SHARED | NORESERVE)
        words = frozenset({"charged"} if charged else ()) | ({"small"} if flags & STACK else set())
        self.add(start, end, prot, flags & KIND, file, offset if file else start, 0, words)

    def file_for(self, flags: int) -> int:
        """Each mapping of a file is taken to be of another one."""
        if flags & ANONYMOUS and not flags & SHARED:
            return 0
        self.files += 1
        return self.files

    def change(self, vma: Vma, start: int, end: int, prot: int, words: frozenset[str]) -> Vma:
        """A part of a VMA gets another protection or other words: it goes to a neighbour, or is split off."""
        new = Vma(start, end, prot, vma.flags, vma.file, vma.offset + start - vma.start, vma.anon, words)
        left, right = self.before(vma), self.after(vma)
        if (start, end) == (vma.start, vma.end):
            vma.prot, vma.words = prot, words
            return self.merge(vma)
        if start == vma.start and left and left.goes_on_in(new) and left.kind == new.kind and friends(left, new):
            self.boundary(vma, end)
            self.hand_over(vma, (end, vma.end), left, (left.start, end))
            return left
        if end == vma.end and right and new.goes_on_in(right) and right.kind == new.kind and friends(new, right):
            self.boundary(vma, start)
            self.hand_over(vma, (vma.start, start), right, (start, right.end))
            return right
        if start > vma.start:
            self.split(vma, start)
            vma = self.containing(start)
        if end < vma.end:
            self.split(vma, end)
        vma.prot, vma.words = prot, words
        return vma

    def hand_over(self, vma: Vma, rest: tuple[int, int], taker: Vma, whole: tuple[int, int]) -> None:
        """A boundary moves: a part of a VMA is its neighbour's from now on."""
        self.resize(vma, *rest)
        taker.anon = taker.anon or vma.anon
        self.resize(taker, *whole)

    def containing(self, address: int) -> Vma:
        found = self.at(address)
        assert found
        return found

    def needs_anon(self, vma: Vma) -> None:
        """Before the first anonymous page: a neighbour's anon_vma, else a new one."""
        if vma.anon:
            return
        right, left = self.after(vma), self.before(vma)
        for one, other, neighbour in ((vma, right, right), (left, vma, left)):
            if one and other and one.goes_on_in(other) and one.kind[1:] == other.kind[1:] and neighbour.anon:
                vma.anon = neighbour.anon
                return
        self.anons += 1
        vma.anon = self.anons

    # --- the page table

    def pages_in(self, start: int, end: int) -> list[int]:
        return sorted(p for p in self.pages if start <= p < end)

    def put(self, address: int, page: Page) -> None:
        self.pages[address] = page
        self.leaves.add(address // MIB2)
        self.tables.add(address // GIB)

    def zap(self, start: int, end: int, event: Event) -> None:
        self.raise_event(start, end, event)
        for page in self.pages_in(start, end):
            del self.pages[page]

    def free_tables(self, start: int, end: int) -> None:
        """Tables of [start, end) that no VMA is near any more."""
        floor = max((v.end for v in self.vmas if v.start < start), default=0)
        ceiling = min((v.start for v in self.vmas if v.start >= end), default=MAX)

        def unused(size: int, number: int) -> bool:
            first, last = number * size, (number + 1) * size
            return first < end and start < last and floor <= first and last <= ceiling

        self.tables = {t for t in self.tables if not unused(GIB, t)}
        self.leaves = {leaf for leaf in self.leaves if not unused(MIB2, leaf) and leaf * MIB2 // GIB in self.tables}

    # --- rows

    def vma(self, start: int, size: int, prot: int, flags: int) -> None:
        self.forget(start, start + size)
        self.new_mapping(start, start + size, prot, flags, self.file_for(flags))

    def unmap(self, start: int, end: int, heap: bool = False) -> None:
        """One UNMAP over the whole request if it meets any VMA; the heap is one, known or not."""
        if not heap and not self.overlapping(start, end):
            return
        for cut in (start, end):
            vma = self.at(cut)
            if vma and vma.start < cut:
                self.split(vma, cut)
        for vma in self.overlapping(start, end):
            self.unlink(vma)
        self.zap(start, end, Event.UNMAP)
        self.free_tables(start, end)

    def mmap(self, start: int, size: int, prot: int, flags: int) -> None:
        file, offset = self.file_for(flags), 0
        under = self.at(start)
        if under and under.file and flags & FIXED_PLACE and not flags & ANONYMOUS:
            file, offset = under.file, under.offset + start - under.start  # as the dynamic linker does
        self.unmap(start, start + size)
        self.new_mapping(start, start + size, prot, flags, file, offset)

    def munmap(self, start: int, size: int) -> None:
        self.unmap(start, start + size)

    def mprotect(self, start: int, size: int, prot: int) -> None:
        end = start + size
        upto = start
        while upto < end:  # what succeeded tells that all of it was mapped, and what was inferred is known then
            vma = self.at(upto)
            if vma is None:
                first = min([end, *(v.start for v in self.vmas if v.start > upto)])
                self.vma(upto, first - upto, prot, PRIVATE | ANONYMOUS)
                upto = first
            else:
                part = min(vma.end, end)
                if "inferred" in vma.words:
                    self.vma(upto, part - upto, vma.prot, PRIVATE | ANONYMOUS)
                upto = part
        prot &= 7
        upto = start
        while upto < end:
            vma = self.containing(upto)
            part = min(vma.end, end)
            if vma.prot != prot:
                self.protect(vma, upto, part, prot)
            upto = part

    def protect(self, vma: Vma, start: int, end: int, prot: int) -> None:
        words = vma.words
        if prot & WRITE:
            if not vma.flags & (SHARED | NORESERVE) and not vma.prot & WRITE:
                words = words | {"charged"}
        elif not vma.file and not vma.anon:
            words = words - {"charged"}
        vma = self.change(vma, start, end, prot, words)
        first = start
        while first < end:
            upto = min(end, (first // TIB_HALF + 1) * TIB_HALF)
            tables = [t * GIB for t in sorted(self.tables) if first < (t + 1) * GIB and t * GIB < upto]
            if tables:
                self.raise_event(max(first, tables[0]), upto, Event.PROTECTION_VMA)
            first = upto
        for address in self.pages_in(start, end):
            page = self.pages[address]
            if not prot & WRITE:
                page.writable = False
            elif vma.flags & SHARED or page.own:
                page.writable = True

    def madvise(self, start: int, size: int, advice: int) -> int:
        """How many holes were punched into files, for each of which mmap_lock is let go."""
        end = start + size
        punched = 0
        for vma in self.overlapping(start, end):
            first, upto = max(start, vma.start), min(end, vma.end)
            words = vma.words
            if advice in (DONTNEED, DONTNEED_LOCKED):
                self.zap(first, upto, Event.CLEAR)
            elif advice == FREE:
                if vma.file:
                    break
                self.raise_event(first, upto, Event.CLEAR)
            elif advice == REMOVE:
                if not vma.file or not vma.flags & SHARED:
                    break
                self.zap(first, upto, Event.CLEAR)
                punched += 1
            elif advice in ADVICE:
                more, less = ADVICE[advice]
                if "wiped" in more and vma.file:
                    break
                if "mergeable" not in more or not vma.flags & SHARED:
                    words = (words | more) - less
            if words != vma.words:
                self.change(self.containing(first), first, upto, vma.prot, words)
        return punched

    def mremap(self, old: int, old_size: int, new: int, new_size: int, flags: int) -> None:
        source = self.at(old)
        if source is None or source.end < old + old_size:
            self.vma(old, max(old_size, PAGE), READ | WRITE, PRIVATE | ANONYMOUS)
        if new == old and new_size > old_size:
            self.forget(old + old_size, old + new_size)
        if new != old:
            self.unmap(new, new + new_size)
        if new_size < old_size:
            self.unmap(old + new_size, old + old_size)
            old_size = new_size
        source = self.containing(old)
        if new == old:
            if new_size > old_size:
                self.resize(source, source.start, old + new_size)
                right = self.after(source)
                if right and source.goes_on_in(right) and source.kind == right.kind and friends(source, right):
                    self.take_in(source, right)
            return
        offset = source.offset + old - source.start
        if not source.file and not source.anon:
            offset = new
        self.add(new, new + new_size, source.prot, source.flags, source.file, offset, source.anon, source.words)
        if not old_size:  # that duplicates a shared mapping
            return
        source = self.containing(old)
        self.raise_event(old - self.realigned(source, old, new, old_size), old + old_size, Event.UNMAP)
        for leaf in sorted(leaf for leaf in self.leaves if old < (leaf + 1) * MIB2 and leaf * MIB2 < old + old_size):
            first, upto = max(old, leaf * MIB2), min(old + old_size, (leaf + 1) * MIB2)
            for address in range(first - old + new, upto - old + new, PAGE):
                self.leaves.add(address // MIB2)
                self.tables.add(address // GIB)
        for address in self.pages_in(old, old + old_size):
            self.put(address - old + new, self.pages.pop(address))
        if not flags & DONTUNMAP:
            self.unmap(old, old + old_size)
        elif (source.start, source.end) == (old, old + old_size):
            source.anon = 0

    def realigned(self, vma: Vma, old: int, new: int, size: int) -> int:
        """How much further down whole page tables can be moved from."""
        inside = old % MIB2
        if not inside or inside != new % MIB2 or size < MIB2 - inside or vma.start != old:
            return 0
        return 0 if self.overlapping(old - inside, old) or self.overlapping(new - inside, new) else inside

    def set_brk(self, brk: int) -> None:
        known = self.brk or brk
        old, new = (-(-b // PAGE) * PAGE for b in (known, brk))
        if brk > known:
            self.forget(old, new)
        if new > old:
            self.new_mapping(old, new, READ | WRITE, PRIVATE | ANONYMOUS, 0)
        elif new < old:
            self.unmap(new, old, heap=True)
        self.brk = brk

    def fork(self) -> int:
        """Every private VMA that has an anon_vma is copied, unless it is kept from the child; the child's number."""
        if not self.children:
            self.forks = 0
        number = min(self.forks + 1, 14)
        for vma in list(self.vmas):
            if not vma.anon or vma.flags & SHARED:
                continue
            if vma.words & {"unforked", "wiped"}:
                for address in self.pages_in(vma.start, vma.end):
                    page = self.pages[address]
                    if page.anonymous and (page.own or not self.shared(page)):
                        page.born_after = number  # not this child's either
            else:
                self.raise_event(vma.start, vma.end, Event.PROTECTION_PAGE)
                for address in self.pages_in(vma.start, vma.end):
                    page = self.pages[address]
                    page.writable = page.own = False
                    page.born_after = page.born_after if self.children else 0
        self.forks = number
        self.children.add(number)
        return number

    def shared(self, page: Page) -> bool:
        """Whether a child that lives was made after the page."""
        return any(child > page.born_after for child in self.children)

    def child_ends(self, child: int) -> None:
        if child < 14:  # of later ones only is known that there were some
            self.children.discard(child)

    def child_copies(self, address: int) -> None:
        """The only child that shares the page has a copy of its own now."""
        page = self.pages.get(address // PAGE * PAGE)
        if page and page.anonymous:
            page.own = True

    def fault(self, address: int, write: bool, present: bool) -> None:
        """The CPU touches a page. A page of no known mapping must have had one: it is inferred."""
        page = address // PAGE * PAGE
        assert page >= MMAP_MIN_ADDR
        vma = self.at(page)
        if vma is None:
            above = next((v for v in self.vmas if v.start > page), None)
            if above and above.flags & GROWSDOWN and above.end - page <= STACK_LIMIT:
                self.resize(above, page, above.end)
                vma = above
            else:
                self.inferred += 1
                vma = self.add(page, page + PAGE, READ, PRIVATE | ANONYMOUS, 0, page, 0, frozenset({"inferred"}))
        if write and "inferred" in vma.words and not vma.prot & WRITE:
            self.forget(page, page + PAGE)
            vma = self.add(page, page + PAGE, READ | WRITE, PRIVATE | ANONYMOUS, 0, page, 0, frozenset({"inferred"}))
        if vma.prot & WRITE if write else vma.prot:
            if write and present and page not in self.pages:
                self.put(page, Page(False, anonymous=bool(self.forks and not vma.file)))
            self.bring_in(vma, page, write, told=True)

    def bring_in(self, vma: Vma, address: int, write: bool, told: bool) -> None:
        """The page is there afterwards, and writable if it is written to. ``told``: copies raise their event."""
        page = self.pages.get(address)
        shared = bool(vma.flags & SHARED)
        if page is None:
            if write and not shared:
                self.needs_anon(vma)
                self.put(address, Page(True, anonymous=True, own=True, born_after=self.forks))
            else:
                self.put(address, Page(bool(vma.file and shared and vma.prot & WRITE)))
        elif write and not page.writable:
            lonely = page.anonymous and (page.own or not self.shared(page))
            if shared or lonely:
                page.writable, page.own = True, page.anonymous
                return
            self.needs_anon(vma)
            if told:
                self.raise_event(address, address + PAGE, Event.CLEAR)
            self.put(address, Page(True, anonymous=True, own=True, born_after=self.forks))

    # --- for drivers

    def find_vma(self, address: int) -> Vma | None:
        """The first VMA that ends above the address."""
        node = self.tree.first(address, MAX)
        found = node.payload if node else None
        assert found is next((v for v in self.vmas if v.end > address), None)
        return found

    def fault_for_device(self, address: int, write: bool) -> int:
        """hmm_range_fault(): 1 if the CPU may write the page, 0 if it may read, or -errno."""
        vma = self.find_vma(address)
        if vma is None or address < vma.start or not vma.prot & READ:
            return -EFAULT
        page = self.pages.get(address)
        if page is None or (write and not page.writable):
            if write and not vma.prot & WRITE:
                return -EPERM
            self.bring_in(vma, address, write, told=False)
        return int(self.pages[address].writable)
