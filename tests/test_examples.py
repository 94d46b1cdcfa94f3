"""docs/writing-a-design.md: its code is that of docs/examples, and its commands print what it shows."""

from __future__ import annotations

import difflib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from faultpath import catalog
from faultpath.engine.check import Check
from faultpath.engine.status import VIOLATIONS
from faultpath.kernel import mmu_notifier
from faultpath.kernel.primitives.lists import hlist_del_init_rcu, hlist_unhashed
from faultpath.kernel.primitives.locks import spin_lock, spin_unlock
from faultpath.protocol.language import protocol
from faultpath.scenarios import SCENARIOS

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "docs" / "writing-a-design.md"
EXAMPLES = ROOT / "docs" / "examples"
ACCEPT = "ACCEPT" in os.environ


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", GUIDE.read_text(), re.DOTALL)


def run(command: str) -> tuple[int, str]:
    """A command of the guide, in its folder: ``faultpath ... [| head -N]``."""
    words, _, head = command.partition(" | head -")
    done = subprocess.run(
        [sys.executable, "-c", "from faultpath.cli import main; main()", *words.split()[1:]],
        cwd=EXAMPLES,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "COLUMNS"},
        check=False,
    )
    lines = (done.stdout + done.stderr).rstrip().splitlines()
    return done.returncode, "\n".join(lines[: int(head)] if head else lines)


def steady(text: str) -> str:
    """Without what differs from run to run, and without lines of the package, which move."""
    text = re.sub(r" ?seconds=\S+ states/s=\d+", "", text)
    text = re.sub(r"--replay \S+", "--replay ID", text)
    text = re.sub(str(EXAMPLES) + "/", "", text)
    text = re.sub(r"0x[0-9a-f]{6,}", "0xN", text)
    return re.sub(r"(?m)(^ *)\d+ (?=\S)", r"\1N ", text)


def shown(block: str) -> list[tuple[str, str]]:
    """The commands of a block, each with what follows it."""
    parts = re.split(r"(?m)^\$ (.*)\n", block)[1:]
    return list(zip(parts[::2], (part.rstrip() for part in parts[1::2]), strict=True))


def status(printed: str) -> int:
    return 2 if printed.startswith("faultpath: ") else 1 if ": violated: " in printed else 0


@pytest.mark.parametrize("number", range(len(blocks("console"))))
def test_commands_print_what_the_guide_shows(number: int) -> None:
    block = blocks("console")[number]
    printed = [(command, *run(command)) for command, _ in shown(block)]
    if ACCEPT:
        text = "".join(f"$ {command}\n{out}\n" for command, _, out in printed).replace(f"{EXAMPLES}/", "")
        GUIDE.write_text(GUIDE.read_text().replace(f"```console\n{block}```", f"```console\n{text}```"))
        return
    for (command, text), (_, code, out) in zip(shown(block), printed, strict=True):
        assert steady(out) == steady(text), f"{command}\nif it is meant: ACCEPT=1 pytest tests/test_examples.py"
        assert code == status(out)


def test_the_fix_is_the_difference_between_the_two_files() -> None:
    bug, fixed = ((EXAMPLES / name).read_text().splitlines() for name in ("late_counter.py", "plain.py"))
    lines = list(difflib.unified_diff(bug, fixed, lineterm="", n=3))[2:]
    cut = [n for n, line in enumerate(lines) if line.startswith("@@")]
    text = "\n".join(lines[cut[1] + 1 :]) + "\n"  # the first hunk is the docstring
    [block] = blocks("diff")
    if ACCEPT:
        GUIDE.write_text(GUIDE.read_text().replace(f"```diff\n{block}```", f"```diff\n{text}```"))
    else:
        assert block == text


def test_the_code_of_the_guide_is_that_of_the_examples() -> None:
    files = [path.read_text() for path in EXAMPLES.glob("*.py")]
    assert [block for block in blocks("python") if not any(block in file for file in files)] == []
    assert len(blocks("python")) > 15


def test_every_example_is_in_the_guide() -> None:
    assert [path.name for path in EXAMPLES.glob("*.py") if path.name not in GUIDE.read_text()] == []


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_examples_say_what_they_are(name: str) -> None:
    assert (EXAMPLES / name).read_text().startswith('"""')


def test_what_the_right_ones_claim_holds_everywhere() -> None:
    """The fixed driver in every scenario that applies."""
    code, printed = run("faultpath check ./plain.py")
    assert code == 0, printed
    assert ": violated" not in printed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("class A(Struct):\n    x: str\n", "mine.py:4"),
        ("@protocol\ndef f(gpu: plain.Gpu, addr: int) -> int:\n    return nosuch(addr)\n", "mine.py:6"),
        ("@protocol\ndef f(gpu: Nosuch, addr: int) -> int:\n    return 0\n", "Nosuch"),
        ("@protocol\ndef f(gpu: plain.Gpu) -> int:\n    return 0\n", "walk: f takes 1 parameters and is given 2"),
        ("def f(gpu, addr):\n    return 0\n", "is no protocol"),
        ("f = plain.gpu_walk\nparameters = [Parameter('x', 1, 'd')]\n", "open: gpu_open takes 1"),
        ("f = plain.gpu_walk\nops = [Ops('o', invalidate_rang_start=plain.gpu_range_start)]\n", "nothing calls"),
        ("f = plain.gpu_walk\nops = [Ops('o', work=plain.gpu_walk)]\n", "nothing calls 'work'"),
        ("f = plain.gpu_walk\nops = [Ops('o', range_free=plain.gpu_close)]\n", "nothing calls 'range_free'"),
        ("f = plain.gpu_walk\nops = [Ops('o', invalidate=len)]\n", "is no protocol"),
        ("f = plain.gpu_walk\nops = [7]\n", "is no Ops"),
        ("f = plain.gpu_walk\ncounters = ['page_fault']\n", "counters: no 'page_fault' among page_faults"),
    ],
)
def test_a_design_with_an_error_is_refused_in_one_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        f"from dataclasses import replace\nimport plain\nfrom faultpath.driver import *\n{text}\n"
        "more = {name: globals()[name] for name in ('ops', 'parameters', 'counters') if name in globals()}\n"
        "design = replace(plain.design, walk=f, **more)\n"
    )
    (tmp_path / "plain.py").write_text((EXAMPLES / "plain.py").read_text())
    code, printed = run(f"faultpath check {tmp_path}/mine.py -s fault-vs-dontneed")
    assert code == 2
    assert re.fullmatch(r"faultpath: [^\n]+: [^\n]+: [^\n]+", printed), printed
    assert said in printed


@protocol(replaces=mmu_notifier.mmu_notifier_unregister)
def unregister_and_go(sub: mmu_notifier.Notifier, mm: mmu_notifier.Mm) -> None:
    """mmu_notifier_unregister() without its synchronize_srcu()."""
    subs = mm.notifier_subscriptions
    spin_lock(subs.lock)
    if not hlist_unhashed(sub.hlist):
        hlist_del_init_rcu(sub.hlist)
    spin_unlock(subs.lock)
    mmu_notifier.mmdrop(mm)


def test_without_its_grace_period_unregistering_frees_under_a_callback() -> None:
    scenario = next(s for s in SCENARIOS if s.name == "teardown-vs-munmap")
    design = catalog.load(str(EXAMPLES / "plain.py"))
    found = Check(design, [], scenario, replacements=[unregister_and_go]).run()
    assert VIOLATIONS[found.status][0] == "lifetime"
