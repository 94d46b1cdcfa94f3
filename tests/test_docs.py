"""Documents that are generated say what the code says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from designs.test_nouveau_v6_fixed import VIOLATED
from faultpath.engine import counters
from faultpath.protocol.struct import ROLES

ROOT = Path(__file__).parent.parent


def test_the_table_of_counters_is_the_code_s():
    written = (ROOT / "docs" / "counters.md").read_text()
    assert written == counters.markdown(), "run: python -m faultpath.engine.counters > docs/counters.md"


def test_every_lock_role_is_explained():
    assert set(counters.LOCKS) == set(ROLES)


def test_the_session_in_the_readme_is_what_the_command_prints():
    readme = (ROOT / "README.md").read_text()
    shown = re.search(r"\$ (faultpath compare recordings/\S+)\n(.*?)```", readme, re.DOTALL)
    assert shown
    command = [sys.executable, "-m", "faultpath", *shown[1].split()[1:]]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.rstrip() == shown[2].rstrip()


def test_the_session_in_info_md_is_what_the_command_prints():
    document = (ROOT / "docs" / "info.md").read_text()
    shown = re.search(r"\$ (faultpath info recordings/\S+)\n(.*?)```", document, re.DOTALL)
    assert shown
    command = [sys.executable, "-m", "faultpath", *shown[1].split()[1:]]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.rstrip() == shown[2].rstrip()


def test_the_counterexample_in_the_readme_is_what_the_command_prints():
    readme = (ROOT / "README.md").read_text()
    shown = re.search(r"\$ (faultpath check nouveau-v6 --scenario teardown-vs-fault)\n(.*?)```", readme, re.DOTALL)
    assert shown
    command = [sys.executable, "-m", "faultpath", *shown[1].split()[1:]]
    wide = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=wide)
    assert done.returncode == 1

    def untimed(text: str) -> str:
        return re.sub(r"seconds=\S+ states/s=\w+", "", text).rstrip()

    assert untimed(done.stdout) == untimed(shown[2])


def test_every_violation_of_nouveau_v6_is_in_the_documents():
    """The scenarios that tests/designs/test_nouveau_v6_fixed.py holds the checker to."""
    document = (ROOT / "docs" / "nouveau-v6.md").read_text()
    assert [name for name in VIOLATED if f"`{name}`" not in document] == []


def test_the_cost_of_nouveau_v6_fixed_is_what_the_command_prints():
    command = [sys.executable, "benchmarks/fixes.py"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.strip() in (ROOT / "docs" / "nouveau-v6.md").read_text()


def test_the_agreement_in_the_documents_is_what_the_command_prints():
    document = (ROOT / "docs" / "cpu-side.md").read_text()
    shown = re.search(r"\$ faultpath agreement recordings/\*\.trace\n(.*?)```", document, re.DOTALL)
    assert shown
    recordings = sorted(map(str, (ROOT / "recordings").glob("*.trace")))
    command = [sys.executable, "-m", "faultpath", "agreement", *recordings]
    wide = {**os.environ, "COLUMNS": "100"}
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=wide).stdout
    assert [line.rstrip() for line in printed.strip("\n").splitlines()] == shown[1].rstrip().splitlines()
