"""Documents that are generated say what the code says."""

from __future__ import annotations

from pathlib import Path

from faultpath.engine import counters
from faultpath.protocol.struct import ROLES

DOCS = Path(__file__).parent.parent / "docs"


def test_the_table_of_counters_is_the_code_s():
    assert (DOCS / "counters.md").read_text() == counters.markdown(), "run: python -m faultpath.engine.counters"


def test_every_lock_role_is_explained():
    assert set(counters.LOCKS) == set(ROLES)
