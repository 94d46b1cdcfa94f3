"""A thread, as words of the world from its address on."""

from __future__ import annotations

PC = 0  # the instruction it has come to; -1: it has ended
NUMBER = 1  # who it is, as the owner of locks
RESULT = 2  # what its protocol returned
HELD_READ = 3  # locks held, one bit each, in any mode
HELD_WRITE = 4  # those of them held exclusively
ATOMIC = 5  # spinlocks held
CALLBACK = 6  # inside a notifier's callback; NON_BLOCK added when it must not sleep
ASLEEP = 7  # the wait queue it sleeps on, or 0
WINDOW = 8  # objects it has accessed since its last step that others can tell, and others may free
WINDOW_SIZE = 6
HEADER = 16  # here its registers begin

START = -2  # PC before the first step
NON_BLOCK = 1 << 8
