"""A SQLite file of which nothing is believed, and the integers of its tables."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import operator
import os
import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from faultpath.errors import FaultpathError
from faultpath.trace.readers import sqlite_pages as sp

HEADER = 100  # bytes


class Database:
    """Read only, as it lies there, plain tables alone.

    :ivar tables: names of its tables
    :param mend: what to do about a file that cannot be read, for the message
    :raises FaultpathError: instead of any error of SQLite
    """

    def __init__(self, source: Path, mend: str) -> None:
        self.where, self._mend = str(source), mend
        for suffix in ("-wal", "-journal"):
            log = Path(f"{source}{suffix}")
            if log.exists() and log.stat().st_size:
                raise FaultpathError(f"a database with unfinished writes beside it ({log.name})", self.where, mend)
        with source.open("rb") as file:
            if os.fstat(file.fileno()).st_size < HEADER:
                raise FaultpathError("cannot read the database (it is shorter than its header)", self.where, mend)
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.data = np.frombuffer(self._map, np.uint8)
        self.page_size = self._page_size()
        # immutable: no lock is taken, and no file beside it is made or read
        uri = f"file:{quote(os.fsencode(source.absolute()))}?mode=ro&immutable=1"
        with self._refusing():
            self._connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
            self._connection.text_factory = lambda text: text.decode("utf-8", "replace")
            self._connection.execute("PRAGMA trusted_schema = OFF")
        plain = "SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE 'CREATE TABLE%' ORDER BY name"
        self.tables = [str(name) for (name,) in self.select(plain)]

    def _page_size(self) -> int:
        """SQLite reads what a file lacks of its last page as zeros (database header: fileformat2.html, 1.3)."""
        header = self.data[:HEADER].tobytes()
        page = int.from_bytes(header[16:18], "big")
        page = 1 << 16 if page == 1 else page
        pages = int.from_bytes(header[28:32], "big")
        if header[24:28] == header[92:96] and pages * page > len(self.data):
            raise FaultpathError("cannot read the database (it ends before its last page does)", self.where, self._mend)
        return page

    def release(self) -> None:
        """Pages of the file that are done with would count as ours until the kernel needs them."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def columns(self, table: str) -> list[str]:
        """Names of a table's columns, those that are computed left out; nothing where there is no such table."""
        if table not in self.tables:
            return []
        return [str(row[1]) for row in self.select(f'PRAGMA table_info("{table}")')]

    def select(self, query: str) -> list[tuple[Any, ...]]:
        """All that a query selects, which is to be little."""
        with self._refusing():
            return self._connection.execute(query).fetchall()

    def integers(self, query: str, rows: int, width: int) -> Iterator[np.ndarray]:
        """What a query selects, ``width`` integers a row, at most ``rows`` of them at a time."""
        with self._refusing():
            values = itertools.chain.from_iterable(self._connection.execute(query))
        while True:
            with self._refusing():
                # index(): numpy would cut off a fraction
                batch = np.fromiter(map(operator.index, itertools.islice(values, rows * width)), np.int64)
            if not len(batch):
                return
            yield batch.reshape(-1, width)

    def plain(self, table: str, names: Sequence[str]) -> bool:
        """Whether records of a table have the values of these columns at their places, as they are.

        Not where columns are computed, nor of the column that is the rowid, nor of real numbers, which may lie there
        as integers.
        """
        columns = self.select(f'PRAGMA table_xinfo("{table}")')
        known = {str(name): "INT" in str(kind).upper() and not key for _, name, kind, _, _, key, _ in columns}
        return not any(hidden for *_, hidden in columns) and all(known[name] for name in names)

    def root(self, table: str) -> int:
        """Number of a table's first page."""
        ((number,),) = self.select(f"SELECT rootpage FROM sqlite_master WHERE type = 'table' AND name = '{table}'")
        return int(number)

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, sqlite3.Warning, TypeError, UnicodeError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise FaultpathError(f"cannot read the database ({reason})", self.where, self._mend) from None


