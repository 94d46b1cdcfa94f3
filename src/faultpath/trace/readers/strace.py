"""strace's text: its calls as rows of a trace."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from faultpath.errors import FaultpathError
from faultpath.trace.formats import STRACE_LINE, Progress
from faultpath.trace.readers import strace_columns as sc
from faultpath.trace.readers.events import processes
from faultpath.trace.readers.rows import CLONE, NAMES, PID_LIMIT, VFORK, RowMaker
from faultpath.trace.readers.scan import name_table
from faultpath.trace.readers.strace_names import VALUES
from faultpath.trace.readers.syscalls import K_EXIT
from faultpath.trace.readers.text import Text
from faultpath.trace.schema import Columns, TraceMeta

PAGE_SIZE = 4096  # strace does not tell it
AHEAD = 1 << 20  # bytes in which the result of a clone is looked for
IN_VAIN = 100  # times that it was not there before it is not looked for any more
PATH = 1 << 14  # bytes of a path, PATH_MAX of four each
COMM = 15  # bytes of a process's name that the kernel keeps, TASK_COMM_LEN less one
COMMAND = "strace -f -ttt -T -o FILE COMMAND"

#: The lines that tell what number the first process has: of other threads, of clones, of strace itself.
_PREFIX = re.compile(rb"^\[pid +(\d+)", re.MULTILINE)
_BORN = re.compile(
    rb"(?:(?:clone3?|v?fork)(?:\(| resumed>)| => \{parent_tid=)[^\n]{0,1000}= (\d+)|Process (\d+) attached"
)
_OWN = re.compile(rb"(?:set_tid_address\([^\n]{0,100}|getpid\(\)|gettid\(\)) {1,99}= (\d+)")
_RESUMED = rb"^(?:\[pid +)?(\d+)[\]< ][^\n]*<\.\.\. (?:clone3?|v?fork) resumed>[^\n]*= %d\b"
_STRING = re.compile(rb'"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(rb"\\(x[0-9a-f]{2}|[0-7]{1,3}|.)")


class StraceRecording:
    """What strace knows is the calls: page faults and invalidations are none of its business, and the trace says so."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.text = Text(source)
        first = STRACE_LINE.search(self.text.head)
        if first and not re.match(rb"\d{9,10}\.\d+", first["time"] or b""):
            raise FaultpathError("strace's lines without the time since 1970", str(source), f"record with: {COMMAND}")
        self.maker = RowMaker(np.arange(K_EXIT + len(NAMES)), PAGE_SIZE, set(), str(source))
        self.state = np.zeros(sc.STATE_SIZE, np.int64)
        self.state[sc.S_MAKER] = sc.ASK
        main = self._main()
        self.state[sc.S_MAIN] = 0 if main is None else main
        self.numbered = main is not None
        self.tasks = np.zeros((PID_LIMIT, sc.T_WIDTH), np.int64)  # zero pages until touched
        self.misread = np.zeros(len(NAMES), np.int64)
        self.comms: dict[int, str] = {}
        self.vain = 0

    def rows(self, progress: Progress | None = None) -> Iterator[Columns]:
        calls = name_table({**{name: i for i, name in enumerate(NAMES)}, "mmap2": NAMES.index("mmap")})
        values = name_table(VALUES)

        def walk(buf: np.ndarray, at: int, end: int, out: np.ndarray) -> int:
            return int(sc.walk(buf, at, end, *calls, *values, self.tasks, self.misread, out, self.state))

        for events in self.text.batches(walk, self.state, self._answer, progress):
            yield self.maker.rows(events)

    def meta(self) -> TraceMeta:
        misread = {f"{name} not understood": int(n) for name, n in zip(NAMES, self.misread, strict=True) if n}
        other = int(self.state[sc.S_OTHER])
        return TraceMeta(
            format="strace",
            source=self.source.name,
            page_size=PAGE_SIZE,
            clock="realtime",
            invalidations_from="model",
            missing=self._missing(),
            dropped={**self.text.dropped({"lines not strace's": other}), **misread, **self.maker.dropped},
            processes=processes(self.maker.parents(), dict(self.comms)),
        )

    def _missing(self) -> list[str]:
        said = [
            "Page faults: strace does not see them.",
            "Notifier invalidations: strace does not see them; they are derived from the system calls.",
            "Mappings older than the recording or made by exec: strace shows only calls.",
            f"The page size: taken to be {PAGE_SIZE} bytes.",
            "The processor: strace does not tell it.",
            "Calls that strace was told to leave out (-e trace=): it does not say which.",
        ]
        if not self.state[sc.S_DURATIONS]:
            said.append("When calls returned: without -T, those in one line have the time of their beginning.")
        if not self.numbered:
            said.append("The process's number: strace does not print that of a single process; it is called 0.")
        if self.state[sc.S_ORPHANS] > 1:
            said.append(
                f"Whose threads {int(self.state[sc.S_ORPHANS])} of the numbers are, the first process's among them: no"
                " clone has them as its result; each counts as a process of its own."
            )
        if not self.state[sc.S_EXITS]:
            said.append("Ends of processes: strace printed none.")
        if not self.text.whole:
            said.append("Perhaps the end: the text stops inside a line.")
        return said

    def _main(self) -> int | None:
        """The number of the process whose lines have none, None when nothing tells.

        It gets one on its lines once there is a second one, or a call tells it: glibc begins with set_tid_address.
        """
        head = self.text.head
        first = STRACE_LINE.search(head)
        if first and first["pid"]:
            found = int(first["pid"])
        elif own := _OWN.search(head):
            found = int(own[1])
        else:
            near = self.text.map.find(b"\n[pid ")
            if near < 0:
                attached = re.match(rb"strace: Process (\d+) attached", head)
                found = int(attached[1]) if attached else -1
            else:
                window = self.text.map[max(near - len(head), 0) : near + len(head)]
                born = {int(number) for groups in _BORN.findall(window) for number in groups if number}
                found = next((n for n in map(int, _PREFIX.findall(window)) if n not in born), -1)
        return found if 0 <= found < PID_LIMIT else None

    def _answer(self, status: int) -> None:
        tid = int(self.state[sc.S_TID])
        if status == sc.UNKNOWN:
            self.state[sc.S_MAKER] = self._maker(tid)
        elif name := self._program(int(self.tasks[tid, sc.T_PATH])):
            self.comms[int(self.tasks[tid, sc.T_PROCESS]) - 1] = name

    def _maker(self, tid: int) -> int:
        """The thread whose clone has ``tid`` as its result, further on; else the only one that is in a clone."""
        at = int(self.state[sc.S_AT])
        if self.vain < IN_VAIN:
            for found in re.finditer(_RESUMED % tid, self.text.map[at : at + AHEAD], re.MULTILINE):
                if self._in_clone(int(found[1])):
                    return int(found[1])
            self.vain += 1
        return int(self.state[sc.S_PENDING_SUM]) if self.state[sc.S_PENDING] == 1 else sc.NOBODY

    def _in_clone(self, tid: int) -> bool:
        return tid < PID_LIMIT and CLONE < self.tasks[tid, sc.T_CALL] <= VFORK + 1

    def _program(self, at: int) -> str:
        """The name of a process that executes the file named by the first string of the line, as the kernel sets it."""
        line = self.text.map[at : at + PATH].split(b"\n", 1)[0]
        found = _STRING.match(line, max(line.find(b'"'), 0))
        path = _ESCAPE.sub(_unescaped, found[1]) if found else b""
        return path.rsplit(b"/", 1)[-1][:COMM].decode("utf-8", "backslashreplace")


def _unescaped(found: re.Match[bytes]) -> bytes:
    """What strace's escape of one byte stands for; of the letters only those that a name may be expected to hold."""
    text = found[1]
    if text[:1].isdigit():
        return bytes([int(text, 8) & 0xFF])
    return bytes([int(text[1:], 16)]) if len(text) == 3 else {b"n": b"\n", b"t": b"\t"}.get(text, text)
