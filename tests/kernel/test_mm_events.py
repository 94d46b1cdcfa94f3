"""When mm operations raise their events: before and after what they do to the page table, and under which locks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from faultpath.designs import full_va
from faultpath.engine import world
from faultpath.engine.step import BLOCKED, ENDED, STEPPED, Stepper
from faultpath.engine.world import REFCOUNT, Stop
from faultpath.kernel.errno import EAGAIN, EBUSY, EFAULT, EPERM
from faultpath.kernel.hmm import hmm_range_fault
from faultpath.kernel.mirror import attach
from faultpath.kernel.mm.fault import mm_cpu_fault
from faultpath.kernel.mm.files import mm_truncate
from faultpath.kernel.mm.fork import mm_exit, mm_fork, mm_init, mmget, mmget_not_zero, mmput
from faultpath.kernel.mm.huge import mm_collapse, mm_split_huge
from faultpath.kernel.mm.ksm import mm_ksm_merge
from faultpath.kernel.mm.madvise import mm_madvise
from faultpath.kernel.mm.migrate import mm_migrate, mm_numa_hinting
from faultpath.kernel.mm.mmap import mm_brk, mm_mmap, mm_munmap
from faultpath.kernel.mm.mprotect import mm_mprotect
from faultpath.kernel.mm.mremap import mm_mremap
from faultpath.kernel.mm.raising import RAISES_ALL, RAISES_CALLS, RAISES_NOTHING
from faultpath.kernel.mm.reclaim import mm_oom_reap, mm_reclaim
from faultpath.kernel.mm.task_mmu import mm_clear_soft_dirty
from faultpath.kernel.mm.versions import LINUX_6_18
from faultpath.kernel.mmu_notifier import ULONG_MAX, Mm, Range, mmu_interval_read_begin
from faultpath.kernel.primitives import ghost, pagetable
from faultpath.kernel.primitives.pagetable import DEVICE_BITS, VALID, WRITE
from faultpath.protocol.language import Protocol, protocol
from faultpath.protocol.program import Program
from faultpath.protocol.struct import current
from faultpath.trace.ops import Event

PAGE = 4096
AT = 1 << 30
FAR = 3 << 30
STACK = 5 << 30
# Flags, file and offset of a mapping: anonymous, two of files, a stack.
ANON, SHARED, PRIVATE_FILE, STACKS = (0x22, 0, 0), (0x01, 1, 0), (0x02, 3, 0), (0x122, 0, 0)
RW, READ = 3, 1
CPU_READ, CPU_WRITE = 0, 1
DONTNEED, FREE, REMOVE, MERGEABLE = 4, 8, 9, 12
WHERE = {ghost.STARTING: "starting", ghost.STARTED: "started", ghost.OVER: "over"}

OPERATIONS = [
    mm_init, mm_mmap, mm_munmap, mm_mprotect, mm_mremap, mm_madvise, mm_brk, mm_fork, mm_cpu_fault, mm_reclaim,
    mm_truncate, mm_oom_reap, mm_exit, mmget, mmget_not_zero, mmput, mm_migrate, mm_numa_hinting, mm_collapse,
    mm_split_huge, mm_clear_soft_dirty, mm_ksm_merge,
]  # fmt: skip
OTHERS = [full_va.design.open, full_va.design.fault, attach, hmm_range_fault, mmu_interval_read_begin]


@protocol
def dmirror_fault(dmirror: full_va.Dmirror, addr: int, write: int) -> int:
    """dmirror_fault(): no fault without a user of the address space; the fault may be the last one."""
    mm = dmirror.mm
    if not mmget_not_zero(mm):
        return -EFAULT
    ret = full_va.dmirror_range_fault(dmirror, addr, write)
    mmput(mm)
    return ret


@functools.cache
def program() -> Program:
    return Program([*OPERATIONS, *OTHERS, dmirror_fault], [full_va.design.driver(), *full_va.design.ops])


@dataclass
class Seen:
    """What stands at a mark: mmap_lock (-1 written, n read), readers of i_mmap_rwsem, and the PTE at ``where.page``."""

    mark: str
    event: Event
    start: int
    end: int
    mmap_lock: int
    i_mmap: int
    pte: int


class Machine:
    """A process with one page mapped writable at AT and one device over it, as ordinary Python; its marks are noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, raises: int = RAISES_ALL) -> None:
        current.program = program()
        self.w = current.w = world.new_world(1 << 22)
        self.mm = mm_init(1 << 47, raises, LINUX_6_18)
        self.device = full_va.design.open(self.mm)
        attach(self.mm, self.device, full_va.design.driver())
        self.seen: list[Seen] = []
        self.then: Callable[[], None] | None = None  # done once, when the next event has started
        self.page = AT
        monkeypatch.setattr(ghost.range_stands, "fn", self.note)
        mm_mmap(self.mm, AT, 8 * PAGE, RW, *ANON)
        mm_cpu_fault(self.mm, AT, CPU_WRITE)
        assert not self.seen  # a first touch raises nothing

    def note(self, w: world.Words, address: int, where: int) -> int:
        r = Range(address)
        locks = int(w[self.mm.mmap_lock]), int(w[self.mm.i_mmap])
        self.seen.append(Seen(WHERE[where], Event(r.event), r.start, r.end, *locks, self.pte()))
        if where == ghost.STARTED and self.then:
            then, self.then = self.then, None
            then()
        return 0

    def pte(self, page: int | None = None) -> int:
        """The entry, as far as a device has the same."""
        return int(pagetable.pt_get(self.mm.pt, self.page if page is None else page)) & DEVICE_BITS

    def events(self) -> list[tuple[Event, int, int, int, int]]:
        """Event, start, end and locks of each event so far, checked to be whole and one after the other."""
        found = []
        for i in range(0, len(self.seen), 3):
            starting, started, over = self.seen[i : i + 3]
            assert (starting.mark, started.mark, over.mark) == ("starting", "started", "over")
            keys = [(s.event, s.start, s.end, s.mmap_lock, s.i_mmap) for s in (starting, started, over)]
            assert keys[0] == keys[1] == keys[2]
            found.append(keys[0])
        return found

    def call(self, operation: Protocol, *args: int) -> int:
        """Run an operation; it leaves every lock free."""
        result = int(operation(self.mm, *args))
        assert (self.w[self.mm.mmap_lock], self.w[self.mm.i_mmap]) == (0, 0)
        return result

    def break_cow(self) -> None:
        """Make the page at AT copy-on-write, by a fork that nobody looks at."""
        self.call(mm_fork)
        self.seen.clear()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


