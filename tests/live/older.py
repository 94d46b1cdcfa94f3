"""An older kernel is asked what the running one is: ``make oracle-older PACKAGE=linux-image-VERSION-amd64.deb``.

It runs in a virtual machine (tools/kernel-in-vm), with small pages alone: the cases, then random programs like
``small``. With ``--record`` the first answers are kept, which test_older.py holds the model to everywhere.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import track

from faultpath.kernel.mm.versions import LINUX_6_1, LINUX_6_12, version_of
from live import modelled
from live.kernel import Answer, Call, Kernel
from live.programs import COLLAPSE, HUGE, HUGETLB, small
from live.test_live import CASES, side_by_side, smallest

HERE = Path(__file__).parent
KEPT = 40  # random programs whose answers are kept
RECORDED = {LINUX_6_1: HERE / "recorded_6_1.json", LINUX_6_12: HERE / "recorded_6_12.json"}


def of_small_pages(program: list[Call]) -> bool:
    """Whether a program asks for no huge page."""
    return not any(
        (name == "madvise" and args[2] in (HUGE, COLLAPSE)) or (name == "mmap" and int(args[3]) & HUGETLB)
        for name, *args in program
    )


def disagreement(kernel: Kernel, program: list[Call], version: int) -> str:
    """With as few calls as still do not agree."""
    found = smallest(program, lambda fewer: kernel.run(fewer) != modelled.run(fewer, version))
    return side_by_side(found, kernel.run(found), modelled.run(found, version))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", help="Debian's package of the kernel")
    parser.add_argument("--programs", type=int, default=1000, help="how many random ones")
    parser.add_argument("--record", action="store_true", help="keep the first answers")
    wanted = parser.parse_args()
    kernel = Kernel(command=[str(HERE.parents[1] / "tools/kernel-in-vm"), wanted.package])
    began = time.monotonic()
    cases = [program for program in CASES.values() if of_small_pages(program)]
    drawn = [small(seed) for seed in range(wanted.programs)]
    kept: list[tuple[list[Call], list[Answer]]] = []
    ranges = 0
    for program in track([*cases, *drawn], "programs", console=Console(stderr=True)):
        theirs = kernel.run(program)
        version = version_of(kernel.release)
        if theirs != modelled.run(program, version):
            print(disagreement(kernel, program, version))
            return 1
        ranges += sum(len(found) for _, found in theirs)
        kept.append((program, theirs))
    kernel.close()
    print(f"Linux {kernel.release}: {len(cases)} cases and {len(drawn):,} programs, of {ranges:,} ranges, as modelled")
    print(f"in {time.monotonic() - began:.0f} s", file=sys.stderr)
    if wanted.record:
        lines = ",\n".join(json.dumps(each, separators=(",", ":")) for each in kept[: len(cases) + KEPT])
        RECORDED[version].write_text(f'{{"kernel": "{kernel.release}", "programs": [\n{lines}\n]}}\n')
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OSError as error:
        sys.exit(f"older: {error}")
