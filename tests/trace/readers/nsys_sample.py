"""Constructed Nsight Systems exports: no recording of a GPU, for want of one, but the tables that real ones have.

The tables are those that matter for unified memory, with the columns of

* ``2026.4``: the user guide's "SQLite Schema Reference" (schema 3.28.1);
* ``2024.5``: an export by Nsight Systems 2024.5.1 (schema 3.13.2), from the test data of hpcgroup/pipit;
* ``2023.4``: an export by Nsight Systems 2023.4.4 (schema 3.7.2) of a program without CUDA, with all tables (made
  anew by ``recorded`` where nsys is installed);
* ``2022.2``: an export by Nsight Systems 2022.2.1 (schema 2.9.1), likewise: without enum tables, and with the older
  name of the table of meta data.

Numbers and names in enum tables, the form of global ids and the rows of TARGET_INFO_SYSTEM_ENV are those of the second.
The events are invented: see ``STORY`` and ``storm``.
"""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

VERSIONS = ("2026.4", "2024.5", "2023.4", "2022.2")
PID, OTHER_PID = 1701896, 4242
HEAP = 0x7F4A_0000_0000
PAGE = 4096

FAULT_COLUMNS = """start INTEGER NOT NULL, end INTEGER NOT NULL, globalPid INTEGER NOT NULL, deviceId INTEGER NOT NULL,
    address INTEGER NOT NULL, numberOfPageFaults INTEGER NOT NULL, faultAccessType INTEGER NOT NULL"""
CPU_COLUMNS = """start INTEGER NOT NULL, globalPid INTEGER NOT NULL, address INTEGER NOT NULL, originalFaultPc INTEGER,
    CpuInstruction INTEGER NOT NULL, module INTEGER NOT NULL, unresolvedFaultPc INTEGER"""
COPY_COLUMNS = """start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL, contextId INTEGER NOT NULL,
    {green} streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER, bytes INTEGER NOT NULL,
    copyKind INTEGER NOT NULL, deprecatedSrcId INTEGER, srcKind INTEGER, dstKind INTEGER, srcDeviceId INTEGER,
    srcContextId INTEGER, dstDeviceId INTEGER, dstContextId INTEGER, migrationCause INTEGER, graphNodeId INTEGER,
    virtualAddress INTEGER"""
MEMORY_COLUMNS = """start INTEGER NOT NULL, globalPid INTEGER NOT NULL, deviceId INTEGER NOT NULL,
    contextId INTEGER NOT NULL, address INTEGER NOT NULL, pc INTEGER NOT NULL, bytes INTEGER NOT NULL,
    memKind INTEGER NOT NULL, memoryOperationType INTEGER NOT NULL, name TEXT, correlationId INTEGER"""
GREEN = "greenContextId INTEGER,"
POOLS = """, localMemoryPoolAddress INTEGER, localMemoryPoolReleaseThreshold INTEGER, localMemoryPoolSize INTEGER,
    localMemoryPoolUtilizedSize INTEGER, importedMemoryPoolAddress INTEGER, importedMemoryPoolProcessId INTEGER"""
