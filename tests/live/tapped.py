"""A process that runs memory calls in windows of its own address space, and tells what the kernel raised for each.

``python3 tapped.py [swap|small]``: a JSON array of calls a line on standard input, a JSON array of answers a line on
standard output. A call is ``[name, arguments...]``, addresses in bytes from the window's start; its answer is
``[result, [[start, end], ...]]``: what the call returned (``-errno`` if it failed) and every
``invalidate_range_start`` that met the window, in order. Standard library only, one thread: what the process itself
does must stay out of sight.

The tap is the one of ``faultpath record`` (a KVM descriptor on the address space), the tracepoint is read from a perf
ring of the process's own. Pinned down: one processor, whose batches are emptied after each call (which page is whose
alone depends on them), no swap (unless it is said that there is), no KSM, huge pages only where a call asks for them,
and khugepaged asleep.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import signal
import struct
import sys
import time
from pathlib import Path
from typing import Any

WINDOW = 16 << 30  # each program gets a fresh one, so that no page tables are there; programs stay below that
FIRST_WINDOW = 1 << 40
LAST_WINDOW = 1 << 46  # above are the process's own mappings
FILE_BYTES = 64 << 20
HUGE_FILES = 2  # from this number on files are where huge pages can be had
PAGE = 4096
ASIDE, ASIDE_SIZE = FIRST_WINDOW - (8 << 20), 4 << 20  # a mapping, the second half of which nobody touches

THP = Path("/sys/kernel/mm/transparent_hugepage")
SCAN_SLEEP = THP / "khugepaged/scan_sleep_millisecs"
ASLEEP = 1 << 31  # on top of its milliseconds: it does not wake up any more, and the old value can still be told
# What counts in /proc/vmstat huge pages that could not be had, or were split for want of memory.
WANTING = (
    "thp_fault_fallback", "thp_file_fallback", "thp_zero_page_alloc_failed", "thp_collapse_alloc_failed",
    "thp_underused_split_page",
)  # fmt: skip
WANTING_SWAP = "thp_swpout_fallback"  # there was no place in swap for a whole one

NR = {"mmap": 9, "mprotect": 10, "munmap": 11, "pread": 17, "pwrite": 18, "mremap": 25, "madvise": 28, "prctl": 157,
      "perf_event_open": 298, "fsopen": 430, "fsconfig": 431, "fsmount": 432}  # fmt: skip
MAP_FIXED, MAP_ANONYMOUS = 0x10, 0x20
TRACEPOINT = Path("/sys/kernel/tracing/events/kvm/kvm_unmap_hva_range/id")
KVM_CREATE_VM = 0xAE01

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def syscall(name: str, *args: int | bytes) -> int:
    """A system call's result, or -errno."""
    words = (ctypes.c_char_p(a) if isinstance(a, bytes) else ctypes.c_long(a) for a in args)
    result = int(libc.syscall(ctypes.c_long(NR[name]), *words))
    return result if result != -1 else -ctypes.get_errno()


def huge_directory() -> int:
    """A tmpfs of the process's own, whose files get huge pages where a mapping asks for them (huge=advise)."""
    context = syscall("fsopen", b"tmpfs", 1)
    syscall("fsconfig", context, 1, b"huge", b"advise", 0)
    syscall("fsconfig", context, 6, 0, 0, 0)
    directory = syscall("fsmount", context, 1, 0)
    os.close(context)
    if directory < 0:
        raise OSError(-directory, os.strerror(-directory), "a tmpfs with huge=advise")
    return directory


