"""UVM's fault while memory is short: the page that comes in costs the process another one, in the same thread."""

from __future__ import annotations

import dataclasses

from faultpath.designs import uvm_hmm
from faultpath.driver import *
from faultpath.kernel import hmm
from faultpath.kernel.hmm import hmm_walk
from faultpath.kernel.mm.reclaim import mm_reclaim
from faultpath.scenario import Scenario, access, address, dontneed, fault, map_memory

COLD = address(4)  # the first page of the second block


@protocol(replaces=hmm.hmm_range_fault)
def hmm_range_fault(mm: Mm, sub: IntervalNotifier, seq: int, addr: int, write: int) -> int:
    """hmm_range_fault(), in which the allocation of a page reclaims another one of the same process."""
    ret = -EBUSY
    while ret == -EBUSY:
        if sub.invalidate_seq != seq:
            return -EBUSY
        if not pt_get(mm.pt, addr):
            mm_reclaim(mm, COLD)
        ret = hmm_walk(mm, addr, write, SCRATCH)
    return ret


design = dataclasses.replace(uvm_hmm.design, name="uvm-hmm-reclaim", replaces=[hmm_range_fault])

scenarios = [
    Scenario(
        "direct-reclaim",
        "A fault takes a page of another block away, and meanwhile its own page is dropped.",
        [map_memory(0, 8), access(4)],
        [fault(1), dontneed(1, 1)],
        pages=8,
    ),
]