SCHEMAS = {
    "2026.4": {
        "CUDA_UM_GPU_PAGE_FAULT_EVENTS": FAULT_COLUMNS,
        "CUDA_UM_CPU_PAGE_FAULT_EVENTS": CPU_COLUMNS + ", sourceFile INTEGER, sourceLine INTEGER",
        "CUPTI_ACTIVITY_KIND_MEMCPY": COPY_COLUMNS.format(green=GREEN) + ", copyCount INTEGER",
        "CUDA_GPU_MEMORY_USAGE_EVENTS": MEMORY_COLUMNS + ", streamId INTEGER" + POOLS,
    },
    "2024.5": {
        "CUDA_UM_GPU_PAGE_FAULT_EVENTS": FAULT_COLUMNS,
        "CUDA_UM_CPU_PAGE_FAULT_EVENTS": CPU_COLUMNS,
        "CUPTI_ACTIVITY_KIND_MEMCPY": COPY_COLUMNS.format(green=GREEN),
        "CUDA_GPU_MEMORY_USAGE_EVENTS": MEMORY_COLUMNS,
    },
    "2023.4": {
        "CUDA_UM_GPU_PAGE_FAULT_EVENTS": FAULT_COLUMNS,
        "CUDA_UM_CPU_PAGE_FAULT_EVENTS": CPU_COLUMNS,
        "CUPTI_ACTIVITY_KIND_MEMCPY": COPY_COLUMNS.format(green=GREEN),
        "CUDA_GPU_MEMORY_USAGE_EVENTS": MEMORY_COLUMNS + POOLS,
    },
    "2022.2": {
        "CUDA_UM_GPU_PAGE_FAULT_EVENTS": FAULT_COLUMNS,
        "CUDA_UM_CPU_PAGE_FAULT_EVENTS": CPU_COLUMNS,
        "CUPTI_ACTIVITY_KIND_MEMCPY": COPY_COLUMNS.format(green=""),
        "CUDA_GPU_MEMORY_USAGE_EVENTS": MEMORY_COLUMNS,
    },
}
OTHERS = """
CREATE TABLE StringIds (id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE PROCESSES (globalPid INTEGER, pid INTEGER, name TEXT);
CREATE TABLE TARGET_INFO_SYSTEM_ENV (globalVid INTEGER, devStateName TEXT NOT NULL, name TEXT NOT NULL,
    nameEnum INTEGER NOT NULL, value TEXT NOT NULL);
CREATE TABLE OSRT_API (start INTEGER NOT NULL, end INTEGER NOT NULL, eventClass INTEGER NOT NULL, globalTid INTEGER,
    correlationId INTEGER, nameId INTEGER NOT NULL, returnValue INTEGER NOT NULL, nestingLevel INTEGER,
    callchainId INTEGER NOT NULL);
"""
ENUMS = {
    "ENUM_CUDA_UNIF_MEM_ACCESS_TYPE": [
        (0, "CUDA_UNIFIED_MEMORY_ACCESS_TYPE_UNKNOWN", "Unknown"),
        (1, "CUDA_UNIFIED_MEMORY_ACCESS_TYPE_READ", "Read"),
        (2, "CUDA_UNIFIED_MEMORY_ACCESS_TYPE_WRITE", "Write"),
        (3, "CUDA_UNIFIED_MEMORY_ACCESS_TYPE_ATOMIC", "Atomic"),
        (4, "CUDA_UNIFIED_MEMORY_ACCESS_TYPE_PREFETCH", "Prefetch"),
    ],
    "ENUM_CUDA_MEMCPY_OPER": [
        (1, "CUDA_MEMCPY_KIND_HTOD", "Host-to-Device"),
        (2, "CUDA_MEMCPY_KIND_DTOH", "Device-to-Host"),
        (8, "CUDA_MEMCPY_KIND_DTOD", "Device-to-Device"),
        (11, "CUDA_MEMCPY_KIND_UVM_HTOD", "Unified Host-to-Device"),
        (12, "CUDA_MEMCPY_KIND_UVM_DTOH", "Unified Device-to-Host"),
        (13, "CUDA_MEMCPY_KIND_UVM_DTOD", "Unified Device-to-Device"),
    ],
    "ENUM_CUDA_MEM_KIND": [
        (0, "CUDA_MEMOPR_MEMORY_KIND_PAGEABLE", "Pageable"),
        (2, "CUDA_MEMOPR_MEMORY_KIND_DEVICE", "Device"),
        (4, "CUDA_MEMOPR_MEMORY_KIND_MANAGED", "Managed"),
        (6, "CUDA_MEMOPR_MEMORY_KIND_MANAGED_STATIC", "Managed Static"),
    ],
    "ENUM_CUDA_DEV_MEM_EVENT_OPER": [
        (0, "CUDA_DEV_MEM_EVENT_OPR_ALLOCATION", "Allocation"),
        (1, "CUDA_DEV_MEM_EVENT_OPR_DEALLOCATION", "Deallocation"),
    ],
}
HTOD, DTOH, UVM_HTOD, UVM_DTOH, UVM_DTOD = 1, 2, 11, 12, 13
UNKNOWN, READ, WRITE, ATOMIC, PREFETCH = range(5)
DEVICE, MANAGED = 2, 4
ALLOCATED, FREED = 0, 1

#: A program that fills managed memory, lets a GPU read and write it, reads the result, and frees it.
STORY = (
    ("memory", 1000, HEAP, 8 << 20, MANAGED, ALLOCATED),
    ("memory", 1100, HEAP + (1 << 30), 1 << 20, DEVICE, ALLOCATED),  # cudaMalloc: no matter
    ("cpu", 2000, HEAP),
    ("cpu", 2500, HEAP + 5 * PAGE + 123),
    ("copy", 3000, HEAP + (1 << 30), 4096, HTOD),  # cudaMemcpy: no matter
    ("gpu", 4000, HEAP, 3, READ),
    ("copy", 4200, HEAP, 65536, UVM_HTOD),
    ("gpu", 5000, HEAP + (2 << 20), 1, WRITE),
    ("gpu", 5000, HEAP + (3 << 20), 2, ATOMIC),
    ("gpu", 6000, HEAP + (4 << 20), 1, PREFETCH),
    ("gpu", 6500, HEAP + (5 << 20), 1, UNKNOWN),
    ("cpu", 7000, HEAP + (2 << 20)),
    ("copy", 7100, HEAP + (2 << 20), 1 << 20, UVM_DTOH),
    ("copy", 7900, HEAP, 65536, UVM_DTOD),
    ("gpu", 8000, HEAP + (2 << 20), 1, READ),
    ("memory", 9000, HEAP, 8 << 20, MANAGED, FREED),
)


def global_id(pid: int) -> int:
    """Of a process, as exports have it."""
    return 1 << 48 | pid << 24


