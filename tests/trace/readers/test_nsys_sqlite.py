"""Nsight Systems exports: what each record becomes, against plain Python on the same tables, and against damage."""

from __future__ import annotations

import hashlib
import platform
import random
import shutil
import sqlite3
from pathlib import Path

import fuzzing
import nsys_sample as sample
import numpy as np
import pytest
from nsys_sample import HEAP, PAGE

from faultpath.compare import compare
from faultpath.errors import FaultpathError
from faultpath.trace.formats import recognise
from faultpath.trace.importing import import_recording
from faultpath.trace.ops import Event, Op
from faultpath.trace.readers import nsys_sqlite
from faultpath.trace.readers.nsys_sqlite import NsysExport
from faultpath.trace.schema import COLUMNS, Columns, TraceMeta, check_rows, open_trace

MIB = 1 << 20
GPU, CPU, COPIES, MEMORY = (table.name for table in nsys_sqlite.TABLES)


def imported(path: Path) -> tuple[Columns, TraceMeta]:
    """A trace's rows, written and read again."""
    output = path.with_suffix(".trace")
    meta = import_recording(path, output)
    pieces = list(open_trace(output).batches())
    return {n: np.concatenate([p[n] for p in pieces]) for n in COLUMNS}, meta


def story(columns: Columns) -> list[tuple]:
    """(time, op, address from the heap, bytes, arg, aux) of each row."""
    return [
        (int(t), Op(o).name, int(a) - HEAP, int(n), int(g), int(x))
        for t, o, a, n, g, x in zip(*(columns[n] for n in ("time", "op", "addr", "len", "arg", "aux")), strict=True)
    ]


TOLD = [
    (2000, "VMA", 0, 8 * MIB, 3, 0x22),
    (2000, "FAULT", 0, 0, 4, 0),
    (2500, "FAULT", 5 * PAGE + 123, 0, 4, 0),
    (4000, "ACCESS", 0, 0, 0, 0),
    (5000, "ACCESS", 2 * MIB, 0, 1, 0),
    (5000, "ACCESS", 3 * MIB, 0, 1, 0),
    (6000, "ACCESS", 4 * MIB, 0, 0, 0),
    (6500, "ACCESS", 5 * MIB, 0, 0, 0),
    (7000, "FAULT", 2 * MIB, 0, 4, 0),
    (7100, "INVALIDATE", 2 * MIB, MIB, Event.MIGRATE, Op.FAULT),
    (8000, "ACCESS", 2 * MIB, 0, 0, 0),
    (9000, "INVALIDATE", 0, 8 * MIB, Event.UNMAP, Op.MUNMAP),
]


@pytest.mark.parametrize("lazy", [True, False], ids=["lazy", "every table"])
@pytest.mark.parametrize("version", sample.VERSIONS)
def test_the_story_of_managed_memory(tmp_path: Path, version: str, lazy: bool) -> None:
    columns, meta = imported(sample.make(tmp_path / "in", version, lazy=lazy))
    assert story(columns) == TOLD
    assert {*columns["pid"]} == {*columns["tid"]} == {sample.PID}
    assert {*columns["cpu"]} == {-1}
    assert meta.dropped == {
        "allocation of managed memory": 1,
        "migration between devices": 1,
        "migration to a device": 1,
    }
    assert (meta.format, meta.kernel, meta.arch, meta.clock, meta.invalidations_from) == (
        "nsys-sqlite",
        "5.14.21-150400.24.46_12.0.73-cray_shasta_c",
        "x86_64",
        "session",
        "device",
    )
    assert meta.processes == [{"pid": sample.PID, "parent": -1, "comm": "./saxpy"}]
    assert "Repeated page faults: 6 records stand for 9 faults of a GPU." in meta.missing
    assert "The kind of 1 device accesses: taken for reads." in meta.missing


def test_the_story_in_an_export_of_nsys_itself(tmp_path: Path) -> None:
    if not shutil.which("nsys"):
        pytest.skip("nsys is not installed")
    path, pid = sample.recorded(tmp_path)
    columns, meta = imported(path)
    assert story(columns) == TOLD
    assert meta.processes == [{"pid": pid, "parent": -1, "comm": "true"}]
    assert (meta.kernel, meta.arch) == (platform.release(), platform.machine())


