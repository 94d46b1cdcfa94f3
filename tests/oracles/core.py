"""The notifier core seen from one process that runs alone, the counters, and the rows of a trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from faultpath.trace.ops import Event, Op
from oracles.address_space import MAX, MMAP_MIN_ADDR, PAGE, AddressSpace
from oracles.rbtree import Node, Tree

Row = tuple[int, int, int, int, int]
# Rows that replays insert: the device goes over its pages of a range again; a child by number is gone; the only
# child writes to a page.
REACCESS = 100
CHILD_ENDS = 101
CHILD_COPIES = 102


class Counts:
    """Counters and gauges by name, and lock acquisitions by role (and mode, for mmap_lock)."""

    def __init__(self) -> None:
        self.n: Counter[str] = Counter()
        self.locks: Counter[str] = Counter()
        self.intervals = 0
        self.interval_bytes = 0

    def interval(self, more: int) -> None:
        self.intervals += more
        self.n["intervals_peak"] = max(self.n["intervals_peak"], self.intervals)

    def bytes(self, more: int) -> None:
        self.interval_bytes += more
        self.n["interval_bytes_peak"] = max(self.n["interval_bytes_peak"], self.interval_bytes)

    def alloc(self, atomic: bool = False) -> None:
        self.n["allocs"] += 1
        self.n["allocs_atomic"] += atomic


class Driver:
    """What the designs' oracles have in common: intervals, and what waits for the end of an invalidation."""

    def __init__(self, space: AddressSpace, counts: Counts) -> None:
        self.space = space
        self.counts = counts
        self.tree = Tree()
        self.frozen = False  # an invalidation that concerns some interval is running
        self.deferred: list[Callable[[], None]] = []  # newest first
        self.work: list[Callable[[], None]] = []

    # --- what a design says

    def fault(self, page: int, write: bool) -> int:
        raise NotImplementedError

    def mapped(self, page: int) -> bool | None:
        """What the device's MMU has for a page: None, or whether it may write."""
        raise NotImplementedError

    def callback(self, node: Node, start: int, end: int, event: Event) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    # --- the core

    def lock(self, role: str) -> None:
        self.counts.locks[role] += 1

    def defer(self, action: Callable[[], None]) -> None:
        self.deferred.insert(0, action)
        self.counts.n["deferred_ops"] += 1

    def insert(self, node: Node) -> None:
        self.counts.n["intervals_created"] += 1
        self.counts.interval(1)
        self.lock("subscriptions")
        if self.frozen:
            self.defer(lambda: self.tree.insert(node))
        else:
            self.tree.insert(node)

    def removed(self) -> None:
        self.counts.n["intervals_removed"] += 1
        self.counts.interval(-1)

    def read_begin(self) -> None:
        self.lock("subscriptions")
        assert not self.frozen  # nobody else runs: there is nothing to wait for

    def invalidate(self, start: int, end: int, event: Event) -> None:
        self.lock("subscriptions")
        concerned = self.tree.overlapping(start, end - 1)
        self.tree.steps = 0
        node = self.tree.first(start, end - 1)
        self.counts.n["walk_steps"] += self.tree.steps
        self.frozen = bool(concerned)
        for expected in concerned:
            assert node is expected
            self.counts.n["callbacks"] += 1
            before = self.counts.n["ptes_zapped"]
            self.callback(node, start, end, event)
            self.counts.n["callbacks_empty"] += self.counts.n["ptes_zapped"] == before
            self.tree.steps = 0
            node = self.tree.next(node, start, end - 1)
            self.counts.n["walk_steps"] += self.tree.steps
        assert not node
        self.lock("subscriptions")
        self.frozen = False
        while self.deferred:
            self.deferred.pop(0)()
        self.after_invalidation()

    def after_invalidation(self) -> None:
        """What a core does once the tree may change again."""

    def hmm_range_fault(self, page: int, write: bool) -> int:
        self.space.tree.steps = 0
        result = self.space.fault_for_device(page, write)
        self.counts.n["vma_steps"] += self.space.tree.steps
        return result


