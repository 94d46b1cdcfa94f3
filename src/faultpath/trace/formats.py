"""What kind of file a recording is: recognised by what it holds, never by its name."""

from __future__ import annotations

import contextlib
import re
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from faultpath.errors import FaultpathError
from faultpath.trace.readers.syscalls import recording_events
from faultpath.trace.schema import check_readable

Progress = Callable[[int, int], None]  # bytes done, bytes in all


#: A line of strace: thread, time, call with its result, or one of its own notes (strace 6.1).
STRACE_LINE = re.compile(
    rb"^ *(?:(?:\[pid +)?(?P<pid>\d+)(?:<[^>\n]*>)?\]? +)?(?:(?P<time>[\d:]+(?:\.\d+)?) +)?(?:\(\+ *[\d.]+\) +)?"
    rb"(?:\[[^]\n]*\] )*(?:[a-z_]\w*\(.*(?:\) += (?:0x[0-9a-f]+|-?\d+|\?)|<unfinished \.\.\.>)|<\.\.\. \w+ resumed>"
    rb"|\+\+\+ (?:exited with|killed by) |--- SIG[A-Z0-9]+ \{)",
    re.MULTILINE,
)
#: A line of perf script: name, process and thread, processor, time, and a tracepoint or a record (perf 6.1).
PERF_SCRIPT_LINE = re.compile(
    rb"^(?: {0,16}(?P<comm>.{0,32}?) {1,8})?-?\d+(?:/-?\d+)? +(?:\[\d{3,}\] +)?\d+\.\d{6,9}: +"
    rb"(?:\d+ +)?(?:[\w-]+:[\w-]+:|PERF_RECORD_[A-Z])",
    re.MULTILINE,
)


def _starts(*magics: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(magics)


#: Lines of amdkfd's SMI event descriptor: any of them, and those about virtual memory (events 5 to 8 and 11).
KFD_LINE = re.compile(rb"(?:[1-9a-f]|1[0-9a-f]) [^\r\n]{1,94}(?:\r?\n|\Z)")
KFD_RANGE = re.compile(rb"^[5-8b] [0-9]+ -[0-9]+ @[0-9a-f]+\([0-9a-f]+\) [-0-9a-f>:RWMU ]+(?:\r?\n|\Z)", re.MULTILINE)


def _kfd_smi(head: bytes) -> bool:
    return KFD_LINE.match(head) is not None and KFD_RANGE.search(head) is not None


#: How the first ``HEAD`` bytes of a file tell its format; the first that fits.
FORMATS: dict[str, Callable[[bytes], bool]] = {
    "trace": _starts(b"PAR1"),
    "perf.data": _starts(b"PERFILE2", b"2ELIFREP", b"PERFFILE"),
    "trace.dat": _starts(b"\x17\x08\x44tracing"),
    "kfd-smi": _kfd_smi,
    "nsys-sqlite": _starts(b"SQLite format 3\0"),
    "perf script": lambda head: PERF_SCRIPT_LINE.search(head) is not None,
    "strace": lambda head: STRACE_LINE.search(head) is not None,
}
HEAD = 1 << 16


def recognise(path: Path) -> str:
    """``trace``, or the format of a recording: a key of ``FORMATS``.

    :raises FaultpathError: when it is none of them
    """
    with contextlib.suppress(OSError):
        if (path / "data").exists():
            raise FaultpathError(
                "a recording in several files (perf record --threads)", str(path), "record without --threads"
            )
    check_readable(path)
    with path.open("rb") as file:
        head = file.read(HEAD)
    for name, fits in FORMATS.items():
        if fits(head):
            return name
    known = ", ".join(name for name in FORMATS if name != "trace")
    raise FaultpathError(f"not a recording that is known ({known})", str(path), f"record with: {record_command()}")


def record_command() -> str:
    """The ``perf record`` command that makes a complete recording."""
    return shlex.join(["perf", "record", "-e", ",".join(recording_events()), "--", "COMMAND"])


def trace_cmd_command() -> str:
    """The ``trace-cmd record`` command that makes a complete recording."""
    tasks = ["task:task_newtask", "sched:sched_process_exec", "sched:sched_process_exit"]
    events = [word for event in [*recording_events(), *tasks] for word in ("-e", event)]
    return shlex.join(["trace-cmd", "record", "-C", "mono", *events, "COMMAND"])


@contextlib.contextmanager
def as_trace(source: Path, progress: Progress | None = None) -> Iterator[Path]:
    """The path of a trace with what ``source`` holds: itself if it is one, else an imported copy while in use."""
    if recognise(source) == "trace":
        yield source
        return
    from faultpath.trace.importing import import_recording  # here: it brings numba, which a trace does not need

    with tempfile.TemporaryDirectory(prefix="faultpath-") as folder:
        path = Path(folder) / "imported.trace"
        import_recording(source, path, progress)
        yield path


def each_as_trace(sources: Sequence[Path], progress: Callable[[str, int, int], None]) -> Iterator[tuple[Path, Path]]:
    """Each source with the path of its trace, good until the next one is asked for.

    :param progress: called with what is being imported, bytes done and bytes in all
    """
    for source in sources:

        def importing(done: int, total: int, name: str = source.name) -> None:
            progress(f"import {name}", done, total)

        with as_trace(source, importing) as path:
            yield source, path
