"""``faultpath info`` on a terminal and as JSON."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from faultpath.report.info import shown
from faultpath.trace.info import trace_info

RECORDINGS = sorted((Path(__file__).resolve().parents[2] / "recordings").glob("*.trace"))
MAIN = [sys.executable, "-c", "from faultpath.cli import main; main()", "info"]


def printed(document: dict[str, Any], raw: bool) -> str:
    out = io.StringIO()
    shown(document, raw, out)
    return out.getvalue()


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_nothing_is_cut_and_numbers_are_those_of_the_document(path: Path) -> None:
    document = trace_info(path)
    text = printed(document, raw=True)
    assert "…" not in text
    assert all(len(line.rstrip()) <= 115 for line in text.splitlines())
    found = document["address_space"]
    numbers = {int(n) for n in re.findall(r"(?<![\w.-])\d+(?![\w.-])", text)}
    for line in found["timeline"]:
        assert {*line.values()} - {line["touched_pages"], line["reserved_bytes"]} <= numbers
    for line in found["kinds"]:
        assert {line["vmas"], line["bytes"], line["touched_pages"] * 4096} <= numbers
    for line in found["invalidations"]["top_ranges"]:
        assert f"{line['start']:012x}-{line['end']:012x}" in text


def test_json_is_the_document_and_the_same_every_time() -> None:
    path = RECORDINGS[0]
    first, second = (
        subprocess.run([*MAIN, path, "--json"], capture_output=True, text=True, check=True).stdout for _ in range(2)
    )
    assert first == second
    assert json.loads(first) == json.loads(json.dumps(trace_info(path)))


def test_another_process_can_be_shown() -> None:
    path = next(path for path in RECORDINGS if path.stem == "gcc")
    pids = [p["pid"] for p in trace_info(path)["processes"] if p["rows"]]
    assert len(pids) > 1
    for pid in pids:
        done = subprocess.run([*MAIN, path, "--pid", str(pid)], capture_output=True, text=True, check=True)
        assert f"(pid {pid})" in done.stdout
    refused = subprocess.run([*MAIN, path, "--pid", "1"], capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert re.fullmatch(r"faultpath: no process 1: gcc.trace: [^\n]+\n", refused.stderr)