class Machine:
    """A process whose rows run through one design."""

    def __init__(
        self,
        design: Callable[[AddressSpace, Counts], Driver],
        *,
        raises: bool,
        touched: bool = True,
        resident: bool = False,
    ) -> None:
        self.design = design
        self.raises = raises
        self.touched = touched
        self.resident = resident
        self.counts = Counts()
        self.exit = Counter({"exit_callbacks": 0, "exit_ptes_zapped": 0})
        self.events: list[tuple[int, int, Event]] = []
        self.driver: Driver | None = None
        self.opened = False
        self.new_process()

    def new_process(self) -> None:
        self.space = AddressSpace(self.raised)
        self.used: dict[int, bool] = {}  # page -> whether the device writes it

    def open(self) -> None:
        if not self.opened:  # what went before does not count
            self.counts.n.clear()
            self.counts.locks.clear()
            self.space.inferred = 0
            self.opened = True
        self.driver = self.design(self.space, self.counts)

    def raised(self, start: int, end: int, event: Event) -> None:
        if self.raises:
            self.invalidate(start, end, event)

    def invalidate(self, start: int, end: int, event: Event) -> None:
        self.counts.n["invalidations"] += 1
        self.events.append((start, end, event))
        if self.driver:
            self.driver.invalidate(start, end, event)
        else:
            self.counts.locks["subscriptions"] += 2  # the mm has its notifier_subscriptions from the start

    def mmap_lock(self, mode: str) -> None:
        self.counts.locks["mmap_lock " + mode] += 1

    def access(self, page: int, write: bool) -> None:
        assert self.driver
        self.counts.n["device_accesses"] += 1
        entry = self.driver.mapped(page)
        if entry is None or (write and not entry):
            self.counts.n["device_faults"] += 1
            self.counts.n["device_faults_refused"] += self.driver.fault(page, write) < 0

    def row(self, row: Row) -> bool:
        """Run a row; False once the process is gone."""
        op, addr, size, arg, aux = row
        space = self.space
        if op == Op.FAULT:
            if addr >= MMAP_MIN_ADDR:  # nothing is mapped below: the access is refused, of both
                self.mmap_lock("read")
                space.fault(addr, bool(arg & 2), bool(arg & 1))
            page = addr // PAGE * PAGE
            if self.driver and self.touched:
                self.access(page, bool(arg & 2))
                if self.resident:
                    self.used[page] = self.used.get(page, False) or bool(arg & 2)
        elif op == Op.ACCESS and self.driver:
            self.access(addr // PAGE * PAGE, bool(arg))
        elif op == REACCESS and self.driver:
            for page in sorted(p for p in self.used if addr <= p < addr + size):
                if page in space.pages:
                    self.access(page, self.used[page])
                else:
                    del self.used[page]
        elif op == Op.INVALIDATE:
            self.invalidate(addr, addr + size, Event(arg))
        elif op == Op.MADVISE:
            self.mmap_lock("write" if 10 <= arg <= 19 else "read")
            for _ in range(space.madvise(addr, size, arg)):  # holes in files: meanwhile i_mmap_rwsem is held instead
                self.mmap_lock("read")
                self.counts.locks["rwsem"] += 1
        elif op == Op.FORK:
            if not aux & 0x100:  # CLONE_VM: the child shares the mm
                self.mmap_lock("write")
                space.fork()
        elif op == CHILD_ENDS:
            space.child_ends(arg)
        elif op == CHILD_COPIES:
            space.child_copies(addr)
        elif op in (Op.EXEC, Op.EXIT):
            return self.exits(execs=op == Op.EXEC)
        elif op in (Op.VMA, Op.MMAP, Op.MUNMAP, Op.MPROTECT, Op.MREMAP, Op.BRK):
            self.mmap_lock("write")
            if op == Op.VMA:
                space.vma(addr, size, arg, aux)
            elif op == Op.MMAP:
                space.mmap(addr, size, arg, aux)
            elif op == Op.MUNMAP:
                space.munmap(addr, size)
            elif op == Op.MPROTECT:
                space.mprotect(addr, size, arg)
            elif op == Op.MREMAP:
                space.mremap(addr, size, arg, aux // PAGE * PAGE, aux % PAGE)
            else:
                space.set_brk(addr)
        self.run_work()
        return True

    def run_work(self) -> None:
        while self.driver and self.driver.work:
            self.counts.n["work_items"] += 1
            self.driver.work.pop(0)()

    def exits(self, execs: bool) -> bool:
        """The mm goes, then the device file is closed. Only callbacks and zapped PTEs are told, on their own."""
        counts = self.counts
        counters, locks = Counter(counts.n), Counter(counts.locks)
        if self.driver:
            self.driver.invalidate(0, MAX, Event.RELEASE)
            self.driver.invalidate(0, MAX, Event.UNMAP)
            self.run_work()
            self.driver.close()
            assert not list(self.driver.tree)
        assert (counts.intervals, counts.interval_bytes) == (0, 0), "the driver leaks"
        self.exit["exit_callbacks"] += counts.n["callbacks"] - counters["callbacks"]
        self.exit["exit_ptes_zapped"] += counts.n["ptes_zapped"] - counters["ptes_zapped"]
        counts.n, counts.locks = counters, locks
        counts.n["vmas_inferred"] += self.space.inferred
        self.new_process()
        if execs and self.driver:
            self.open()
        return execs

    def run(self, rows: Iterable[Row]) -> None:
        for row in rows:
            if not self.row(row):
                break

    def counters(self) -> dict[str, int]:
        result = dict(self.counts.n) | dict(self.exit)
        result["vmas_inferred"] = result.get("vmas_inferred", 0) + self.space.inferred
        return result
