"""hfi1: an expected-receive entry outlives the memory that it names; and one may be made of memory that has gone.

The callback noted that a buffer was invalid, for user space to find and to clear the entry some time later. Until then
the adapter went on writing to the pages.

The first fix clears the entry in the callback. But the notifier comes only with the entry, and pages have been pinned
before that: what is unmapped in between nobody hears of. The second has a notifier cover the buffer from before the
pinning, and undoes all if that was called.

That is not enough. An invalidation that has begun and not yet called the cover lets the check pass; and of the entry's
own notifier, which came during the invalidation, it knows nothing either: the core defers the insertion, and expects
who inserts to wait (mmu_interval_read_begin()). hfi1 does not. To do so, before the check, is the change proposed here.

Pages are pinned, and only munmap() counts (MMU_NOTIFY_UNMAP). The adapter uses an entry once its number has been given
to user space, which is when the call succeeds.
"""

from __future__ import annotations

import dataclasses

from faultpath.cases import mirror
from faultpath.cases.case import BUGGY, FINAL_FIX, FIRST_FIX, HOLDS, PROPOSED, Case, Variant, memory, unmap
from faultpath.driver import *
from faultpath.scenario import MM, Call, Scenario, address, fault


class Fd(Device):
    """``struct hfi1_filedata``, and the adapter's RcvArray."""

    rcvarray: PageTable
    given: int  # the entry's number has been copied to user space
    invalid_tids: int


class TidNode(IntervalNotifier):
    """``struct tid_rb_node``."""

    fd: Fd
    invalidate_mutex: Mutex


class TidUserBuf(IntervalNotifier):
    """``struct tid_user_buf``."""

    cover_mutex: Mutex


@protocol
def clear_tid_node(node: TidNode) -> None:
    """Until the first fix user space does it, later."""
    return


@protocol(replaces=clear_tid_node)
def clear_now(node: TidNode) -> None:
    """__clear_tid_node() in the callback, after 1c7edde1b572."""
    with mutex_lock(node.invalidate_mutex):
        device_zap(node.fd.rcvarray, node.start, node.last + 1)


@protocol
def tid_rb_invalidate(mni: IntervalNotifier, range: Range, cur_seq: int) -> int:
    """tid_rb_invalidate()."""
    node = TidNode(mni)
    if range.event == MMU_NOTIFY_UNMAP:
        clear_tid_node(node)
        node.fd.invalid_tids = 1
    return 1


@protocol
def tid_cover_invalidate(mni: IntervalNotifier, range: Range, cur_seq: int) -> int:
    """tid_cover_invalidate()."""
    if range.event == MMU_NOTIFY_UNMAP:
        with mutex_lock(TidUserBuf(mni).cover_mutex):
            mmu_interval_set_seq(mni, cur_seq)
    return 1


tid_mn_ops = Ops("tid_mn_ops", invalidate=tid_rb_invalidate)
tid_cover_ops = Ops("tid_cover_ops", invalidate=tid_cover_invalidate)


@protocol
def hfi1_file_open(mm: Mm) -> Fd:
    """hfi1_file_open()."""
    fd = kmalloc(Fd, GFP_KERNEL)
    if not fd:
        return NULL
    fd.mm = mm
    pt_init(fd.rcvarray, 0, mm.task_size)
    return fd


@protocol
def wait_for_invalidation(node: TidNode) -> None:
    """There is no such wait, as of Linux 6.1.192."""
    return


@protocol(replaces=wait_for_invalidation)
def read_begin(node: TidNode) -> None:
    """What is proposed: an invalidation under way is over, and has called the cover, when this returns."""
    mmu_interval_read_begin(node)


@protocol
def set_rcvarray_entry(fd: Fd, addr: int) -> int:
    """pin_rcv_pages() and set_rcvarray_entry(), of one page."""
    mm = fd.mm
    with down_read(mm.mmap_lock):
        pfn = get_user_pages(mm, addr, 1)
    if pfn < 0:
        return pfn
    node = embedded(TidNode)
    node.fd = fd
    mmu_interval_notifier_insert(node, mm, addr, PAGE_SIZE, tid_mn_ops)
    wait_for_invalidation(node)
    pt_set(fd.rcvarray, addr, pfn)
    return 0


@protocol
def hfi1_user_exp_rcv_setup(fd: Fd, addr: int, write: int) -> int:
    """hfi1_user_exp_rcv_setup(), until 6.1."""
    ret = set_rcvarray_entry(fd, addr)
    if not ret:
        fd.given = 1
    return ret


@protocol(replaces=hfi1_user_exp_rcv_setup)
def setup_under_cover(fd: Fd, addr: int, write: int) -> int:
    """hfi1_user_exp_rcv_setup() after b3deec25847b."""
    tidbuf = on_stack(TidUserBuf)
    mmu_interval_notifier_insert(tidbuf, fd.mm, addr, PAGE_SIZE, tid_cover_ops)
    seq = mmu_interval_read_begin(tidbuf)
    ret = set_rcvarray_entry(fd, addr)
    if not ret:
        with mutex_lock(tidbuf.cover_mutex):
            if mmu_interval_read_retry(tidbuf, seq):
                device_zap(fd.rcvarray, addr, addr + PAGE_SIZE)  # fail_unprogram
                ret = -EBUSY
    mmu_interval_notifier_remove(tidbuf)
    off_stack(tidbuf)
    if not ret:
        fd.given = 1
    return ret


@protocol
def adapter_walk(fd: Fd, addr: int) -> int:
    """What the adapter writes to when a packet names the entry."""
    if not fd.given:
        return 0
    return pt_get(fd.rcvarray, addr)


BEFORE = dataclasses.replace(
    mirror.design,
    name="hfi1",
    open=hfi1_file_open,
    fault=hfi1_user_exp_rcv_setup,
    walk=adapter_walk,
    ops=[tid_mn_ops, tid_cover_ops],
)
FIRST = dataclasses.replace(BEFORE, replaces=[*BEFORE.replaces, clear_now])
FINAL = dataclasses.replace(FIRST, replaces=[*FIRST.replaces, setup_under_cover])
MENDED = dataclasses.replace(FINAL, replaces=[*FINAL.replaces, read_begin])

MUNMAP = Call("munmap", unmap, (MM, address(0), PAGE_SIZE))
UNMAPPED = Scenario("munmap", "A buffer set up for receiving is unmapped.", [*memory(1), fault(0)], [MUNMAP], pages=1)
SCENARIO = Scenario(
    "setup-vs-munmap",
    "A buffer is set up for receiving while it is unmapped.",
    memory(1),
    [fault(0), MUNMAP],
    pages=1,
)

case = Case(
    name="hfi1-expected",
    title="IB/hfi1: Immediately remove invalid memory from hardware",
    cve="",
    property="coherence",
    source="drivers/infiniband/hw/hfi1/user_exp_rcv.c:tid_rb_invalidate(), hfi1_user_exp_rcv_setup()",
    variants=[
        Variant(BUGGY, BEFORE, UNMAPPED, "coherence"),
        Variant(FIRST_FIX, FIRST, SCENARIO, "coherence", "1c7edde1b572", "6.2-rc5"),
        Variant(FINAL_FIX, FINAL, SCENARIO, "coherence", "b3deec25847b", "6.2-rc5"),
        Variant(PROPOSED, MENDED, SCENARIO, HOLDS),
    ],
    doc=__doc__,
)
