"""What a trace.dat says about itself before its events: formats, options, and where each processor's pages lie.

Both layouts that trace-cmd writes are read: version 6, where everything follows in one order, and version 7, where
sections that may be compressed are found through options (Documentation/trace-cmd/trace-cmd.dat.v6.5.txt and
trace-cmd.dat.v7.5.txt, trace-cmd 3.1 to 3.4). Options that shift times (DATE, OFFSET, TIME_SHIFT) are not applied:
a trace's times count from the recording's own clock.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from faultpath.errors import FaultpathError
from faultpath.trace.readers.expand import CODECS, expand
from faultpath.trace.readers.tracing_data import (
    MAGIC,
    RECORD_AGAIN,
    Cursor,
    EventFormat,
    Field,
    skip_ftrace_formats,
    take_event_formats,
    take_header_page,
    take_machine,
)

# Options of both versions, then those of version 7, which name sections by the same numbers.
DONE, CPUSTAT, BUFFER, TRACECLOCK, UNAME, CPUCOUNT, TSC2NSEC = 0, 2, 3, 4, 5, 8, 14
HEADER_INFO, EVENT_FORMATS, CMDLINES, BUFFER_TEXT = 16, 18, 21, 22
COMPRESSED = 1  # section flag

#: Trace clocks that count nanoseconds (kernel/trace/trace.c, trace_clocks, Linux 6.1 to 6.18).
NS_CLOCKS = ("local", "global", "perf", "mono", "mono_raw", "boot", "tai", "tsc2nsec")
MOST_EXPANDED = 64 << 20  # bytes of one section: the formats of every event of a kernel are some three million
MOST_OPTIONS = 1 << 10  # sections of options: trace-cmd writes two, and one more for each guest
MOST_PAGE = 1 << 23  # bytes: 128 pages of 64 KiB (kernel/trace/ring_buffer.c, ring_buffer_subbuf_order_set, Linux 6.8)
MOST_CPUS = 1 << 13  # NR_CPUS on x86 at most
MOST_STREAMS = 1 << 14  # processors of all ring buffers together


@dataclass(frozen=True)
class Pages:
    """The pages of one processor's ring buffer, at ``offset`` of the file: ``size`` bytes, as compressed."""

    cpu: int
    offset: int
    size: int


@dataclass(frozen=True)
class Buffer:
    """One ring buffer: the kernel's first (no name) or an instance. ``page_size`` is that of its pages."""

    name: str
    clock: str
    page_size: int
    compressed: bool
    cpus: list[Pages]


@dataclass
class Header:
    """:ivar page_size: bytes, of the recorded machine
    :ivar header_page: what a ring buffer page begins with
    :ivar codec: of compressed pages
    :ivar tsc: multiplier and shift from time stamps to ns, when they are cycles
    :ivar comms: name by thread id
    :ivar lost: events the kernel's statistics say it overwrote or dropped
    """

    version: int
    page_size: int
    codec: str = "none"
    header_page: dict[str, Field] = field(default_factory=dict)
    events: dict[int, EventFormat] = field(default_factory=dict)
    buffers: list[Buffer] = field(default_factory=list)
    kernel: str = ""
    arch: str = ""
    clock: str = ""
    tsc: tuple[int, int] | None = None
    comms: dict[int, str] = field(default_factory=dict)
    lost: int = 0


def parse_header(data: memoryview, where: str) -> Header:
    """:raises FaultpathError: when it is not a trace.dat this reader can decode"""
    at = Cursor(data, where, "trace.dat header")
    at.expect(MAGIC)
    version = at.string()
    if version not in ("6", "7"):
        raise FaultpathError(
            f"a trace.dat of version {version[:20]!r} (6 and 7 are read)", where, "record with trace-cmd 2 or 3"
        )
    _, page_size = take_machine(at)
    if not 512 <= page_size <= 1 << 20 or page_size & (page_size - 1):
        raise FaultpathError(f"a machine with pages of {page_size} bytes", where, RECORD_AGAIN)
    header = Header(int(version), page_size)
    if header.version == 6:
        _parse_6(at, header)
    else:
        _parse_7(at, header)
    _check(header, len(data), where)
    return header