def test_what_an_export_lacks_is_said(tmp_path: Path) -> None:
    _, meta = imported(sample.make(tmp_path / "in", story=[("cpu", 1, HEAP)]))
    said = " ".join(meta.missing)
    for words in ("no page fault of a GPU (--cuda-um-gpu", "Migrations: the export has none", "(--cuda-memory-usage"):
        assert words in said
    _, meta = imported(sample.make(tmp_path / "in", story=[("gpu", 1, HEAP, 1, sample.READ)]))
    assert "(--cuda-um-cpu-page-faults=true)" in " ".join(meta.missing)
    assert "Repeated" not in " ".join(meta.missing)


def test_several_devices_are_said_to_be_one(tmp_path: Path) -> None:
    path = sample.make(tmp_path / "in")
    change(path, f"UPDATE {GPU} SET deviceId = 1 WHERE start = 5000")
    assert "Which device: 2 devices are taken for one." in imported(path)[1].missing


def test_enum_tables_of_the_file_decide(tmp_path: Path) -> None:
    """Numbers of names, as the export has them: here a write is 9, and a migration from the device 21."""
    path = sample.make(tmp_path / "in")
    change(
        path,
        "UPDATE ENUM_CUDA_UNIF_MEM_ACCESS_TYPE SET id = 9 WHERE name LIKE '%WRITE'",
        f"UPDATE {GPU} SET faultAccessType = 9 WHERE faultAccessType = 2",
        "UPDATE ENUM_CUDA_MEMCPY_OPER SET id = 21 WHERE name LIKE '%UVM_DTOH'",
        f"UPDATE {COPIES} SET copyKind = 21 WHERE copyKind = 12",
    )
    assert story(imported(path)[0]) == story(imported(sample.make(tmp_path / "plain"))[0])


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    """Tables whose columns are in reverse order, with more between them, give the same."""
    path = sample.make(tmp_path / "in")
    expected = story(imported(path)[0])
    with sqlite3.connect(path) as database:
        for table in (GPU, CPU, COPIES, MEMORY):
            names = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            database.execute(f"ALTER TABLE {table} RENAME TO old")
            reversed_ = ", ".join(f"more{i} TEXT DEFAULT 'x', {name} INTEGER" for i, name in enumerate(names[::-1]))
            database.execute(f"CREATE TABLE {table} ({reversed_})")
            every = ", ".join(names)
            database.execute(f"INSERT INTO {table} ({every}) SELECT {every} FROM old")
            database.execute("DROP TABLE old")
    assert story(imported(path)[0]) == expected


def test_only_whole_pages_are_freed(tmp_path: Path) -> None:
    """Small allocations share pages: what is freed leaves those that something else may lie in."""
    managed, freed = sample.MANAGED, sample.FREED
    frees = [(HEAP + 100, 50), (HEAP + 100, 3 * PAGE), (HEAP, 2 * PAGE), (HEAP + PAGE, PAGE + 1)]
    entries = [("memory", i, a, n, managed, freed) for i, (a, n) in enumerate(frees)] + [("cpu", 9, HEAP)]
    columns, meta = imported(sample.make(tmp_path / "in", story=entries))
    assert [row[2:4] for row in story(columns) if row[1] == "INVALIDATE"] == [
        (PAGE, 2 * PAGE),
        (0, 2 * PAGE),
        (PAGE, PAGE),
    ]
    assert meta.dropped == {"migration or deallocation of no whole page": 1}


def test_a_migration_takes_every_page_it_touches(tmp_path: Path) -> None:
    entries = [("copy", 5, HEAP + PAGE + 1, PAGE, sample.UVM_DTOH), ("copy", 6, HEAP, 0, sample.UVM_DTOH)]
    columns, meta = imported(sample.make(tmp_path / "in", story=entries))
    assert story(columns)[-1] == (5, "INVALIDATE", PAGE, 2 * PAGE, Event.MIGRATE, Op.FAULT)
    assert meta.dropped == {"migration or deallocation of no whole page": 1}


