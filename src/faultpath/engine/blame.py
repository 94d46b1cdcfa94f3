"""What a counterexample comes to, in one sentence: what is violated, on which object, where, and who prepared it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import faultpath
from faultpath.engine import arena, search, world
from faultpath.engine.check import Check
from faultpath.engine.names import Names, entry
from faultpath.engine.status import VIOLATIONS
from faultpath.engine.thread import ASLEEP, PC
from faultpath.engine.trail import Step, evaluate, registers_of, thread_names
from faultpath.kernel.mmu_notifier import Mm
from faultpath.kernel.primitives import pagetable
from faultpath.kernel.primitives.ghost import STARTED
from faultpath.protocol import ir, steps
from faultpath.protocol.struct import current

PACKAGE = Path(faultpath.__file__).parent
PAGES = {arena.STALE_PTE, arena.PTE_DURING_INVALIDATION, arena.UNCOVERED_PTE}
WORDS = {
    arena.USE_AFTER_FREE, arena.WILD_POINTER, arena.LIST_ADD, arena.LIST_DEL, arena.TREE_INSERT, arena.SELF_DEADLOCK,
    arena.NOT_HELD, arena.MMAP_LOCK_IN_CALLBACK, arena.OVERLAP, arena.LEAK, world.DOUBLE_FREE, world.REFCOUNT,
    world.TREE,
}  # fmt: skip


def place(file: str, line: int) -> str:
    """``designs/nouveau_v6.py:205``; a file of the user's by its name."""
    path = Path(file)
    shown = path.relative_to(PACKAGE) if path.is_relative_to(PACKAGE) else Path(path.name)
    return f"{shown}:{line}"


def spot(step: Step) -> str:
    """``nouveau_svmm_interval_find() (designs/nouveau_v6.py:205)``."""
    function, file, line = step.frames[-1]
    return f"{function}() ({place(file, line)})"


def message(check: Check, names: Names, found: Sequence[Step], status: int, arg: int) -> str:
    """The sentence; the world is where the counterexample ends."""
    parts = [VIOLATIONS[status][1]]
    subject = _subject(check, names, status, arg)
    if subject:
        parts[0] += f": {subject}"
    if found and found[-1].fatal:
        parts.append(f"{thread_names(check)[found[-1].thread]} in {spot(found[-1])}")
    if status in (arena.USE_AFTER_FREE, world.DOUBLE_FREE):
        parts += _freed(check, names, found, arg)
    return "; ".join(parts)


def _subject(check: Check, names: Names, status: int, arg: int) -> str:
    """What it is about."""
    if status in WORDS:
        return names.word(arg)
    if status in PAGES:
        return "; ".join(page_state(check, arg))
    if status == arena.LOCK_ORDER:
        return f"{_lock_class(check, arg & 0xFFFF)} is wanted under {_lock_class(check, arg >> 16)}"
    if status == arena.HELD_AT_EXIT:
        return ", ".join(_locks(check, names, arg))
    if status == arena.DEADLOCK:
        return "; ".join(waiting(check, names))
    return ""


def _freed(check: Check, names: Names, found: Sequence[Step], addr: int) -> list[str]:
    """Who freed the object that a word was in."""
    accused = names.object_at(addr)
    for step in reversed(found):
        if accused and step.freed == accused.start and not step.fatal:
            return [f"freed by {thread_names(check)[step.thread]} in {spot(step)}"]
    return []


def page_state(check: Check, page: int) -> Iterator[str]:
    """What the CPU's and the devices' page tables say of a page, and which invalidations of it are under way."""
    w = check.w
    current.w, current.program = w, None
    cpu = pagetable.get(w, check.mm + Mm.fields["pt"].offset, page)
    entries = [int(check.design.walk(device, page)) for device in check.devices]
    for number, found in enumerate(entries):
        if found & pagetable.VALID and not w[arena.CLOSED] >> number & 1:
            which = f"device {number}" if len(entries) > 1 else "device"
            yield f"page {page:#x}: {which} PTE {entry(found)}, CPU PTE {entry(cpu)}"
    for number, name in enumerate(thread_names(check)):
        for nth in (2 * number, 2 * number + 1):
            slot = arena.RANGES + nth * arena.RANGE_WORDS
            start, end, phase = (int(word) for word in w[slot + 1 : slot + 4])
            if phase and start <= page < end:
                stands = "range_start has returned" if phase == STARTED else "range_start runs"
                yield f"invalidation {start:#x}-{end:#x} of {name} under way, {stands}"


def _lock_class(check: Check, known: int) -> str:
    """A lock class by name: ``Svmm.mutex``."""
    key = int(check.w[arena.CLASS_KEY + known])
    for thread in check.threads:
        for instruction in thread.routine.code.instructions:
            for arg in instruction.args if isinstance(instruction, steps.Invoke) else ():
                if isinstance(arg, ir.LockClass) and arg.number == key:
                    return arg.name
    return "a lock"


def _locks(check: Check, names: Names, mask: int) -> Iterator[str]:
    """Locks by their bits in a mask."""
    numbers = check.w[arena.LOCK_ID + arena.ARENA : arena.LOCK_ID + arena.STATE_END]
    for addr in numbers.nonzero()[0]:
        if mask >> int(numbers[addr]) - 1 & 1:
            yield names.word(int(addr) + arena.ARENA)


def waiting(check: Check, names: Names) -> Iterator[str]:
    """What each thread that cannot go on waits for."""
    w = check.w
    for number, name in enumerate(thread_names(check)):
        pc, code = int(w[check.records[number] + PC]), check.threads[number].routine.code
        if pc < 0 or pc == int(w[search.DAEMON + number]):
            continue
        protocol, line = code.frames[pc][-1]
        instruction = code.instructions[pc]
        where = f"{protocol.__name__}() ({place(protocol.fn.__code__.co_filename, line)})"
        if isinstance(instruction, steps.Invoke):
            lock = evaluate(instruction.args[0], registers_of(check, number))
            yield f"{name} waits in {where} for {names.word(lock)}, held by {names.held(lock, int(w[lock]))}"
        elif isinstance(instruction, steps.Sleep):
            queue = names.word(int(w[check.records[number] + ASLEEP]))
            yield f"{name} sleeps in {where} on {queue}, and nobody wakes it"
        else:
            yield f"{name} waits in {where} for its condition"
