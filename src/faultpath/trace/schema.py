"""The one table every trace is, whatever it was recorded with: writing it, reading it, refusing what is not one.

A trace is a Parquet file of ``COLUMNS``, one row per operation, in time order, with one JSON document under the key
``faultpath`` of the file's metadata (``TraceMeta``). What the columns mean for each operation is in ``ops.Op``.

Rules, checked on every read: time never goes backwards (equal times keep file order: two CPUs may stamp the same
nanosecond); ops and notifier events are known; addresses lie below ``ADDRESS_LIMIT``; ranges are half-open, page
aligned and do not wrap.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from faultpath.errors import FaultpathError
from faultpath.trace.ops import Event, Op

SCHEMA = 1
KEY = b"faultpath"
ROW_GROUP = 1 << 17
#: x86 five-level paging gives user space 2^56 bytes; four-level gives 2^47 (Documentation/arch/x86/x86_64/5level-
#: paging.rst).
ADDRESS_LIMIT = 1 << 56

COLUMNS: dict[str, Any] = {
    "time": np.int64,
    "pid": np.int32,
    "tid": np.int32,
    "cpu": np.int32,
    "op": np.uint8,
    "addr": np.uint64,
    "len": np.uint64,
    "arg": np.int64,
    "aux": np.int64,
}
ARROW = pa.schema([pa.field(name, pa.from_numpy_dtype(dtype), nullable=False) for name, dtype in COLUMNS.items()])

# Times rise slowly; most bytes of the rest are as in the row before, which zstd sees where each has its own stream.
ENCODING = {name: "DELTA_BINARY_PACKED" if name == "time" else "BYTE_STREAM_SPLIT" for name in COLUMNS}

RANGE_OPS = np.zeros(256, np.bool_)
RANGE_OPS[[Op.VMA, Op.MMAP, Op.MUNMAP, Op.MREMAP, Op.MPROTECT, Op.MADVISE, Op.MBIND, Op.INVALIDATE]] = True
KNOWN_OPS = np.zeros(256, np.bool_)
KNOWN_OPS[[int(op) for op in Op]] = True
RECORD_AGAIN = "the file is damaged or was not written by faultpath; import or record it again"

Columns = dict[str, np.ndarray]


@dataclass
class TraceMeta:
    """What a trace says about itself.

    :ivar format: what it was read from (``perf.data``, ``synthetic`` ...); ``source`` is that file's name
    :ivar kernel: release of the recorded machine, empty when the source does not say
    :ivar page_size: bytes
    :ivar clock: what ``time`` counts from
    :ivar lost_events: events the kernel reported as lost, at least; ``lost_samples`` likewise for samples dropped
        before the buffer
    :ivar invalidations_from: ``tap`` when every ``invalidate_range_start`` was recorded, ``model`` when they must be
        derived; ``device`` when those were recorded by which a device lost pages, and others must not be derived
    :ivar missing: one sentence for each thing that was not recorded, and why
    :ivar dropped: events of the source that gave no row, by reason
    :ivar processes: ``{"pid", "parent", "comm"}`` of each, by pid
    :ivar command: the recording's own command line, when known
    """

    format: str
    source: str = ""
    kernel: str = ""
    arch: str = ""
    page_size: int = 4096
    clock: str = ""
    lost_events: int = 0
    lost_samples: int = 0
    invalidations_from: str = "model"
    missing: list[str] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    processes: list[dict[str, Any]] = field(default_factory=list)
    command: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps({"schema": SCHEMA, **asdict(self)}, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: bytes, where: str) -> TraceMeta:
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            raise FaultpathError("the trace's metadata is not JSON", where, RECORD_AGAIN) from None
        version = document.get("schema") if isinstance(document, dict) else None
        if type(version) is not int or version < 1:
            raise FaultpathError("the trace's metadata has no schema number", where, RECORD_AGAIN)
        if version > SCHEMA:
            raise FaultpathError(
                f"trace schema {version} is newer than {SCHEMA}, the newest this version reads",
                where,
                "upgrade faultpath",
            )
        known = {f.name for f in fields(cls)}
        meta = cls(**{k: v for k, v in document.items() if k in known}) if "format" in document else cls(format="")
        meta._check(where)
        return meta

    def _check(self, where: str) -> None:
        def refuse(name: str) -> FaultpathError:
            return FaultpathError(f"the trace's metadata has a wrong value for {name!r}", where, RECORD_AGAIN)

        for name in ("format", "source", "kernel", "arch", "clock", "invalidations_from"):
            if not isinstance(getattr(self, name), str):
                raise refuse(name)
        for name in ("page_size", "lost_events", "lost_samples"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 0:
                raise refuse(name)
        if not self.format:
            raise refuse("format")
        if self.page_size < 512 or self.page_size > 1 << 20 or self.page_size & (self.page_size - 1):
            raise refuse("page_size")
        if self.invalidations_from not in ("tap", "model", "device"):
            raise refuse("invalidations_from")
        for name in ("missing", "command"):
            if not (isinstance(getattr(self, name), list) and all(isinstance(s, str) for s in getattr(self, name))):
                raise refuse(name)
        if not (isinstance(self.dropped, dict) and all(type(n) is int for n in self.dropped.values())):
            raise refuse("dropped")
        if not (isinstance(self.processes, list) and all(_is_process(p) for p in self.processes)):
            raise refuse("processes")


def _is_process(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and type(entry.get("pid")) is int
        and type(entry.get("parent")) is int
        and isinstance(entry.get("comm"), str)
    )


class TraceWriter:
    """Writes a trace row group by row group; it appears under its name only when complete.

    Use as a context manager: ``write()`` any number of times, then ``finish()`` once. Leaving without ``finish()``,
    by an error or by Ctrl-C, removes what was written. The same rows and metadata give the same bytes however they
    are cut into calls.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self._pending: list[Columns] = []
        self._pending_rows = 0
        self._group = {name: np.empty(ROW_GROUP, dtype) for name, dtype in COLUMNS.items()}
        self._filled = 0  # rows of the group
        if path.is_dir():
            raise FaultpathError("the output is a directory", str(path), "name a file")
        self._worker = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            self._writer = pq.ParquetWriter(
                self._temporary,
                ARROW,
                compression="zstd",
                compression_level=1,
                use_dictionary=False,
                column_encoding=ENCODING,
                write_statistics=False,
                write_page_checksum=True,
                store_schema=False,
            )
        except OSError as error:
            raise self._cannot_write(error) from None

    def write(self, columns: Columns) -> None:
        """Append rows. Arrays are one per column, of equal length, of the types in ``COLUMNS``; they are not to be
        changed after."""
        self._pending.append(columns)
        self._pending_rows += len(columns["time"])
        if self._pending_rows >= ROW_GROUP:
            self._hand_over()

    def finish(self, meta: TraceMeta) -> None:
        """Write what is left and ``meta``, and let the file appear.

        :raises FaultpathError: when it cannot be written
        """
        self._hand_over()
        self._wait()
        try:
            if self._filled:
                self._write_group()
            self._writer.add_key_value_metadata({KEY: meta.to_json().encode()})
            self._writer.close()
            os.replace(self._temporary, self.path)
        except OSError as error:
            raise self._cannot_write(error) from None

    def _hand_over(self) -> None:
        """Give what is pending to the worker, which encodes while the caller decodes."""
        self._wait()
        self._writing = self._worker.submit(self._encode, self._pending)
        self.rows += self._pending_rows
        self._pending, self._pending_rows = [], 0

    def _encode(self, pieces: list[Columns]) -> None:
        """One group is filled over and over: fresh pages cost more than the copy."""
        for piece in pieces:
            count, start = len(piece["time"]), 0
            while start < count:
                stop = min(count, start + ROW_GROUP - self._filled)
                end = self._filled + stop - start
                for name, column in self._group.items():
                    column[self._filled : end] = piece[name][start:stop]
                start, self._filled = stop, end
                if end == ROW_GROUP:
                    self._write_group()

    def _write_group(self) -> None:
        arrays = [pa.array(column[: self._filled]) for column in self._group.values()]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=ARROW), row_group_size=ROW_GROUP)
        self._filled = 0

    def _wait(self) -> None:
        try:
            if self._writing:
                self._writing.result()
        except OSError as error:
            raise self._cannot_write(error) from None

    def _cannot_write(self, error: OSError) -> FaultpathError:
        reason = error.strerror or str(error).splitlines()[0]
        return FaultpathError(
            f"cannot write the trace ({reason})", str(self.path), "check the directory, its free space and rights"
        )

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._worker.shutdown()
        if self._temporary.exists():
            with contextlib.suppress(Exception):
                self._writer.close()
            self._temporary.unlink(missing_ok=True)