EIGHT = AT, AT + 8 * PAGE
ONE = AT, AT + PAGE
READS, WRITES, NONE = 1, -1, 0
STAYS, GOES, READ_ONLY, MOVES = range(4)

# Operation, arguments, events with (mmap_lock, i_mmap_rwsem), what becomes of the PTE at AT.
ORDER = {
    "munmap": (mm_munmap, (AT, 8 * PAGE), [(Event.UNMAP, *EIGHT, READS, 0)], GOES),
    "part of a mapping": (mm_munmap, (AT, PAGE), [(Event.UNMAP, *ONE, READS, 0)], GOES),
    "mmap over it": (mm_mmap, (AT, 8 * PAGE, RW, *ANON), [(Event.UNMAP, *EIGHT, WRITES, 0)], GOES),
    "mprotect": (mm_mprotect, (AT, 8 * PAGE, READ), [(Event.PROTECTION_VMA, *EIGHT, WRITES, 0)], READ_ONLY),
    "mprotect that changes nothing": (mm_mprotect, (AT + PAGE, PAGE, RW), [], STAYS),
    "dontneed": (mm_madvise, (AT, 8 * PAGE, DONTNEED), [(Event.CLEAR, *EIGHT, READS, 0)], GOES),
    "free": (mm_madvise, (AT, 8 * PAGE, FREE), [(Event.CLEAR, *EIGHT, READS, 0)], STAYS),
    "other advice": (mm_madvise, (AT, 8 * PAGE, 14), [], STAYS),
    "mremap moves": (mm_mremap, (AT, 8 * PAGE, FAR, 8 * PAGE, 3), [(Event.UNMAP, *EIGHT, WRITES, 0)] * 2, GOES),
    "mremap moves, keeps": (mm_mremap, (AT, 8 * PAGE, FAR, 8 * PAGE, 7), [(Event.UNMAP, *EIGHT, WRITES, 0)], GOES),
    "mremap shrinks": (
        mm_mremap,
        (AT, 8 * PAGE, AT, 4 * PAGE, 0),
        [(Event.UNMAP, AT + 4 * PAGE, AT + 8 * PAGE, READS, 0)],
        STAYS,
    ),
    "mremap shrinks and moves": (
        mm_mremap,
        (AT, 8 * PAGE, FAR, 4 * PAGE, 3),
        [
            (Event.UNMAP, AT + 4 * PAGE, AT + 8 * PAGE, WRITES, 0),
            (Event.UNMAP, AT, AT + 4 * PAGE, WRITES, 0),
            (Event.UNMAP, AT, AT + 4 * PAGE, WRITES, 0),
        ],
        GOES,
    ),
    "fork": (mm_fork, (), [(Event.PROTECTION_PAGE, *EIGHT, WRITES, 0)], READ_ONLY),
    "spurious fault": (mm_cpu_fault, (AT, CPU_WRITE), [], STAYS),
    "reclaim": (mm_reclaim, (AT,), [(Event.CLEAR, *ONE, NONE, 0)], GOES),
    "reclaim, nothing there": (mm_reclaim, (AT + PAGE,), [], STAYS),
    "migration": (mm_migrate, (AT,), [(Event.CLEAR, *ONE, NONE, 0)], MOVES),
    "numa hinting": (mm_numa_hinting, (0, ULONG_MAX), [(Event.PROTECTION_VMA, *EIGHT, READS, 0)], STAYS),
    "collapse": (mm_collapse, (AT, 8 * PAGE), [(Event.CLEAR, *EIGHT, WRITES, 0)], MOVES),
    "split of a huge page": (mm_split_huge, (AT, 8 * PAGE), [(Event.CLEAR, *EIGHT, NONE, 0)], STAYS),
    "soft dirty": (mm_clear_soft_dirty, (), [(Event.SOFT_DIRTY, 0, ULONG_MAX, WRITES, 0)], READ_ONLY),
    "truncate": (mm_truncate, (AT, PAGE), [(Event.CLEAR, *ONE, NONE, 1)], GOES),
    "oom": (mm_oom_reap, (), [(Event.UNMAP, *EIGHT, READS, 0)], GOES),
    "exit": (mmput, (), [(Event.UNMAP, 0, ULONG_MAX, READS, 0)], GOES),
}