def one_of(column: str, values: Sequence[int]) -> str:
    """The condition that a column has one of some values."""
    return f"{column} IN ({', '.join(map(str, values))})"


class Scan:
    """Integers of a table's columns, record by record.

    :param fields: name of the column for each column of a row
    :param nullable: names of columns in which NULL is read as -1
    :param only: a column, and values of which it must have one
    :param by: a column to sort by; else records come by rowid
    :ivar done: records gone over so far
    """

    def __init__(
        self,
        database: Database,
        table: str,
        fields: dict[int, str],
        nullable: Sequence[str] = (),
        only: tuple[str, Sequence[int]] | None = None,
        by: str = "",
    ) -> None:
        self.done = 0
        self._database, self._table, self._by = database, table, by
        self._fields, self._nullable, self._only = fields, nullable, only
        self._selected: Iterator[np.ndarray] | None = None
        columns = database.columns(table)
        names = [*fields.values(), *([only[0]] if only else [])]
        wanted = [(columns.index(name), to, int(name in nullable)) for to, name in fields.items()]
        if only:
            wanted.append((columns.index(only[0]), sp.CHOICE, 0))
        self._plan = np.array(sorted(wanted), np.int64)
        self._chosen = np.array(only[1] if only else [], np.int64)
        self._layouts = np.full((sp.LAYOUTS, sp.VALUES + sp.WORDS * len(wanted)), sp.UNKNOWN, np.int64)
        self._state = np.array([0, sp.FIRST, 0, 0, 0], np.int64)
        self._stack = np.zeros((sp.DEEPEST, 2), np.int64)
        self._stack[0, 0] = database.root(table)
        self._reserved = int(database.data[20])
        self._walking = not by and database.plain(table, names)

    def fill(self, out: np.ndarray) -> int:
        """Put rows into ``out``, as many as it has room for; how many, 0 at the end.

        :raises FaultpathError: when a value is no integer, or the file is damaged
        """
        if self._walking:
            status = sp.walk(
                self._database.data, self._database.page_size, self._reserved, self._plan, self._chosen, self._layouts,
                self._stack, self._state, out,
            )  # fmt: skip
            self._database.release()
            self.done = int(self._state[sp.DONE])
            self._walking = status != sp.LEFT
            if rows := int(self._state[sp.ROWS]):
                return rows
            if self._walking:
                return 0
        if self._selected is None:
            self._selected = self._database.integers(self._query(), len(out), len(self._fields))
        batch = next(self._selected, None)
        if batch is None:
            return 0
        out[: len(batch), list(self._fields)] = batch
        self.done += len(batch)
        return len(batch)

    def _query(self) -> str:
        """What SQLite is asked for: all, or what comes after the last record that was walked over."""
        chosen = ", ".join(f"ifnull({name}, -1)" if name in self._nullable else name for name in self._fields.values())
        where = [one_of(*self._only)] if self._only else []
        order = f"{self._by}, rowid" if self._by else ""
        if self.done:
            where.append(f"rowid > {self._state[sp.ROWID]}")
            order = "rowid"
        return " ".join(
            [
                f"SELECT {chosen} FROM {self._table}",
                *([f"WHERE {' AND '.join(where)}"] if where else []),
                *([f"ORDER BY {order}"] if order else []),
            ]
        )


class Ahead:
    """Fills of a scan, each made by the worker while the one before it is used.

    :param halves: shape ``(2, rows, columns of a row)``
    """

    def __init__(self, scan: Scan, halves: np.ndarray, worker: ThreadPoolExecutor) -> None:
        self._scan, self._halves, self._worker = scan, halves, worker
        self._half = 0
        self._coming = worker.submit(scan.fill, halves[0])

    def fill(self) -> tuple[int, int]:
        """Which half has the next rows, and how many, 0 at the end; the other half may change from now on.

        :raises FaultpathError: as ``Scan.fill``
        """
        half, count = self._half, self._coming.result()
        if count:
            self._half = 1 - half
            self._coming = self._worker.submit(self._scan.fill, self._halves[self._half])
        return half, count