def test_records_without_an_address_are_counted(tmp_path: Path) -> None:
    path = sample.make(tmp_path / "in")
    change(
        path, f"UPDATE {COPIES} SET virtualAddress = NULL WHERE start = 7100", f"UPDATE {COPIES} SET globalPid = NULL"
    )
    columns, meta = imported(path)
    assert int((columns["op"] == Op.INVALIDATE).sum()) == 1
    assert meta.dropped["record without an address or a process"] == 3


def test_what_began_before_the_session_is_stamped_with_its_start(tmp_path: Path) -> None:
    columns, _ = imported(sample.make(tmp_path / "in", story=[("cpu", -5, HEAP), ("cpu", 5, HEAP)]))
    assert columns["time"].tolist() == [0, 0, 5]


def test_processes_have_mappings_of_their_own(tmp_path: Path) -> None:
    path = sample.make(tmp_path / "in", story=[("cpu", 5, HEAP), ("cpu", 6, HEAP + 4 * MIB)])
    change(path, f"UPDATE {CPU} SET globalPid = {sample.global_id(sample.OTHER_PID)} WHERE start = 6")
    columns, _ = imported(path)
    vma = columns["op"] == Op.VMA
    assert [*zip(columns["pid"][vma], columns["addr"][vma] - HEAP, columns["len"][vma], strict=True)] == [
        (sample.OTHER_PID, 4 * MIB, PAGE),
        (sample.PID, 0, PAGE),
    ]


