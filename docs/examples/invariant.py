"""A rule of one's own: "only one invalidation runs at a time". It does not hold, in the kernel either."""

from dataclasses import replace

import plain

from faultpath.driver import *


@protocol
def gpu_one_at_a_time(gpu: plain.Gpu) -> int:
    """0 if the rule holds. It runs in every state; it may read anything and change nothing."""
    return gpu.in_progress > 1


design = replace(plain.design, name="gpu-invariant", invariant=gpu_one_at_a_time)
