"""The replay loop: what each row of a trace makes the process and the device do. A protocol like any other."""

from __future__ import annotations

from faultpath.kernel.mirror import Device, device_access, device_reaccess, device_use, run_work
from faultpath.kernel.mm.fork import mm_child_ends
from faultpath.kernel.mm.madvise import mm_madvise
from faultpath.kernel.mm.mmap import mm_munmap
from faultpath.kernel.mm.recorded import (
    recorded_brk,
    recorded_copy,
    recorded_fault,
    recorded_fork,
    recorded_invalidation,
    recorded_mmap,
    recorded_mprotect,
    recorded_mremap,
    recorded_vma,
)
from faultpath.kernel.mmu_notifier import Mm
from faultpath.kernel.primitives.lists import work_pending
from faultpath.kernel.primitives.pagetable import PAGE_SIZE
from faultpath.protocol.language import protocol
from faultpath.protocol.struct import Struct
from faultpath.trace.ops import PF_WRITE, Op

# Not in a trace, made by engine.feed:
FIRST_OF_FEED = 100
REACCESS = 100  # the device goes over [addr, addr + size) again (--accesses resident)
CHILD_ENDS = 101  # a forked child, by the number that mm_fork() gave it in ``arg``, has exited or executed something
CHILD_COPIES = 102  # the only child there is writes to a page that it may share
ROW_WORDS = 6

ACCESSES_TOUCHED = 1  # the device accesses each page right after the process faulted it in
ACCESSES_RESIDENT = 2  # and it is noted which pages it uses, for REACCESS


class Row(Struct):
    """A row of a trace, as Op describes its columns."""

    op: int
    addr: int
    size: int
    arg: int
    aux: int


@protocol
def replay_fault(mm: Mm, device: Device, row: Row, accesses: int) -> None:
    """The process faults a page in; with ACCESSES_TOUCHED the device accesses it next, in the same way."""
    recorded_fault(mm, row.addr, row.arg)
    if device and accesses & ACCESSES_TOUCHED:
        page = row.addr & -PAGE_SIZE
        write = row.arg & PF_WRITE
        device_access(device, page, write)
        if accesses & ACCESSES_RESIDENT:
            device_use(device, page, write)


@protocol
def replay_call(mm: Mm, row: Row) -> None:
    """A memory call of the process, at its successful exit."""
    op = row.op
    if op == Op.MMAP:
        recorded_mmap(mm, row.addr, row.size, row.arg, row.aux)
    elif op == Op.MUNMAP:
        mm_munmap(mm, row.addr, row.size)
    elif op == Op.MPROTECT:
        recorded_mprotect(mm, row.addr, row.size, row.arg)
    elif op == Op.MADVISE:
        mm_madvise(mm, row.addr, row.size, row.arg)
    elif op == Op.MREMAP:
        recorded_mremap(mm, row.addr, row.size, row.arg, row.aux)
    elif op == Op.BRK:
        recorded_brk(mm, row.addr)
    elif op == Op.FORK:
        recorded_fork(mm, row.aux)
    elif op == CHILD_ENDS:
        mm_child_ends(mm, row.arg)
    elif op == CHILD_COPIES:
        recorded_copy(mm, row.addr)
    elif op == Op.VMA:
        recorded_vma(mm, row.addr, row.size, row.arg, row.aux)


@protocol
def replay_rows(mm: Mm, device: Device, row: Row, end: int, accesses: int) -> Row:
    """Run rows from ``row`` up to ``end``; the first one not run: ``end``, or an exec or exit, which are the caller's.

    ``device`` may be NULL: then only the address space is built up.
    """
    while row < end:
        op = row.op
        if op == Op.FAULT:
            replay_fault(mm, device, row, accesses)
        elif op == Op.INVALIDATE:
            recorded_invalidation(mm, row.addr, row.addr + row.size, row.arg)
        elif op == Op.ACCESS or op == REACCESS:
            if device and op == Op.ACCESS:
                device_access(device, row.addr & -PAGE_SIZE, row.arg)
            elif device:
                device_reaccess(device, row.addr, row.addr + row.size)
        elif op == Op.EXEC or op == Op.EXIT:
            return row
        else:
            replay_call(mm, row)
        if work_pending():
            run_work()
        row = Row(row + ROW_WORDS)
    return row