@pytest.mark.parametrize("what", ORDER)
def test_an_event_starts_before_the_ptes_change_and_ends_after(what: str, machine: Machine) -> None:
    operation, args, events, fate = ORDER[what]
    before = machine.pte()
    machine.call(operation, *args)
    assert machine.events() == events
    after = machine.pte()
    check_fate(fate, before, after)
    for i, seen in enumerate(machine.seen):
        expected = after if i > 2 or seen.mark == "over" else before
        if what == "migration" and seen.mark == "over":
            expected = 0
        if not what.startswith("mremap shrinks and"):  # there the second event is about the page
            assert seen.pte == expected, seen


def check_fate(fate: int, before: int, after: int) -> None:
    """What has become of a page-table entry."""
    if fate == MOVES:
        assert after & (VALID | WRITE) == before & (VALID | WRITE)
        assert after != before
    else:
        assert after == {STAYS: before, GOES: 0, READ_ONLY: before & ~WRITE}[fate]


@pytest.mark.parametrize("what", ORDER)
def test_recorded_events_are_all_there_is_to_raise(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, RAISES_NOTHING)
    operation, args, events, fate = ORDER[what]
    before = machine.pte()
    machine.call(operation, *args)
    assert machine.events() == (events if what in ("exit", "oom") else [])
    check_fate(fate, before, machine.pte())