def oracle(path: Path) -> tuple[list[tuple], dict[int, set[int]]]:
    """Rows but VMAs, restated row by row on dictionaries, and the pages that are named, by process."""
    database = sqlite3.connect(path)
    database.row_factory = sqlite3.Row
    rows, pages = [], {}
    for table in (GPU, CPU, COPIES, MEMORY):
        for r in database.execute(f"SELECT * FROM {table}"):
            pid = (r["globalPid"] // (1 << 24)) % (1 << 24)
            if table == COPIES:
                if r["copyKind"] < 11:
                    continue
                first, last = r["virtualAddress"] // PAGE, (r["virtualAddress"] + r["bytes"] - 1) // PAGE
                if r["copyKind"] == 12:
                    size = (last - first + 1) * PAGE
                    rows.append((r["start"], pid, Op.INVALIDATE, first * PAGE, size, Event.MIGRATE, Op.FAULT))
            elif table == MEMORY:
                if r["memKind"] not in (4, 6):
                    continue
                first, last = r["address"] // PAGE, (r["address"] + r["bytes"] - 1) // PAGE
            else:
                first = last = r["address"] // PAGE
                op, arg = (Op.FAULT, 4) if table == CPU else (Op.ACCESS, int(r["faultAccessType"] in (2, 3)))
                rows.append((r["start"], pid, op, r["address"], 0, arg, 0))
            pages.setdefault(pid, set()).update(range(first, last + 1))
    return sorted(rows, key=lambda row: row[0]), pages


def test_random_exports_agree_with_plain_python(tmp_path: Path) -> None:
    entries = [entry for entry in sample.storm(3000) if entry[0] != "memory"]
    entries = [(what, time, address % (64 * MIB) + HEAP, *more) for what, time, address, *more in entries]
    random.Random(2).shuffle(entries)  # nothing says that records come by time
    path = sample.make(tmp_path / "in", story=entries, lazy=False)
    columns, _ = imported(path)
    expected, pages = oracle(path)
    vmas = columns["op"] == Op.VMA
    names = ("time", "pid", "op", "addr", "len", "arg", "aux")
    ours = [tuple(int(v) for v in row) for row in zip(*(columns[n][~vmas] for n in names), strict=True)]
    assert sorted(ours) == sorted(tuple(int(v) for v in row) for row in expected)
    assert [row[0] for row in ours] == [row[0] for row in expected]
    mapped: set[int] = set()
    for start, size in zip(columns["addr"][vmas].tolist(), columns["len"][vmas].tolist(), strict=True):
        mapped |= {*range(start // PAGE, (start + size) // PAGE)}
    named = pages[sample.PID]
    assert named <= mapped
    # What is mapped beyond that lies in holes of less than 2 MiB.
    for page in mapped - named:
        below, above = (next(p for p in range(page, page + 512 * way, way) if p in named) for way in (-1, 1))
        assert above - below - 1 < 512


def test_batches_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sample.make(tmp_path / "in", story=sample.storm(700))
    import_recording(path, tmp_path / "one.trace")
    for size in (1, 7, 100):
        monkeypatch.setattr(nsys_sqlite, "BATCH", size)
        import_recording(path, tmp_path / "two.trace")
        assert (tmp_path / "one.trace").read_bytes() == (tmp_path / "two.trace").read_bytes()


def test_progress_goes_from_nothing_to_all(tmp_path: Path) -> None:
    path = sample.make(tmp_path / "in", story=sample.storm(2000))
    seen: list[tuple[int, int]] = []
    import_recording(path, tmp_path / "t.trace", lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (path.stat().st_size, path.stat().st_size)


def test_compare_uses_the_accesses_of_the_export(tmp_path: Path) -> None:
    document = compare([sample.make(tmp_path / "in")], ["full-va", "odp-implicit"])
    trace = document["traces"][0]
    assert (trace["accesses"], trace["invalidations_from"], trace["comm"]) == ("recorded", "device", "./saxpy")
    for result in trace["results"]:
        counters = result["counters"]
        assert (counters["device_accesses"], counters["device_faults_refused"], counters["invalidations"]) == (6, 0, 2)
        assert counters["vmas_inferred"] == 0
    # The migration takes two of the five pages that were accessed, of which the GPU accesses one again.
    full_va = trace["results"][0]["counters"]
    assert (full_va["device_faults"], full_va["ptes_zapped"]) == (6, 2 + 4)


# --- what is refused


def change(path: Path, *statements: str) -> None:
    with sqlite3.connect(path) as database:
        for statement in statements:
            database.execute(statement)
    database.close()


def refused(path: Path) -> str:
    with pytest.raises(FaultpathError) as caught:
        import_recording(path, path.with_name("out.trace"))
    assert not path.with_name("out.trace").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_export_without_unified_memory(tmp_path: Path) -> None:
    said = refused(sample.make(tmp_path / "in", story=[("copy", 1, HEAP, PAGE, sample.HTOD)], lazy=False))
    assert "without events of unified memory (it has CUDA_GPU_MEMORY_USAGE_EVENTS, " in said
    assert "--cuda-um-gpu-page-faults=true" in said


@pytest.mark.parametrize("column", ["start", "globalPid", "address", "faultAccessType"])
def test_a_table_without_a_column_that_is_needed(tmp_path: Path, column: str) -> None:
    path = sample.make(tmp_path / "in")
    change(path, f"ALTER TABLE {GPU} RENAME COLUMN {column} TO pc")
    assert f"table {GPU} has no column {column} (it has " in refused(path)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (f"UPDATE {GPU} SET address = 'nowhere'", "'str' object cannot be interpreted as an integer"),
        (f"UPDATE {GPU} SET start = 1.5", "'float' object"),
        (f"UPDATE {GPU} SET address = 1e300", "'float' object"),
        (f"UPDATE {CPU} SET address = x'00'", "'bytes' object"),
        (f"UPDATE {GPU} SET address = 1 << 56", "not in user space (0x100000000000000, 0 bytes)"),
        (f"UPDATE {COPIES} SET bytes = -1", "not in user space"),
        (f"UPDATE {COPIES} SET bytes = 9223372036854775807", "not in user space"),
        (f"UPDATE {MEMORY} SET address = (1 << 56) - 1", "not in user space"),
    ],
)
def test_values_that_cannot_be(tmp_path: Path, statement: str, words: str) -> None:
    path = sample.make(tmp_path / "in")
    change(path, statement)
    assert words in refused(path)


def test_a_view_is_not_a_table(tmp_path: Path) -> None:
    """A view, or a virtual table, can compute for ever; an export has none."""
    path = sample.make(tmp_path / "in", story=[("gpu", 1, HEAP, 1, sample.READ)])
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)"
    change(path, f"CREATE VIEW {CPU} AS {endless} SELECT x AS start, x AS globalPid, x AS address FROM n")
    columns, meta = imported(path)
    assert len(columns["time"]) == 2
    assert "Page faults of the processor: the export has none" in " ".join(meta.missing)


def test_the_export_is_not_written_to(tmp_path: Path) -> None:
    """Nor is a trigger in it run, nor anything left beside it."""
    path = sample.make(tmp_path / "in")
    change(path, f"CREATE TRIGGER t AFTER INSERT ON {GPU} BEGIN DELETE FROM {GPU}; END", "PRAGMA journal_mode = WAL")
    before = hashlib.sha256(path.read_bytes()).digest()
    path.chmod(0o444)
    import_recording(path, tmp_path / "out.trace")
    assert hashlib.sha256(path.read_bytes()).digest() == before
    assert {p.name for p in tmp_path.iterdir()} == {"in", "out.trace"}


@pytest.mark.parametrize("suffix", ["-wal", "-journal"])
def test_unfinished_writes_beside_it(tmp_path: Path, suffix: str) -> None:
    path = sample.make(tmp_path / "in")
    (tmp_path / f"in{suffix}").write_bytes(b"x")
    assert f"unfinished writes beside it (in{suffix})" in refused(path)


@pytest.mark.parametrize("name", ["a?mode=rw", "a#b", "100%41", "new\nline", "\udcff", "-in", "' OR 1"])
def test_names_that_mean_something_in_an_address(tmp_path: Path, name: str) -> None:
    export = NsysExport(sample.make(tmp_path / name))
    assert sum(len(rows["time"]) for rows in export.rows()) == 12


def test_every_truncation_is_refused_or_read(tmp_path: Path) -> None:
    data = sample.make(tmp_path / "whole").read_bytes()
    path = tmp_path / "in"
    for size in [16, 100, 512, 4095, 4096, *range(4097, len(data), 3000)]:
        path.write_bytes(data[:size])
        assert "cannot read the database" in refused(path)


def test_a_database_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "in"
    change(path, "CREATE TABLE bookmarks (url TEXT)")
    assert recognise(path) == "nsys-sqlite"
    assert "without events of unified memory (it has bookmarks)" in refused(path)


def read(path: Path) -> bool:
    """Whether the reader took it; every row it makes must keep the rules of the schema."""
    last = 0
    try:
        export = NsysExport(path)
        for rows in export.rows():
            check_rows(rows, 0, last, PAGE, "made from an accepted recording")
            last = int(rows["time"][-1]) if len(rows["time"]) else last
        export.meta()._check("made from an accepted recording")
    except FaultpathError as error:
        if error.where.startswith("made from") or "\n" in str(error):
            raise AssertionError(str(error)) from error
        return False
    return True


def test_mutated_exports(tmp_path: Path) -> None:
    seeds = [sample.make(tmp_path / version, version).read_bytes() for version in sample.VERSIONS]
    tried, accepted = fuzzing.run("nsys-sqlite", 20_000, 1, seconds=4, seeds=seeds)
    assert tried > 100
    assert 0 < accepted < tried


def test_values_of_any_kind(tmp_path: Path) -> None:
    """Every column of every table set to something else, one at a time and several at once."""
    draw = random.Random(3)
    values = ["NULL", "-1", "0", "1.5", "'x'", "''", "x'ff'", "1 << 62", "-9223372036854775807", "1 << 47", "9e999"]
    path = tmp_path / "in"
    whole = sample.make(path, lazy=False).read_bytes()
    accepted = 0
    for _ in range(300):
        path.write_bytes(whole)
        database = sqlite3.connect(path)
        database.execute("PRAGMA journal_mode = OFF")
        tables = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for _ in range(draw.choice((1, 1, 2, 5))):
            table = draw.choice(tables)
            column = draw.choice([row[1] for row in database.execute(f"PRAGMA table_info({table})")])
            one = f"UPDATE OR IGNORE {table} SET {column} = {draw.choice(values)} WHERE rowid = 1 + {draw.randrange(5)}"
            try:
                database.execute(one)
            except sqlite3.IntegrityError:  # NOT NULL
                continue
        database.commit()
        database.close()
        accepted += read(path)
    assert 0 < accepted < 300
