"""The text of ``trace-cmd report -R -t``, as numbers: the independent witness."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from faultpath.trace.readers.perf_columns import CPU, EVENT, FIELD, TID, TIME
from faultpath.trace.readers.trace_dat import TraceDat

LINE = re.compile(r"(?:[\w-]+: )? *.*?-(\d+) +\[(\d+)\] *(\d+)(?:\.(\d{9}))?: (\w+): +(.*)")
FIELD_TEXT = re.compile(r"(\w+)=(\S+)")
DROPPED = re.compile(r"CPU:\d+ \[(\d+ )?EVENTS DROPPED\]")

#: Thread, processor, time, event, its fields.
Seen = tuple[int, int, int, str, dict[str, int]]


def report(recording: Path) -> str:
    done = subprocess.run(["trace-cmd", "report", "-R", "-t", recording], capture_output=True, check=True)
    return done.stdout.decode("utf-8", "replace")


def parse(text: str) -> list[Seen]:
    """Every event's numbers; text fields are left out."""
    found = []
    for line in text.split("\n"):
        if match := LINE.fullmatch(line):
            tid, cpu, seconds, ns, event, fields = match.groups()
            time = int(seconds) * 10**9 + int(ns) if ns else int(seconds)
            numbers = {}
            for name, value in FIELD_TEXT.findall(fields):
                if name == "clone_flags":  # the one number printed in hexadecimal without 0x
                    value = "0x" + value.removeprefix("0x")
                if re.fullmatch(r"-?(?:0x[0-9a-f]+|\d+)", value):
                    numbers[name] = int(value, 0) & (1 << 64) - 1
            found.append((int(tid), int(cpu), time, event, numbers))
    return found


def dropped(text: str) -> int:
    return sum(int(count or 1) for count in DROPPED.findall(text))


def ours(recording: Path) -> list[Seen]:
    """The same from the reader: every field of every event that holds a number, text and its place left out."""
    data = TraceDat(recording)
    fields = {}
    for number, event in enumerate(data.events):
        # task_newtask's comm is 16 bytes; the others are words that say where a text is.
        text = ("comm", "parent_comm", "child_comm") + (("filename",) if event.system == "sched" else ())
        fields[number] = [
            name
            for name, field in event.fields.items()
            if not name.startswith("common_") and name not in text and field.size in (1, 2, 4, 8)
        ]
    found = []
    for batch in data.batches(fields):
        for row in batch:
            number = int(row[EVENT])
            values = {name: int(row[FIELD + i]) & (1 << 64) - 1 for i, name in enumerate(fields[number])}
            tid, cpu, time = (int(row[column]) for column in (TID, CPU, TIME))
            found.append((tid, cpu, time, data.events[number].name, values))
    return found
