"""The table on disk: what is written is read, damage is one line, nothing half-written stays."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faultpath.errors import FaultpathError
from faultpath.trace.ops import Event, Op
from faultpath.trace.schema import ADDRESS_LIMIT, ARROW, COLUMNS, KEY, Columns, TraceMeta, TraceWriter, open_trace

META = TraceMeta(format="synthetic", dropped={"failed mmap": 1}, processes=[{"pid": 7, "parent": 1, "comm": "a"}])


def rows(*given: dict[str, int]) -> Columns:
    """Rows with what is named, page faults of process 7 otherwise, 1 ns apart."""
    usual = {"pid": 7, "tid": 7, "cpu": 0, "op": int(Op.FAULT), "addr": 0x1000, "len": 0, "arg": 6, "aux": 0}
    filled = [{"time": i, **usual, **row} for i, row in enumerate(given)]
    return {name: np.array([row[name] for row in filled], dtype) for name, dtype in COLUMNS.items()}


def write(path: Path, *pieces: Columns, meta: TraceMeta = META) -> Path:
    with TraceWriter(path) as writer:
        for piece in pieces:
            writer.write(piece)
        writer.finish(meta)
    return path


def read(path: Path, pid: int | None = None) -> Columns:
    pieces = list(open_trace(path).batches(pid))
    return {n: np.concatenate([p[n] for p in pieces] or [np.empty(0, t)]) for n, t in COLUMNS.items()}


def same(a: Columns, b: Columns) -> bool:
    return all(np.array_equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in COLUMNS)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = rows({}, {"op": Op.MMAP, "addr": 0x7000, "len": 0x2000, "arg": 3, "aux": 0x22}, {"addr": (1 << 56) - 1})
    path = write(tmp_path / "t.trace", written)
    assert same(read(path), written)
    assert open_trace(path).meta == META
    assert open_trace(path).rows == 3


def test_an_empty_trace_is_a_trace(tmp_path: Path) -> None:
    assert len(read(write(tmp_path / "t.trace"))["time"]) == 0


def many(count: int) -> Columns:
    random_ = np.random.default_rng(1)
    columns = rows(*[{}] * 1)
    whole = {name: np.repeat(column, count) for name, column in columns.items()}
    whole["time"] = np.cumsum(random_.integers(0, 3, count))
    whole["addr"] = random_.integers(0, 1 << 47, count).astype(np.uint64)
    whole["pid"] = random_.integers(7, 9, count).astype(np.int32)
    return whole


def test_bytes_do_not_depend_on_how_rows_arrive(tmp_path: Path) -> None:
    whole = many(300_000)
    once = write(tmp_path / "a", whole).read_bytes()
    cuts = [0, 1, 1000, 131_072, 131_073, 299_999, 300_000]
    pieces = [{n: c[i:j] for n, c in whole.items()} for i, j in pairwise(cuts)]
    assert write(tmp_path / "b", *pieces).read_bytes() == once
    assert same(read(tmp_path / "b"), whole)


def test_one_process_can_be_read(tmp_path: Path) -> None:
    whole = many(200_000)
    mine = read(write(tmp_path / "a", whole), pid=8)
    assert same(mine, {n: c[whole["pid"] == 8] for n, c in whole.items()})
    assert len(read(tmp_path / "a", pid=9)["time"]) == 0


def fail_writing(path: Path, failure: type[BaseException]) -> None:
    with TraceWriter(path) as writer:
        writer.write(many(200_000))
        raise failure


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_left_when_writing_stops(tmp_path: Path, failure: type[BaseException]) -> None:
    with pytest.raises(failure):
        fail_writing(tmp_path / "t.trace", failure)
    assert not list(tmp_path.iterdir())


def test_an_older_trace_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = write(tmp_path / "t.trace", rows({}))
    before = path.read_bytes()
    with pytest.raises(RuntimeError):
        fail_writing(path, RuntimeError)
    assert path.read_bytes() == before


def test_where_nothing_can_be_written_is_said(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "t.trace", Path("/proc/t.trace")):
        with pytest.raises(FaultpathError):
            TraceWriter(path)


RANGE = {"op": Op.MUNMAP, "addr": 0x1000, "len": 0x1000}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([{"time": 5}, {"time": 4}], "time goes backwards (time 4)"),
        ([{"time": -1}], "before zero"),
        ([{"time": 0}, {"time": -(1 << 63)}], "before zero"),
        ([{"op": 0}], "unknown operation"),
        ([{"op": 99}], "unknown operation (op 99)"),
        ([{"pid": -1}], "negative process"),
        ([{"addr": ADDRESS_LIMIT + 1}], "above user space (addr 0x100000000000001)"),
        ([{"addr": (1 << 64) - 1}], "above user space"),
        ([RANGE | {"len": (1 << 64) - 0x1000}], "ends above user space"),
        ([RANGE | {"addr": ADDRESS_LIMIT - 0x1000, "len": 0x2000}], "ends above user space"),
        ([RANGE | {"addr": 0x1001}], "not page aligned"),
        ([RANGE | {"len": 1}], "not page aligned"),
        ([RANGE | {"len": 0}], "empty range"),
        ([{"len": 0x1000}], "length where"),
        ([RANGE | {"op": Op.MREMAP, "arg": -1, "aux": 0x1000}], "mremap to"),
        ([RANGE | {"op": Op.MREMAP, "arg": 0x1001, "aux": 0x1000}], "mremap to"),
        ([RANGE | {"op": Op.MREMAP, "arg": 1 << 55, "aux": 1 << 56}], "mremap to"),
        ([RANGE | {"op": Op.INVALIDATE, "arg": 8, "aux": 1}], "unknown notifier event"),
        ([RANGE | {"op": Op.INVALIDATE, "arg": -1, "aux": 1}], "unknown notifier event"),
        ([RANGE | {"op": Op.INVALIDATE, "arg": 1, "aux": 77}], "unknown operation around"),
    ],
)
def test_a_row_that_breaks_a_rule_is_refused_with_its_number(tmp_path: Path, given: list, words: str) -> None:
    path = write(tmp_path / "t.trace", rows({"time": 0}, *given) if "time" not in given[0] else rows(*given))
    with pytest.raises(FaultpathError) as caught:
        read(path)
    assert words in str(caught.value)
    assert ", row " in str(caught.value)


def test_backwards_across_row_groups_is_refused(tmp_path: Path) -> None:
    late = many(131_072)
    with pytest.raises(FaultpathError, match="row 131072: "):
        read(write(tmp_path / "t.trace", late, rows({"time": 1})))


def test_equal_times_keep_their_order(tmp_path: Path) -> None:
    written = rows(*[{"time": 3, "cpu": cpu} for cpu in (5, 1, 3, 2)])
    assert read(write(tmp_path / "t.trace", written))["cpu"].tolist() == [5, 1, 3, 2]


def with_metadata(path: Path, text: bytes | None, schema: pa.Schema = ARROW) -> Path:
    table = pa.table([pa.array(c) for c in rows({}).values()], schema=ARROW).cast(schema)
    pq.write_table(table.replace_schema_metadata({KEY: text} if text is not None else None), path)
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "not a faultpath trace"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"7", "no schema number"),
        (b"{}", "no schema number"),
        (b'{"schema": 2, "new": 1}', "newer than 1, the newest this version reads"),
        (b'{"schema": true}', "no schema number"),
        (b'{"schema": 1}', "wrong value for 'format'"),
        (b'{"schema": 1, "format": "x", "page_size": 3}', "wrong value for 'page_size'"),
        (b'{"schema": 1, "format": "x", "page_size": "y"}', "wrong value for 'page_size'"),
        (b'{"schema": 1, "format": "x", "lost_events": -1}', "wrong value for 'lost_events'"),
        (b'{"schema": 1, "format": "x", "invalidations_from": "air"}', "wrong value for 'invalidations_from'"),
        (b'{"schema": 1, "format": "x", "processes": [{}]}', "wrong value for 'processes'"),
        (b'{"schema": 1, "format": "x", "dropped": {"a": "b"}}', "wrong value for 'dropped'"),
    ],
)
def test_metadata_is_checked(tmp_path: Path, text: bytes | None, words: str) -> None:
    with pytest.raises(FaultpathError) as caught:
        open_trace(with_metadata(tmp_path / "t.trace", text))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_newer_schema_says_upgrade(tmp_path: Path) -> None:
    with pytest.raises(FaultpathError, match="upgrade faultpath"):
        open_trace(with_metadata(tmp_path / "t.trace", b'{"schema": 2}'))


def test_an_addition_to_the_metadata_is_passed_over(tmp_path: Path) -> None:
    text = json.dumps({**json.loads(META.to_json()), "colour": "blue"}).encode()
    assert open_trace(with_metadata(tmp_path / "t.trace", text)).meta == META


def test_other_columns_are_refused(tmp_path: Path) -> None:
    schema = ARROW.set(1, pa.field("pid", pa.int64()))
    with pytest.raises(FaultpathError, match="columns"):
        open_trace(with_metadata(tmp_path / "t.trace", META.to_json().encode(), schema))


def try_reading(path: Path) -> bool:
    try:
        for columns in open_trace(path).batches():
            assert len(columns["time"])
    except FaultpathError as error:
        return "\n" in str(error)
    return True


def small(tmp_path: Path) -> bytes:
    ops = [
        {"op": Op.INVALIDATE, "addr": 0x1000 * i, "len": 0x1000, "arg": Event.CLEAR, "aux": Op.FAULT} for i in range(20)
    ]
    return write(tmp_path / "small.trace", rows(*ops)).read_bytes()


def test_truncation_at_every_byte_is_refused(tmp_path: Path) -> None:
    whole = small(tmp_path)
    path = tmp_path / "cut.trace"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert not try_reading(path), size


def test_flipped_bits_are_one_line_or_harmless(tmp_path: Path) -> None:
    whole = small(tmp_path)
    path = tmp_path / "flipped.trace"
    random_ = random.Random(2)
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(random_.choice((1, 1, 4))):
            data[random_.randrange(len(data))] ^= 1 << random_.randrange(8)
        path.write_bytes(data)
        try_reading(path)


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_random_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random.trace"
    for content in (data, b"PAR1" + data + b"PAR1", b"PAR1" + data + len(data).to_bytes(4, "little") + b"PAR1"):
        path.write_bytes(content)
        assert not try_reading(path)
