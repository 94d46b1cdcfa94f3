"""What a perf.data file says about itself before its first event: attributes, ids, formats, machine.

Both layouts are read, the one with sections (``perf record -o FILE``) and the one without seeks (``perf record -o -``):
tools/perf/Documentation/perf.data-file-format.txt and tools/perf/util/header.c, Linux 6.1.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from faultpath.errors import FaultpathError
from faultpath.trace.readers.perf_columns import (
    AUXTRACE,
    COMPRESSED,
    COMPRESSED2,
    FINISHED_ROUND,
    HEADER_ATTR,
    HEADER_FEATURE,
    HEADER_TRACING_DATA,
)
from faultpath.trace.readers.tracing_data import EventFormat, TracingData, parse_tracing_data

MAGIC = b"PERFILE2"
RECORD_AGAIN = "the file is truncated or damaged; record again"

# Features (HEADER_*)
TRACING_DATA, OSRELEASE, ARCH, CMDLINE, DIR_FORMAT = 1, 4, 6, 11, 24

# perf_event_sample_format
(
    SAMPLE_IP,
    SAMPLE_TID,
    SAMPLE_TIME,
    SAMPLE_ADDR,
    SAMPLE_READ,
    SAMPLE_CALLCHAIN,
    SAMPLE_ID,
    SAMPLE_CPU,
    SAMPLE_PERIOD,
    SAMPLE_STREAM_ID,
    SAMPLE_RAW,
) = (1 << i for i in range(11))
SAMPLE_IDENTIFIER = 1 << 16

TYPE_TRACEPOINT = 2
ATTR_SIZE_VER0 = 64
FLAG_SAMPLE_ID_ALL, FLAG_USE_CLOCKID = 1 << 18, 1 << 25
CLOCKS = {0: "realtime", 1: "monotonic", 4: "monotonic_raw", 7: "boottime", 11: "tai"}


@dataclass
class RecordedEvent:
    """One ``perf_event_attr`` with its ids; for a tracepoint, ``format`` is what the file's TRACING_DATA says of it."""

    type: int
    config: int
    sample_type: int
    read_format: int
    flags: int
    clockid: int
    ids: list[int]
    format: EventFormat | None = None

    @property
    def name(self) -> str:
        if self.format:
            return f"{self.format.system}:{self.format.name}"
        return f"type {self.type} config {self.config:#x}"


@dataclass
class Header:
    """:ivar data: half-open range of the file that holds records
    :ivar stream: written to a pipe, so that nothing in it says where it was to end
    """

    data: tuple[int, int]
    events: list[RecordedEvent]
    tracing: TracingData | None
    stream: bool = False
    kernel: str = ""
    arch: str = ""
    command: list[str] = field(default_factory=list)

    @property
    def clock(self) -> str:
        first = self.events[0]
        return CLOCKS.get(first.clockid, f"clock {first.clockid}") if first.flags & FLAG_USE_CLOCKID else "perf"


def parse_header(data: memoryview, where: str) -> Header:
    """:raises FaultpathError: when it is not a perf.data file this reader can decode"""
    magic = bytes(data[:8])
    if magic == MAGIC[::-1]:
        raise FaultpathError("a perf.data file from a big-endian machine", where, "record on a little-endian machine")
    if magic == b"PERFFILE":
        raise FaultpathError("a perf.data file of version 1 (before Linux 2.6.34)", where, "record with a newer perf")
    if magic != MAGIC:
        raise FaultpathError("not a perf.data file", where, "give a file that perf record wrote")
    if len(data) < 16:
        raise FaultpathError("a perf.data file that ends in its header", where, RECORD_AGAIN)
    size = _u64(data, 8)
    if size == 16:
        header = _parse_stream(data, where)
    elif size >= 104:
        header = _parse_sections(data, where)
    else:
        raise FaultpathError(f"a perf.data header of {size} bytes (104, or 16 for a stream)", where, RECORD_AGAIN)
    if not header.events:
        raise FaultpathError("the recording has no events", where, RECORD_AGAIN)
    if header.tracing:
        for event in header.events:
            if event.type == TYPE_TRACEPOINT:
                event.format = header.tracing.events.get(event.config)
    return header


def _u64(data: memoryview, at: int) -> int:
    return int.from_bytes(data[at : at + 8], "little")


def _section(data: memoryview, at: int, what: str, where: str) -> memoryview:
    """The bytes that the (offset, size) pair at ``at`` names."""
    if at + 16 > len(data):
        raise FaultpathError(f"the file ends before its {what}", where, RECORD_AGAIN)
    offset, size = struct.unpack_from("<QQ", data, at)
    if offset > len(data) or size > len(data) - offset:
        raise FaultpathError(f"the {what} lies outside the file ({size} bytes at {offset:#x})", where, RECORD_AGAIN)
    return data[offset : offset + size]


