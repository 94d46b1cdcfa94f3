"""Bugs that the kernel had, as small protocols: before the fix, and after each. Each must be found, and only there.

One file a case, which ends in ``case = Case(...)``; importing this module imports none of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from faultpath.errors import FaultpathError

if TYPE_CHECKING:
    from faultpath.cases.case import Case

CASES = {
    "amdgpu-get-pages": "amdgpu_get_pages",
}


def load(name: str) -> Case:
    """The case of a name."""
    if name not in CASES:
        raise FaultpathError(f"no case '{name}'", "--cases", f"one of {', '.join(CASES)}")
    case: Case = importlib.import_module(f"faultpath.cases.{CASES[name]}").case
    return case