class HugePages:
    """What the kernel is free to do about huge pages is taken away from it, for as long as a tapped process runs."""

    def __init__(self, swap: bool) -> None:
        self.wanting = (*WANTING, WANTING_SWAP) if swap else WANTING
        # Where the machine says "always": only where asked for, in this process (PR_SET_THP_DISABLE, Linux 6.18).
        if not self.chosen("enabled", "madvise") and (
            syscall("prctl", 41, 1, 2, 0, 0) or self.chosen("enabled", "never")
        ):
            raise OSError(errno.EINVAL, "huge pages cannot be had where asked for alone", str(THP / "enabled"))
        if not self.chosen("defrag", "madvise") and not self.chosen("defrag", "always"):
            raise OSError(errno.EINVAL, "memory is not made free for huge pages", str(THP / "defrag"))
        if (THP / "use_zero_page").read_text() != "1\n" or not self.chosen("shmem_enabled", "never"):
            raise OSError(errno.EINVAL, "no huge zero page, or huge pages of files in memory everywhere", str(THP))
        if not self.chosen("hugepages-2048kB/shmem_enabled", "inherit"):
            raise OSError(errno.EINVAL, "a mount does not say how its files get huge pages", str(THP))
        for size in THP.glob("hugepages-*/enabled"):
            if size.parent.name != "hugepages-2048kB" and "[never]" not in size.read_text():
                raise OSError(errno.EINVAL, "large folios of other sizes", str(size))
        # khugepaged looks at a process when it first has a huge page, and when its pause is changed: before all else.
        syscall("mmap", ASIDE, ASIDE_SIZE, 3, 2 | MAP_ANONYMOUS | MAP_FIXED, -1, 0)
        syscall("madvise", ASIDE, ASIDE_SIZE, 14)
        ctypes.c_char.from_address(ASIDE).value = b"x"
        self.pause = os.open(SCAN_SLEEP, os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(self.pause, fcntl.LOCK_SH)
        self.set_pause(self.get_pause() | ASLEEP)
        time.sleep(0.1)
        self.vmstat = os.open("/proc/vmstat", os.O_RDONLY | os.O_CLOEXEC)
        self.collapsed = os.open(THP / "khugepaged/pages_collapsed", os.O_RDONLY | os.O_CLOEXEC)
        self.seen = self.interfered()

    @staticmethod
    def chosen(setting: str, value: str) -> bool:
        return f"[{value}]" in (THP / setting).read_text()

    def get_pause(self) -> int:
        return int(os.pread(self.pause, 32, 0))

    def set_pause(self, milliseconds: int) -> None:
        if milliseconds != self.get_pause():
            os.pwrite(self.pause, f"{milliseconds}\n".encode(), 0)

    def wake(self) -> None:
        """The old pause again, if no other tapped process runs."""
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(self.pause, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.set_pause(self.get_pause() & ~ASLEEP)

    def interfered(self) -> list[bytes]:
        """What tells of huge pages that were not there when asked for, or that khugepaged made."""
        lines = os.pread(self.vmstat, 1 << 16, 0).splitlines()
        names = tuple(f"{name} ".encode() for name in self.wanting)
        return [os.pread(self.collapsed, 32, 0), *(line for line in lines if line.startswith(names))]

    def check(self) -> None:
        if (now := self.interfered()) != self.seen:
            raise OSError(errno.EAGAIN, f"huge pages were short, or khugepaged awake: {self.seen} {now}")


class SmallPages:
    """There are none but small pages: for kernels whose huge pages are not modelled."""

    def __init__(self) -> None:
        if not HugePages.chosen("enabled", "never"):
            raise OSError(errno.EINVAL, "there are huge pages", str(THP / "enabled"))

    def wake(self) -> None:
        pass

    def check(self) -> None:
        pass


class Ring:
    """A tracepoint of this thread, as (start, end) of each hit since the last look."""

    PAGES = 256

    def __init__(self, tracepoint: int) -> None:
        attr = bytearray(128)
        struct.pack_into("<IIQQQ", attr, 0, 2, len(attr), tracepoint, 1, 1 << 10)  # PERF_TYPE_TRACEPOINT, SAMPLE_RAW
        buffer = (ctypes.c_char * len(attr)).from_buffer(attr)
        fd = int(libc.syscall(NR["perf_event_open"], buffer, 0, -1, -1, 0))
        if fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), "perf_event_open")
        self.memory = mmap.mmap(fd, (1 + self.PAGES) * PAGE)
        self.tail = 0

    def drain(self) -> list[tuple[int, int]]:
        size = self.PAGES * PAGE
        (head,) = struct.unpack_from("<Q", self.memory, 1024)
        found = []
        while self.tail < head:
            at = PAGE + self.tail % size
            kind, _, length = struct.unpack("<IHH", self.memory[at : at + 8])
            if kind != 9:  # PERF_RECORD_SAMPLE
                raise OSError(errno.EOVERFLOW, f"perf record of type {kind}: invalidations were lost")
            at = PAGE + (self.tail + 20) % size  # after the header, the raw size, and the tracepoint's common fields
            raw = self.memory[at : at + 16]
            raw += self.memory[PAGE : PAGE + 16 - len(raw)]
            found.append(struct.unpack("<QQ", raw))
            self.tail += length
        struct.pack_into("<Q", self.memory, 1032, self.tail)
        return found