class Trace:
    """A trace on disk. Iterating reads a bounded piece at a time, so it need not fit in memory.

    :ivar rows: rows in the file
    :raises FaultpathError: when it is not a trace, is damaged, or was written by a newer version
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        check_readable(path)
        self._where = str(path)
        with self._refusing():
            self._file = pq.ParquetFile(path, page_checksum_verification=True)
            metadata = self._file.metadata
            keys = metadata.metadata or {}
            arrow = self._file.schema_arrow
        if KEY not in keys:
            raise FaultpathError(
                "a Parquet file, but not a faultpath trace", self._where, "give a trace or a recording"
            )
        self.meta = TraceMeta.from_json(keys[KEY], self._where)
        if arrow.names != ARROW.names or arrow.types != ARROW.types:
            raise FaultpathError("the trace's columns are not those of schema 1", self._where, RECORD_AGAIN)
        self.rows: int = metadata.num_rows

    def batches(self, pid: int | None = None) -> Iterator[Columns]:
        """Consecutive pieces of the trace, as arrays by column name; with ``pid``, that process's rows only.

        :raises FaultpathError: at the first row that breaks a rule of the schema
        """
        first, last = 0, 0
        pieces = self._file.iter_batches(batch_size=ROW_GROUP, columns=list(COLUMNS), use_threads=False)
        while True:
            with self._refusing():
                piece = next(pieces, None)
                if piece is None:
                    break
                columns = {name: _numpy(piece.column(name)) for name in COLUMNS}
            check_rows(columns, first, last, self.meta.page_size, self._where)
            first += len(columns["time"])
            if len(columns["time"]):
                last = int(columns["time"][-1])
            if pid is not None:
                mine = columns["pid"] == pid
                columns = {name: column[mine] for name, column in columns.items()}
            if len(columns["time"]):
                yield columns
        if first != self.rows:
            raise FaultpathError(f"{first} rows where {self.rows} are announced", self._where, RECORD_AGAIN)

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise FaultpathError(f"cannot read the trace ({reason})", self._where, RECORD_AGAIN) from None


def _numpy(column: pa.Array) -> np.ndarray:
    if column.null_count:
        raise ValueError("a value is missing")
    return column.to_numpy(zero_copy_only=False)


def open_trace(path: Path) -> Trace:
    """:raises FaultpathError: when ``path`` is not a trace"""
    return Trace(Path(path))


def check_readable(path: Path) -> None:
    """Refuse what cannot be a recording at all: nothing there, a directory, a device, an empty file, no permission."""
    where = str(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise FaultpathError("a directory, not a recording", where, "name the file inside it")
        if not stat.S_ISREG(status.st_mode):
            raise FaultpathError("not a regular file", where, "save the recording to a file first")
        if status.st_size == 0:
            raise FaultpathError(
                "an empty file", where, "record again; the recorder was perhaps stopped before it wrote"
            )
        with path.open("rb"):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise FaultpathError(f"cannot open ({reason})", where, "check the name and the rights") from None


def check_rows(columns: Columns, first: int, last: int, page_size: int, where: str) -> None:
    """Check rows against the rules at the head of this module.

    :param first: number of the first row, for the message
    :param last: time of the row before, in ns
    """

    def refuse(bad: np.ndarray, what: str, name: str | None = None) -> None:
        if bad.any():
            row = int(np.argmax(bad))
            value = f" ({name} {_shown(name, columns[name][row])})" if name else ""
            raise FaultpathError(f"{what}{value}", f"{where}, row {first + row}", RECORD_AGAIN)

    time, op, addr, length = columns["time"], columns["op"], columns["addr"], columns["len"]
    if len(time) == 0:
        return
    refuse(time < 0, "a time before zero", "time")
    refuse(np.diff(time, prepend=np.int64(last)) < 0, "time goes backwards", "time")
    refuse(~KNOWN_OPS[op], "an unknown operation", "op")
    refuse(columns["pid"] < 0, "a negative process id", "pid")
    limit = np.uint64(ADDRESS_LIMIT)
    refuse(addr > limit, "an address above user space", "addr")
    refuse(length > limit - addr, "a range that ends above user space", "len")
    ranged = RANGE_OPS[op]
    mask = np.uint64(page_size - 1)
    refuse(ranged & (((addr | length) & mask) != 0), "a range that is not page aligned", "addr")
    refuse(ranged & (length == 0) & (op != Op.MREMAP), "an empty range", "addr")
    refuse(~ranged & (length != 0), "a length where the operation has none", "len")
    moved = op == Op.MREMAP
    if moved.any():
        start, end = columns["arg"], columns["aux"] & ~np.int64(page_size - 1)
        bad = (
            (start < 0)
            | (end < 0)
            | (start > ADDRESS_LIMIT)
            | (end > ADDRESS_LIMIT - start)
            | (start & (page_size - 1) != 0)
        )
        refuse(moved & bad, "an mremap to a range that is not in user space", "arg")
    raised = op == Op.INVALIDATE
    if raised.any():
        refuse(raised & ((columns["arg"] < 0) | (columns["arg"] > max(Event))), "an unknown notifier event", "arg")
        refuse(
            raised & ~np.isin(columns["aux"], [int(o) for o in Op]),
            "an unknown operation around an invalidation",
            "aux",
        )


def _shown(name: str | None, value: Any) -> str:
    return hex(int(value)) if name in ("addr", "len") else str(int(value))