def _parse_sections(data: memoryview, where: str) -> Header:
    if len(data) < 104:
        raise FaultpathError("a perf.data file that ends in its header", where, RECORD_AGAIN)
    attr_size = _u64(data, 16)
    start, size = struct.unpack_from("<QQ", data, 40)
    if size == 0:
        raise FaultpathError(
            "an unfinished recording (its header gives no data)", where, "let perf record end, or stop it with Ctrl-C"
        )
    _section(data, 40, "event data", where)
    attrs = _section(data, 24, "event attributes", where)
    if attr_size < ATTR_SIZE_VER0 + 16 or attr_size > 4096 or len(attrs) % attr_size:
        raise FaultpathError(f"event attributes of {attr_size} bytes", where, RECORD_AGAIN)
    events = []
    known = 0
    for at in range(0, len(attrs), attr_size):
        entry = attrs[at : at + attr_size]
        ids = _section(data, _u64(data, 24) + at + attr_size - 16, "event ids", where)
        known += len(ids)
        if known > len(data):  # sections that overlap could ask for any amount of memory
            raise FaultpathError("event ids of more bytes than the file has", where, RECORD_AGAIN)
        events.append(_attr(entry[:-16], list(struct.unpack(f"<{len(ids) // 8}q", ids[: len(ids) // 8 * 8])), where))
    flags = int.from_bytes(data[72:104], "little")
    features: dict[int, memoryview] = {}
    at = start + size
    for bit in range(256):
        if flags >> bit & 1:
            features[bit] = _section(data, at, f"feature {bit}", where)
            at += 16
    if DIR_FORMAT in features:
        raise FaultpathError("a recording in several files (perf record --threads)", where, "record without --threads")
    return _with_features(Header((start, start + size), events, None), features, where)


def _parse_stream(data: memoryview, where: str) -> Header:
    events: list[RecordedEvent] = []
    features: dict[int, memoryview] = {}
    at = 16
    while at + 8 <= len(data):
        kind, _, size = struct.unpack_from("<IHH", data, at)
        if size < 8 or at + size > len(data):
            raise FaultpathError(f"a record that is cut off or has a wrong size at {at:#x}", where, RECORD_AGAIN)
        body, extra = data[at + 8 : at + size], 0
        if kind == HEADER_ATTR:
            attr_size = int.from_bytes(body[4:8], "little")
            if attr_size < ATTR_SIZE_VER0 or attr_size > len(body):
                raise FaultpathError(f"event attributes of {attr_size} bytes at {at:#x}", where, RECORD_AGAIN)
            count = (len(body) - attr_size) // 8
            events.append(_attr(body[:attr_size], list(struct.unpack_from(f"<{count}q", body, attr_size)), where))
        elif kind == HEADER_TRACING_DATA:
            extra = int.from_bytes(body[:4], "little")
            if len(body) < 4 or extra > len(data) - at - size:
                raise FaultpathError("the event formats are cut off", where, RECORD_AGAIN)
            features[TRACING_DATA] = data[at + size : at + size + extra]
        elif kind == HEADER_FEATURE:
            if len(body) >= 8:
                features[_u64(body, 0)] = body[8:]
        elif kind < HEADER_ATTR or kind in (FINISHED_ROUND, COMPRESSED, COMPRESSED2, AUXTRACE):
            break
        at += size + extra
    return _with_features(Header((at, len(data)), events, None, stream=True), features, where)


def _with_features(header: Header, features: dict[int, memoryview], where: str) -> Header:
    if TRACING_DATA in features:
        header.tracing = parse_tracing_data(features[TRACING_DATA], where)
    header.kernel = _string(features.get(OSRELEASE, memoryview(b"")), 0)[0]
    header.arch = _string(features.get(ARCH, memoryview(b"")), 0)[0]
    command = features.get(CMDLINE, memoryview(b""))
    at = 4
    # A count that lies only ends the list early: every word takes at least four bytes.
    for _ in range(min(int.from_bytes(command[:4], "little"), len(command) // 4)):
        word, at = _string(command, at)
        header.command.append(word)
    return header


def _string(data: memoryview, at: int) -> tuple[str, int]:
    """A ``perf_header_string`` (u32 length, bytes with a NUL), and the offset after it."""
    length = int.from_bytes(data[at : at + 4], "little")
    text = bytes(data[at + 4 : at + 4 + length]).split(b"\0", 1)[0]
    return text.decode("utf-8", "backslashreplace"), at + 4 + length


def _attr(data: memoryview, ids: list[int], where: str) -> RecordedEvent:
    """``struct perf_event_attr``, include/uapi/linux/perf_event.h."""
    kind, _, config, _, sample_type, read_format, flags = struct.unpack_from("<IIQQQQQ", data)
    clockid = struct.unpack_from("<i", data, 92)[0] if len(data) >= 96 else 0
    return RecordedEvent(kind, config, sample_type, read_format, flags, clockid, ids)
