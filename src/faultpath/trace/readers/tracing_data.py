"""TRACING_DATA: the kernel's own description of its tracepoints, as perf and trace-cmd store it.

Layout (tools/perf/util/trace-event-info.c and trace-event-read.c, Linux 6.1): bytes 23 8 68 "tracing", a NUL-terminated
version, one byte for the byte order, one for the size of ``long``, u32 page size; "header_page" and "header_event",
each with a u64 size and a text; u32 count of ftrace formats, each a u64 size and a text; u32 count of systems, each a
name, a u32 count of events and for each a u64 size and the text of its ``format`` file. What follows (kallsyms,
printk, saved command lines) is not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
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

    def number(self, name: str, where: str) -> Field:
        """:raises FaultpathError: when it has no field of that name that holds one number"""
        found = self.fields.get(name)
        if found is None or found.size not in (1, 2, 4, 8):
            has = ", ".join(n for n in self.fields if not n.startswith("common_"))
            raise FaultpathError(
                f"{self.system}:{self.name} has no number {name!r} (it has {has})",
                where,
                "report this kernel's event format",
            )
        return found


@dataclass(frozen=True)
class TracingData:
    """:ivar events: by id"""

    page_size: int
    long_size: int
    events: dict[int, EventFormat]


class Cursor:
    """Takes ``data`` apart from the front; little-endian.

    :param what: what ``data`` is, for the message when it ends early
    """

    def __init__(self, data: memoryview, where: str, what: str = "event formats") -> None:
        self.data, self.where, self.what, self.at = data, where, what, 0

    def take(self, size: int) -> memoryview:
        if size > len(self.data) - self.at:
            raise FaultpathError(
                f"the {self.what} end early (offset {self.at:#x} asks for {size} bytes)", self.where, RECORD_AGAIN
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
                f"an unterminated name at offset {self.at:#x} of the {self.what}", self.where, RECORD_AGAIN
            )
        self.at += end + 1
        return window[:end].decode("utf-8", "backslashreplace")

    def expect(self, mark: bytes) -> None:
        if bytes(self.take(len(mark))) != mark:
            raise FaultpathError(
                f"the {self.what} lack {mark!r} at offset {self.at - len(mark):#x}", self.where, RECORD_AGAIN
            )


def parse_tracing_data(data: memoryview, where: str) -> TracingData:
    """:raises FaultpathError: when it is truncated, big-endian, or a format cannot be understood"""
    at = Cursor(data, where)
    at.expect(MAGIC)
    at.string()
    long_size, page_size = take_machine(at)
    take_header_page(at)
    skip_ftrace_formats(at)
    return TracingData(page_size, long_size, take_event_formats(at))


def take_machine(at: Cursor) -> tuple[int, int]:
    """Bytes of a ``long`` in user space and of a page.

    :raises FaultpathError: when the machine was big-endian
    """
    if at.number(1) != 0:
        raise FaultpathError(
            "event formats from a big-endian machine", at.where, "import on a recording from a little-endian machine"
        )
    return at.number(1), at.number(4)


def take_header_page(at: Cursor) -> dict[str, Field]:
    """What a page of the ring buffer begins with: the fields of ``events/header_page``."""
    at.expect(b"header_page\0")
    fields = parse_fields(bytes(at.take(at.number(8))))
    at.expect(b"header_event\0")
    at.take(at.number(8))
    return fields


def skip_ftrace_formats(at: Cursor) -> None:
    for _ in range(at.number(4)):
        at.take(at.number(8))


def take_event_formats(at: Cursor) -> dict[int, EventFormat]:
    """The tracepoints' formats, by id."""
    events: dict[int, EventFormat] = {}
    for _ in range(at.number(4)):
        system = at.string()
        for _ in range(at.number(4)):
            event = parse_format(system, bytes(at.take(at.number(8))), at.where)
            events[event.id] = event
    return events


ID = re.compile(r"ID: (\d{1,9})", re.ASCII)
FIELD = re.compile(r"\tfield:([^;]{1,4096});\s*offset:(\d{1,9});\s*size:(\d{1,9});(?:\s*signed:(\d);)?", re.ASCII)


def parse_format(system: str, text: bytes, where: str) -> EventFormat:
    """One event's ``format`` file, as in /sys/kernel/tracing/events/SYSTEM/EVENT/format."""
    name, number = "", -1
    for line in _lines(text):
        if line.startswith("name: "):
            name = line[6:].strip()
        elif match := ID.fullmatch(line):
            number = int(match[1])
    if not name or number < 0:
        raise FaultpathError(f"an event format of {system!r} without name or ID", where, RECORD_AGAIN)
    return EventFormat(system, name, number, parse_fields(text))


def parse_fields(text: bytes) -> dict[str, Field]:
    """The ``field:`` lines of a format, by name, in order."""
    found = {}
    for line in _lines(text):
        if match := FIELD.match(line):
            words = match[1].rstrip()
            if words.endswith("]"):
                words = words.rpartition("[")[0]
            name = words.split()[-1].lstrip("*") if words.strip() else ""
            found[name] = Field(int(match[2]), int(match[3]), match[4] == "1")
    return found


def _lines(text: bytes) -> Iterator[str]:
    """Lines up to how the event is printed, which may hold anything."""
    for line in text.decode("utf-8", "backslashreplace").split("\n"):
        if line.startswith("print fmt"):
            return
        yield line
