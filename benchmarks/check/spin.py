"""full-va under SPIN: ``python benchmarks/check/spin.py [SCENARIO...]``. SPIN and a C compiler are needed.

A line per scenario and mode: states stored, transitions, depth, memory, the verifier's elapsed and processor seconds
(medians), and states per second of processor time. ``--selftest`` instead runs the protocol with defects, which SPIN
must find.
"""

from __future__ import annotations

import argparse
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MODEL = Path(__file__).with_name("full_va.pml")
MEMORY_MB = 8000
DEPTH = 100_000
# Threads, and the bits of a hash table with several slots a state: smaller ones are slower, larger ones not faster.
SCENARIOS = {
    "S2": ("fault 1, dontneed 0-4", 16),
    "S3": ("fault 1, fault 2, munmap 0-4", 18),
    "S4": ("fault 1, fault 1, dontneed 1, munmap 0-4", 21),
    "S5": ("fault 1, fault 1, fault 2, dontneed 1, munmap 0-4", 25),
    "S6": ("fault 1, fault 1, dontneed 1, dontneed 0-4, munmap 0-4", 25),
}
MODES = {
    "dfs": ["-DNOREDUCE"],
    "bfs": ["-DNOREDUCE", "-DBFS"],
    "reduced": [],
}
DEFECTS = {"SKIP_RETRY": True, "SET_SEQ_AFTER": True, "SEQ_AFTER_HMM": True, "SET_SEQ_BEFORE": False}  # is it one?


@dataclass
class Outcome:
    """What a verifier printed."""

    errors: int
    violated: bool  # an error was a failed assertion
    states: int
    transitions: int
    depth: int
    vector_bytes: int
    memory_mb: float
    seconds: float
    processor_seconds: float = 0.0


def missing() -> list[str]:
    """The programs needed that are not here."""
    return [program for program in ("spin", "gcc") if shutil.which(program) is None]


def parse(text: str) -> Outcome:
    """Read a verifier's report."""

    def number(pattern: str) -> float:
        found = re.search(pattern, text)
        if found is None:
            raise ValueError(f"no {pattern!r} in what the verifier printed:\n{text}")
        return float(found[1])

    if "Search not completed" in text and "errors: 0" in text:
        raise ValueError(f"the search stopped early:\n{text}")
    return Outcome(
        errors=int(number(r"errors: (\d+)")),
        violated="assertion violated (" in text,
        states=int(number(r"([\d.e+]+) states, stored")),
        transitions=int(number(r"([\d.e+]+) transitions")),
        depth=int(number(r"depth reached (\d+)")),
        vector_bytes=int(number(r"State-vector (\d+) byte")),
        memory_mb=number(r"([\d.]+)\ttotal actual memory"),
        seconds=number(r"elapsed time ([\d.e+-]+) seconds"),
    )


@contextmanager
def verifier(scenario: str, mode: str, defines: list[str]) -> Iterator[list[str]]:
    """A compiled verifier, as the command that runs it."""
    with tempfile.TemporaryDirectory() as folder:
        generate = ["spin", "-a", f"-D{scenario}", *(f"-D{name}" for name in defines), MODEL.resolve()]
        subprocess.run(generate, cwd=folder, check=True, stdout=subprocess.PIPE)
        best = ["-DSAFETY", "-DNOFAIR", "-DNOBOUNDCHECK", "-DNO_RESIZE", "-DVECTORSZ=128", f"-DMEMLIM={MEMORY_MB}"]
        subprocess.run(["gcc", "-O2", "-w", *best, *MODES[mode], "-o", "pan", "pan.c"], cwd=folder, check=True)
        yield [f"{folder}/pan", f"-w{SCENARIOS[scenario][1]}", f"-m{DEPTH}", "-n"]


def run(command: list[str]) -> Outcome:
    """One exhaustive search."""
    folder = Path(command[0]).parent  # counterexamples go there
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    outcome = parse(subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    outcome.processor_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return outcome


def measure(scenario: str, mode: str, defines: list[str], rounds: int) -> Outcome:
    """An outcome with the median of its times."""
    with verifier(scenario, mode, defines) as command:
        outcomes = [run(command) for _ in range(rounds)]
    median = outcomes[0]
    median.seconds = statistics.median(outcome.seconds for outcome in outcomes)
    median.processor_seconds = statistics.median(outcome.processor_seconds for outcome in outcomes)
    return median


def selftest() -> bool:
    """Whether SPIN finds what is wrong, and nothing in what is right."""
    good = True
    for scenario in ("S2", "S3", "S4"):
        for defect, wrong in {"none": False, **DEFECTS}.items():
            for mode in MODES:
                with verifier(scenario, mode, [] if defect == "none" else [defect]) as command:
                    outcome = run(command)
                expected = outcome.violated == wrong and (outcome.errors > 0) == wrong
                good = good and expected
                print(
                    f"{scenario}  {mode:7}  {defect:14}  errors: {outcome.errors}{'' if expected else '  UNEXPECTED'}"
                )
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description="full-va under SPIN")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"{', '.join(SCENARIOS)}; all by default")
    parser.add_argument("--mode", action="append", choices=MODES, help="all by default")
    parser.add_argument("--rounds", type=int, default=5, help="runs per line")
    parser.add_argument("-D", dest="defines", action="append", default=[], metavar="NAME", help="define in the model")
    parser.add_argument("--selftest", action="store_true", help="does SPIN find seeded defects?")
    options = parser.parse_args()
    if unknown := set(options.scenarios) - set(SCENARIOS):
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    if lacking := missing():
        print(f"not run: {' and '.join(lacking)} missing")
        return 0
    if options.selftest:
        return 0 if selftest() else 1
    failed = False
    print("    mode        states  transitions  depth  vector   memory  elapsed  processor     states/s")
    for scenario in options.scenarios or SCENARIOS:
        for mode in options.mode or MODES:
            it = measure(scenario, mode, options.defines, options.rounds)
            rate = f"{it.states / it.processor_seconds:12,.0f}" if it.states > 100_000 else f"{'-':>12}"
            print(
                f"{scenario}  {mode:7} {it.states:10,} {it.transitions:12,} {it.depth:6} {it.vector_bytes:5} B"
                f" {it.memory_mb:5.0f} MB {it.seconds:6.2f} s {it.processor_seconds:8.2f} s {rate}"
                f"{'  ERRORS' if it.errors else ''}",
                flush=True,
            )
            failed = failed or it.errors > 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