def record(what: str, time: int, address: int, *more: int, pid: int = PID) -> tuple[str, dict[str, int]]:
    """A table and the columns of a row that mean something, from an entry as in ``STORY``."""
    row = {"start": time, "globalPid": global_id(pid)}
    if what == "cpu":
        return "CUDA_UM_CPU_PAGE_FAULT_EVENTS", row | {"address": address, "CpuInstruction": 1, "module": 1}
    if what == "gpu":
        count, access = more
        row |= {"end": time + 900, "deviceId": 0, "address": address, "numberOfPageFaults": count}
        return "CUDA_UM_GPU_PAGE_FAULT_EVENTS", row | {"faultAccessType": access}
    row |= {"deviceId": 0, "contextId": 1, "bytes": more[0]}
    if what == "copy":
        row |= {"end": time + 500, "streamId": 7, "copyKind": more[1], "virtualAddress": address}
        return "CUPTI_ACTIVITY_KIND_MEMCPY", row
    row |= {"address": address, "pc": 0, "memKind": more[1], "memoryOperationType": more[2]}
    return "CUDA_GPU_MEMORY_USAGE_EVENTS", row


def make(
    path: Path, version: str = VERSIONS[0], story: Iterable[tuple] = STORY, lazy: bool = True, pid: int = PID
) -> Path:
    """Write an export; with ``lazy`` only the tables that have rows, as nsys does by default since 3.0."""
    path.unlink(missing_ok=True)
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode = OFF")
    database.executescript(OTHERS)
    rows = [record(*entry, pid=pid) for entry in story]
    used = {table for table, _ in rows}
    for table, columns in SCHEMAS[version].items():
        if table in used or not lazy:
            database.execute(f"CREATE TABLE {table} ({columns})")
    insert(database, rows)
    if version != "2022.2":
        for table, values in ENUMS.items():
            database.execute(f"CREATE TABLE {table} (id INTEGER NOT NULL PRIMARY KEY, name TEXT, label TEXT)")
            database.executemany(f"INSERT INTO {table} VALUES (?, ?, ?)", values)
    database.executemany(
        "INSERT INTO PROCESSES VALUES (?, ?, ?)", [(global_id(p), p, n) for p, n in ((1, "systemd"), (pid, "./saxpy"))]
    )
    database.executemany(
        "INSERT INTO TARGET_INFO_SYSTEM_ENV VALUES (281474976710656, 'Local (CLI)', ?, ?, ?)",
        [
            ("CpuArchitecture", 3, "x86_64"),
            ("SoftwareReleaseVersion", 618, "5.14.21-150400.24.46_12.0.73-cray_shasta_c"),
        ],
    )
    meta = "EXPORT_META_DATA" if version == "2022.2" else "META_DATA_EXPORT"
    database.execute(f"CREATE TABLE {meta} (name TEXT NOT NULL, value TEXT)")
    database.execute(f"INSERT INTO {meta} VALUES ('EXPORT_PRODUCT_NAME', 'NVIDIA Nsight Systems')")
    database.commit()
    database.close()
    return path


def insert(database: sqlite3.Connection, rows: Iterable[tuple[str, dict[str, int]]]) -> None:
    for table, row in rows:
        marks = ", ".join(f":{name}" for name in row)
        database.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", row)


def recorded(folder: Path, story: Iterable[tuple] = STORY) -> tuple[Path, int]:
    """An export by the installed nsys of a program without CUDA, all tables, with the events of ``story``; its pid."""
    report, path = folder / "recorded.nsys-rep", folder / "recorded.sqlite"
    quiet = ["--trace=none", "--sample=none", "--cpuctxsw=none", "--force-overwrite=true"]
    export = ["--type=sqlite", "--lazy=false", "--quiet=true", "--force-overwrite=true"]
    for command in (
        ["nsys", "profile", *quiet, f"--output={report}", "true"],
        ["nsys", "export", *export, f"--output={path}", str(report)],
    ):
        subprocess.run(command, check=True, capture_output=True)
    database = sqlite3.connect(path)
    ((pid,),) = database.execute("SELECT pid FROM PROCESSES WHERE name = 'true'")
    insert(database, (record(*entry, pid=pid) for entry in story))
    database.commit()
    database.close()
    return path, pid


def storm(events: int, seed: int = 1) -> Iterable[tuple]:
    """Some two GPU faults for each migration and CPU fault, over 4 GiB of managed memory."""
    draw = random.Random(seed)
    time = 1_000_000
    yield "memory", 1, HEAP, 4 << 30, MANAGED, ALLOCATED
    for number in range(events - 1):
        time += draw.randrange(100, 3000)
        block, page = HEAP + draw.randrange(2048) * (2 << 20), draw.randrange(512) * PAGE
        kind = number % 6
        if kind < 4:
            yield "gpu", time, block + page, draw.randrange(1, 9), draw.choice((READ, WRITE))
        elif kind == 4:
            yield "cpu", time, block + page
        else:
            yield "copy", time, block, draw.choice((16, 128, 512)) * PAGE, draw.choice((UVM_HTOD, UVM_DTOH))


if __name__ == "__main__":
    make(Path(sys.argv[1]), story=storm(int(sys.argv[2])) if len(sys.argv) > 2 else STORY)
