"""Threads of a program, taken one access to shared state at a time, in any order.

The whole of a thread lies in the world: ``state()`` copied is a snapshot of all threads, ``restore()`` goes back to it.
"""

from __future__ import annotations

from faultpath.engine import world
from faultpath.engine.native import Native
from faultpath.engine.status import explain
from faultpath.engine.world import Words
from faultpath.protocol.language import Protocol
from faultpath.protocol.program import Program
from faultpath.protocol.resumable import (
    BLOCKED,
    ENDED,
    FRAME,
    NUMBER,
    PC,
    REGISTERS,
    RESULT,
    RETURN_PC,
    STACK,
    STEPPED,
)


class Stepper:
    """Runs a program's protocols as threads."""

    def __init__(self, program: Program) -> None:
        self.native = Native(program, stepping=True)
        self.layout = self.native.layout

    def spawn(self, w: Words, number: int, protocol: Protocol, *args: int) -> int:
        """A new thread that will run ``protocol(*args)``; its address.

        :param number: tells threads apart as owners of locks; 0 is who set the world up
        """
        protocol = self.native.program.resolve(protocol)
        units = -(-(STACK + self.layout.stack_words(protocol)) // 8)
        thread = int(w[world.BRK])
        w[world.BRK] += 8 * units
        frame = thread + STACK
        w[thread + PC] = self.layout.entry[protocol]
        w[thread + FRAME] = frame
        w[thread + NUMBER] = number
        w[frame + RETURN_PC] = -1
        w[frame + REGISTERS : frame + REGISTERS + len(args)] = args
        return thread

    def step(self, w: Words, thread: int) -> int:
        """Take a thread one access further: STEPPED, BLOCKED (nothing changed) or ENDED.

        The first call runs up to and with the thread's first access.

        :raises FaultpathError: it broke a rule of the kernel
        """
        try:
            return self.native.step(w, thread)
        except world.Stop:
            raise explain(w, self.where(w, thread)) from None

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
        pc = int(w[thread + PC])
        if pc < 0:
            return "ended"
        protocol, line = self.layout.lines[pc]
        return f"{protocol.__module__.rpartition('.')[2]}.py:{line} in {protocol.__name__}"


__all__ = ["BLOCKED", "ENDED", "STEPPED", "Stepper"]
