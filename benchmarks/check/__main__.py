"""``faultpath check`` beside SPIN: ``python -m benchmarks.check [SCENARIO...]`` from the repository's root.

The same protocol (full-va), the same threads, in one run, the two sides taking turns; medians of processor seconds. Two
lines a scenario: reductions off in both, and on in both (SPIN: partial order; faultpath: its own, and symmetry).

Without reductions faultpath finds many more states, and the rate of either falls as its tables leave the caches. So
what is compared there is the search up to as many states as SPIN has in all (``same size``), with SPIN's two orders:
depth first, and breadth first as ours is. The whole of our search, and its pass for progress, is shown beside that.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from dataclasses import dataclass

from benchmarks.check import spin

from faultpath.designs import full_va
from faultpath.engine.check import Check
from faultpath.scenario import Scenario, dontneed, fault, map_memory, munmap

THREADS = {
    "S3": [fault(1), fault(2), munmap(0, 4)],
    "S4": [fault(1), fault(1), dontneed(1, 1), munmap(0, 4)],
    "S5": [fault(1), fault(1), fault(2), dontneed(1, 1), munmap(0, 4)],
}


@dataclass
class Side:
    """One side's figures: states, and processor seconds of each run."""

    states: int
    seconds: list[float]
    complete: bool = True

    @property
    def rate(self) -> float:
        return self.states / statistics.median(self.seconds)


class Enough(Exception):
    """So many states were to be found."""


def ours(name: str, reduce: bool, memory: int, enough: int = 0) -> Side:
    """One search of ours, code compiled before; with ``enough``, until there are so many states."""
    check = Check(
        full_va.design,
        [],
        Scenario(name, "", [map_memory(0, 4)], THREADS[name]),
        reduce=reduce,
        symmetry=reduce,
        timeouts=False,
        memory=memory,
    )
    check.hasten()
    begin = time.process_time()
    reached = 0

    def show(done: int, found: int) -> None:
        nonlocal reached
        reached = found
        if found >= enough > 0:
            raise Enough

    try:
        verdict = check.run(show)
    except Enough:
        return Side(reached, [time.process_time() - begin])
    if verdict.verdict not in ("holds", "bounded"):
        raise SystemExit(f"{name}: {verdict}")
    return Side(verdict.states, [time.process_time() - begin], verdict.verdict == "holds")


def main() -> int:
    parser = argparse.ArgumentParser(description="check beside SPIN")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"{', '.join(THREADS)}; S3 and S4 by default")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each side")
    parser.add_argument("--memory", type=int, default=2, help="GiB for a search of ours")
    options = parser.parse_args()
    if unknown := set(options.scenarios) - set(THREADS):
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    if lacking := spin.missing():
        print(f"not run: {' and '.join(lacking)} missing")
        return 0
    print(
        "    reductions  faultpath: states    states/s  same size   SPIN: states   dfs st./s   bfs st./s"
        "   dfs   bfs  states"
    )
    for name in options.scenarios or ("S3", "S4"):
        for reduce, modes in ((False, ("dfs", "bfs")), (True, ("reduced",))):
            sides: dict[str, Side] = {}
            with contextlib.ExitStack() as stack:
                commands = {mode: stack.enter_context(spin.verifier(name, mode, [])) for mode in modes}
                for _ in range(options.rounds):
                    runs = {}
                    for mode, command in commands.items():
                        outcome = spin.run(command)
                        runs[mode] = Side(outcome.states, [max(outcome.processor_seconds, 1e-9)])
                    runs["faultpath"] = ours(name, reduce, options.memory << 30)
                    if not reduce:
                        runs["same size"] = ours(name, reduce, options.memory << 30, runs["dfs"].states)
                    for side, run in runs.items():
                        sides.setdefault(side, Side(run.states, [], run.complete)).seconds += run.seconds
            us, them = sides["faultpath"], sides[modes[0]]
            same, bfs, ratios = "", "", f"{'':12}"
            if not reduce:
                rate, other = sides["same size"].rate, sides["bfs"].rate
                same, bfs = f"{rate:,.0f}", f"{other:,.0f}"
                ratios = f"{rate / them.rate:5.2f}x{rate / other:5.2f}x"
            print(
                f"{name}  {'on' if reduce else 'off':9} {us.states:18,}{' ' if us.complete else '+'} {us.rate:10,.0f}"
                f" {same:>10} {them.states:14,} {them.rate:11,.0f} {bfs:>11} {ratios} {us.states / them.states:6.2f}x",
                flush=True,
            )
    print("+: stopped by --memory")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