class Window:
    """One program's part of the address space, its files and its children."""

    def __init__(self, base: int, ring: Ring) -> None:
        self.base = base
        self.ring = ring
        self.files: dict[int, int] = {}
        self.children: dict[int, tuple[int, int]] = {}  # number -> pid, pipe that ends it

    def close(self) -> None:
        for number in list(self.children):
            self.ends(number)
        for fd in self.files.values():
            os.close(fd)
        syscall("munmap", self.base, WINDOW)
        self.ring.drain()

    def file(self, number: int) -> int:
        if number not in self.files:
            if number < HUGE_FILES:
                self.files[number] = os.memfd_create(f"file {number}")
            else:
                self.files[number] = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=HUGE_DIRECTORY)
            os.ftruncate(self.files[number], FILE_BYTES)
        return self.files[number]

    def run(self, name: str, *args: int) -> int:
        result = int(getattr(self, name)(*args))
        syscall("madvise", ASIDE + ASIDE_SIZE - PAGE, PAGE, 20)  # MADV_COLD, of nothing: lru_add_drain()
        return result

    # --- calls

    def mmap(self, at: int, size: int, prot: int, flags: int, file: int, offset: int) -> int:
        fd = -1 if flags & MAP_ANONYMOUS else self.file(file)
        result = syscall("mmap", self.base + at, size, prot, flags | MAP_FIXED, fd, offset)
        return result if result < 0 else 0

    def munmap(self, at: int, size: int) -> int:
        return syscall("munmap", self.base + at, size)

    def mprotect(self, at: int, size: int, prot: int) -> int:
        return syscall("mprotect", self.base + at, size, prot)

    def madvise(self, at: int, size: int, advice: int) -> int:
        return syscall("madvise", self.base + at, size, advice)

    def mremap(self, at: int, size: int, new_size: int, flags: int, to: int) -> int:
        result = syscall("mremap", self.base + at, size, new_size, flags, self.base + to)
        return result if result < 0 else 0

    def read(self, at: int) -> int:
        """A read access, by the kernel on the process's behalf: -EFAULT where a process would get SIGSEGV or SIGBUS."""
        result = syscall("pwrite", OUT, self.base + at, 1, 0)
        return result if result < 0 else 0

    def write(self, at: int) -> int:
        result = syscall("pread", IN, self.base + at, 1, 0)
        return result if result < 0 else 0

    def fork(self, number: int) -> int:
        """A child that does nothing until :meth:`ends`."""
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(theirs)
            os.read(ours, 1)
            os._exit(0)
        os.close(ours)
        self.children[number] = pid, theirs
        return 0

    def ends(self, number: int) -> int:
        pid, pipe = self.children.pop(number)
        os.write(pipe, b"x")  # closing is not enough: later children have the pipe, too
        os.close(pipe)
        os.waitpid(pid, 0)
        return 0

    def punch(self, file: int, offset: int, size: int) -> int:
        """fallocate(PUNCH_HOLE)."""
        result = libc.fallocate(self.file(file), 3, ctypes.c_long(offset), ctypes.c_long(size))
        return 0 if result == 0 else -ctypes.get_errno()

    def truncate(self, file: int, size: int) -> int:
        os.ftruncate(self.file(file), size)
        return 0


def is_on(swaps: int) -> bool:
    """Whether there is swap, by /proc/swaps: a line of it, after that of headings."""
    return len(os.pread(swaps, PAGE, 0).splitlines()) > 1


def no_swap() -> None:
    """There is none, and live/swap.py makes none until this process ends."""
    swaps = os.open("/proc/swaps", os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(swaps, fcntl.LOCK_SH)
    if is_on(swaps):
        raise OSError(errno.EBUSY, "MADV_PAGEOUT is modelled without swap", "/proc/swaps")


def main() -> None:
    global IN, OUT, HUGE_DIRECTORY
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    swap = "swap" in sys.argv
    if not swap:
        no_swap()
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
    ring = Ring(int(TRACEPOINT.read_text()))
    IN, OUT = os.memfd_create("in"), os.memfd_create("out")
    os.pwrite(IN, b"x", 0)
    os.pwrite(OUT, b"x", 0)
    HUGE_DIRECTORY = huge_directory()
    huge_pages = SmallPages() if "small" in sys.argv else HugePages(swap)
    try:
        serve(ring, huge_pages)
    finally:
        huge_pages.wake()


def serve(ring: Ring, huge_pages: HugePages | SmallPages) -> None:
    """A program a line, until there is no window left."""
    base = FIRST_WINDOW
    print(json.dumps({"kernel": os.uname().release}), flush=True)
    for line in sys.stdin:
        calls: list[list[Any]] = json.loads(line)
        window = Window(base, ring)
        answers = []
        ring.drain()
        for name, *args in calls:
            result = window.run(name, *args)
            ranges = [(s - base, e - base) for s, e in ring.drain() if s < base + WINDOW and e > base]
            answers.append([result, ranges])
        window.close()
        huge_pages.check()
        base += WINDOW
        over = base >= LAST_WINDOW
        print(json.dumps([over, answers]), flush=True)
        if over:
            return


if __name__ == "__main__":
    main()
