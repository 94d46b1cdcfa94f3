"""Nsight Systems exports (``nsys export --type sqlite``): what happened to unified memory, as rows of a trace.

Tables and columns are those of exports by Nsight Systems 2022.2 and 2024.5 (schema 2.9, 3.13) and of the user guide's
"SQLite Schema Reference" of 2026.4 (3.28). Which columns a table has is read from the file; tables without rows are
often left out.

=============================  ===========================================================================
table                          becomes
=============================  ===========================================================================
CUDA_UM_GPU_PAGE_FAULT_EVENTS  ACCESS: a write for writes and atomics, a read for reads, prefetch
                               instructions and what is not known; one row however many faults it stands for
CUDA_UM_CPU_PAGE_FAULT_EVENTS  FAULT in user mode, as a read: which access it was is not recorded
CUPTI_ACTIVITY_KIND_MEMCPY     copy kind "unified": from the device, INVALIDATE (MIGRATE); to the device or
                               between devices, nothing
CUDA_GPU_MEMORY_USAGE_EVENTS   of managed memory: deallocation, INVALIDATE (UNMAP) of its whole pages
=============================  ===========================================================================

No record tells the thread: ``tid`` is the process.

Why migrations to a device give nothing: migrate_vma raises MMU_NOTIFY_MIGRATE with its owner, so that the driver of the
device that the pages go to can pass over it (include/linux/mmu_notifier.h, Linux 6.1); that device maps them. A
migration from a device takes its PTEs, whoever clears them.
"""

from __future__ import annotations

import contextlib
import itertools
import operator
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from faultpath.errors import FaultpathError
from faultpath.trace.formats import Progress
from faultpath.trace.ops import Event, Op
from faultpath.trace.readers import extents
from faultpath.trace.readers.extents import Extents
from faultpath.trace.schema import ADDRESS_LIMIT, COLUMNS, Columns, TraceMeta

PAGE = 4096  # not in the export
PF_USER = 4  # bit of an x86 page fault's error code
BATCH = 1 << 16  # records of a table at a time
NAME = 255  # characters of a process's name, at most
PROFILE = (
    "profile with: nsys profile --trace=cuda --cuda-um-gpu-page-faults=true --cuda-um-cpu-page-faults=true "
    "--cuda-memory-usage=true -- COMMAND; then nsys export --type=sqlite"
)
EXPORT = "export it again: nsys export --type=sqlite"

GPU_FAULTS, CPU_FAULTS = "CUDA_UM_GPU_PAGE_FAULT_EVENTS", "CUDA_UM_CPU_PAGE_FAULT_EVENTS"
COPIES, MEMORY = "CUPTI_ACTIVITY_KIND_MEMCPY", "CUDA_GPU_MEMORY_USAGE_EVENTS"

#: Names in enum tables, with their numbers for exports that have no such table (before schema 3).
ENUMS = {
    "ENUM_CUDA_UNIF_MEM_ACCESS_TYPE": {
        "CUDA_UNIFIED_MEMORY_ACCESS_TYPE_READ": 1,
        "CUDA_UNIFIED_MEMORY_ACCESS_TYPE_WRITE": 2,
        "CUDA_UNIFIED_MEMORY_ACCESS_TYPE_ATOMIC": 3,
        "CUDA_UNIFIED_MEMORY_ACCESS_TYPE_PREFETCH": 4,
    },
    "ENUM_CUDA_MEMCPY_OPER": {
        "CUDA_MEMCPY_KIND_UVM_HTOD": 11,
        "CUDA_MEMCPY_KIND_UVM_DTOH": 12,
        "CUDA_MEMCPY_KIND_UVM_DTOD": 13,
    },
    "ENUM_CUDA_MEM_KIND": {"CUDA_MEMOPR_MEMORY_KIND_MANAGED": 4, "CUDA_MEMOPR_MEMORY_KIND_MANAGED_STATIC": 6},
    "ENUM_CUDA_DEV_MEM_EVENT_OPER": {"CUDA_DEV_MEM_EVENT_OPR_ALLOCATION": 0, "CUDA_DEV_MEM_EVENT_OPR_DEALLOCATION": 1},
}

#: Columns that may be NULL, read as -1.
NULLABLE = ("globalPid", "virtualAddress")

