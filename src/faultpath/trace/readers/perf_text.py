"""perf script's text: its events as rows of a trace."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from faultpath.trace.formats import PERF_SCRIPT_LINE, Progress
from faultpath.trace.readers import perf_columns as pc
from faultpath.trace.readers import perf_text_columns as ptc
from faultpath.trace.readers.events import choose, missing, processes, usable
from faultpath.trace.readers.perf_columns import id_table
from faultpath.trace.readers.rows import PID_LIMIT, RowMaker
from faultpath.trace.readers.scan import hash_name
from faultpath.trace.readers.syscalls import FAULT, K_EXIT, SYSCALLS, TAP, kind_of, recording_events
from faultpath.trace.readers.text import FIELDS, Text
from faultpath.trace.schema import Columns, TraceMeta

PAGE_SIZE = 4096  # perf script does not tell it
RECORDS = {
    "MMAP": pc.MMAP,
    "MMAP2": pc.MMAP2,
    "COMM": pc.COMM,
    "FORK": pc.FORK,
    "EXIT": pc.EXIT,
    "LOST": pc.LOST,
    "LOST_SAMPLES": pc.LOST_SAMPLES,
}
KINDS = K_EXIT + len(SYSCALLS)

_EVENT = re.compile(rb": +(?:\d+ +)?([\w-]+:[\w-]+):")
#: What ``perf script --header`` says.
_RECORDED = re.compile(rb"^# event : name = ([\w-]+:[\w-]+),", re.MULTILINE)
_HEADER = re.compile(rb"^# (os release|arch|cmdline) : (.*)$", re.MULTILINE)


class PerfText:
    """What was recorded is known where the text has its header (``--header``); else it is what occurs."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.text = Text(source)
        self.recorded = {name.decode() for name in _RECORDED.findall(self.text.head)}
        if FAULT not in self.recorded and not self._has(FAULT, 0):
            choose([name.decode() for name in _EVENT.findall(self.text.head)], str(source))
        self.seen: set[str] = set()
        self.names = {found[0]: name for name in recording_events() if (found := kind_of(name))}
        self.use = np.zeros(KINDS, np.int64)
        self.process_of = np.zeros(PID_LIMIT, np.int32)  # zero pages until touched
        self.line_of = np.zeros(PID_LIMIT, np.int64)
        self.state = np.zeros(ptc.STATE_SIZE, np.int64)
        self.maker = RowMaker(np.arange(KINDS), PAGE_SIZE, set(), str(source))

    def rows(self, progress: Progress | None = None) -> Iterator[Columns]:
        keys, numbers = id_table(
            {
                **{ptc.event_hash(name): kind for kind, name in self.names.items()},
                **{ptc.event_hash(f"PERF_RECORD_{name}"): ptc.RECORD + kind for name, kind in RECORDS.items()},
            }
        )
        wanted, counts = np.zeros((KINDS, FIELDS), np.int64), np.zeros(KINDS, np.int64)
        for kind, name in self.names.items():
            fields = kind_of(name)[1]  # type: ignore[index]
            counts[kind] = len(fields)
            wanted[kind, : len(fields)] = [hash_name(field) for field in fields]

        def walk(buf: np.ndarray, at: int, end: int, out: np.ndarray) -> int:
            tables = (keys, numbers, wanted, counts, self.use, self.process_of, self.line_of)
            return int(ptc.walk(buf, at, end, *tables, out, self.state))

        for events in self.text.batches(walk, self.state, self._answer, progress):
            yield self.maker.rows(events)

    def _answer(self, status: int) -> None:
        """Whether an event that occurs for the first time is used: where its other half is there too."""
        kind = int(self.state[ptc.S_KIND])
        name = self.names[kind]
        self.seen.add(name)
        at = int(self.state[ptc.S_AT])
        recorded = self.recorded or {other for other in _halves(name) if other in self.seen or self._has(other, at)}
        self.use[kind] = ptc.USED if usable(name, recorded) else ptc.UNUSED

    def _has(self, name: str, at: int) -> bool:
        return self.text.map.find(b" %s:" % name.encode(), at) >= 0

    def meta(self) -> TraceMeta:
        header = {
            key.decode(): value.decode("utf-8", "replace").strip() for key, value in _HEADER.findall(self.text.head)
        }
        counts = {
            "lines not perf script's": int(self.state[ptc.S_OTHER]),
            "lines not understood": int(self.state[ptc.S_MISREAD]),
        }
        return TraceMeta(
            format="perf script",
            source=self.source.name,
            kernel=header.get("os release", ""),
            arch=header.get("arch", ""),
            page_size=PAGE_SIZE,
            clock="perf",
            lost_events=int(self.state[ptc.S_LOST]),
            lost_samples=int(self.state[ptc.S_LOST_SAMPLES]),
            invalidations_from="tap" if TAP in self._used() else "model",
            missing=self._missing(),
            dropped={**self.text.dropped(counts), **self.maker.dropped},
            processes=processes(self.maker.parents(), self._comms()),
            command=header.get("cmdline", "").replace("\\'", "'").split(),
        )

    def _used(self) -> set[str]:
        recorded = self.recorded or self.seen
        used = {name for name in self.names.values() if name in recorded and usable(name, recorded)}
        return used if self.maker.tapped else used - {TAP}

    def _missing(self) -> list[str]:
        state = self.state
        said = missing(self._used(), snapshots=False, seen=not self.recorded)
        said.append(f"The page size: taken to be {PAGE_SIZE} bytes.")
        if not state[ptc.S_MAPS]:
            said.append("Mappings made by exec: the text has none; print it with --show-mmap-events.")
        if not state[ptc.S_TASKS]:
            said.append(
                "Births and ends of processes, and a child that clone3 made: the text has no records of tasks; print it"
                " with --show-task-events."
            )
        if state[ptc.S_GUESSED]:
            said.append(
                f"The process of {int(state[ptc.S_GUESSED])} events: the text has only their thread, which is taken for"
                " it; print it with -F comm,pid,tid,cpu,time,event,trace."
            )
        if not self.text.whole:
            said.append("Perhaps the end: the text stops inside a line.")
        return said

    def _comms(self) -> dict[int, str]:
        """The name of each process in its last line."""
        comms = {}
        for pid in self.maker.parents():
            if at := int(self.line_of[pid]):
                found = PERF_SCRIPT_LINE.match(self.text.map[at - 1 : at + 255])
                comms[pid] = (found["comm"] or b"").decode("utf-8", "backslashreplace") if found else ""
        return comms


def _halves(name: str) -> set[str]:
    return {name, name.replace("sys_enter_", "sys_exit_"), name.replace("sys_exit_", "sys_enter_")}