def _check(header: Header, size: int, where: str) -> None:
    full = [buffer for buffer in header.buffers if any(pages.size for pages in buffer.cpus)]
    clocks = sorted({buffer.clock for buffer in full})
    if len(clocks) > 1:
        raise FaultpathError(
            f"ring buffers with different trace clocks ({', '.join(clocks)[:60]})",
            where,
            "record them with one clock, trace-cmd record -C mono",
        )
    if sum(pages.size for buffer in full for pages in buffer.cpus) > size:
        raise FaultpathError("pages of more bytes than the file has", where, RECORD_AGAIN)
    for buffer in full:
        if buffer.clock not in NS_CLOCKS or (buffer.clock == "tsc2nsec" and not header.tsc):
            raise FaultpathError(
                f"times of the trace clock {buffer.clock[:20]!r}, which are not nanoseconds",
                where,
                "record with trace-cmd record -C mono, or -C x86-tsc --tsc2nsec",
            )
        if not 512 <= buffer.page_size <= MOST_PAGE or buffer.page_size & (buffer.page_size - 1):
            raise FaultpathError(f"a ring buffer with pages of {buffer.page_size} bytes", where, RECORD_AGAIN)
        for pages in buffer.cpus:
            if pages.cpu >= MOST_CPUS:
                raise FaultpathError(f"a CPU {pages.cpu} (there are {MOST_CPUS} at most)", where, RECORD_AGAIN)
            if pages.offset > size or pages.size > size - pages.offset:
                raise FaultpathError(
                    f"the pages of CPU {pages.cpu} lie outside the file ({pages.size} bytes at {pages.offset:#x})",
                    where,
                    RECORD_AGAIN,
                )


def _parse_6(at: Cursor, header: Header) -> None:
    header.header_page = take_header_page(at)
    skip_ftrace_formats(at)
    header.events = take_event_formats(at)
    at.take(at.number(4))  # kallsyms
    at.take(at.number(4))  # formats of trace_printk
    header.comms = _comms(bytes(at.take(at.number(8))))
    cpus = at.number(4)
    options: list[tuple[int, memoryview]] = []
    mark = bytes(at.take(10))
    if mark == b"options  \0":
        while option := at.number(2):
            options.append((option, at.take(at.number(4))))
        mark = bytes(at.take(10))
    _facts(options, header, at.where)
    for option, body in options:
        if option == CPUCOUNT:  # the count before the options is that of a reader which does not know them
            cpus = int.from_bytes(body[:4], "little")
    # Version 6 has one clock for all, and none in its name when it is the default.
    clock = header.clock or "local"
    _add(header, Buffer("", clock, header.page_size, False, _table(at, mark, cpus)), at.where)
    for option, body in options:
        if option == BUFFER:
            entry = Cursor(body, at.where, "description of a ring buffer")
            at.at = min(entry.number(8), len(at.data))
            pages = _table(at, bytes(at.take(10)), cpus)
            _add(header, Buffer(entry.string(), clock, header.page_size, False, pages), at.where)


def _add(header: Header, buffer: Buffer, where: str) -> None:
    header.buffers.append(buffer)
    count = sum(len(b.cpus) for b in header.buffers)
    if count > MOST_STREAMS or len(header.buffers) > MOST_STREAMS:
        raise FaultpathError(f"{count} processors in all ring buffers ({MOST_STREAMS} at most)", where, RECORD_AGAIN)


def _table(at: Cursor, mark: bytes, cpus: int) -> list[Pages]:
    if mark == b"latency  \0":
        raise _text(at.where)
    if mark != b"flyrecord\0":
        raise FaultpathError(f"neither events nor text at {at.at - 10:#x} ({mark!r})", at.where, RECORD_AGAIN)
    return [Pages(cpu, at.number(8), at.number(8)) for cpu in range(_cpus(cpus, at.where))]


def _text(where: str) -> FaultpathError:
    return FaultpathError(
        "a trace.dat with text instead of events, as of a latency tracer", where, "record events with trace-cmd record"
    )


def _cpus(count: int, where: str) -> int:
    if count > MOST_CPUS:
        raise FaultpathError(f"{count} processors ({MOST_CPUS} at most)", where, RECORD_AGAIN)
    return count


