"""``faultpath check`` beside SPIN: ``python -m benchmarks.check [SCENARIO...]`` from the repository's root.

The same protocol (full-va), the same threads, in one run, the two sides taking turns; medians of processor seconds. Two
lines a scenario: reductions off in both, and on in both (SPIN: partial order; faultpath: its own, and symmetry). The
ratio of states per second compares SPIN's faster order, depth first, with our breadth first, which finds shortest
counterexamples; ``bfs`` is SPIN's breadth first.
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


def ours(name: str, reduce: bool, memory: int) -> Side:
    """One search of ours, code compiled before."""
    check = Check(
        full_va.design,
        [],
        Scenario(name, "", [map_memory(0, 4)], THREADS[name]),
        reduce=reduce,
        symmetry=reduce,
        timeouts=False,
        memory=memory,
    )
    begin = time.process_time()
    verdict = check.run()
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
    print("    reductions  faultpath: states    states/s   SPIN: states   dfs st./s   bfs st./s   states/s  states")
    for name in options.scenarios or ("S3", "S4"):
        for reduce, modes in ((False, ("dfs", "bfs")), (True, ("reduced",))):
            sides: dict[str, Side] = {}
            with contextlib.ExitStack() as stack:
                commands = {mode: stack.enter_context(spin.verifier(name, mode, [])) for mode in modes}
                for _ in range(options.rounds):
                    runs = {"faultpath": ours(name, reduce, options.memory << 30)}
                    for mode, command in commands.items():
                        outcome = spin.run(command)
                        runs[mode] = Side(outcome.states, [max(outcome.processor_seconds, 1e-9)])
                    for side, run in runs.items():
                        sides.setdefault(side, Side(run.states, [], run.complete)).seconds += run.seconds
            us, them = sides["faultpath"], sides[modes[0]]
            bfs = f"{sides['bfs'].rate:11,.0f}" if "bfs" in sides else f"{'':11}"
            print(
                f"{name}  {'on' if reduce else 'off':9} {us.states:18,}{' ' if us.complete else '+'} {us.rate:10,.0f}"
                f" {them.states:14,} {them.rate:11,.0f} {bfs} {us.rate / them.rate:9.2f}x"
                f" {us.states / them.states:6.2f}x",
                flush=True,
            )
    print("+: stopped by --memory")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
