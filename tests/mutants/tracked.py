"""Bugs seeded into core-tracked, most on its kernel side, and scenarios of VMAs that change, in which some show."""

from __future__ import annotations

from faultpath.designs import core_tracked
from faultpath.kernel import mmu_notifier_tracked as core
from faultpath.kernel.mm import vma
from faultpath.kernel.mm.mprotect import mm_mprotect
from faultpath.protocol.program import Source
from faultpath.scenario import (
    MM,
    PAGE,
    READ_WRITE,
    Call,
    Scenario,
    access,
    address,
    dontneed,
    fault,
    map_memory,
    protect_read,
    reclaim,
)
from faultpath.scenarios import MAPPED, SCENARIOS, USED
from mutants.engine import Edit, Mutant, Subject


def protect_write(page: int, pages: int) -> Call:
    """mprotect(PROT_READ | PROT_WRITE)."""
    return Call("mprotect", mm_mprotect, (MM, address(page), pages * PAGE, READ_WRITE))


CHANGING = [
    Scenario(
        "split",
        "A fault in the upper half of a VMA that is split there to be write-protected.",
        USED,
        [fault(3), protect_read(2, 2)],
    ),
    Scenario(
        "split-vs-reclaim",
        "A VMA in use is split in three while a page of the last part is reclaimed.",
        [*USED, access(3)],
        [protect_read(1, 1), reclaim(3), fault(3)],
    ),
    Scenario(
        "merge",
        "A fault in what its left neighbour takes in, whose page is then dropped.",
        [*USED, protect_read(2, 2), access(2, write=0)],
        [fault(3, write=0), protect_write(2, 2), dontneed(3, 1)],
    ),
    Scenario(
        "merge-into-unused",
        "A VMA in use is taken in by one that is not, while a page of it is reclaimed.",
        [*MAPPED, protect_read(2, 2), access(3, write=0)],
        [protect_write(2, 2), reclaim(3), fault(3, write=0)],
    ),
    Scenario(
        "boundary",
        "A boundary moves past a page in use, which is reclaimed, and a fault on it.",
        [*MAPPED, access(2), protect_read(0, 2), access(0, write=0)],
        [fault(2, write=0), protect_read(2, 1), reclaim(2)],
    ),
    Scenario(
        "growth",
        "A mapping in use grows, during an invalidation, and a fault in the new part.",
        [map_memory(0, 2), access(0)],
        [map_memory(2, 2), fault(2), reclaim(0)],
    ),
]

TRACKED = Subject("core-tracked", "core-tracked")
SCENARIO = {s.name: s for s in (*SCENARIOS, *CHANGING)}


def bug(name: str, target: Source, *edits: Edit, at: str, breaks: str) -> Mutant:
    return Mutant(name, TRACKED, target, edits, SCENARIO[at], frozenset(breaks.split("|")))


MUTANTS = [
    bug(
        "a split gives the upper half nothing",
        vma.new_vma,
        ("    vma_gains(mm, vma, start, end - 1, like)\n", ""),
        at="split-vs-reclaim",
        breaks="coverage|coherence",
    ),
    bug(
        "a boundary moves and who gains does not grow first",
        vma.vma_modify,
        ("            vma_gains(mm, left, left.start, end - 1, vma)\n", ""),
        at="boundary",
        breaks="coverage|coherence",
    ),
    bug(
        "who takes a neighbour in does not grow first",
        vma.absorb,
        ("    vma_gains(mm, vma, start, last, other)\n", ""),
        at="merge-into-unused",
        breaks="coverage|coherence",
    ),
    bug(
        "a VMA shrinks and its interval does not",
        vma.resize_vma,
        ("    vma_resized(mm, vma)\n", ""),
        at="fault-vs-munmap-hole",
        breaks="structure",
    ),
    bug(
        "bounds change and the number stays",
        core.change_bounds,
        ("    move_seq(subs, sub)\n", ""),
        at="split",
        breaks="coherence",
    ),
    bug(
        "retired, and the number stays",
        core.retire,
        ("    move_seq(subs, sub)\n", ""),
        at="merge",
        breaks="coherence",
    ),
    bug(
        "the empty epoch's number is the last one's",
        core.move_seq,
        ("        subs.invalidate_seq += 2\n", ""),
        at="split",
        breaks="coherence",
    ),
    bug(
        "growth during an invalidation taken for not concerned",
        core.change_bounds,
        (
            "        subs.invalidate_seq = subs.invalidate_seq | 1  # as __mmu_interval_notifier_insert()\n",
            "        pass\n",
        ),
        at="first-fault-vs-dontneed",
        breaks="coherence",
    ),
    bug(
        "bounds change in a tree that somebody walks",
        core.change_bounds,
        ("    if mn_itree_is_invalidating(subs):\n        if hlist", "    if False:\n        if hlist"),
        ("    if not mn_itree_is_invalidating(subs):\n", "    if True:\n"),
        at="two-holes",
        breaks="structure",
    ),
    bug(
        "retired when its VMA leaves, before UNMAP is raised",
        core.vma_detached,
        (
            '        hlist_add_head(container_of(TrackedInterval, "vma_item", item).vma_item, mm.detached)\n',
            '        retire(container_of(TrackedInterval, "vma_item", item))\n',
        ),
        at="fault-vs-munmap",
        breaks="coverage|coherence",
    ),
    bug(
        "never retired after munmap",
        core.vmas_unmapped,
        ("    retire_all(hlist_first(mm.detached))\n", "    return\n"),
        at="teardown-vs-munmap",
        breaks="progress",
    ),
    bug(
        "the lookup takes no reference",
        core.mmu_mirror_find,
        ("    refcount_inc(sub.refs)\n", ""),
        at="first-fault-vs-dontneed",
        breaks="lifetime|structure",
    ),
    bug(
        "an interval holds no reference on its mirror",
        core.track,
        ("        mmu_mirror_get(mirror)\n", ""),
        at="teardown-vs-munmap",
        breaks="lifetime",
    ),
    bug(
        "two first faults, two intervals",
        core.track,
        ("    if not sub:\n", "    if new:\n"),
        at="two-faults-one-mapping",
        breaks="structure",
    ),
    bug(
        "unregistering does not end lookups",
        core.mmu_mirror_unregister,
        ("    mirror.dead = 1\n", ""),
        at="teardown-vs-fault",
        breaks="progress",
    ),
    bug(
        "unregistering does not wait",
        core.mmu_mirror_unregister,
        ("    wait_for_completion(mirror.gone)\n", ""),
        at="teardown-vs-fault",
        breaks="lifetime",
    ),
    bug(
        "unregistering without mmap_lock",
        core.mmu_mirror_unregister,
        ("    down_write(mm.mmap_lock)\n", ""),
        ("    up_write(mm.mmap_lock)\n", ""),
        at="teardown-vs-munmap",
        breaks="lifetime|structure|coverage",
    ),
    bug(
        "no number is checked before the page is mapped",
        core_tracked.gpu_try,
        ("        if mmu_interval_read_retry(sub, seq):\n", "        if False:\n"),
        at="fault-vs-munmap",
        breaks="coherence",
    ),
]