def test_a_page_that_is_merged_is_told_of_twice(machine: Machine) -> None:
    """Before it is write-protected, and before the one that takes its place; then a write copies it."""
    before = machine.pte()
    machine.call(mm_ksm_merge, AT)
    assert machine.events() == []  # only where merging was asked for
    machine.call(mm_madvise, AT, 8 * PAGE, MERGEABLE)
    machine.call(mm_ksm_merge, AT)
    merged = machine.pte()
    assert machine.events() == [(Event.CLEAR, *ONE, READS, 0)] * 2
    assert [s.pte for s in machine.seen] == [before, before, *[before & ~WRITE] * 3, merged]
    assert merged & (VALID | WRITE) == VALID
    machine.seen.clear()
    machine.call(mm_cpu_fault, AT, CPU_WRITE)
    assert machine.events() == [(Event.CLEAR, *ONE, READS, 0)]


def test_a_hole_in_a_file_is_made_without_mmap_lock(machine: Machine) -> None:
    mm_mmap(machine.mm, FAR, 4 * PAGE, RW, *SHARED)
    mm_cpu_fault(machine.mm, FAR, CPU_WRITE)
    assert machine.call(mm_madvise, FAR, 4 * PAGE, REMOVE) == 0
    assert machine.events() == [(Event.CLEAR, FAR, FAR + 4 * PAGE, NONE, 1)]
    assert machine.pte(FAR) == 0


def test_brk_shrinks_under_the_read_lock(machine: Machine) -> None:
    mm_brk(machine.mm, FAR)
    mm_brk(machine.mm, FAR + 4 * PAGE)
    mm_cpu_fault(machine.mm, FAR + 3 * PAGE, CPU_WRITE)
    machine.page = FAR + 3 * PAGE
    machine.call(mm_brk, FAR + PAGE)
    assert machine.events() == [(Event.UNMAP, FAR + PAGE, FAR + 4 * PAGE, READS, 0)]
    assert [bool(s.pte) for s in machine.seen] == [True, True, False]
    assert machine.mm.brk == FAR + PAGE


def test_no_downgrade_below_a_stack(machine: Machine) -> None:
    """It could grow into what is being unmapped."""
    mm_mmap(machine.mm, STACK, PAGE, RW, *STACKS)
    machine.call(mm_munmap, AT, 8 * PAGE)
    assert machine.events() == [(Event.UNMAP, *EIGHT, WRITES, 0)]


def test_fork_raises_one_event_for_each_private_mapping(machine: Machine) -> None:
    for start, flags in ((FAR, PRIVATE_FILE), (FAR + 8 * PAGE, SHARED)):
        mm_mmap(machine.mm, start, 4 * PAGE, RW, *flags)
        mm_cpu_fault(machine.mm, start, CPU_WRITE)
    machine.call(mm_fork)
    protection = Event.PROTECTION_PAGE
    assert machine.events() == [(protection, *EIGHT, WRITES, 0), (protection, FAR, FAR + 4 * PAGE, WRITES, 0)]
    assert [bool(machine.pte(at) & WRITE) for at in (AT, FAR, FAR + 8 * PAGE)] == [False, False, True]


# --- faults


