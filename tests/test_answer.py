"""docs/answer.md and docs/designs: what ``make answer`` wrote is what the code says, and no number stands alone."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from faultpath import catalog
from faultpath.check import check, inapplicable
from faultpath.compare import compare
from faultpath.report.pivot import parse, pivots
from faultpath.scenarios import SCENARIOS

ROOT = Path(__file__).resolve().parent.parent
AGAIN = "run: make answer"

spec = importlib.util.spec_from_file_location("answer", ROOT / "tools" / "answer.py")
assert spec
assert spec.loader
answer = importlib.util.module_from_spec(spec)
spec.loader.exec_module(answer)

TEXT = answer.ANSWER.read_text()
COMMANDS = re.compile(r"(?m)^\$ (faultpath compare recordings/\*.trace --all .*)\n((?:(?!\$ ).*\n?)*)")
BLOCKS = re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL)


def page(name: str) -> str:
    return (answer.DESIGNS / f"{name}.md").read_text()


def test_every_design_has_a_page_and_no_page_is_left_over() -> None:
    assert {path.stem for path in answer.DESIGNS.glob("*.md")} == set(catalog.BUILT_IN)


@pytest.mark.parametrize("name", catalog.BUILT_IN)
def test_a_page_says_what_the_design_says(name: str) -> None:
    assert page(name).startswith(answer.told(name)), AGAIN


@pytest.mark.parametrize("name", catalog.BUILT_IN)
def test_a_page_has_what_recordings_cost(name: str) -> None:
    some = [path for path in answer.RECORDINGS if path.stem in ("luajit", "rustc")]
    for row in answer.measured(name, some):
        assert f"\n{row}\n" in page(name), AGAIN


@pytest.mark.parametrize("name", catalog.BUILT_IN)
def test_a_page_has_a_verdict_for_every_scenario_that_applies(name: str) -> None:
    shown = re.findall(r"(?m)^\| (\S+) \|", page(name).partition("## Checked")[2])[1:]
    assert shown == [s.name for s in SCENARIOS if not inapplicable(catalog.load(name), s)], AGAIN


@pytest.mark.parametrize("name", ["nouveau-v6", "full-va", "odp-implicit"])  # others' take minutes to compile
def test_a_page_has_what_check_finds(name: str) -> None:
    for row in answer.verdicts(check([name], ["fault-vs-munmap"], memory=1 << 30)["results"]):
        assert f"\n{row}\n" in page(name), AGAIN


def test_the_tables_of_the_answer_are_what_its_commands_print() -> None:
    """One recording's column of each table, and that the tables have a row for every design."""
    document = compare([ROOT / "recordings" / "luajit.trace"], list(catalog.BUILT_IN))
    commands = [found for block in BLOCKS for found in COMMANDS.findall(block)]
    assert len(commands) == 3
    for command, output in commands:
        lines = pivots(document, parse(re.findall(r"-c (\S+)", command)), False, answer.WIDTH)
        now = [cell for line in lines if line.split(" ")[0] in catalog.BUILT_IN for cell in line.split()[1:]]
        shown = [cell for line in output.splitlines() if line.startswith("luajit ") for cell in line.split()[1:]]
        assert shown == now, (command, AGAIN)


def test_every_number_of_the_text_is_in_a_table() -> None:
    printed = set(re.findall(r"\d[\d,.]*\d|\d", "\n".join(BLOCKS)))
    prose = re.sub(r"```.*?```|`[^`]*`|\[[^\]]*\]\([^)]*\)", "", TEXT, flags=re.DOTALL)
    prose = re.sub(r"January 2020|\b[12] (?:GiB|MiB)\b", "", prose)
    assert [number for number in re.findall(r"\d[\d,.]*\d|\d", prose) if number not in printed] == []
