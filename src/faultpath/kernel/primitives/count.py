"""Bookkeeping that the counters need and the kernel does not have. Free of cost: no step of the protocol."""

from __future__ import annotations

from faultpath.engine.world import INDEX, Words
from faultpath.protocol.language import primitive

ZAPPED = INDEX["ptes_zapped"]
NOW = INDEX["intervals"]
PEAK = INDEX["intervals_peak"]


@primitive
def zapped_so_far(w: Words) -> int:
    """Device PTEs cleared by callbacks until now."""
    return w[ZAPPED]


@primitive
def count_interval(w: Words) -> int:
    """One more interval is alive."""
    w[NOW] += 1
    w[PEAK] = max(w[PEAK], w[NOW])
    return 0
