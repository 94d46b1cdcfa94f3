"""Time as a protocol sees it."""

from __future__ import annotations

from faultpath.engine.world import Words
from faultpath.protocol.language import primitive


@primitive
def timed_out(w: Words) -> int:
    """Whether the caller's time bound has passed. In order and alone nothing takes time: never."""
    return 0
