"""The application's side of explicit on-demand paging: which MR an access names, and when one is registered.

A cache as UCX and libfabric have it, under a read-write lock: an access looks its address up, and registers memory if
no MR covers it. ``region=0`` takes the mapping around the address as it is at that moment, less what others cover;
anything else an aligned block of so many bytes, mapped or not. Nothing is taken out before the device is closed: an MR
outlives the mapping that it was made for, and covers what is mapped there next.
"""

from __future__ import annotations

from faultpath.driver import *
from faultpath.protocol.language import hook


class Region(IntervalNode):
    """``struct ibv_mr`` as the application has it."""

    key: int  # lkey, by which requests name the MR
    mr: int  # the driver's MR, to which its handle leads


class Verbs(Device):
    """A device as the application has opened it, with its cache. A driver's device begins with this."""

    ops: int  # struct ib_device_ops
    regions: IntervalTree
    rcache: RwSem
    region: int
    keys: int  # how many have been given out
    closed: int


@hook("reg_user_mr")
def ops_reg_user_mr(ops: int, dev: Verbs, region: Region) -> int:
    """ops->reg_user_mr(): register memory under region.key; the driver's MR, or -errno."""


@hook("dereg_mr")
def ops_dereg_mr(ops: int, dev: Verbs, region: Region) -> int:
    """ops->dereg_mr()."""


@protocol
def region_at(dev: Verbs, addr: int) -> Region:
    """The MR that a request for the address names, or NULL."""
    return Region(itree_first(dev.regions, addr, addr, SCRATCH))


@protocol
def lkey_of(dev: Verbs, addr: int) -> int:
    """The key for an address, or -EFAULT."""
    with down_read(dev.rcache):
        if region := region_at(dev, addr):
            return region.key
    return -EFAULT


@protocol
def region_around(dev: Verbs, mm: Mm, addr: int) -> Region:
    """What to register for an address that no MR covers: bounds and a key, or NULL where nothing is mapped."""
    if dev.region:
        region = on_stack(Region)
        region.start = addr & -dev.region
        region.last = region.start + dev.region - 1
    else:
        with down_read(mm.mmap_lock):  # as /proc/self/maps is read
            vma = vma_at(mm, addr)
            if not vma:
                return NULL
            region = on_stack(Region)
            region.start = vma.start
            region.last = vma.last
        if left := Region(itree_last(dev.regions, addr, SCRATCH)):
            region.start = max(region.start, left.last + 1)
        if right := Region(itree_first(dev.regions, addr, ULONG_MAX, SCRATCH)):
            region.last = min(region.last, right.start - 1)
    region.key = dev.keys
    dev.keys += 1
    return region


@protocol
def ibv_reg_mr(dev: Verbs, addr: int) -> int:
    """The application, a thread of the process, registers memory for an address: the key, or -errno."""
    mm = dev.mm
    if not mmget_not_zero(mm):
        return -EFAULT
    ret = -EFAULT
    with down_write(dev.rcache):
        if region := region_at(dev, addr):
            ret = region.key
        elif not dev.closed:
            region = region_around(dev, mm, addr)
            if region:
                ret = region.key
                mr = ops_reg_user_mr(dev.ops, dev, region)
                if mr < 0:
                    ret = mr
                    off_stack(region)
                else:
                    region.mr = mr
                    rb_clear_node(region)
                    itree_insert(dev.regions, region)
    mmput(mm)
    return ret


@protocol
def ibv_close_device(dev: Verbs) -> None:
    """Every MR that is left is deregistered (uverbs_destroy_ufile_hw)."""
    with down_write(dev.rcache):
        dev.closed = 1
        while region := Region(itree_first(dev.regions, 0, ULONG_MAX, SCRATCH)):
            ops_dereg_mr(dev.ops, dev, region)
            itree_remove(dev.regions, region)
            off_stack(region)


REGION = Parameter(
    "region",
    0,
    "how much the application registers at a time; 0: the mapping around the address",
    unit="bytes",
    power_of_two=True,
)
