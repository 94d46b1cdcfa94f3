"""A world's memory is reserved, not used."""

from __future__ import annotations

import os

from faultpath.engine import world


def test_a_process_with_many_worlds_can_fork() -> None:
    """Side by side they are larger than the machine's memory: fork() would be refused if they were accounted for."""
    worlds = [world.new_world() for _ in range(4)]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert sum(w.nbytes for w in worlds) > memory
    child = os.fork()
    if not child:
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