def test_a_broken_copy_on_write_is_another_frame(machine: Machine) -> None:
    machine.break_cow()
    before = machine.pte()
    machine.call(mm_cpu_fault, AT + 5, CPU_WRITE)
    assert machine.events() == [(Event.CLEAR, *ONE, READS, 0)]
    assert [s.pte for s in machine.seen] == [before, before, machine.pte()]
    assert machine.pte() & (VALID | WRITE) == VALID | WRITE
    assert machine.pte() >> 2 != before >> 2


def test_a_shared_page_is_made_writable_as_it_is(machine: Machine) -> None:
    mm_mmap(machine.mm, FAR, PAGE, RW, *SHARED)
    mm_cpu_fault(machine.mm, FAR, CPU_READ)
    before = machine.pte(FAR)
    machine.call(mm_cpu_fault, FAR, CPU_WRITE)
    assert machine.events() == []
    assert machine.pte(FAR) == before | WRITE


def test_whoever_took_the_page_away_before_the_copy_is_in_place_wins(machine: Machine) -> None:
    machine.break_cow()
    machine.then = lambda: pagetable.pt_set(machine.mm.pt, AT, 0)
    machine.call(mm_cpu_fault, AT, CPU_WRITE)
    assert machine.pte() == 0
    assert [s.mark for s in machine.seen] == ["starting", "started", "over"]


