"""What must hold in every state, as protocols: the checker runs them in each state that it finds."""

from __future__ import annotations

from faultpath.engine.arena import (
    ALIVE,
    ARENA,
    CHECK_MM,
    CLOSED,
    CUSTOM,
    DEVICE_AT,
    DEVICES,
    DISJOINT,
    LEAK,
    LIMIT,
    MAX_THREADS,
    MEMORY,
    OVERLAP,
    PTE_DURING_INVALIDATION,
    RANGE_WORDS,
    RANGES,
    SHADOW,
    SPAN,
    SPAN_END,
    STALE_PTE,
    UNCOVERED_PTE,
)
from faultpath.engine.world import SCRATCH, STATUS_ARG, Words
from faultpath.kernel.mirror import Device, device_walk
from faultpath.kernel.mmu_notifier import (
    IntervalNotifier,
    Mm,
    Notifier,
    Subscriptions,
    mn_itree_is_invalidating,
    ops_owner,
)
from faultpath.kernel.primitives.atomic import atomic_read
from faultpath.kernel.primitives.ghost import STARTED
from faultpath.kernel.primitives.itree import itree_first, itree_next
from faultpath.kernel.primitives.lists import hlist_for_each_entry
from faultpath.kernel.primitives.locks import refcount_read
from faultpath.kernel.primitives.pagetable import DEVICE_BITS, PAGE_SIZE, VALID, WRITE, pt_get
from faultpath.protocol.language import has_op, hook, primitive, protocol
from faultpath.protocol.struct import SpinLock


@hook("device_invariant")
def device_invariant(driver: int, device: Device) -> int:
    """A design's own rule: 0, or anything else when it is broken. It may not change anything."""


@primitive
def span_start(w: Words) -> int:
    """The first page that the scenario uses."""
    return w[SPAN]


@primitive
def span_end(w: Words) -> int:
    """The end of the pages that it uses."""
    return w[SPAN_END]


@primitive
def check_mm(w: Words) -> Mm:
    """The process."""
    return w[CHECK_MM]


@primitive
def check_device(w: Words, number: int) -> Device:
    """A device whose file is open; 0 for one that is closed, -1 when there are no more."""
    if number >= w[DEVICES]:
        return -1  # type: ignore[return-value]
    return 0 if w[CLOSED] >> number & 1 else w[DEVICE_AT + number]  # type: ignore[return-value]


@primitive
def promises_disjoint(w: Words) -> int:
    """Whether the design promises that its intervals do not overlap."""
    return w[DISJOINT]


@primitive
def is_free(w: Words, lock: SpinLock) -> int:
    """Whether nobody holds a lock: what it protects is in order then."""
    return 1 if w[lock] == 0 else 0


@primitive
def phase_at(w: Words, addr: int) -> int:
    """The furthest phase of an invalidation under way that covers an address: 0, STARTING or STARTED."""
    phase = 0
    for slot in range(RANGES, RANGES + 2 * MAX_THREADS * RANGE_WORDS, RANGE_WORDS):
        if w[slot + 1] <= addr and addr < w[slot + 2]:
            phase = max(phase, w[slot + 3])
    return phase


@primitive
def blame(w: Words, what: int) -> int:
    """Remember which address broke the rule, or what the design's own rule returned."""
    w[STATUS_ARG] = what
    return 0


@primitive
def memory_left(w: Words) -> int:
    """Address of an object from kmalloc that is still there, or 0."""
    for unit in range(SHADOW, SHADOW + ((w[LIMIT] - ARENA) >> 3)):
        if w[unit] & ALIVE and w[unit] & MEMORY:
            return w[unit] >> 4
    return 0


@protocol
def is_covered(subs: Subscriptions, page: int) -> int:
    """Whether an invalidation of the page that began now would reach a driver."""
    sub = IntervalNotifier(itree_first(subs.itree, page, page, SCRATCH))
    while sub:
        if has_op(sub.ops, "invalidate"):
            return 1
        sub = IntervalNotifier(itree_next(sub, page, page, SCRATCH))
    for plain in hlist_for_each_entry(Notifier, "hlist", subs.list):
        if has_op(plain.ops, "invalidate_range_start"):
            return 1
    return 0


@protocol
def check_pages(mm: Mm, device: Device) -> int:
    """Coherence and coverage of what the device's MMU finds."""
    page = span_start()
    while page < span_end():
        entry = device_walk(device.driver, device, page)
        if entry & VALID:
            blame(page)
            phase = phase_at(page)
            if phase == STARTED:
                return PTE_DURING_INVALIDATION
            pte = pt_get(mm.pt, page) & DEVICE_BITS
            if not phase and ((entry ^ pte) & ~WRITE or entry & WRITE & ~pte):
                return STALE_PTE
            subs = mm.notifier_subscriptions
            if is_free(subs.lock) and not is_covered(subs, page):
                return UNCOVERED_PTE
        page += PAGE_SIZE
    if has_op(device.driver, "device_invariant"):
        broken = device_invariant(device.driver, device)
        if broken:
            blame(broken)
            return CUSTOM
    return 0


@protocol
def same_owner(sub: IntervalNotifier, other: IntervalNotifier) -> int:
    """Whether two intervals are one driver's, and one client's where it tells clients apart."""
    if sub.ops != other.ops:
        return 0
    if has_op(sub.ops, "owner"):
        return ops_owner(sub.ops, sub) == ops_owner(sub.ops, other)
    return 1


@protocol
def check_disjoint(subs: Subscriptions) -> int:
    """No two intervals of one client overlap, where the tree is not about to change."""
    if mn_itree_is_invalidating(subs) or not is_free(subs.lock):
        return 0
    sub = IntervalNotifier(itree_first(subs.itree, 0, span_end(), SCRATCH))
    while sub:
        other = IntervalNotifier(itree_next(sub, sub.start, sub.last, SCRATCH))
        while other:
            if same_owner(sub, other):
                blame(other.start)
                return OVERLAP
            other = IntervalNotifier(itree_next(other, sub.start, sub.last, SCRATCH))
        sub = IntervalNotifier(itree_next(sub, 0, span_end(), SCRATCH))
    return 0


@protocol
def check_state() -> int:
    """Every invariant, in one state; 0, or the status of the first that does not hold."""
    mm = check_mm()
    number = 0
    device = check_device(0)
    while device >= 0:
        if device:
            broken = check_pages(mm, device)
            if broken:
                return broken
        number += 1
        device = check_device(number)
    if promises_disjoint():
        return check_disjoint(mm.notifier_subscriptions)
    return 0


@protocol
def check_final() -> int:
    """When every thread has ended and every device is closed, nothing is left: no memory, and no hold on the mm."""
    number = 0
    device = check_device(0)
    while device >= 0:
        if device:
            return 0
        number += 1
        device = check_device(number)
    left = memory_left()
    if left:
        blame(left)
        return LEAK
    mm = check_mm()
    if refcount_read(mm.mm_users) > 1 or atomic_read(mm.mm_count):
        blame(mm)
        return LEAK
    return 0