# Why a record gives no row.
NO_ADDRESS = "record without an address or a process"
TO_DEVICE = "migration to a device"
BETWEEN = "migration between devices"
ALLOCATED = "allocation of managed memory"
NO_PAGE = "migration or deallocation of no whole page"
DROPPED = (NO_ADDRESS, TO_DEVICE, BETWEEN, ALLOCATED, NO_PAGE)

# Columns of a record, whatever table it is from; TABLE is an index into TABLES.
TIME, OWNER, ADDR, SIZE, CODE, TABLE, WIDTH = range(7)


@dataclass(frozen=True)
class Table:
    """What is read of a table.

    :ivar fields: its column for each column of a record that it fills
    :ivar only: a column, and the enum table whose values in ENUMS it must have
    """

    name: str
    fields: dict[int, str]
    only: tuple[str, str] = ("", "")


TABLES = (
    Table(GPU_FAULTS, {TIME: "start", OWNER: "globalPid", ADDR: "address", CODE: "faultAccessType"}),
    Table(CPU_FAULTS, {TIME: "start", OWNER: "globalPid", ADDR: "address"}),
    Table(
        COPIES,
        {TIME: "start", OWNER: "globalPid", ADDR: "virtualAddress", SIZE: "bytes", CODE: "copyKind"},
        ("copyKind", "ENUM_CUDA_MEMCPY_OPER"),
    ),
    Table(
        MEMORY,
        {TIME: "start", OWNER: "globalPid", ADDR: "address", SIZE: "bytes", CODE: "memoryOperationType"},
        ("memKind", "ENUM_CUDA_MEM_KIND"),
    ),
)


class Database:
    """A SQLite file of which nothing is believed: read only, as it lies there, plain tables alone.

    :ivar tables: names of its tables
    :raises FaultpathError: instead of any error of SQLite
    """

    def __init__(self, source: Path) -> None:
        self.where = str(source)
        for suffix in ("-wal", "-journal"):
            log = Path(f"{source}{suffix}")
            if log.exists() and log.stat().st_size:
                raise FaultpathError(f"a database with unfinished writes beside it ({log.name})", self.where, EXPORT)
        self._check_size(source)
        # immutable: no lock is taken, and no file beside it is made or read
        uri = f"file:{quote(os.fsencode(source.absolute()))}?mode=ro&immutable=1"
        with self._refusing():
            self._connection = sqlite3.connect(uri, uri=True)
            self._connection.text_factory = lambda text: text.decode("utf-8", "replace")
            self._connection.execute("PRAGMA trusted_schema = OFF")
        plain = "SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE 'CREATE TABLE%' ORDER BY name"
        self.tables = [str(name) for (name,) in self.select(plain)]

    def _check_size(self, source: Path) -> None:
        """SQLite reads what a file lacks of its last page as zeros (database header: fileformat2.html, 1.3)."""
        with source.open("rb") as file:
            header = file.read(100)
        page = int.from_bytes(header[16:18], "big")
        pages = int.from_bytes(header[28:32], "big")
        if header[24:28] == header[92:96] and pages * (1 << 16 if page == 1 else page) > source.stat().st_size:
            raise FaultpathError("cannot read the database (it ends before its last page does)", self.where, EXPORT)

    def columns(self, table: str) -> list[str]:
        """Names of a table's columns, those that are computed left out; nothing where there is no such table."""
        if table not in self.tables:
            return []
        return [str(row[1]) for row in self.select(f'PRAGMA table_info("{table}")')]

    def select(self, query: str) -> list[tuple[Any, ...]]:
        """All that a query selects, which is to be little."""
        with self._refusing():
            return self._connection.execute(query).fetchall()

    def records(self, query: str, width: int) -> Iterator[np.ndarray]:
        """What a query selects, as arrays of ``width`` integers a row, at most ``BATCH`` rows at a time."""
        with self._refusing():
            values = itertools.chain.from_iterable(self._connection.execute(query))
        while True:
            with self._refusing():
                # index(): numpy would cut off a fraction
                batch = np.fromiter(map(operator.index, itertools.islice(values, BATCH * width)), np.int64)
            if not len(batch):
                return
            yield batch.reshape(-1, width)

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, sqlite3.Warning, TypeError, UnicodeError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise FaultpathError(f"cannot read the database ({reason})", self.where, EXPORT) from None


