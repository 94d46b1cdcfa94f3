"""A block under ``with`` is the same program as its locks and unlocks written out, which is done here once more."""

from __future__ import annotations

import re

import pytest

from faultpath.catalog import BUILT_IN, load
from faultpath.engine.replay import link
from faultpath.protocol.check import check
from faultpath.protocol.language import Protocol
from mutants.engine import mutated


def tree(source: Protocol) -> str:
    """The tree of a function, without line numbers and the compiler's names of what it keeps itself."""
    text = repr(check(source).body)
    text = re.sub(r"line=\d+", "", text)
    text = re.sub(r"'(lock|node|head|after)\.\d+'", r"'\1.'", text)
    return re.sub(r"'(idx|value)\.\d+'", r"'\1'", text)  # which the text written out has by these names


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_same_written_out(name: str) -> None:
    design = load(name)
    functions = [f for f in link(design, [design.close]).functions if isinstance(f, Protocol)]
    compared = 0
    for function in functions:
        if "'lock.'" in (with_blocks := tree(function)):
            continue  # which lock it is is evaluated once; written out, each time
        assert with_blocks == tree(mutated(function, ())), function
        compared += "unlock" in with_blocks or "up_" in with_blocks
    assert compared >= 20
