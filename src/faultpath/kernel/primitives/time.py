"""Time as a protocol sees it."""

from __future__ import annotations

from faultpath.engine.world import Words
from faultpath.protocol.language import helper, primitive


@helper
def expired(w: Words) -> int:
    """Whether time is up. In order and alone nothing takes time: never."""
    return 0


@primitive
def timed_out(w: Words) -> int:
    """Whether the caller's time bound has passed."""
    return expired(w)
