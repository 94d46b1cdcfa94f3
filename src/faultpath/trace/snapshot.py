"""Mappings that no system call made: a program's image, stack and vDSO after exec, and all of a running process.

Addresses are bytes and ranges half-open, as in /proc/PID/maps (proc_pid_maps(5)).
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from faultpath.trace.schema import Columns

_PROT = {"r": 1, "w": 2, "x": 4}
_MAP_SHARED, _MAP_PRIVATE, _MAP_ANONYMOUS, _MAP_GROWSDOWN = 0x01, 0x02, 0x20, 0x100
_LINE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ([r-])([w-])([x-])([sp]) \S+ \S+ (\d+) *(.*)$")


@dataclass(frozen=True)
class Vma:
    """One mapping ``[start, end)``, seen at ``time`` (ns, CLOCK_MONOTONIC).

    ``prot`` has PROT_* and ``flags`` MAP_* bits, as far as the kernel shows them there.
    """

    time: int
    pid: int
    start: int
    end: int
    prot: int
    flags: int


def snapshot(pid: int) -> list[Vma]:
    """Every mapping of a stopped process, in address order. Empty when it is gone."""
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
    except OSError:
        return []
    vmas = []
    for line in lines:
        found = _LINE.match(line)
        if found is None or found[8] == "[vsyscall]":  # a fixed kernel address, in no mm
            continue
        prot = sum(_PROT[letter] for letter in found.group(3, 4, 5) if letter != "-")
        flags = _MAP_SHARED if found[6] == "s" else _MAP_PRIVATE
        if found[7] == "0" and not found[8].startswith("[v"):  # [vvar], [vdso]: kernel pages, mapped as from a file
            flags |= _MAP_ANONYMOUS
        if found[8] == "[stack]":
            flags |= _MAP_GROWSDOWN
        vmas.append(Vma(now, pid, int(found[1], 16), int(found[2], 16), prot, flags))
    return vmas


def as_rows(vmas: Sequence[Vma]) -> Columns:
    """Rows of a trace: columns of the schema."""
    import numpy as np

    from faultpath.trace.ops import Op
    from faultpath.trace.schema import COLUMNS

    values = {
        "time": [v.time for v in vmas],
        "pid": [v.pid for v in vmas],
        "tid": [v.pid for v in vmas],
        "cpu": [0] * len(vmas),
        "op": [int(Op.VMA)] * len(vmas),
        "addr": [v.start for v in vmas],
        "len": [v.end - v.start for v in vmas],
        "arg": [v.prot for v in vmas],
        "aux": [v.flags for v in vmas],
    }
    return {name: np.array(values[name], dtype) for name, dtype in COLUMNS.items()}
