"""A rule of one's own: the driver counts what it has mapped, and the count must be right whenever the lock is free."""

from dataclasses import replace

import plain
from faultpath.driver import *


@protocol
def gpu_count_is_right(gpu: plain.Gpu) -> int:
    """0 if the rule holds. It runs in every state; it may read anything and change nothing."""
    if gpu.in_progress < 0:
        return 1
    if gpu.in_progress > 1:
        return 2
    return 0


design = replace(plain.design, name="gpu-invariant", invariant=gpu_count_is_right)
