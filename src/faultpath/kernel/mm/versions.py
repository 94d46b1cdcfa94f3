"""Whose CPU side it is, where that matters (``Mm.version``)."""

from __future__ import annotations

import re

LINUX_6_1 = 601
LINUX_6_12 = 612
LINUX_6_18 = 618


def version_of(release: str) -> int:
    """The newest of these that is not newer than ``uname -r`` says; LINUX_6_18 if it says nothing."""
    found = re.match(r"(\d+)\.(\d+)", release)
    if not found:
        return LINUX_6_18
    number = int(found[1]) * 100 + int(found[2])
    return max((v for v in (LINUX_6_12, LINUX_6_18) if v <= number), default=LINUX_6_1)
