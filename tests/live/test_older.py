"""The modelled CPU side against what Linux 6.1 and 6.12 said (live/older.py), with small pages."""

from __future__ import annotations

import json
from typing import Any

import pytest

from faultpath.kernel.mm.versions import LINUX_6_1, LINUX_6_12, LINUX_6_18, version_of
from live import modelled
from live.kernel import Call
from live.older import KEPT, RECORDED, of_small_pages
from live.test_live import CASES, says_as_recorded


def recorded(version: int) -> list[tuple[list[Call], list[Any]]]:
    """Programs and their answers."""
    document = json.loads(RECORDED[version].read_text())
    assert version_of(document["kernel"]) == version
    return [([tuple(call) for call in program], answers) for program, answers in document["programs"]]


@pytest.mark.parametrize("version", [LINUX_6_1, LINUX_6_12])
def test_the_model_says_what_older_kernels_said(version: int) -> None:
    for program, answers in recorded(version):
        says_as_recorded(program, answers, version=version)
    known = [program for program, _ in recorded(version)]
    cases = [program for program in CASES.values() if of_small_pages(program)]
    assert known[:-KEPT] == cases, "make oracle-older PACKAGE=... RECORD=--record"


@pytest.mark.parametrize("version", [LINUX_6_1, LINUX_6_12])
@pytest.mark.parametrize("other", [LINUX_6_1, LINUX_6_12, LINUX_6_18])
def test_a_model_of_another_version_is_found_out(version: int, other: int) -> None:
    said = [json.loads(json.dumps(modelled.run(program, other))) for program, _ in recorded(version)]
    assert (said == [answers for _, answers in recorded(version)]) == (other == version)
