"""What a scenario never comes to is cut out of its threads: most of a fault is breaking copy-on-write, and exit.

Who comes to it nevertheless is reported.
"""

from __future__ import annotations

from faultpath.engine.world import STATUS, Stop, Words
from faultpath.kernel.mm import fault, fork, mmap
from faultpath.kernel.mm.vma import Vma
from faultpath.kernel.mmu_notifier import Mm
from faultpath.protocol.language import primitive, protocol
from faultpath.protocol.program import Source
from faultpath.scenario import Scenario

CUT = 62  # a status of its own


@primitive
def comes_here(w: Words) -> int:
    """Somebody came to what was cut away."""
    w[STATUS] = CUT
    raise Stop


@protocol(replaces=fault.do_wp_page)
def do_wp_page(mm: Mm, vma: Vma, page: int, pte: int, since: int) -> None:
    """Nothing is copy-on-write."""
    comes_here()


@protocol(replaces=mmap.exit_mmap)
def exit_mmap(mm: Mm) -> None:
    """The process lives."""
    comes_here()


def cuts(scenario: Scenario) -> list[Source]:
    """What stands for the code that a scenario does not need."""
    calls = {call.protocol for call in (*scenario.setup, *scenario.threads)}
    cut: list[Source] = []
    if fork.mm_fork not in calls:
        cut.append(do_wp_page)
    if fork.mm_exit not in calls:
        cut.append(exit_mmap)
    return cut
