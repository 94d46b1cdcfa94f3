"""Made-up trace.dat files, from the man pages trace-cmd.dat.v6(5) and trace-cmd.dat.v7(5)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import zstandard

FAULT, EXECVE = 7, 8
HEADER_EVENT = "# compressed entry header\n\ttype_len    :    5 bits\n"

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "zlib": zlib.compress,
    "zstd": zstandard.ZstdCompressor(write_content_size=False).compress,
}


def format_text(name: str, number: int, fields: Sequence[tuple[str, int, int]]) -> str:
    """A ``format`` file with the common fields and ``fields``: declaration, size, signed."""
    common = [("unsigned short common_type", 2, 0), ("unsigned char common_flags", 1, 0)]
    common += [("unsigned char common_preempt_count", 1, 0), ("int common_pid", 4, 1)]
    text, at = f"name: {name}\nID: {number}\nformat:\n", 0
    for number_of_field, (declaration, size, signed) in enumerate([*common, *fields]):
        text += "\n" if number_of_field == len(common) else ""
        text += f"\tfield:{declaration};\toffset:{at};\tsize:{size};\tsigned:{signed};\n"
        at += size
    return text + '\nprint fmt: "%d", REC->common_pid\n'


def fault_format(long: int = 8) -> str:
    names = ("address", "ip", "error_code")
    return format_text("page_fault_user", FAULT, [(f"unsigned long {name}", long, 0) for name in names])


def fault(address: int, tid: int = 100, long: int = 8, code: int = 6) -> bytes:
    return struct.pack("<HBBi" + "QL"[long == 4] * 3, FAULT, 0, 0, tid, address, 0x400000, code)


def word(kind: int, delta: int) -> bytes:
    return struct.pack("<I", kind | delta << 5)


def data(payload: bytes, delta: int = 0, long_form: bool = False) -> bytes:
    """A record of the ring buffer; ``long_form`` keeps its size in a word of its own."""
    payload += b"\0" * (-len(payload) % 4)
    if long_form:
        return word(0, delta) + struct.pack("<I", len(payload) + 4) + payload
    return word(len(payload) // 4, delta) + payload


def extend(delta: int) -> bytes:
    return word(30, delta & (1 << 27) - 1) + struct.pack("<I", delta >> 27)


def stamp(time: int) -> bytes:
    return word(31, time & (1 << 27) - 1) + struct.pack("<I", time >> 27 & 0xFFFFFFFF)


def padding(size: int, delta: int = 1) -> bytes:
    """``size`` bytes in all, of which eight say so."""
    return word(29, delta) + struct.pack("<I", size - 4) + b"\xaa" * (size - 8)


def page(
    time: int, *records: bytes, size: int = 4096, long: int = 8, lost: int | None = None, stored: bool = True
) -> bytes:
    body = b"".join(records)
    commit = len(body)
    if lost is not None:
        commit |= 1 << 31 | (1 << 30 if stored else 0)
        body += lost.to_bytes(long, "little") if stored else b""
    whole = struct.pack("<Q", time) + commit.to_bytes(long, "little") + body
    assert len(whole) <= size
    return whole + b"\0" * (size - len(whole))


@dataclass
class Made:
    """:ivar buffers: name of each ring buffer, with the pages of each processor by its number"""

    buffers: dict[str, dict[int, bytes]]
    formats: list[tuple[str, list[str]]] = field(default_factory=lambda: [("exceptions", [fault_format()])])
    page_size: int = 4096
    long: int = 8
    clock: str = "mono"
    comms: str = "100 made\n"
    options: list[tuple[int, bytes]] = field(default_factory=list)
    machine_page: int = 4096

    def header_page(self) -> bytes:
        head = 8 + self.long
        fields = [("u64 timestamp", 0, 8, 0), ("local_t commit", 8, self.long, 1), ("int overwrite", 8, 1, 1)]
        text = "".join(
            f"\tfield: {name};\toffset:{at};\tsize:{size};\tsigned:{signed};\n"
            for name, at, size, signed in [*fields, ("char data", head, self.page_size - head, 0)]
        )
        parts = (b"header_page\0", text.encode()), (b"header_event\0", HEADER_EVENT.encode())
        return b"".join(mark + struct.pack("<Q", len(part)) + part for mark, part in parts)

    def event_formats(self) -> bytes:
        out = struct.pack("<I", len(self.formats))
        for system, texts in self.formats:
            out += system.encode() + b"\0" + struct.pack("<I", len(texts))
            out += b"".join(struct.pack("<Q", len(text)) + text.encode() for text in texts)
        return out

    def common_options(self) -> list[tuple[int, bytes]]:
        return [
            (4, f"local [{self.clock}] boot\0".encode()),
            (5, b"Linux host 6.1.0 x86_64\0"),
            *self.options,
        ]

    def start(self, version: int) -> bytes:
        head = b"\x17\x08\x44tracing" + str(version).encode() + b"\0"
        return head + bytes([0, 8]) + struct.pack("<I", self.machine_page)

    def version_6(self) -> bytes:
        comms = self.comms.encode()
        out = self.start(6) + self.header_page() + struct.pack("<I", 0) + self.event_formats()
        out += struct.pack("<II", 0, 0) + struct.pack("<Q", len(comms)) + comms
        first = self.buffers.get("", {})
        cpus = 1 + max(cpu for pages in self.buffers.values() for cpu in pages)
        out += struct.pack("<I", cpus) + b"options  \0"
        others = [name for name in self.buffers if name]
        options = self.common_options()
        fixed = len(out) + sum(6 + len(body) for _, body in options)
        fixed += sum(14 + len(name) + 1 for name in others) + 2
        tables = fixed + 10 + 16 * cpus  # where the tables of the other buffers begin
        for number, name in enumerate(others):
            options.append((3, struct.pack("<Q", tables + number * (10 + 16 * cpus)) + name.encode() + b"\0"))
        out += b"".join(struct.pack("<HI", option, len(body)) + body for option, body in options) + b"\0\0"
        assert len(out) == fixed
        at = -(-(tables + len(others) * (10 + 16 * cpus)) // self.page_size) * self.page_size
        content = b""
        for pages in (first, *(self.buffers[name] for name in others)):
            out += b"flyrecord\0"
            for cpu in range(cpus):
                piece = pages.get(cpu, b"")
                out += struct.pack("<QQ", at + len(content), len(piece))
                content += piece
        return out + b"\0" * (at - len(out)) + content

    def version_7(self, codec: str = "none", chunk: int = 2) -> bytes:
        """:param chunk: pages compressed together"""
        out = self.start(7) + codec.encode() + b"\0" + b"1\0"
        at_options = len(out)
        out += b"\0" * 8
        places = []

        def section(kind: int, body: bytes, packed: bool = True) -> None:
            nonlocal out
            places.append((kind, len(out)))
            flags = int(codec != "none" and packed)
            if flags:
                small = COMPRESS[codec](body)
                body = struct.pack("<II", len(small), len(body)) + small
            out += struct.pack("<HHIQ", kind, flags, 0, len(body)) + body

        section(16, self.header_page())
        section(18, self.event_formats())
        comms = self.comms.encode()
        section(21, struct.pack("<Q", len(comms)) + comms)
        buffers = []
        for name, cpus in self.buffers.items():
            place, table = len(out), b""
            out += struct.pack("<HHIQ", 3, int(codec != "none"), 0, 0)
            for cpu, pages in cpus.items():
                out += b"\0" * (-len(out) % self.page_size)
                start = len(out)
                if codec == "none":
                    out += pages
                else:
                    step = chunk * self.page_size
                    pieces = [pages[i : i + step] for i in range(0, len(pages), step)]
                    out += struct.pack("<I", len(pieces))
                    for piece in pieces:
                        small = COMPRESS[codec](piece)
                        out += struct.pack("<II", len(small), len(piece)) + small
                table += struct.pack("<IQQ", cpu, start, len(out) - start)
            body = struct.pack("<Q", place) + name.encode() + b"\0" + self.clock.encode() + b"\0"
            buffers.append((3, body + struct.pack("<II", self.page_size, len(cpus)) + table))
        # Two sections of options, as trace-cmd writes them: what is known before the buffers and what after.
        last = len(out)
        section(0, b"".join(struct.pack("<HI", o, len(b)) + b for o, b in [*buffers, (0, bytes(8))]), packed=False)
        first = len(out)
        options = [*self.common_options(), *((kind, struct.pack("<Q", place)) for kind, place in places[:3])]
        options.append((0, struct.pack("<Q", last)))
        section(0, b"".join(struct.pack("<HI", o, len(b)) + b for o, b in options), packed=codec != "none")
        return out[:at_options] + struct.pack("<Q", first) + out[at_options + 8 :]


def small_files() -> list[bytes]:
    """Small files: most of a real one is the text of formats."""
    first = page(10**9, data(fault(4096)), extend(1 << 30), data(fault(8192), 5, True), padding(64), lost=3)
    second = page(10**9 + 7, stamp(10**9 + 8), data(fault(1 << 40, tid=101), 9))
    two = Made({"": {0: first + second, 1: second}, "more": {}})
    tsc = Made({"": {0: first, 3: second}}, clock="tsc2nsec", options=[(14, bytes([9, 0, 0, 0, 4]) + bytes(11))])
    return [two.version_6(), two.version_7(), two.version_7("zlib"), two.version_7("zstd"), tsc.version_7()]