class Spool:
    """Records of a table in a temporary file: to read them twice through SQLite, and sorted, took thrice as long.

    :ivar by_time: whether they came in the order of their times, as nsys writes them
    """

    def __init__(self) -> None:
        self.by_time = True
        self._last = np.iinfo(np.int64).min
        with _writing():
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  closed with this

    def add(self, records: np.ndarray) -> None:
        times = records[:, TIME]
        self.by_time &= bool(times[0] >= self._last and (np.diff(times) >= 0).all())
        self._last = times[-1]
        with _writing():
            self._file.write(records.tobytes())

    def __iter__(self) -> Iterator[np.ndarray]:
        with _writing():
            self._file.seek(0)
        while data := self._file.read(BATCH * WIDTH * 8):
            yield np.frombuffer(data, np.int64).reshape(-1, WIDTH)


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FaultpathError(
            f"cannot write a temporary file ({error.strerror})", tempfile.gettempdir(), "free space, or set TMPDIR"
        ) from None


class NsysExport:
    """Mappings come first in a trace and show last in a file: its records wait for them on disk."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.size = source.stat().st_size
        self.database = Database(source)
        self.enums = {table: self._enum(table, names) for table, names in ENUMS.items()}
        self.used = [index for index, table in enumerate(TABLES) if self._usable(table)]
        if not {TABLES[index].name for index in self.used} & {GPU_FAULTS, CPU_FAULTS, COPIES}:
            tables = self.database.tables
            has = ", ".join(tables[:5]) + (f" and {len(tables) - 5} more" if len(tables) > 5 else "") or "no table"
            raise FaultpathError(f"a database without events of unified memory (it has {has})", str(source), PROFILE)
        self.dropped = dict.fromkeys(DROPPED, 0)
        self.unknown = 0
        self.pids: set[int] = set()

    def _enum(self, table: str, names: dict[str, int]) -> dict[str, int]:
        """Numbers by name, from the export where it has them."""
        if not {"id", "name"} <= {*self.database.columns(table)}:
            return names
        chosen = ", ".join(f"'{name}'" for name in names)
        query = f"SELECT name, id FROM {table} WHERE name IN ({chosen}) AND typeof(id) = 'integer' LIMIT 64"
        return names | {str(name): int(number) for name, number in self.database.select(query)}

    def _usable(self, table: Table) -> bool:
        """Whether an export has records of a table.

        :raises FaultpathError: when it has the table, but not the columns
        """
        has = self.database.columns(table.name)
        if not has:
            return False
        lacking = [column for column in (*table.fields.values(), table.only[0]) if column and column not in has]
        if lacking:
            raise FaultpathError(
                f"table {table.name} has no column {lacking[0]} (it has {', '.join(has)})",
                str(self.source),
                "export it with Nsight Systems 2022.2 or later",
            )
        return bool(self.database.select(f"SELECT 1 FROM {table.name} WHERE {self._which(table)} LIMIT 1"))

    def _which(self, table: Table) -> str:
        column, enum = table.only
        return f"{column} IN ({', '.join(str(n) for n in sorted(self.enums[enum].values()))})" if column else "1"

    def rows(self, progress: Progress | None = None) -> Iterator[Columns]:
        counts = [f"SELECT count(*) FROM {TABLES[i].name} WHERE {self._which(TABLES[i])}" for i in self.used]
        total = sum(self.database.select(count)[0][0] for count in counts)
        done = 0

        def step(records: np.ndarray) -> None:
            nonlocal done
            done += len(records)
            if progress:
                progress(min(self.size * done // (2 * total), self.size), self.size)

        found = Extents(str(self.source))
        spools = []
        for index in self.used:
            spools.append(spool := Spool())
            for records in self._records(index):
                self._check(records)
                named = records[(records[:, ADDR] >= 0) & (records[:, OWNER] >= 0)]
                starts = named[:, ADDR] & -PAGE
                found.add(_pids(named), starts, (named[:, ADDR] + np.maximum(named[:, SIZE], 1) + PAGE - 1) & -PAGE)
                spool.add(records)
                step(records)
        by_time = [
            iter(spool) if spool.by_time else self._records(index, " ORDER BY start, rowid")
            for index, spool in zip(self.used, spools, strict=True)
        ]
        begun = False
        for records in _merged(by_time):
            columns = self._rows(records)
            if not begun and len(columns["time"]):
                yield found.rows(int(columns["time"][0]))
                begun = True
            yield columns
            step(records)

    def _records(self, index: int, order: str = "") -> Iterator[np.ndarray]:
        table = TABLES[index]
        chosen = ", ".join(f"ifnull({name}, -1)" if name in NULLABLE else name for name in table.fields.values())
        query = f"SELECT {chosen} FROM {table.name} WHERE {self._which(table)}{order}"
        for batch in self.database.records(query, len(table.fields)):
            records = np.zeros((len(batch), WIDTH), np.int64)
            records[:, list(table.fields)] = batch
            records[:, TABLE] = index
            yield records

    def _check(self, records: np.ndarray) -> None:
        addr, size = records[:, ADDR], records[:, SIZE]
        bad = (size < 0) | (addr >= ADDRESS_LIMIT) | (size > ADDRESS_LIMIT - addr)
        if bad.any():
            at = int(np.argmax(bad))
            table = TABLES[int(records[at, TABLE])].name
            raise FaultpathError(
                f"a range that is not in user space ({addr[at]:#x}, {size[at]} bytes)",
                f"{self.source}, {table}",
                EXPORT,
            )

    def _rows(self, records: np.ndarray) -> Columns:
        access = self.enums["ENUM_CUDA_UNIF_MEM_ACCESS_TYPE"]
        copy = self.enums["ENUM_CUDA_MEMCPY_OPER"]
        freed = self.enums["ENUM_CUDA_DEV_MEM_EVENT_OPER"]["CUDA_DEV_MEM_EVENT_OPR_DEALLOCATION"]
        table, code = records[:, TABLE], records[:, CODE]
        gpu, cpu, moved, memory = (table == index for index in range(len(TABLES)))
        from_device = moved & (code == copy["CUDA_MEMCPY_KIND_UVM_DTOH"])
        unmapped = memory & (code == freed)
        # A migration takes every page it touches; what is freed leaves a page that something else lies in.
        start, end = records[:, ADDR] & -PAGE, (records[:, ADDR] + records[:, SIZE] + PAGE - 1) & -PAGE
        start[unmapped] = (records[unmapped, ADDR] + PAGE - 1) & -PAGE
        end[unmapped] = (records[unmapped, ADDR] + records[unmapped, SIZE]) & -PAGE
        ranged = (from_device | unmapped) & (start < end)
        known = (records[:, ADDR] >= 0) & (records[:, OWNER] >= 0)
        for reason, chosen in (
            (NO_ADDRESS, ~known),
            (TO_DEVICE, known & moved & (code == copy["CUDA_MEMCPY_KIND_UVM_HTOD"])),
            (BETWEEN, known & moved & (code == copy["CUDA_MEMCPY_KIND_UVM_DTOD"])),
            (ALLOCATED, known & memory & ~unmapped),
            (NO_PAGE, known & (from_device | unmapped) & ~ranged),
        ):
            self.dropped[reason] += int(chosen.sum())
        kept = known & (gpu | cpu | ranged)
        gpu, cpu, ranged, unmapped = (mask[kept] for mask in (gpu, cpu, ranged, unmapped))
        code = code[kept]
        columns = {name: np.zeros(int(kept.sum()), dtype) for name, dtype in COLUMNS.items()}
        columns["time"][:] = np.maximum(records[kept, TIME], 0)  # what began before the session
        columns["pid"][:] = columns["tid"][:] = _pids(records[kept])
        columns["cpu"][:] = -1
        columns["op"][:] = np.select([gpu, cpu], [Op.ACCESS, Op.FAULT], Op.INVALIDATE)
        columns["addr"][:] = np.where(ranged, start[kept], records[kept, ADDR])
        columns["len"][:] = np.where(ranged, (end - start)[kept], 0)
        writes = [access["CUDA_UNIFIED_MEMORY_ACCESS_TYPE_WRITE"], access["CUDA_UNIFIED_MEMORY_ACCESS_TYPE_ATOMIC"]]
        raised = np.where(unmapped, Event.UNMAP, Event.MIGRATE)
        columns["arg"][:] = np.select([gpu, cpu], [np.isin(code, writes), np.full(len(code), PF_USER)], raised)
        columns["aux"][:] = np.select([unmapped, ranged], [Op.MUNMAP, Op.FAULT], 0)
        self.unknown += int((gpu & ~np.isin(code, list(access.values()))).sum())
        self.pids |= {int(pid) for pid in np.unique(columns["pid"])}
        return columns

    def meta(self) -> TraceMeta:
        system = self._named("TARGET_INFO_SYSTEM_ENV", "SoftwareReleaseVersion", "CpuArchitecture")
        return TraceMeta(
            format="nsys-sqlite",
            source=self.source.name,
            kernel=system.get("SoftwareReleaseVersion", ""),
            arch=system.get("CpuArchitecture", ""),
            page_size=PAGE,
            clock="session",
            invalidations_from="device",
            missing=self._missing(),
            dropped={reason: count for reason, count in self.dropped.items() if count},
            processes=self._processes(),
        )

    def _named(self, table: str, *names: str) -> dict[str, str]:
        """Values by name of a table of both."""
        if not {"name", "value"} <= {*self.database.columns(table)}:
            return {}
        chosen = ", ".join(f"'{name}'" for name in names)
        query = f"SELECT name, substr(value, 1, {NAME}) FROM {table} WHERE name IN ({chosen}) AND value IS NOT NULL"
        return {str(name): str(value) for name, value in self.database.select(query)}

    def _processes(self) -> list[dict[str, Any]]:
        names: dict[int, str] = {}
        if {"pid", "name"} <= {*self.database.columns("PROCESSES")}:
            query = f"SELECT pid, substr(name, 1, {NAME}) FROM PROCESSES WHERE name IS NOT NULL ORDER BY rowid"
            names = {pid: str(name) for pid, name in self.database.select(query) if pid in self.pids}
        return [{"pid": pid, "parent": -1, "comm": names.get(pid, "")} for pid in sorted(self.pids)]

    def _missing(self) -> list[str]:
        used = {TABLES[index].name for index in self.used}
        said = [extents.SAID, f"The page size: taken for {PAGE} bytes."]
        if GPU_FAULTS in used:
            said += self._said_of_gpu_faults()
        else:
            said.append("Device accesses: the export has no page fault of a GPU (--cuda-um-gpu-page-faults=true).")
        if CPU_FAULTS in used:
            said.append("Whether a page fault of the processor was a write: taken for a read.")
        else:
            said.append("Page faults of the processor: the export has none (--cuda-um-cpu-page-faults=true).")
        if COPIES not in used:
            said.append("Migrations: the export has none of unified memory.")
        if MEMORY in used:
            said.append(
                "What freeing managed memory raises: taken for one UNMAP of the whole pages of each deallocation."
            )
        else:
            said.append("Allocations of managed memory: the export has none (--cuda-memory-usage=true).")
        if "OSRT_API" in self.database.tables:
            said.append("Memory calls: OSRT_API has them without their ranges.")
        return said

    def _said_of_gpu_faults(self) -> list[str]:
        said = ["Device accesses that did not fault: a fault may map the pages around it, too."]
        if self.unknown:
            said.append(f"The kind of {self.unknown} device accesses: taken for reads.")
        columns = self.database.columns(GPU_FAULTS)
        if "numberOfPageFaults" in columns:
            query = f"SELECT count(*), total(numberOfPageFaults) FROM {GPU_FAULTS}"
            records, faults = self.database.select(query)[0]
            if faults > records:
                said.append(f"Repeated page faults: {records} records stand for {int(faults)} faults of a GPU.")
        if "deviceId" in columns:
            devices = self.database.select(f"SELECT count(DISTINCT deviceId) FROM {GPU_FAULTS}")[0][0]
            if devices > 1:
                said.append(f"Which device: {devices} devices are taken for one.")
        return said


def _pids(records: np.ndarray) -> np.ndarray:
    """A serialised global id has the process in bits 24 to 47 (user guide, "Serialized process and thread ids")."""
    return records[:, OWNER] >> 24 & 0xFFFFFF


def _merged(tables: list[Iterator[np.ndarray]]) -> Iterator[np.ndarray]:
    """Records of several tables by time, each table by time already; at equal times the earlier table first."""
    pieces = [np.zeros((0, WIDTH), np.int64) for _ in tables]
    going = list(range(len(tables)))
    while going or any(len(piece) for piece in pieces):
        for index in [i for i in going if not len(pieces[i])]:
            piece = next(tables[index], None)
            if piece is None:
                going.remove(index)
            else:
                pieces[index] = piece
        # Up to here no table has anything that was not read yet.
        limit = min((int(pieces[index][-1, TIME]) for index in going), default=np.iinfo(np.int64).max)
        cuts = [int(np.searchsorted(piece[:, TIME], limit, "right")) for piece in pieces]
        batch = np.concatenate([piece[:cut] for piece, cut in zip(pieces, cuts, strict=True)])
        pieces = [piece[cut:] for piece, cut in zip(pieces, cuts, strict=True)]
        if len(batch):
            yield batch[np.argsort(batch[:, TIME], kind="stable")]
