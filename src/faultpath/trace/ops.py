"""The vocabulary of a trace: operations and notifier events, as numbers that are stored on disk.

Addresses are bytes, ranges are ``[addr, addr + len)``. A system call is one row, at its successful exit.
"""

from __future__ import annotations

from enum import IntEnum


class Op(IntEnum):
    """``op`` column. The columns addr, len, arg and aux mean, by op:

    ==========  ====================  =========  ==========================  ==================================
    op          addr                  len        arg                         aux
    ==========  ====================  =========  ==========================  ==================================
    FAULT       faulting address      0          x86 error code (2: write)   0
    ACCESS      accessed address      0          1 write, 0 read             0
    VMA         start                 bytes      PROT_* bits                 MAP_* bits; found, not made
    MMAP        start (as returned)   bytes      PROT_* bits                 MAP_* bits
    MUNMAP      start                 bytes      0                           0
    MREMAP      old start             old bytes  new start (as returned)     new bytes | MREMAP_* flags
    MPROTECT    start                 bytes      PROT_* bits                 0
    MADVISE     start                 bytes      MADV_* advice               0
    MBIND       start                 bytes      MPOL_* mode                 0
    BRK         break (as returned)   0          0                           0
    FORK        0                     0          child pid                   CLONE_* flags
    EXEC        0                     0          0                           0
    EXIT        0                     0          0                           0
    INVALIDATE  start                 bytes      Event                       Op it was raised in (FAULT: none)
    ==========  ====================  =========  ==========================  ==================================

    Byte counts are page aligned. MREMAP's flags fit below the page size, so they share a word with the new length.
    """

    FAULT = 1
    ACCESS = 2
    VMA = 3
    MMAP = 4
    MUNMAP = 5
    MREMAP = 6
    MPROTECT = 7
    MADVISE = 8
    MBIND = 9
    BRK = 10
    FORK = 11
    EXEC = 12
    EXIT = 13
    INVALIDATE = 14


class Event(IntEnum):
    """``enum mmu_notifier_event``, include/linux/mmu_notifier.h, Linux 6.1 (same values up to 6.18)."""

    UNMAP = 0
    CLEAR = 1
    PROTECTION_VMA = 2
    PROTECTION_PAGE = 3
    SOFT_DIRTY = 4
    RELEASE = 5
    MIGRATE = 6
    EXCLUSIVE = 7


# Bits of an x86 page fault's error code: the page was present, the access was a write.
PF_PROT = 1
PF_WRITE = 2
