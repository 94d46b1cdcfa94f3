"""Replay: a process's rows through one design, in order and to completion, natively.

What process exit and exec cost is kept apart from the counters of running.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from faultpath.design import Design
from faultpath.engine import world
from faultpath.engine.counters import COUNTERS, EXIT_COUNTERS
from faultpath.engine.feed import Rows
from faultpath.engine.native import Native
from faultpath.engine.rows import ACCESSES_RESIDENT, ACCESSES_TOUCHED, ROW_WORDS, replay_rows
from faultpath.engine.status import explain
from faultpath.kernel.mirror import attach, device_access, process_exit
from faultpath.kernel.mm.fork import mm_init
from faultpath.kernel.mm.versions import LINUX_6_18
from faultpath.protocol.language import Protocol
from faultpath.protocol.program import Program
from faultpath.protocol.struct import ROLES
from faultpath.trace.ops import Op

NEVER_CHANGED = (world.LEAF_BITS, world.DIR_BITS, world.TID)  # by a replay: the code need not load them


def link(design: Design, more: Sequence[Protocol] = ()) -> Program:
    """The program that every scheduler runs: the design, the core it names, the CPU side, and what else is wanted."""
    roots = [mm_init, design.open, attach, replay_rows, device_access, process_exit, *more]
    return Program(roots, [design.driver(), *design.ops], design.replacements())


@cache
def compiled(design: Design, known: tuple[tuple[int, int], ...]) -> Native:
    """The design's machine code, linked and loaded once however many traces it is for."""
    return Native(link(design), dict(known))


class Replay:
    """One process through one design.

    :param values: the design's parameters as integers, in order
    :param task_size: addresses are below it
    :param raises: the modelled calls raise their own invalidations (the trace holds none)
    :param accesses: ACCESSES_* bits; 0 when the trace has device accesses of its own
    :param version: LINUX_*: whose CPU side it is
    """

    def __init__(
        self,
        design: Design,
        values: list[int],
        *,
        task_size: int,
        raises: bool,
        accesses: int = ACCESSES_TOUCHED,
        version: int = LINUX_6_18,
    ) -> None:
        self.design = design
        self.w = world.new_world()
        self.native = compiled(design, tuple((word, int(self.w[word])) for word in NEVER_CHANGED))
        self.values = values
        self.task_size = task_size
        self.raises = raises
        self.accesses = accesses
        self.version = version
        self.opened = False
        self.exit_counters = dict.fromkeys(EXIT_COUNTERS, 0)
        self._new_mm()

    def _call(self, root: Protocol, *args: int) -> int:
        try:
            return self.native.call(root, self.w, *args)
        except world.Stop:
            raise explain(self.w, f"replay of {self.design.name}") from None

    def _new_mm(self) -> None:
        self.w[world.MM] = self._call(mm_init, self.task_size, int(self.raises), self.version)
        self.w[world.DEVICE] = 0

    def open(self) -> None:
        """The driver's file is opened. Until then rows only build up the address space, and nothing counts."""
        mm = int(self.w[world.MM])
        if not self.opened:
            self.w[world.COUNTER : world.HEAP] = 0
            self.opened = True
        device = self._call(self.design.open, mm, *self.values)
        self._call(attach, mm, device, int(self.design.driver()))
        self.w[world.DEVICE] = device

    def rows(self, rows: Rows) -> bool:
        """Run a batch of rows; False once the process has exited."""
        area = int(self.w[world.CAPACITY])
        room = world.ROWS_WORDS // ROW_WORDS
        for first in range(0, len(rows), room):
            batch = rows.part(first, first + room)
            end = area + len(batch) * ROW_WORDS
            batch.write(self.w[area:end].reshape(-1, ROW_WORDS))
            row = area
            while True:
                args = int(self.w[world.MM]), int(self.w[world.DEVICE]), row, end, self.accesses
                row = self._call(replay_rows, *args)
                if row == end:
                    break
                mirrored = bool(self.w[world.DEVICE])
                self._exit()
                if batch.ops[(row - area) // ROW_WORDS] == Op.EXIT:
                    return False
                self._new_mm()
                if mirrored:
                    self.open()
                row += ROW_WORDS
        return True

    def _exit(self) -> None:
        """The mm goes away; what that costs counts on its own."""
        counted = slice(world.COUNTER, world.HEAP)
        before = self.w[counted].copy()
        self._call(process_exit, int(self.w[world.MM]), int(self.w[world.DEVICE]))
        for name in EXIT_COUNTERS:
            index = world.INDEX[name.removeprefix("exit_")]
            self.exit_counters[name] += int(self.w[index]) - int(before[index - world.COUNTER])
        live = [world.INDEX[name] for name in ("intervals", "interval_bytes")]
        before[[i - world.COUNTER for i in live]] = self.w[live]
        self.w[counted] = before

    def counters(self) -> dict[str, int]:
        """Every counter, those of exit included."""
        return {name: int(self.w[world.INDEX[name]]) for name in COUNTERS} | self.exit_counters

    def driver_counters(self) -> dict[str, int]:
        """What the driver itself counts and exports, under its names; exit left out."""
        return {name: int(self.w[world.INDEX[name]]) for name in self.design.counters}

    def locks(self) -> dict[str, dict[str, int]]:
        """Acquisitions by role; mmap_lock by mode."""
        result = {}
        for i, role in enumerate(ROLES):
            read, write = int(self.w[world.LOCK + 2 * i]), int(self.w[world.LOCK + 2 * i + 1])
            if role == "mmap_lock":
                result[role] = {"read": read, "write": write}
            elif read or write:
                result[role] = {"acquired": read + write}
        return result


__all__ = ["ACCESSES_RESIDENT", "ACCESSES_TOUCHED", "Replay", "link"]
