"""odp-implicit with the one change under which every scenario holds.

Linux 6.1's mlx5r_deref_odp_mkey() lets a count fall to zero and then wakes whoever waits for that, by a wait queue
inside the object. The waiter needs no waking to see the zero: it may have freed the object by then. ``faultpath check
odp-implicit --scenario fault-vs-munmap`` shows it. Here the count falls and the queue is woken in one step, as a
completion does it under its own lock, which the waiter takes too.
"""

from __future__ import annotations

import dataclasses
import sys

from faultpath.designs import mlx5_ib, mlx5_odp_srcu, odp_implicit
from faultpath.designs.mlx5_ib import Imr, Mkey
from faultpath.driver import *
from faultpath.kernel.primitives.wait import atomic_dec_and_wake


@protocol(replaces=mlx5_ib.mlx5r_deref_odp_mkey)
def mlx5r_deref_odp_mkey(mkey: Mkey) -> None:
    """mlx5r_deref_odp_mkey(), had it a completion instead of a wait queue."""
    dec_and_wake(mkey.usecount, mkey.wait)


@protocol(replaces=mlx5_odp_srcu.deferred_work_done)
def deferred_work_done(imr: Imr) -> None:
    """The same in protection=srcu."""
    atomic_dec_and_wake(imr.num_deferred_work, imr.q_deferred_work)


design = dataclasses.replace(
    odp_implicit.design,
    name="odp-implicit-fixed",
    title="odp-implicit whose last user wakes the waiter safely",
    source=f"{odp_implicit.design.source}, changed in one place",
    core=sys.modules[__name__],
    doc=__doc__,
)
