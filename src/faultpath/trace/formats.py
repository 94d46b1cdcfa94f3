"""What kind of file a recording is: recognised by what it holds, never by its name."""

from __future__ import annotations

import contextlib
import shlex
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from faultpath.errors import FaultpathError
from faultpath.trace.readers.syscalls import recording_events
from faultpath.trace.schema import check_readable

Progress = Callable[[int, int], None]  # bytes done, bytes in all

MAGIC = {
    b"PERFILE2": "perf.data",
    b"2ELIFREP": "perf.data",
    b"PERFFILE": "perf.data",
    b"PAR1": "trace",
    b"\x17\x08\x44tracing": "trace.dat",
}


def recognise(path: Path) -> str:
    """``perf.data`` or ``trace``.

    :raises FaultpathError: when it is neither
    """
    with contextlib.suppress(OSError):
        if (path / "data").exists():
            raise FaultpathError(
                "a recording in several files (perf record --threads)", str(path), "record without --threads"
            )
    check_readable(path)
    with path.open("rb") as file:
        head = file.read(16)
    found = next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)
    if found == "trace.dat":
        raise FaultpathError(
            "a trace-cmd recording, which is not supported", str(path), f"record with: {record_command()}"
        )
    if found is None:
        raise FaultpathError("not a recording that is known (perf.data)", str(path), f"record with: {record_command()}")
    return found


def record_command() -> str:
    """The ``perf record`` command that makes a complete recording."""
    return shlex.join(["perf", "record", "-e", ",".join(recording_events()), "--", "COMMAND"])


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
