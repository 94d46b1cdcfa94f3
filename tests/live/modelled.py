"""The model's answers to the calls that live/tapped.py runs for real."""

from __future__ import annotations

import functools

from faultpath.engine import world
from faultpath.engine.derive import LOG, listen, listener
from faultpath.engine.native import Native
from faultpath.engine.world import Words
from faultpath.kernel.mm.fault import File, mm_cpu_fault
from faultpath.kernel.mm.files import mm_ftruncate, punch_hole
from faultpath.kernel.mm.fork import mm_child_ends, mm_fork
from faultpath.kernel.mm.huge import TRANSPARENT_HUGEPAGE
from faultpath.kernel.mm.hugetlb import HUGETLB
from faultpath.kernel.mm.lazyfree import LAZYFREE
from faultpath.kernel.mm.madvise import mm_madvise
from faultpath.kernel.mm.mmap import mm_mmap, mm_munmap
from faultpath.kernel.mm.mprotect import mm_mprotect
from faultpath.kernel.mm.mremap import mm_mremap
from faultpath.kernel.mm.pages import mm_init_pages
from faultpath.kernel.mm.raising import RAISES_CALLS
from faultpath.kernel.mm.shmem import SHMEM
from faultpath.kernel.mm.vma import MAP_ANONYMOUS, MAP_HUGETLB, MAP_SHARED
from faultpath.kernel.mmu_notifier import Mm
from faultpath.kernel.primitives.heap import on_stack
from faultpath.kernel.primitives.pagetable import PAGE_SHIFT, pt_init
from faultpath.protocol.language import Protocol, protocol
from faultpath.protocol.program import Program, Source
from live.kernel import Answer, Call
from live.tapped import HUGE_FILES

TASK_SIZE = 1 << 47
BASE = 1 << 44  # of the window
FILE_PAGES = 1 << 14


@protocol
def new_process(task_size: int, raises: int, version: int) -> Mm:
    """An address space under the tap."""
    mm = listen(task_size, raises, version)
    mm_init_pages(mm)
    return mm


@protocol
def new_file(pages: int, huge: int) -> File:
    """A file in memory; ``huge``: a tmpfs that is mounted with huge=advise has it."""
    file = on_stack(File)
    file.size = pages
    file.huge = huge
    pt_init(file.cache, 0, 1 << 32)
    pt_init(file.folios, 0, 1 << 32)
    return file


@protocol
def munmap(mm: Mm, start: int, size: int) -> int:
    return mm_munmap(mm, start, size)


ROOTS = [
    new_process, new_file, mm_cpu_fault, munmap, mm_mmap, mm_mprotect, mm_madvise, mm_mremap, mm_fork, mm_child_ends,
    punch_hole, mm_ftruncate,
]  # fmt: skip


@functools.cache
def native(replacements: tuple[Source, ...]) -> Native:
    return Native(Program(ROOTS, [listener], [*TRANSPARENT_HUGEPAGE, *LAZYFREE, *HUGETLB, *SHMEM, *replacements]))


@functools.cache
def memory() -> Words:
    return world.new_world(1 << 27)


class Model:
    """One program's process."""

    def __init__(self, version: int, replacements: tuple[Source, ...]) -> None:
        self.native = native(replacements)
        self.w = w = memory()
        kept = {word: int(w[word]) for word in (world.CAPACITY, world.LEAF_BITS, world.DIR_BITS)}
        w[: w[world.BRK]] = 0
        for word, value in kept.items():
            w[word] = value
        w[world.BRK] = world.HEAP
        self.log = int(w[world.CAPACITY]) + LOG
        w[self.log] = 0
        self.mm = self.call(new_process, TASK_SIZE, RAISES_CALLS, version, mm=False)
        self.files: dict[int, int] = {}
        self.children: dict[int, int] = {}

    def call(self, protocol: Protocol, *args: int, mm: bool = True) -> int:
        return self.native.call(protocol, self.w, *((self.mm, *args) if mm else args))

    def file(self, number: int) -> int:
        if number not in self.files:
            self.files[number] = self.call(new_file, FILE_PAGES, int(number >= HUGE_FILES), mm=False)
        return self.files[number]

    def answer(self, call: Call) -> Answer:
        self.w[self.log] = 0
        name, *args = call
        result = getattr(self, str(name))(*args)
        told = self.w[self.log + 1 : self.log + 1 + 3 * int(self.w[self.log])].reshape(-1, 3)
        return result, [(start - BASE, end - BASE) for start, end, _ in told.tolist()]

    def mmap(self, at: int, size: int, prot: int, flags: int, file: int, offset: int) -> int:
        if not flags & MAP_ANONYMOUS:
            which = self.file(file)
        elif flags & (MAP_SHARED | MAP_HUGETLB):
            which, offset = self.call(new_file, size >> PAGE_SHIFT, 0, mm=False), 0
        else:
            which = 0
        return self.call(mm_mmap, BASE + at, size, prot, flags, which, offset >> PAGE_SHIFT)

    def munmap(self, at: int, size: int) -> int:
        return self.call(munmap, BASE + at, size)

    def mprotect(self, at: int, size: int, prot: int) -> int:
        return self.call(mm_mprotect, BASE + at, size, prot)

    def madvise(self, at: int, size: int, advice: int) -> int:
        return self.call(mm_madvise, BASE + at, size, advice)

    def mremap(self, at: int, size: int, new_size: int, flags: int, to: int) -> int:
        return self.call(mm_mremap, BASE + at, size, BASE + to, new_size, flags)

    def read(self, at: int) -> int:
        return self.call(mm_cpu_fault, BASE + at, 0)

    def write(self, at: int) -> int:
        return self.call(mm_cpu_fault, BASE + at, 1)

    def fork(self, number: int) -> int:
        self.children[number] = self.call(mm_fork)
        return 0

    def ends(self, number: int) -> int:
        self.call(mm_child_ends, self.children.pop(number))
        return 0

    def punch(self, file: int, offset: int, size: int) -> int:
        return self.call(punch_hole, self.file(file), offset >> PAGE_SHIFT, (offset + size) >> PAGE_SHIFT)

    def truncate(self, file: int, size: int) -> int:
        return self.call(mm_ftruncate, self.file(file), size >> PAGE_SHIFT)


def run(program: list[Call], version: int, replacements: tuple[Source, ...] = ()) -> list[Answer]:
    """What the model, or one with replacements in it, says each call returns and raises."""
    model = Model(version, replacements)
    return [model.answer(call) for call in program]