def _parse_7(at: Cursor, header: Header) -> None:
    header.codec = at.string()
    at.string()  # version of the library that compressed
    if header.codec not in CODECS:
        raise FaultpathError(
            f"compressed with {header.codec[:20]!r} ({', '.join(CODECS)} are read)",
            at.where,
            "convert it with trace-cmd convert --compression none",
        )
    options: list[tuple[int, memoryview]] = []
    offset, seen = at.number(8), set[int]()
    while offset:
        if offset in seen or len(seen) >= MOST_OPTIONS:
            raise FaultpathError("sections of options without an end", at.where, RECORD_AGAIN)
        seen.add(offset)
        offset = _options(_section(at, offset, DONE, header.codec), options)
    _facts(options, header, at.where)
    sections = {option: int.from_bytes(body[:8], "little") for option, body in options}
    for option in (HEADER_INFO, EVENT_FORMATS):
        if option not in sections:
            raise FaultpathError("the formats of its events are missing", at.where, RECORD_AGAIN)
    header.header_page = take_header_page(_section(at, sections[HEADER_INFO], HEADER_INFO, header.codec))
    header.events = take_event_formats(_section(at, sections[EVENT_FORMATS], EVENT_FORMATS, header.codec))
    if CMDLINES in sections:
        lines = _section(at, sections[CMDLINES], CMDLINES, header.codec)
        header.comms = _comms(bytes(lines.take(lines.number(8))))
    for option, body in options:
        if option == BUFFER_TEXT:
            raise _text(at.where)
        if option == BUFFER:
            entry = Cursor(body, at.where, "description of a ring buffer")
            at.at = min(entry.number(8), len(at.data))
            if at.number(2) != BUFFER:
                raise FaultpathError(f"no ring buffer at {at.at - 2:#x}", at.where, RECORD_AGAIN)
            compressed = bool(at.number(2) & COMPRESSED)
            name, clock, page_size = entry.string(), entry.string(), 0
            pages = []
            if entry.at < len(body):  # an instance that recorded nothing ends with its clock
                page_size = entry.number(4)
                pages = [
                    Pages(entry.number(4), entry.number(8), entry.number(8))
                    for _ in range(_cpus(entry.number(4), at.where))
                ]
            _add(header, Buffer(name, clock, page_size or header.page_size, compressed, pages), at.where)


def _section(at: Cursor, offset: int, kind: int, codec: str) -> Cursor:
    """What the section at ``offset`` of the file holds, expanded."""
    at.at = min(offset, len(at.data))
    found, flags = at.number(2), at.number(2)
    at.take(4)  # its name
    if found != kind:
        raise FaultpathError(f"a section {found} at {offset:#x} where {kind} should be", at.where, RECORD_AGAIN)
    body = at.take(at.number(8))
    if flags & COMPRESSED:
        packed, size = (int.from_bytes(body[i : i + 4], "little") for i in (0, 4))
        if size > MOST_EXPANDED:
            raise FaultpathError(f"a section of {size} bytes at {offset:#x}", at.where, RECORD_AGAIN)
        if 8 + packed > len(body):
            raise FaultpathError(f"a compressed section that is cut off at {offset:#x}", at.where, RECORD_AGAIN)
        body = memoryview(expand(codec, body[8 : 8 + packed], size, f"{at.where}, section at {offset:#x}"))
    return Cursor(body, at.where, f"section {kind}")


def _options(at: Cursor, options: list[tuple[int, memoryview]]) -> int:
    """Add a section's options; the offset of the next section of options, 0 when this is the last."""
    while True:
        option, body = at.number(2), at.take(at.number(4))
        if option == DONE:
            return int.from_bytes(body[:8], "little")
        options.append((option, body))


LOST = re.compile(r"^(?:overrun|commit overrun|dropped events): (\d{1,15})$", re.ASCII | re.MULTILINE)


def _facts(options: list[tuple[int, memoryview]], header: Header, where: str) -> None:
    """Options that say one thing about the whole recording."""
    for option, body in options:
        if option == TSC2NSEC:
            entry = Cursor(body, where, "conversion of time stamps")
            header.tsc = entry.number(4), entry.number(4)
            if header.tsc[1] > 32:
                raise FaultpathError(f"time stamps shifted by {header.tsc[1]} bits", where, RECORD_AGAIN)
        elif option in (CPUSTAT, TRACECLOCK, UNAME):
            text = bytes(body).split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
            if option == CPUSTAT:
                header.lost += sum(map(int, LOST.findall(text)))
            elif option == TRACECLOCK:
                header.clock = text.partition("[")[2].partition("]")[0]
            elif len(words := text.split()) >= 4:  # system, host, release, machine
                header.kernel, header.arch = words[2], words[-1]


def _comms(text: bytes) -> dict[int, str]:
    """``saved_cmdlines``: a thread id, a space and a name a line."""
    comms = {}
    for line in text.split(b"\n"):
        tid, _, name = line.partition(b" ")
        if tid.isdigit() and len(tid) <= 10:
            comms[int(tid)] = name.rstrip(b"\0").decode("utf-8", "backslashreplace")
    return comms
