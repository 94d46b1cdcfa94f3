"""A process that runs memory calls in windows of its own address space, and tells what the kernel raised for each.

``python3 tapped.py``: a JSON array of calls a line on standard input, a JSON array of answers a line on standard
output. A call is ``[name, arguments...]``, addresses in bytes from the window's start; its answer is ``[result,
[[start, end], ...]]``: what the call returned (``-errno`` if it failed) and every ``invalidate_range_start`` that met
the window, in order. Standard library only, one thread: what the process itself does must stay out of sight.

The tap is the one of ``faultpath record`` (a KVM descriptor on the address space), the tracepoint is read from a perf
ring of the process's own. Pinned down: one processor (which page is whose alone depends on per-processor batches), no
swap, no background khugepaged or KSM: huge pages and merging only where a call asks for them.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import signal
import struct
import sys
from pathlib import Path
from typing import Any

WINDOW = 8 << 30  # each program gets a fresh one, so that no page tables are there
FIRST_WINDOW = 1 << 40
LAST_WINDOW = 1 << 46  # above are the process's own mappings
FILE_BYTES = 64 << 20
PAGE = 4096
ASIDE = FIRST_WINDOW - PAGE  # a page that nobody touches

NR = {"mmap": 9, "mprotect": 10, "munmap": 11, "mremap": 25, "madvise": 28, "pread": 17, "pwrite": 18, "clone": 56,
      "perf_event_open": 298}  # fmt: skip
MAP_FIXED, MAP_ANONYMOUS = 0x10, 0x20
TRACEPOINT = Path("/sys/kernel/tracing/events/kvm/kvm_unmap_hva_range/id")
KVM_CREATE_VM = 0xAE01

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def syscall(name: str, *args: int) -> int:
    """A system call's result, or -errno."""
    result = int(libc.syscall(ctypes.c_long(NR[name]), *(ctypes.c_long(a) for a in args)))
    return result if result != -1 else -ctypes.get_errno()


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
            self.files[number] = os.memfd_create(f"file {number}")
            os.ftruncate(self.files[number], FILE_BYTES)
        return self.files[number]

    def run(self, name: str, *args: int) -> int:
        result = int(getattr(self, name)(*args))
        syscall("madvise", ASIDE, PAGE, 20)  # MADV_COLD, of nothing: lru_add_drain()
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


def main() -> None:
    global IN, OUT
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
    ring = Ring(int(TRACEPOINT.read_text()))
    IN, OUT = os.memfd_create("in"), os.memfd_create("out")
    os.pwrite(IN, b"x", 0)
    os.pwrite(OUT, b"x", 0)
    syscall("mmap", ASIDE, PAGE, 1, 2 | MAP_ANONYMOUS | MAP_FIXED, -1, 0)
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
        base += WINDOW
        over = base >= LAST_WINDOW
        print(json.dumps([over, answers]), flush=True)
        if over:
            return


if __name__ == "__main__":
    main()
