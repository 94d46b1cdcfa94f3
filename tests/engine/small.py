"""Scenarios small enough for plain Python, and how to set a design in one."""

from __future__ import annotations

from faultpath.catalog import find, integers
from faultpath.engine.check import Check
from faultpath.scenario import Scenario, access, close, dontneed, fault, map_memory, munmap, reclaim
from faultpath.scenarios import SCENARIOS

MAPPED = [map_memory(0, 1)]
USED = [*MAPPED, access(0)]

SMALL = {
    s.name: s
    for s in (
        Scenario("first-fault", "", MAPPED, [fault(0), dontneed(0, 1)], pages=2),
        Scenario("fault", "", USED, [fault(0), dontneed(0, 1)], pages=2),
        Scenario("fault-munmap", "", USED, [fault(0), munmap(0, 1)], pages=2),
        Scenario("fault-close", "", USED, [fault(0), close()], pages=2),
        Scenario("close-reclaim", "", USED, [close(), reclaim(0)], pages=2),
    )
}
BUILT_IN = {s.name: s for s in SCENARIOS}

ODP = "odp-implicit:child=16K"
DESIGNS = ("full-va", "nouveau-v6", ODP, f"{ODP},protection=srcu")


def check(request: str, scenario: str, *, memory: int = 1 << 26, **switches: bool) -> Check:
    """A design, as users name it, in a small or built-in scenario; ``switches`` are Check's."""
    design, values = find(request)
    return Check(design, integers(design, values), (SMALL | BUILT_IN)[scenario], memory=memory, **switches)
