"""kmalloc, kfree and friends: objects of whole classes of eight words, freed ones kept on a list per class."""

from __future__ import annotations

from faultpath.engine.world import (
    BAD_ADDRESS,
    BRK,
    CAPACITY,
    DOUBLE_FREE,
    FREE,
    INDEX,
    OUT_OF_MEMORY,
    STATUS,
    STATUS_ARG,
    Stop,
    Words,
)
from faultpath.kernel.primitives.debug import may_fail, might_sleep
from faultpath.protocol.language import StructCall, helper, primitive

GFP_KERNEL = 0
GFP_ATOMIC = 1
GFP_NOMEMALLOC = 2  # GFP_KERNEL | __GFP_NOMEMALLOC, where reclaim or an OOM victim asks: may sleep, and may fail

OWNED = 1

ALLOCS = INDEX["allocs"]
ALLOCS_ATOMIC = INDEX["allocs_atomic"]
BYTES = INDEX["interval_bytes"]
BYTES_PEAK = INDEX["interval_bytes_peak"]


@helper
def take(w: Words, size_class: int, tag: int, owned: int) -> int:
    """Address of a zeroed object of ``size_class`` times eight words; ``owned`` ones must be freed some day."""
    obj = w[FREE + size_class]
    if obj:
        w[FREE + size_class] = w[obj + 1]
        for i in range(obj + 1, obj + 8 * size_class):
            w[i] = 0
    else:
        obj = w[BRK]
        if obj + 8 * size_class > w[CAPACITY]:
            w[STATUS] = OUT_OF_MEMORY
            raise Stop
        w[BRK] = obj + 8 * size_class
    w[obj] = tag << 8 | size_class << 1 | 1
    return obj


@helper
def give_back(w: Words, obj: int) -> int:
    """Free an object: its header says so, its second word links it into the free list."""
    header = w[obj]
    if header & 1 == 0:
        w[STATUS] = DOUBLE_FREE
        w[STATUS_ARG] = obj
        raise Stop
    size_class = header >> 1 & 127
    w[obj] = header & ~1
    w[obj + 1] = w[FREE + size_class]
    w[FREE + size_class] = obj
    return 0


@helper
def account(w: Words, size: int) -> int:
    """Interval memory grew by ``size`` bytes."""
    w[BYTES] += size
    w[BYTES_PEAK] = max(w[BYTES_PEAK], w[BYTES])
    return 0


@primitive
def _kmalloc(w: Words, size_class: int, tag: int, size: int, gfp: int) -> int:
    w[ALLOCS] += 1
    if gfp == GFP_ATOMIC:
        w[ALLOCS_ATOMIC] += 1
    else:
        might_sleep(w)
    if may_fail(w, gfp):
        return 0
    account(w, size)
    return take(w, size_class, tag, OWNED)


@primitive
def _kfree(w: Words, obj: int, size: int) -> int:
    if obj == 0:
        w[STATUS] = BAD_ADDRESS
        raise Stop
    w[BYTES] -= size
    return give_back(w, obj)


@primitive
def _on_stack(w: Words, size_class: int, tag: int, size: int) -> int:
    return take(w, size_class, tag, 0)


@primitive
def _embedded(w: Words, size_class: int, tag: int, size: int) -> int:
    account(w, size)
    return take(w, size_class, tag, 0)


@primitive
def _off_stack(w: Words, obj: int, size: int) -> int:
    return give_back(w, obj)


@primitive
def kvcalloc(w: Words, size: int) -> int:
    """A table of ``size`` bytes that belongs to an interval. Only its size matters to the model."""
    w[ALLOCS] += 1
    return account(w, size)


@primitive
def kvfree(w: Words, size: int) -> int:
    """Free a table of ``size`` bytes."""
    w[BYTES] -= size
    return 0


kmalloc = StructCall(_kmalloc, allocates=True)
kfree = StructCall(_kfree, allocates=False)

# An object of its own that in C is a member of another, where Member will not do: its bytes count, no allocation does.
embedded = StructCall(_embedded, allocates=True)

# Objects that in C live on the stack, or that belong to the CPU side: not counted.
on_stack = StructCall(_on_stack, allocates=True)
off_stack = StructCall(_off_stack, allocates=False)
