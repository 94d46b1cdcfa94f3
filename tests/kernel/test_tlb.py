"""A device's TLB."""

from __future__ import annotations

import pytest
from rig import Bench

PAGE = 4096
VALID, WRITE, ANON = 1, 2, 1 << 8
FRAME = 7 << 2


@pytest.mark.parametrize("python", [True, False], ids=["python", "native"])
def test_it_keeps_what_a_walk_has_found_until_it_is_flushed(python: bool) -> None:
    bench = Bench(python)
    rig = bench.rig
    bench.pt_init(rig, 0, 1 << 30)
    bench.tlb_init(rig, 0, 1 << 30)
    assert bench.tlb_access(rig, 5 * PAGE) == 0
    bench.pt_set(rig, 5 * PAGE, VALID | FRAME | ANON)
    assert bench.tlb_access(rig, 5 * PAGE) == VALID | FRAME  # what is not valid was not kept; the CPU's bits are not
    bench.pt_set(rig, 5 * PAGE, VALID | WRITE | FRAME)
    assert bench.tlb_access(rig, 5 * PAGE) == VALID | FRAME
    assert bench.tlb_flush(rig, 0, 5 * PAGE) == 0
    assert bench.tlb_access(rig, 5 * PAGE) == VALID | FRAME
    assert bench.tlb_flush(rig, 5 * PAGE, 6 * PAGE) == 1
    assert bench.tlb_access(rig, 5 * PAGE) == VALID | WRITE | FRAME
