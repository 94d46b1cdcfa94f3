"""Swap on a zram device, for as long as a test needs it; nobody else is under the tap meanwhile.

Whoever is takes a lock on /proc/swaps (live/tapped.py), since swap changes what every MADV_PAGEOUT does.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from live.tapped import PAGE, is_on

BYTES = 256 << 20
ZRAM = Path("/sys/class/zram-control")
READ_AHEAD = Path("/proc/sys/vm/page-cluster")
PATIENCE = 900  # seconds that others under the tap are waited for
SWAPON, SWAPOFF = 167, 168

libc = ctypes.CDLL(None, use_errno=True)


def syscall(number: int, *args: ctypes.c_char_p | int) -> None:
    if libc.syscall(number, *args):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def header() -> bytes:
    """mkswap's: version, last page, no bad ones."""
    return bytes(1024) + struct.pack("<III", 1, BYTES // PAGE - 1, 0) + bytes(PAGE - 1046) + b"SWAPSPACE2"


def alone(lock: int) -> None:
    """Nobody else is under the tap from now on."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


@contextmanager
def swap() -> Iterator[None]:
    """OSError if it cannot be had."""
    with ExitStack() as undo:
        lock = os.open("/proc/swaps", os.O_RDONLY | os.O_CLOEXEC)
        undo.callback(os.close, lock)
        alone(lock)
        if is_on(lock):
            raise OSError("there is swap already")
        cluster = READ_AHEAD.read_text()
        READ_AHEAD.write_text("0")
        undo.callback(READ_AHEAD.write_text, cluster)
        number = (ZRAM / "hot_add").read_text().strip()
        undo.callback((ZRAM / "hot_remove").write_text, number)
        device = Path(f"/sys/block/zram{number}")
        (device / "disksize").write_text(str(BYTES))
        undo.callback((device / "reset").write_text, "1")
        major, minor = map(int, (device / "dev").read_text().split(":"))
        node = os.path.join(undo.enter_context(tempfile.TemporaryDirectory()), "zram")
        os.mknod(node, 0o600 | 0o060000, os.makedev(major, minor))
        with open(node, "wb") as file:
            file.write(header())
        path = ctypes.c_char_p(node.encode())
        syscall(SWAPON, path, 0)
        undo.callback(syscall, SWAPOFF, path)
        yield
