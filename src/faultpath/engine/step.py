"""Threads that can be taken one step further at a time, in any order, their whole state in the world."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from faultpath.engine import world
from faultpath.engine.native import Library, Native
from faultpath.engine.status import explain
from faultpath.engine.thread import HEADER, NUMBER, PC, RESULT, START
from faultpath.engine.world import Words
from faultpath.protocol import steps
from faultpath.protocol.language import Helper, Primitive, Protocol
from faultpath.protocol.native import STOPPED, assembly
from faultpath.protocol.program import Program
from faultpath.protocol.resumable import BLOCKED, ENDED, STEPPED, plain_step


class Routine:
    """What a thread runs: a protocol as steps."""

    def __init__(self, program: Program, root: Protocol) -> None:
        self.program = program
        self.code = steps.flatten(program, root)

    @property
    def words(self) -> int:
        """Words that a thread takes, a multiple of eight."""
        return -(-(HEADER + self.code.slot_count) // 8) * 8

    @property
    def idle(self) -> int:
        """The instruction at which the root protocol itself waits for something, 0 if it does not."""
        for i, instruction in enumerate(self.code.instructions):
            if isinstance(instruction, steps.Guard) and len(self.code.frames[i]) == 1:
                return i
        return 0

    @cached_property
    def step(self) -> Any:
        """``step(w, thread)``."""
        atoms = [f for f in self.program.functions if isinstance(f, Primitive | Helper)]
        text = assembly(Program(atoms)) + plain_step(self.program, self.code, "step")
        self.library = Library(text, ["step"])
        return self.library.function("step", 1)

    def begin(self, w: Words, thread: int, number: int, args: tuple[int, ...]) -> None:
        """Make the words at ``thread`` a thread that has not begun."""
        w[thread : thread + self.words] = 0
        w[thread + PC] = START
        w[thread + NUMBER] = number
        w[thread + HEADER : thread + HEADER + len(args)] = args

    def where(self, pc: int) -> str:
        """Function and source line of an instruction."""
        if pc == -1:
            return "ended"
        protocol, line = self.code.frames[max(pc, 0)][-1]
        return f"{protocol.__module__.rpartition('.')[2]}.py:{line} in {protocol.__name__}"


class Stepper:
    """Runs a program's protocols as threads."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.routines: dict[Protocol, Routine] = {}
        self.threads: dict[int, Routine] = {}  # by address

    @cached_property
    def native(self) -> Native:
        """The same program, to be run in order and to completion."""
        return Native(self.program)

    def spawn(self, w: Words, number: int, protocol: Protocol, *args: int) -> int:
        """A new thread that will run ``protocol(*args)``; its address.

        :param number: tells threads apart as owners of locks; 0 is who set the world up
        """
        protocol = self.program.resolve(protocol)
        if protocol not in self.routines:
            self.routines[protocol] = Routine(self.program, protocol)
        routine = self.routines[protocol]
        thread = int(w[world.BRK])
        w[world.BRK] += routine.words
        routine.begin(w, thread, number, args)
        self.threads[thread] = routine
        return thread

    def step(self, w: Words, thread: int) -> int:
        """Take a thread one access further: STEPPED, BLOCKED (nothing changed) or ENDED.

        The first call runs up to and with the thread's first access.

        :raises FaultpathError: it broke a rule of the kernel
        """
        w[world.TID] = w[thread + NUMBER]
        result: int = self.threads[thread].step(w.ctypes.data, thread)
        if result == STOPPED:
            raise explain(w, self.where(w, thread))
        return result

    def run(self, w: Words, thread: int) -> int:
        """Take a thread to its end, alone; its result.

        :raises FaultpathError: it waits for what nobody does
        """
        while (found := self.step(w, thread)) == STEPPED:
            pass
        if found == BLOCKED:
            w[world.STATUS] = world.WOULD_BLOCK
            raise explain(w, self.where(w, thread))
        return self.result(w, thread)

    def ended(self, w: Words, thread: int) -> bool:
        """Whether a thread has returned."""
        return bool(w[thread + PC] == -1)

    def result(self, w: Words, thread: int) -> int:
        """What a thread that has ended returned."""
        return int(w[thread + RESULT])

    def where(self, w: Words, thread: int) -> str:
        """Function and source line a thread has come to."""
        return self.threads[thread].where(int(w[thread + PC]))


__all__ = ["BLOCKED", "ENDED", "STEPPED", "Routine", "Stepper"]
