"""The core's own: mmu_interval_notifier_remove() returns while the interval is still on the deferred list.

Removal during an invalidation is deferred to the last range_end, and remove() waits until the sequence number has
moved. But range_end moves the number first and goes through the list after that, all under the lock; remove() looks
without it. It returns in between, its caller frees the interval, and range_end takes freed memory out of the tree.

The fix looks under the lock, which range_end holds until the list is empty.
"""

from __future__ import annotations

import dataclasses

from faultpath.cases import mirror
from faultpath.cases.case import BUGGY, FINAL_FIX, HOLDS, Case, Variant, memory
from faultpath.driver import *
from faultpath.kernel import mmu_notifier
from faultpath.kernel.mmu_notifier import Subscriptions
from faultpath.scenario import Scenario, close, reclaim


@protocol(replaces=mmu_notifier.mmu_interval_seq_released)
def look_without_the_lock(subs: Subscriptions, seq: int) -> int:
    """The condition of mmu_interval_notifier_remove()'s wait_event(), Linux 5.5 to 5.17."""
    return subs.invalidate_seq != seq


BEFORE = dataclasses.replace(mirror.design, replaces=[*mirror.design.replaces, look_without_the_lock])

SCENARIO = Scenario(
    "remove-vs-end",
    "An interval is removed and freed while kswapd takes a page of it.",
    memory(1),
    [close(), reclaim(0)],
)

case = Case(
    name="interval-remove",
    title="mm/mmu_notifier.c: fix race in mmu_interval_notifier_remove()",
    cve="",
    property="lifetime",
    source="mm/mmu_notifier.c:mmu_interval_notifier_remove()",
    variants=[
        Variant(BUGGY, BEFORE, SCENARIO, "lifetime"),
        Variant(FINAL_FIX, mirror.design, SCENARIO, HOLDS, "319561669a59", "5.18-rc4"),
    ],
    doc=__doc__,
)
