"""The text of ``perf script -F comm,pid,tid,cpu,time,event,trace --ns``, as numbers: the independent witness."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np

from faultpath.trace.readers import perf_columns as pc
from faultpath.trace.readers.perf_data import PerfData

LINE = re.compile(r" *.*? (-?\d+)/(-?\d+) +\[(\d+)\] +(\d+)\.(\d{9}): +([a-z0-9_]+:[a-z0-9_]+): ?(.*)", re.DOTALL)
NUMBER = re.compile(r"0x([0-9a-f]+)")

Seen = tuple[int, int, int, int, str, tuple[int, ...]]


def perf_script(recording: Path) -> str:
    done = subprocess.run(
        ["perf", "script", "-i", recording, "-F", "comm,pid,tid,cpu,time,event,trace", "--ns"],
        capture_output=True,
        check=True,
    )
    return done.stdout.decode("utf-8", "replace")


def parse(text: str) -> list[Seen]:
    """Process, thread, processor, time, event and the numbers of its text, in order."""
    found = []
    for line in text.split("\n"):
        if match := LINE.fullmatch(line):
            pid, tid, cpu, seconds, ns, event, trace = match.groups()
            numbers = tuple(int(n, 16) for n in NUMBER.findall(trace))
            found.append((int(pid), int(tid), int(cpu), int(seconds) * 10**9 + int(ns), event, numbers))
    return found


def ours(recording: Path) -> list[Seen]:
    """The same from the reader: every field of every event."""
    data = PerfData(recording)
    fields = {}
    for number, event in enumerate(data.header.events):
        if event.format:
            own = [name for name in event.format.fields if not name.startswith(("common_", "__syscall"))]
            fields[number] = own
    found = []
    for batch in data.batches(fields):
        for row in batch[batch[:, pc.EVENT] >= 0]:
            number = int(row[pc.EVENT])
            values = row[pc.FIELD : pc.FIELD + len(fields[number])].astype(np.uint64)
            pid, tid, cpu, time = (int(row[c]) for c in (pc.PID, pc.TID, pc.CPU, pc.TIME))
            found.append((pid, tid, cpu, time, data.header.events[number].name, tuple(map(int, values))))
    return found
