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

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from faultpath.errors import FaultpathError
from faultpath.trace.formats import Progress
from faultpath.trace.readers import extents
from faultpath.trace.readers import nsys_columns as nc
from faultpath.trace.readers.extents import Extents
from faultpath.trace.readers.nsys_columns import ADDR, CODE, OWNER, PAGE, SIZE, TIME
from faultpath.trace.readers.sqlite_file import Ahead, Database, Scan, one_of
from faultpath.trace.schema import COLUMNS, Columns, TraceMeta

BATCH = 1 << 15  # records of a table at a time
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

#: Why a record gives no row, as ``make_rows`` counts them.
DROPPED = (
    "record without an address or a process",
    "migration to a device",
    "migration between devices",
    "allocation of managed memory",
    "migration or deallocation of no whole page",
)


@dataclass(frozen=True)
class Table:
    """What is read of a table.

    :ivar fields: its column for each column of a record that it fills
    :ivar also: likewise, but of columns that need not be there
    :ivar only: a column, and the enum table whose values in ENUMS it must have
    """

    name: str
    fields: dict[int, str]
    only: tuple[str, str] = ("", "")
    also: dict[int, str] = field(default_factory=dict)


TABLES = (
    Table(
        GPU_FAULTS,
        {TIME: "start", OWNER: "globalPid", ADDR: "address", CODE: "faultAccessType"},
        also={nc.FAULTS: "numberOfPageFaults", nc.DEVICE: "deviceId"},
    ),
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


class NsysExport:
    """Mappings come first in a trace and show last in a file: its records wait for them on disk."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.size = source.stat().st_size
        self.database = Database(source, EXPORT)
        self.enums = {table: self._enum(table, names) for table, names in ENUMS.items()}
        self.used = [index for index, table in enumerate(TABLES) if self._usable(table)]
        if not {TABLES[index].name for index in self.used} & {GPU_FAULTS, CPU_FAULTS, COPIES}:
            tables = self.database.tables
            has = ", ".join(tables[:5]) + (f" and {len(tables) - 5} more" if len(tables) > 5 else "") or "no table"
            raise FaultpathError(f"a database without events of unified memory (it has {has})", str(source), PROFILE)
        self._counts = np.zeros(nc.COUNTS, np.int64)
        self._surveys: dict[int, np.ndarray] = {}
        self._seen = np.zeros(1 << nc.PID_BITS, np.bool_)  # zero pages until touched

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
        only = self._only(table)
        condition = one_of(*only) if only else "1"
        return bool(self.database.select(f"SELECT 1 FROM {table.name} WHERE {condition} LIMIT 1"))

    def _only(self, table: Table) -> tuple[str, list[int]] | None:
        """The column that has one of some values in the records that are read, where not all are."""
        column, enum = table.only
        return (column, sorted(self.enums[enum].values())) if column else None

    def _scan(self, index: int, fields: dict[int, str], by: str = "") -> Scan:
        table = TABLES[index]
        return Scan(self.database, table.name, fields, NULLABLE, self._only(table), by)

    def rows(self, progress: Progress | None = None) -> Iterator[Columns]:
        # Records are numbered from 1, without holes, as they come.
        total = sum(self.database.select(f"SELECT max(1, max(rowid)) FROM {TABLES[i].name}")[0][0] for i in self.used)
        done = 0

        def step(scans: list[Scan]) -> None:
            if progress:
                over = done + sum(scan.done for scan in scans)
                progress(min(self.size * over // (2 * total), self.size), self.size)

        found = Extents(str(self.source))
        records = np.zeros((len(self.used), 2, BATCH, nc.WIDTH), np.int64)
        scans = []
        with ThreadPoolExecutor(1) as worker:
            for place, index in enumerate(self.used):
                table = TABLES[index]
                has = self.database.columns(table.name)
                also = {to: name for to, name in table.also.items() if name in has}
                scan = self._scan(index, {to: name for to, name in table.fields.items() if to != CODE} | also)
                for _ in self._surveyed(index, Ahead(scan, records[place], worker), records[place], found):
                    step([scan])
                done += scan.done
                scans.append(self._scan(index, table.fields, by="" if self._surveys[index][nc.BY_TIME] else "start"))
            sources = [Ahead(scan, halves, worker) for scan, halves in zip(scans, records, strict=True)]
            begun = False
            for columns in self._merged(sources, records):
                if not begun:
                    yield found.rows(int(columns["time"][0]))
                    begun = True
                yield columns
                step(scans)
        if progress:
            progress(self.size, self.size)

    def _surveyed(self, index: int, source: Ahead, records: np.ndarray, found: Extents) -> Iterator[None]:
        """What a table names, into ``found``, batch by batch."""
        state = self._surveys[index] = np.array([np.iinfo(np.int64).min, 1, 0, 0, 0, 0], np.int64)
        pids, starts, ends = np.empty((3, BATCH), np.int64)
        while True:
            half, count = source.fill()
            if not count:
                return
            named = nc.survey(records[half], count, state, pids, starts, ends)
            if named < 0:
                bad = records[half, state[nc.BAD]]
                raise FaultpathError(
                    f"a range that is not in user space ({bad[ADDR]:#x}, {bad[SIZE]} bytes)",
                    f"{self.source}, {TABLES[index].name}",
                    EXPORT,
                )
            found.add(pids[:named], starts[:named], ends[:named])
            yield

    def _merged(self, sources: list[Ahead], records: np.ndarray) -> Iterator[Columns]:
        """Rows of all tables by time."""
        tables = np.array(self.used)
        half, at, count = np.zeros((3, len(sources)), np.int64)
        unfinished = np.ones(len(sources), np.bool_)
        codes = self._codes()
        while unfinished.any() or (at < count).any():
            for place in np.flatnonzero(unfinished & (at == count)):
                half[place], count[place] = sources[place].fill()
                at[place] = 0
                unfinished[place] = count[place] > 0
            columns = {name: np.empty(BATCH, dtype) for name, dtype in COLUMNS.items()}
            rows = nc.make_rows(
                tables, records, half, at, count, unfinished, codes, self._counts, self._seen, *columns.values()
            )
            if rows:
                yield {name: column[:rows] for name, column in columns.items()}

    def _codes(self) -> np.ndarray:
        """Numbers by the names of ``nsys_columns``: READ to FREED."""
        access, copy = self.enums["ENUM_CUDA_UNIF_MEM_ACCESS_TYPE"], self.enums["ENUM_CUDA_MEMCPY_OPER"]
        codes = np.empty(nc.CODES, np.int64)
        for code, number in {
            nc.READ: access["CUDA_UNIFIED_MEMORY_ACCESS_TYPE_READ"],
            nc.WRITE: access["CUDA_UNIFIED_MEMORY_ACCESS_TYPE_WRITE"],
            nc.ATOMIC: access["CUDA_UNIFIED_MEMORY_ACCESS_TYPE_ATOMIC"],
            nc.PREFETCH: access["CUDA_UNIFIED_MEMORY_ACCESS_TYPE_PREFETCH"],
            nc.TO_DEVICE: copy["CUDA_MEMCPY_KIND_UVM_HTOD"],
            nc.FROM_DEVICE: copy["CUDA_MEMCPY_KIND_UVM_DTOH"],
            nc.BETWEEN: copy["CUDA_MEMCPY_KIND_UVM_DTOD"],
            nc.FREED: self.enums["ENUM_CUDA_DEV_MEM_EVENT_OPER"]["CUDA_DEV_MEM_EVENT_OPR_DEALLOCATION"],
        }.items():
            codes[code] = number
        return codes

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
            dropped={reason: int(count) for reason, count in zip(DROPPED, self._counts, strict=False) if count},
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
            names = {pid: str(name) for pid, name in self.database.select(query)}
        return [{"pid": pid, "parent": -1, "comm": names.get(pid, "")} for pid in np.flatnonzero(self._seen).tolist()]

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
        if unknown := self._counts[nc.UNKNOWN]:
            said.append(f"The kind of {unknown} device accesses: taken for reads.")
        survey = self._surveys[nc.GPU]
        records, faults, devices = (
            survey[nc.RECORDS],
            survey[nc.SUM],
            (int(survey[nc.DEVICES]) & (1 << 64) - 1).bit_count(),
        )
        if faults > records:
            said.append(f"Repeated page faults: {records} records stand for {faults} faults of a GPU.")
        if devices > 1:
            said.append(f"Which device: {devices} devices are taken for one.")
        return said