def test_whoever_was_first_to_bring_the_page_in_wins(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def brought_meanwhile(w: world.Words, page: int) -> int:
        pagetable.pt_set(machine.mm.pt, page, VALID | 9 << 2)
        return 8 << 2

    monkeypatch.setattr(pagetable.new_frame, "fn", brought_meanwhile)
    machine.call(mm_cpu_fault, AT + PAGE, CPU_WRITE)
    assert machine.pte(AT + PAGE) == VALID | 9 << 2


def test_reclaim_takes_the_page_it_came_for_and_no_other(machine: Machine) -> None:
    machine.then = lambda: pagetable.pt_set(machine.mm.pt, AT, VALID | 61 << 2)
    machine.call(mm_reclaim, AT)
    assert machine.pte() == VALID | 61 << 2
    machine.then = lambda: pagetable.pt_set(machine.mm.pt, AT, VALID | WRITE | 61 << 2)  # the same page
    machine.call(mm_reclaim, AT)
    assert machine.pte() == 0


def test_an_access_to_nothing_changes_nothing(machine: Machine) -> None:
    mm_mmap(machine.mm, FAR, PAGE, READ, *ANON)
    for address, code in ((AT + 8 * PAGE, CPU_WRITE), (FAR, CPU_WRITE), (5, CPU_READ), (STACK, CPU_READ)):
        machine.call(mm_cpu_fault, address, code)
        assert machine.pte(address & -PAGE) == 0
    assert not machine.w[world.INDEX["vmas_inferred"]]


def test_a_stack_grows_under_the_write_lock(machine: Machine) -> None:
    mm_mmap(machine.mm, STACK, PAGE, RW, *STACKS)
    locks = world.LOCK, world.LOCK + 1  # mmap_lock's acquisitions for reading and writing
    before = [int(machine.w[i]) for i in locks]
    machine.call(mm_cpu_fault, STACK - 3 * PAGE, CPU_WRITE)
    assert [int(machine.w[i]) for i in locks] == [before[0] + 1, before[1] + 1]
    machine.call(mm_cpu_fault, STACK - PAGE, CPU_WRITE)
    assert machine.pte(STACK - PAGE) & VALID
    machine.call(mm_cpu_fault, STACK - (9 << 20), CPU_WRITE)  # further than RLIMIT_STACK
    assert not machine.pte(STACK - (9 << 20))


# --- hmm_range_fault


def test_a_device_that_breaks_copy_on_write_raises_it_and_starts_anew(machine: Machine) -> None:
    machine.break_cow()
    assert full_va.design.fault(machine.device, AT, 1) == 0
    assert machine.events() == [(Event.CLEAR, *ONE, READS, 0)]
    assert machine.w[world.INDEX["fault_retries"]] == 1
    assert full_va.design.walk(machine.device, AT) == machine.pte()
    assert machine.pte() & WRITE


@pytest.mark.parametrize("raises", [RAISES_NOTHING, RAISES_CALLS])
def test_in_a_replay_it_does_so_silently(raises: int, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, raises)
    machine.break_cow()
    assert full_va.design.fault(machine.device, AT, 1) == 0
    assert machine.events() == []
    assert machine.w[world.INDEX["fault_retries"]] == 0
    assert machine.pte() & WRITE


def test_hmm_looks_at_the_sequence_number_again_after_a_fault(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    mm, sub = machine.mm, machine.device.notifier
    seq = mmu_interval_read_begin(sub)
    assert hmm_range_fault(mm, sub, seq, AT + PAGE, 0) & VALID  # a fault, then the walk again
    frame = pagetable.new_frame.fn

    def told_meanwhile(w: world.Words, page: int) -> int:
        sub.invalidate_seq = seq + 2
        return int(frame(w, page))

    monkeypatch.setattr(pagetable.new_frame, "fn", told_meanwhile)
    assert hmm_range_fault(mm, sub, seq, AT + 2 * PAGE, 0) == -EBUSY
    assert machine.pte(AT + 2 * PAGE) & VALID
    assert hmm_range_fault(mm, sub, seq, AT + 3 * PAGE, 0) == -EBUSY  # and before the first
    assert not machine.pte(AT + 3 * PAGE)


def test_hmm_looks_at_the_mapping_first(machine: Machine) -> None:
    mm, sub = machine.mm, machine.device.notifier
    mm_mprotect(mm, AT + 4 * PAGE, PAGE, READ)
    mm_mprotect(mm, AT + 5 * PAGE, PAGE, 0)
    seq = mmu_interval_read_begin(sub)
    assert hmm_range_fault(mm, sub, seq, AT + 4 * PAGE, 1) == -EPERM
    assert hmm_range_fault(mm, sub, seq, AT + 4 * PAGE, 0) & (VALID | WRITE) == VALID
    assert hmm_range_fault(mm, sub, seq, AT + 5 * PAGE, 0) == -EFAULT
    assert hmm_range_fault(mm, sub, seq, AT - PAGE, 0) == -EFAULT


# --- the OOM reaper and the end


def test_the_reaper_does_not_wait_for_a_busy_driver(machine: Machine) -> None:
    mm, w = machine.mm, machine.w
    mm_mmap(mm, FAR, PAGE, RW, *SHARED)
    mm_cpu_fault(mm, FAR, CPU_WRITE)
    mutex = int(machine.device.mutex)
    w[mutex] = 7  # another thread's
    before = machine.pte()
    assert machine.call(mm_oom_reap) == -EAGAIN
    assert [s.mark for s in machine.seen] == ["starting", "over"]  # refused: no range_end, and nothing was cleared
    assert machine.pte() == before
    subs = mm.notifier_subscriptions
    assert subs.active_invalidate_ranges == 0
    assert not subs.invalidate_seq & 1
    w[mutex] = 0
    machine.seen.clear()
    assert machine.call(mm_oom_reap) == 0
    assert machine.events() == [(Event.UNMAP, *EIGHT, READS, 0)]
    assert machine.pte() == 0
    assert machine.pte(FAR) & VALID  # a shared mapping's pages are not the process's to lose


def test_the_reaper_goes_on_after_a_refusal_to_the_next_mapping(machine: Machine) -> None:
    """__oom_reap_task_mm() of 6.1 continues; what it returns makes it come again."""
    mm_mmap(machine.mm, FAR, PAGE, RW, *PRIVATE_FILE)
    machine.w[int(machine.device.mutex)] = 7
    assert machine.call(mm_oom_reap) == -EAGAIN
    assert [(s.mark, s.start) for s in machine.seen] == [
        ("starting", AT),
        ("over", AT),
        ("starting", FAR),
        ("over", FAR),
    ]


def test_the_reaper_leaves_a_writer_and_an_emptied_process_alone(machine: Machine) -> None:
    lock = int(machine.mm.mmap_lock)
    machine.w[lock] = -7
    assert int(mm_oom_reap(machine.mm)) == -EAGAIN
    machine.w[lock] = 0
    machine.mm.oom_skip = 1
    assert machine.call(mm_oom_reap) == 0
    assert machine.seen == []


def test_the_last_user_takes_the_address_space_down(machine: Machine) -> None:
    mm = machine.mm
    mmget(mm)
    assert mmget_not_zero(mm)
    for _ in range(2):
        machine.call(mmput)
        assert not machine.seen
        assert machine.pte()
    machine.call(mm_exit)
    assert machine.events() == [(Event.UNMAP, 0, ULONG_MAX, READS, 0)]
    assert mm.oom_skip
    assert not mm.vmas.__class__(machine.w[int(mm.vmas)])
    assert machine.w[int(mm.pt)] == 0
    assert not mmget_not_zero(mm)
    machine.call(mm_cpu_fault, AT, CPU_WRITE)
    assert machine.pte() == 0
    for dead in (mmget, mmput):
        with pytest.raises(Stop):
            dead(mm)
        assert machine.w[world.STATUS] == REFCOUNT


# --- as threads


@functools.cache
def stepper() -> Stepper:
    return Stepper(program())


def coherent(w: world.Words, mm: Mm, device: int) -> bool:
    """Nothing runs: what the device maps, the CPU maps to the same frame and allows at least as much."""
    current.w = w
    for page in range(AT, AT + 8 * PAGE, PAGE):
        theirs, ours = int(full_va.design.walk(device, page)), int(pagetable.pt_get(mm.pt, page)) & DEVICE_BITS
        if theirs & VALID and (theirs & ~WRITE != ours & ~WRITE or theirs & ~ours & WRITE):
            return False
    return True


THREADS = ["munmap", "mmap over it", "mprotect", "dontneed", "free", "mremap moves", "fork"]
THREADS += ["reclaim", "migration", "numa hinting", "collapse", "soft dirty", "truncate", "oom", "exit"]


@pytest.mark.parametrize("what", THREADS)
def test_a_device_fault_begun_at_any_step_of_an_operation_leaves_both_tables_in_agreement(what: str) -> None:
    operation, args, events, _ = ORDER[what]
    call = stepper().native.call
    w = world.new_world(1 << 22)
    mm = Mm(call(mm_init, w, 1 << 47, RAISES_ALL, LINUX_6_18))
    device = call(full_va.design.open, w, mm)
    call(attach, w, mm, device, int(full_va.design.driver()))
    call(mm_mmap, w, mm, AT, 8 * PAGE, RW, *ANON)
    call(mm_cpu_fault, w, mm, AT, CPU_WRITE)
    call(full_va.design.fault, w, device, AT, 1)
    count = world.INDEX["invalidations"]
    counted = int(w[count])
    running = STEPPED
    operating = stepper().spawn(w, 1, operation, mm, *args)
    fault = stepper().spawn(w, 2, dmirror_fault, device, AT, 1)
    while running == STEPPED:
        snapshot = world.state(w).copy()
        threads = [fault, operating]
        while threads:
            found = BLOCKED
            for thread in list(threads):
                while (found := stepper().step(w, thread)) == STEPPED:
                    pass
                if found == ENDED:
                    threads.remove(thread)
                    break
            assert found == ENDED, "all wait"
        assert stepper().result(w, fault) in (0, -EFAULT, -EPERM)
        assert coherent(w, mm, device)
        world.restore(w, snapshot)
        running = stepper().step(w, operating)
    assert int(w[count]) == counted + len(events) - (what == "exit")
