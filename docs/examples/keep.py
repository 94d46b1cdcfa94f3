"""What keeps the mirror while a fault uses it: keep=wait_queue|completion (a reference), srcu, or nothing.

A fault begins with the device, which stays. ``completion``, ``srcu``: right. ``wait_queue``: the last user wakes the
one who waits by a queue in what he frees.
"""

from faultpath.driver import *

NOTHING, WAIT_QUEUE, COMPLETION, SRCU = 0, 1, 2, 3


class Mirror(Struct):
    """What closing frees."""

    users: RefCount
    wait: WaitQueue
    released: Completion
    notifier: Member[IntervalNotifier]
    mutex: Mutex
    pt: PageTable


class Keeper(Device):
    """The device: faults may come at any time, also when the mirror is gone."""

    keep: int
    lock: SpinLock  # of the pointer
    mirror: Mirror
    srcu: Srcu


@protocol
def mirror_invalidate(mni: IntervalNotifier, range: Range, cur_seq: int) -> int:
    mirror = container_of(Mirror, "notifier", mni)
    if range.blockable:
        mutex_lock(mirror.mutex)
    elif not mutex_trylock(mirror.mutex):
        return 0
    mmu_interval_set_seq(mni, cur_seq)
    device_zap(mirror.pt, range.start, range.end)
    mutex_unlock(mirror.mutex)
    return 1


mirror_ops = Ops("mirror_ops", invalidate=mirror_invalidate)


@protocol
def keeper_open(mm: Mm, keep: int) -> Keeper:
    dev = on_stack(Keeper)
    dev.mm = mm
    dev.keep = keep
    mirror = kmalloc(Mirror, GFP_KERNEL)
    if not mirror:
        off_stack(dev)
        return NULL
    refcount_set(mirror.users, 1)
    pt_init(mirror.pt, 0, mm.task_size)
    mmu_interval_notifier_insert(mirror.notifier, mm, 0, mm.task_size, mirror_ops)
    dev.mirror = mirror
    return dev


@protocol
def mirror_put(mirror: Mirror, keep: int) -> None:
    if refcount_dec_and_test(mirror.users):
        if keep == COMPLETION:
            complete(mirror.released)
        else:
            wake_up(mirror.wait)


@protocol
def mirror_map(mm: Mm, mirror: Mirror, addr: int, write: int) -> int:
    while not timed_out():
        seq = mmu_interval_read_begin(mirror.notifier)
        with down_read(mm.mmap_lock):
            pte = hmm_range_fault(mm, mirror.notifier, seq, addr, write)
        if pte == -EBUSY:
            continue
        if pte < 0:
            return pte
        with mutex_lock(mirror.mutex):
            if not mmu_interval_read_retry(mirror.notifier, seq):
                pt_set(mirror.pt, addr, pte)
                return 0
    return -EBUSY


@protocol
def keeper_map(dev: Keeper, addr: int, write: int) -> int:
    """Find the mirror and keep it while it is used."""
    keep = dev.keep
    if keep == SRCU:
        with srcu_read_lock(dev.srcu):
            mirror = dev.mirror
            if not mirror:
                return -EFAULT
            return mirror_map(dev.mm, mirror, addr, write)
    with spin_lock(dev.lock):
        mirror = dev.mirror
        if mirror and keep:
            refcount_inc(mirror.users)
    if not mirror:
        return -EFAULT
    ret = mirror_map(dev.mm, mirror, addr, write)
    if keep:
        mirror_put(mirror, keep)
    return ret


@protocol
def keeper_fault(dev: Keeper, addr: int, write: int) -> int:
    if not mmget_not_zero(dev.mm):
        return -EFAULT
    ret = keeper_map(dev, addr, write)
    mmput(dev.mm)
    return ret


@protocol
def keeper_walk(dev: Keeper, addr: int) -> int:
    mirror = dev.mirror
    return pt_get(mirror.pt, addr) if mirror else 0


@protocol
def keeper_close(dev: Keeper) -> None:
    mirror = dev.mirror
    with spin_lock(dev.lock):
        dev.mirror = NULL
    if dev.keep == SRCU:
        synchronize_srcu(dev.srcu)
    elif dev.keep:
        mirror_put(mirror, dev.keep)
        if dev.keep == COMPLETION:
            wait_for_completion(mirror.released)
        else:
            wait_event(mirror.wait, refcount_read(mirror.users) == 0)
    mmu_interval_notifier_remove(mirror.notifier)
    pt_free(mirror.pt)
    kfree(mirror)


design = Design(
    name="gpu-keep",
    title="a mirror that goes while faults come",
    source="my_gpu.c",
    open=keeper_open,
    fault=keeper_fault,
    walk=keeper_walk,
    close=keeper_close,
    ops=[mirror_ops],
    parameters=[
        Parameter("keep", "completion", "what keeps it", choices=("nothing", "wait_queue", "completion", "srcu"))
    ],
)
