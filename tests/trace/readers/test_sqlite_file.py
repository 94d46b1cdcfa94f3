"""Integers of a SQLite file: the walk over its pages gives what SQLite gives, and takes what it is meant to take."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from faultpath.errors import FaultpathError
from faultpath.trace.readers import sqlite_pages
from faultpath.trace.readers.sqlite_file import Database, Scan

EDGES = [0, 1, -1, *(sign * (1 << bits) + more for bits in range(7, 63) for sign in (1, -1) for more in (-1, 0, 1))]
EDGES += [(1 << 63) - 1, -(1 << 63)]


def scanned(scan: Scan, room: int = 1000) -> list[tuple[int, ...]]:
    out = np.zeros((room, len(scan._fields)), np.int64)
    rows = []
    while count := scan.fill(out):
        rows += [tuple(row) for row in out[:count].tolist()]
    return rows


def make(path: Path, *statements: str, rows: list[tuple] | None = None, page: int = 4096) -> Database:
    path.unlink(missing_ok=True)
    database = sqlite3.connect(path)
    database.execute(f"PRAGMA page_size = {page}")
    for statement in statements:
        database.execute(statement)
    if rows:
        database.executemany(f"INSERT INTO t VALUES ({', '.join('?' * len(rows[0]))})", rows)
    database.commit()
    database.close()
    return Database(path, "mend it")


def walked(scan: Scan) -> int:
    """Records that were read from the pages themselves."""
    return int(scan._state[sqlite_pages.DONE])


@pytest.mark.parametrize("page", [512, 1024, 4096, 65536])
@pytest.mark.parametrize("room", [1, 7, 100_000])
def test_every_size_of_integer(tmp_path: Path, page: int, room: int) -> None:
    draw = random.Random(page)
    rows = [(draw.choice(EDGES), draw.choice(["", "text" * 9, None, 1.5]), draw.choice(EDGES)) for _ in range(5000)]
    database = make(tmp_path / "db", "CREATE TABLE t (a INTEGER, b, c BIGINT)", rows=rows, page=page)
    scan = Scan(database, "t", {0: "c", 1: "a"})
    assert scanned(scan, room) == [(c, a) for a, _, c in rows]
    assert walked(scan) == scan.done == 5000


@pytest.mark.parametrize("nulls", [False, True])
def test_chosen_values(tmp_path: Path, nulls: bool) -> None:
    """NULL is none of them, and is not looked at: from there on SQLite is asked."""
    draw = random.Random(1)
    values = [1, 2, 300, *([None] if nulls else [])]
    rows = [(draw.choice([None, 5, -7]), draw.choice(values), i) for i in range(3000)]
    database = make(tmp_path / "db", "CREATE TABLE t (a INTEGER, k INTEGER, i INTEGER)", rows=rows)
    scan = Scan(database, "t", {0: "a", 1: "i"}, nullable=["a"], only=("k", [1, 300]))
    assert scanned(scan) == [(-1 if a is None else a, i) for a, k, i in rows if k in (1, 300)]
    assert (walked(scan) == 3000) != nulls


def test_rowids_of_any_order_and_holes(tmp_path: Path) -> None:
    draw = random.Random(2)
    ids = draw.sample(EDGES, 300)
    path = tmp_path / "db"
    make(path, "CREATE TABLE t (a INTEGER)")
    with sqlite3.connect(path) as database:
        database.executemany("INSERT INTO t (rowid, a) VALUES (?, ?)", [(i, i) for i in ids])
        database.execute("DELETE FROM t WHERE rowid % 3 = 1")
    database.close()
    scan = Scan(Database(path, ""), "t", {0: "a"})
    found = [a for (a,) in scanned(scan)]
    assert found == sorted(found) == sorted(i for i in ids if i < 0 or i % 3 != 1)
    # The lowest of all rowids is where a walk begins: SQLite reads that one, and so all.
    assert walked(scan) in (0, len(found))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("a INTEGER, x TEXT", "'" + "long" * 5000 + "'"),  # the record goes on in overflow pages
        ("x TEXT, a INTEGER", "'" + "long" * 5000 + "'"),
        ("a INTEGER, x TEXT DEFAULT 'y'", "NULL"),
    ],
)
def test_what_is_left_in_the_middle(tmp_path: Path, column: str, value: str) -> None:
    path = tmp_path / "db"
    make(path, f"CREATE TABLE t ({column})")
    with sqlite3.connect(path) as database:
        database.executemany("INSERT INTO t (a, x) VALUES (?, 'z')", [(i,) for i in range(1000)])
        database.execute(f"UPDATE t SET x = {value} WHERE a = 500")
    database.close()
    scan = Scan(Database(path, ""), "t", {0: "a"})
    for room in (64, 999, 5000):
        assert scanned(Scan(Database(path, ""), "t", {0: "a"}), room) == [(i,) for i in range(1000)]
    scanned(scan)
    assert walked(scan) == (1000 if value == "NULL" else 500)


@pytest.mark.parametrize(
    "table",
    [
        "CREATE TABLE t (a INTEGER PRIMARY KEY, b INTEGER)",  # the rowid, which is not in the record
        "CREATE TABLE t (a INTEGER, b INTEGER, PRIMARY KEY (a)) WITHOUT ROWID",
        "CREATE TABLE t (b INTEGER, c INTEGER AS (a * 2) VIRTUAL, a INTEGER)",
        "CREATE TABLE t (b INTEGER, c INTEGER AS (a * 2) STORED, a INTEGER)",
    ],
)
def test_what_is_for_sqlite_from_the_start(tmp_path: Path, table: str) -> None:
    path = tmp_path / "db"
    make(path, table)
    with sqlite3.connect(path) as database:
        database.executemany("INSERT INTO t (a, b) VALUES (?, ?)", [(i, -i) for i in range(2000)])
    database.close()
    scan = Scan(Database(path, ""), "t", {0: "a", 1: "b"}, nullable=["a"])
    assert scanned(scan) == [(i, -i) for i in range(2000)]
    assert walked(scan) == 0
    assert scan.done == 2000


def test_columns_that_records_lack_have_their_default(tmp_path: Path) -> None:
    path = tmp_path / "db"
    make(path, "CREATE TABLE t (a INTEGER)", rows=[(i,) for i in range(100)])
    with sqlite3.connect(path) as database:
        database.execute("ALTER TABLE t ADD COLUMN b INTEGER DEFAULT 42")
        database.execute("INSERT INTO t VALUES (100, 7)")
    database.close()
    assert scanned(Scan(Database(path, ""), "t", {0: "a", 1: "b"})) == [(i, 42) for i in range(100)] + [(100, 7)]


def test_real_numbers_that_lie_there_as_integers_are_none(tmp_path: Path) -> None:
    database = make(tmp_path / "db", "CREATE TABLE t (a REAL)", rows=[(1.0,)])
    with pytest.raises(FaultpathError, match="'float' object cannot be interpreted as an integer"):
        scanned(Scan(database, "t", {0: "a"}))


def test_sorted_by_a_column(tmp_path: Path) -> None:
    rows = [(5, 0), (3, 1), (5, 2), (-1, 3)]
    database = make(tmp_path / "db", "CREATE TABLE t (a INTEGER, b INTEGER)", rows=rows)
    assert scanned(Scan(database, "t", {0: "a", 1: "b"}, by="a")) == [(-1, 3), (3, 1), (5, 0), (5, 2)]


def test_trees_that_go_round(tmp_path: Path) -> None:
    """A page that is its own child: the walk ends, and SQLite refuses the file."""
    path = tmp_path / "db"
    database = make(path, "CREATE TABLE t (a INTEGER)", rows=[(i,) for i in range(20_000)], page=512)
    root = database.root("t")
    data = bytearray(path.read_bytes())
    base = (root - 1) * 512
    assert data[base] == 5
    data[base + 8 : base + 12] = root.to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises(FaultpathError, match="malformed"):
        scanned(Scan(Database(path, ""), "t", {0: "a"}))
