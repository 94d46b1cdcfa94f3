"""Scenarios of one's own: what happened before, then what runs at the same time."""

from faultpath.scenario import Scenario, access, dontneed, fault, map_memory, reclaim

scenarios = [
    Scenario(
        "two-pages",
        "A fault on each of two pages while both are dropped.",
        [map_memory(0, 2), access(0)],
        [fault(0), fault(1), dontneed(0, 2)],
        pages=2,
    ),
    Scenario(
        "reclaimed", "A fault against reclaim of its page.", [map_memory(0, 1), access(0)], [fault(0), reclaim(0)], 1
    ),
]
