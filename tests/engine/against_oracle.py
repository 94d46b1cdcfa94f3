"""Runs a trace through a Replay and through the oracle, and tells where they part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from faultpath.design import Design
from faultpath.designs import (
    amdkfd,
    amdkfd_fixed,
    core_tracked,
    drm_gpusvm,
    full_va,
    kvm,
    nouveau_upstream,
    nouveau_v6,
    nouveau_v6_fixed,
    odp_explicit,
    odp_implicit,
    rxe_odp,
    uvm_hmm,
)
from oracles import odp_explicit as odp_explicit_oracle
from oracles.address_space import AddressSpace
from oracles.amdkfd import amdkfd as amdkfd_oracle
from oracles.core import Counts, Driver, Machine, Row
from oracles.core_tracked import CoreTracked
from oracles.designs import FullVa, NouveauV6, NouveauV6Fixed, odp
from oracles.drm_gpusvm import gpusvm
from oracles.kvm import kvm as kvm_oracle
from oracles.nouveau_upstream import NouveauUpstream
from oracles.running import Run, differences, table
from oracles.sequences import possible, smallest
from oracles.uvm_hmm import uvm


@dataclass
class Case:
    """A design with its parameters, and its oracle."""

    design: Design
    oracle: Callable[[AddressSpace, Counts], Driver]
    values: list[int] = field(default_factory=list)


CASES = {
    "nouveau-v6": Case(nouveau_v6.design, NouveauV6),
    "nouveau-v6-fixed": Case(nouveau_v6_fixed.design, NouveauV6Fixed),
    "nouveau-upstream": Case(nouveau_upstream.design, NouveauUpstream),
    "core-tracked": Case(core_tracked.design, CoreTracked),
    "full-va": Case(full_va.design, FullVa),
}
# One page, less than one block of eight, one block, a few, one leaf, several leaves, the default.
for size, srcu in (
    (4 << 10, 0),
    (16 << 10, 1),
    (32 << 10, 0),
    (64 << 10, 1),
    (2 << 20, 0),
    (16 << 20, 1),
    (1 << 30, 0),
):
    name = f"odp-implicit:child={size >> 10}K,protection={'srcu' if srcu else 'refcount'}"
    CASES[name] = Case(odp_implicit.design, odp(size, bool(srcu)), [size, srcu])
# The default; one whose notifiers, ranges and mappings end anywhere; one without any but the smallest ranges.
for area, *sizes in ((512 << 20, 2 << 20, 64 << 10), (32 << 10, 64 << 10, 8 << 10), (2 << 20, 4 << 10, 4 << 10)):
    name = f"drm-gpusvm:notifier_size={area >> 10}K,chunk={sizes[0] >> 10}K,middle={sizes[1] >> 10}K"
    CASES[name] = Case(drm_gpusvm.design, gpusvm(area, *(size for size in sizes if size > 4 << 10)), [area, *sizes])
CASES["odp-implicit:child=1G,protection=srcu"] = Case(odp_implicit.design, odp(1 << 30, True), [1 << 30, 1])
for size in (4 << 10, 64 << 10, 2 << 20):
    CASES[f"uvm-hmm:block={size >> 10}K"] = Case(uvm_hmm.design, uvm(size), [size])

for size in (16 << 10, 2 << 20, 2 << 30):
    CASES[f"kvm:slot={size >> 10}K"] = Case(kvm.design, kvm_oracle(size), [size])
for size in (0, 64 << 10, 2 << 20):
    CASES[f"odp-explicit:region={size >> 10}K"] = Case(odp_explicit.design, odp_explicit_oracle.explicit(size), [size])
    CASES[f"rxe-odp:region={size >> 10}K"] = Case(rxe_odp.design, odp_explicit_oracle.rxe(size), [size])

# Each page a range of its own, four, the default; and whole mappings.
for xnack, granularity in ((1, 0), (1, 2), (1, 9), (0, 9)):
    name = f"xnack={'on' if xnack else 'off'},granularity={granularity}"
    for kfd in (amdkfd, amdkfd_fixed):
        CASES[f"{kfd.design.name}:{name}"] = Case(
            kfd.design, amdkfd_oracle(bool(xnack), granularity, kfd is amdkfd_fixed), [xnack, granularity]
        )


@dataclass
class Options:
    raises: bool
    accesses: int = 1  # 1 touched, 2 resident
    open_at: int = 0  # the row before which the device file is opened


def oracle(case: Case, options: Options) -> Machine:
    return Machine(
        case.oracle,
        raises=options.raises,
        touched=bool(options.accesses & 1),
        resident=bool(options.accesses & 2),
    )


def disagreement(case: Case, options: Options, rows: list[Row]) -> str:
    """What differs after all rows, or an empty string."""
    machine = oracle(case, options)
    run = Run(case.design, case.values, raises=options.raises, accesses=options.accesses)
    opened = False
    pending: list[Row] = []
    alive = True
    for i, row in enumerate(rows):
        if i >= options.open_at and not opened:
            run.rows(table(pending))
            pending, opened = [], True
            machine.open()
            run.open()
        if possible(machine, row):
            pending.append(row)
            alive = machine.row(row)
            if not alive:
                break
    if run.rows(table(pending)) != alive:
        return "only one of the two has exited"
    found = differences(run, machine)
    return ", ".join(f"{name}: program {ours}, oracle {theirs}" for name, (ours, theirs) in found.items())


def assert_agrees(case: Case, options: Options, rows: list[Row]) -> None:
    if disagreement(case, options, rows):
        rows = smallest(rows, lambda some: disagreement(case, options, some))
        raise AssertionError(f"{disagreement(case, options, rows)}\n{options}\n{rows}")
