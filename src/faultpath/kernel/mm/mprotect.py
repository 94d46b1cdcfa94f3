"""mprotect(): mm/mprotect.c, Linux 6.18."""

from __future__ import annotations

from faultpath.kernel.errno import EINVAL, ENOMEM
from faultpath.kernel.mm.fault import ANON, EXCLUSIVE
from faultpath.kernel.mm.raising import PROTECTION_VMA, RAISES_CALLS, raise_end, raise_start
from faultpath.kernel.mm.versions import LINUX_6_12
from faultpath.kernel.mm.vma import (
    ACCOUNT,
    MAP_NORESERVE,
    MAP_SHARED,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    PUD_SIZE,
    Vma,
    vma_at,
    vma_modify,
)
from faultpath.kernel.mmu_notifier import Mm
from faultpath.kernel.primitives.locks import down_write
from faultpath.kernel.primitives.pagetable import WRITE, pt_add_bits, pt_has_table, pt_next_leaf, pt_write_protect
from faultpath.protocol.language import protocol

P4D_SIZE = 1 << 39


@protocol
def change_protection(mm: Mm, vma: Vma, start: int, end: int) -> None:
    """change_protection(), Linux 6.18: one event (PROTECTION_VMA) per 512 GiB, from the first GiB that has a PMD table.

    Linux 6.1 raises one per GiB, from the first 2 MiB that have a table (change_pmd_range()). PTEs lose WRITE, or get
    it where no write fault is needed (can_change_pte_writable()): a shared mapping's, and the anonymous ones that are
    the mm's alone. What a PROT_NONE keeps present, the VMA refuses.
    """
    step = P4D_SIZE
    if mm.version < LINUX_6_12:
        step = PUD_SIZE
    while start < end:
        upto = min(end, (start & -step) + step)
        if mm.version < LINUX_6_12:
            first = pt_next_leaf(mm.pt, start, upto)
        else:
            first = start
            while first < upto and not pt_has_table(mm.pt, first):
                first = (first & -PUD_SIZE) + PUD_SIZE
        if first < upto:
            range = raise_start(mm, first, upto, PROTECTION_VMA, RAISES_CALLS)
            if not vma.prot & PROT_WRITE:
                pt_write_protect(mm.pt, first, upto)
            elif vma.flags & MAP_SHARED:
                pt_add_bits(mm.pt, first, upto, 0, WRITE)
            else:
                pt_add_bits(mm.pt, first, upto, ANON | EXCLUSIVE, WRITE)
            raise_end(range)
        start = upto


@protocol
def hugetlb_change_protection(mm: Mm, vma: Vma, start: int, end: int) -> int:
    """Whether it was its turn: hugetlb.py's it can be."""
    return 0


@protocol
def mprotect_fixup(mm: Mm, vma: Vma, start: int, end: int, prot: int) -> int:
    """mprotect_fixup(), Linux 6.18: one VMA's part, unless it is protected like that already.

    What was not touched yet is no longer accounted once it cannot be written (since 6.7).

    :returns: where the part ends, or -EINVAL
    """
    flags = vma.flags
    if vma.prot == prot:
        return end
    if prot & PROT_WRITE:
        if not flags & (ACCOUNT | MAP_SHARED | MAP_NORESERVE) and not vma.prot & PROT_WRITE:
            flags = flags | ACCOUNT
    elif mm.version >= LINUX_6_12 and flags & ACCOUNT and not vma.file and not vma.anon_vma:
        flags = flags & ~ACCOUNT
    vma = vma_modify(mm, vma, start, end, prot, flags)
    if not vma:
        return -EINVAL
    if not hugetlb_change_protection(mm, vma, start, end):
        change_protection(mm, vma, start, end)
    return end


@protocol
def mm_mprotect(mm: Mm, start: int, size: int, prot: int) -> int:
    """mprotect(), Linux 6.18, under mmap_lock for writing: VMA by VMA, up to a hole (-ENOMEM).

    Each VMA changes before its event, its PTEs inside it.
    """
    prot = prot & (PROT_READ | PROT_WRITE | PROT_EXEC)
    upto = start
    end = start + size
    with down_write(mm.mmap_lock):
        ret = 0
        vma = vma_at(mm, start)
        while vma and upto < end and not ret:
            upto = mprotect_fixup(mm, vma, upto, min(vma.last + 1, end), prot)
            if upto < 0:
                ret = upto
            vma = vma_at(mm, upto)
    if upto < end and not ret:
        return -ENOMEM
    return ret
