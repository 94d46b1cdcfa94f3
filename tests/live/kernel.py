"""The running kernel as the oracle of what memory calls raise."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

from live import tapped

Call = tuple[str | int, ...]  # (name, arguments...), addresses from the window's start
Answer = tuple[int, list[tuple[int, int]]]  # result or -errno, and the ranges raised


class Kernel:
    """A tapped process that runs one program after the other.

    :param swap: where live/swap.py has made some
    :param command: what runs it, where that is not this machine's kernel
    """

    def __init__(self, swap: bool = False, command: list[str] | None = None) -> None:
        self.swap = swap
        tapped = str(Path(__file__).with_name("tapped.py"))
        self.command = command or [sys.executable, "-S", "-E", tapped, *["swap"] * swap]
        self.process: subprocess.Popen[str] | None = None
        self.release = ""

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise OSError(f"the tapped process ended with status {self.process.wait()}")
        self.release = json.loads(line)["kernel"]

    def run(self, program: list[Call]) -> list[Answer]:
        """What each call returned and raised."""
        if self.process is None:
            self.start()
        assert self.process
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(program) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise OSError(f"the tapped process ended with status {self.process.wait()} in {program}")
        over, answers = json.loads(line)
        if over:
            self.close()
        return [(result, [(start, end) for start, end in ranges]) for result, ranges in answers]

    def close(self) -> None:
        if self.process:
            assert self.process.stdin
            self.process.stdin.close()
            self.process.wait()
            self.process = None


@functools.cache
def missing() -> str:
    """Why the kernel cannot be asked here; empty if it can."""
    for path in ("/dev/kvm", "/sys/kernel/tracing/events/kvm/kvm_unmap_hva_range/id"):
        if not os.access(path, os.R_OK):
            return f"{path} cannot be opened"
    with open("/proc/swaps") as swaps:
        fcntl.flock(swaps, fcntl.LOCK_SH)  # live/swap.py has made none then
        if tapped.is_on(swaps.fileno()):
            return "there is swap (/proc/swaps), which changes what MADV_PAGEOUT does: swapoff -a"
    return ""
