"""What is outside the language is refused."""

from dataclasses import replace

import plain

from faultpath.driver import *


@protocol
def gpu_walk(gpu: plain.Gpu, addr: int) -> int:
    for _ in range(3):
        pass
    return pt_get(gpu.pt, addr)


design = replace(plain.design, name="gpu-refused", walk=gpu_walk)
