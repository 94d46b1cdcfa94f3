"""Bugs that the kernel had, as small protocols: before the fix, and after each. Each must be found, and only there.

One file a case, which ends in ``case = Case(...)``; importing this module imports none of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from faultpath.errors import FaultpathError

if TYPE_CHECKING:
    from faultpath.cases.case import Case

CASES = (
    "amdgpu-get-pages",
    "interval-remove",
    "hmm-struct",
    "device-private",
    "hmm-livelock",
    "khugepaged-file",
    "secondary-tlb",
    "registration",
    "mlx5-dereg",
    "mlx5-implicit-child",
    "xe-userptr",
    "xe-iommu",
    "xe-repin",
    "amdkfd-mmput",
    "amdkfd-vma-removed",
    "nouveau-drain",
    "kvm-vma",
    "kvm-root",
    "hfi1-expected",
)


def load(name: str) -> Case:
    """The case of a name."""
    if name not in CASES:
        raise FaultpathError(f"no case '{name}'", "--cases", f"one of {', '.join(CASES)}")
    case: Case = importlib.import_module(f"faultpath.cases.{name.replace('-', '_')}").case
    return case
