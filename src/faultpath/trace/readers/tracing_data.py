"""TRACING_DATA: the kernel's own description of its tracepoints, as perf and trace-cmd store it.

Layout (tools/perf/util/trace-event-info.c and trace-event-read.c, Linux 6.1): bytes 23 8 68 "tracing", a NUL-terminated
version, one byte for the byte order, one for the size of ``long``, u32 page size; "header_page" and "header_event",
each with a u64 size and a text; u32 count of ftrace formats, each a u64 size and a text; u32 count of systems, each a
name, a u32 count of events and for each a u64 size and the text of its ``format`` file. What follows (kallsyms,
printk, saved command lines) is not read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from faultpath.errors import FaultpathError

MAGIC = b"\x17\x08\x44tracing"
RECORD_AGAIN = "the file is damaged; record again"


@dataclass(frozen=True)
class Field:
    """Where a field lies in the raw sample: bytes, and whether its sign extends."""

    offset: int
    size: int
    signed: bool


@dataclass(frozen=True)
class EventFormat:
    """One tracepoint: ``system:name``, the id that ``common_type`` carries, and its fields in order."""

    system: str
    name: str
    id: int
    fields: dict[str, Field]


@dataclass(frozen=True)
class TracingData:
    """:ivar events: by id"""

    page_size: int
    long_size: int
    events: dict[int, EventFormat]


class _Cursor:
    def __init__(self, data: memoryview, where: str) -> None:
        self.data, self.where, self.at = data, where, 0

    def take(self, size: int) -> memoryview:
        if size > len(self.data) - self.at:
            raise FaultpathError(
                f"the event formats end early (offset {self.at:#x} asks for {size} bytes)", self.where, RECORD_AGAIN
            )
        piece = self.data[self.at : self.at + size]
        self.at += size
        return piece

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def string(self) -> str:
        window = bytes(self.data[self.at : self.at + 4096])
        end = window.find(b"\0")
        if end < 0:
            raise FaultpathError(
                f"an unterminated name at offset {self.at:#x} of the event formats", self.where, RECORD_AGAIN
            )
        self.at += end + 1
        return window[:end].decode("utf-8", "backslashreplace")

    def expect(self, mark: bytes) -> None:
        if bytes(self.take(len(mark))) != mark:
            raise FaultpathError(
                f"the event formats lack {mark!r} at offset {self.at - len(mark):#x}", self.where, RECORD_AGAIN
            )


def parse_tracing_data(data: memoryview, where: str) -> TracingData:
    """:raises FaultpathError: when it is truncated, big-endian, or a format cannot be understood"""
    at = _Cursor(data, where)
    at.expect(MAGIC)
    at.string()
    if at.number(1) != 0:
        raise FaultpathError(
            "event formats from a big-endian machine", where, "import on a recording from a little-endian machine"
        )
    long_size, page_size = at.number(1), at.number(4)
    for mark in (b"header_page\0", b"header_event\0"):
        at.expect(mark)
        at.take(at.number(8))
    for _ in range(at.number(4)):
        at.take(at.number(8))
    events: dict[int, EventFormat] = {}
    for _ in range(at.number(4)):
        system = at.string()
        for _ in range(at.number(4)):
            event = parse_format(system, bytes(at.take(at.number(8))), where)
            events[event.id] = event
    return TracingData(page_size, long_size, events)


ID = re.compile(r"ID: (\d{1,9})", re.ASCII)
FIELD = re.compile(r"\tfield:([^;]{1,4096});\s*offset:(\d{1,9});\s*size:(\d{1,9});(?:\s*signed:(\d);)?", re.ASCII)


def parse_format(system: str, text: bytes, where: str) -> EventFormat:
    """One event's ``format`` file, as in /sys/kernel/tracing/events/SYSTEM/EVENT/format."""
    name, number, found = "", -1, {}
    for line in text.decode("utf-8", "backslashreplace").split("\n"):
        if line.startswith("name: "):
            name = line[6:].strip()
        elif match := ID.fullmatch(line):
            number = int(match[1])
        elif match := FIELD.match(line):
            words = match[1].rstrip()
            if words.endswith("]"):
                words = words.rpartition("[")[0]
            name_of_field = words.split()[-1].lstrip("*") if words.strip() else ""
            found[name_of_field] = Field(int(match[2]), int(match[3]), match[4] == "1")
        elif line.startswith("print fmt"):
            break
    if not name or number < 0:
        raise FaultpathError(f"an event format of {system!r} without name or ID", where, RECORD_AGAIN)
    return EventFormat(system, name, number, found)
