"""perf.data: from the file to its events in time order, as rows of integers.

perf writes what each processor saw one buffer after another, so records must be sorted. Sorting the whole file would
need it all in memory; a FINISHED_ROUND record says that nothing older than the previous round's newest record can
follow, so everything up to there is sorted and handed out (``ordered_events__flush``,
tools/perf/util/ordered-events.c, Linux 6.1). Order is stable: equal times keep the order of the file.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import zstandard

from faultpath.errors import FaultpathError
from faultpath.trace.formats import Progress
from faultpath.trace.readers import perf_columns as pc
from faultpath.trace.readers import perf_header as ph
from faultpath.trace.schema import check_readable

BATCH = 1 << 16  # rows decoded at a time: they still fit in the cache when they are sorted
PENDING = 3 << 20  # rows kept back for sorting before half of them are let go, as perf does when its queue is full
FEED = 4096  # compressed bytes expanded at a time: zstd can make 128 KiB out of 4 bytes
EXPANDED = 16 << 20  # expanded bytes walked at a time
WINDOW = 1 << 27  # the largest window any zstd level asks for
LAST = (1 << 63) - 1  # ns, later than everything

Tables = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class PerfData:
    """An open perf.data file.

    After ``batches`` has run to its end, the attributes below hold what it counted.

    :ivar header: what the file says about itself
    :ivar comms: last name of each process, by pid, with the time it was given
    :ivar lost_events, lost_samples: reported by the kernel; both are lower bounds and may count the same loss
    :ivar dropped: records that could not be placed, by reason
    :ivar finished: whether it is whole; a stream is taken to be when it ends with the end of a round
    :raises FaultpathError: when it cannot be decoded
    """

    def __init__(self, path: Path) -> None:
        check_readable(path)
        self.path = path
        self._where = str(path)
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.header = ph.parse_header(memoryview(self._map), self._where)
        self.comms: dict[int, tuple[int, str]] = {}
        self.dropped: dict[str, int] = {}
        self.lost_events = self.lost_samples = 0
        self.finished = False

    def batches(
        self,
        wanted: Mapping[int, Sequence[str]],
        extra: np.ndarray | None = None,
        progress: Progress | None = None,
    ) -> Iterator[np.ndarray]:
        """Rows in time order, as arrays of shape ``(rows, row_width(wanted))`` (int64). Each is good until
        the next is asked for.

        :param wanted: fields to decode by number of the event in ``header.events``; other events are passed over
        :param extra: rows of the same shape to merge in
        :param progress: called with bytes done and bytes in all
        :raises FaultpathError: when a record cannot be decoded
        """
        width = row_width(wanted)
        tables = attribute_tables(self.header, wanted, width - pc.FIELD, self._where)
        walker = _Walker(self.header, tables, self._where)
        store = _Store(width)
        if extra is not None:
            store.put(extra)
        whole = np.frombuffer(self._map, np.uint8)
        begin, end = self.header.data
        released = 0
        for at in walker.run(whole, store):
            limit = LAST if at == end else int(walker.state[pc.S_ROUND_LIMIT])
            ready = store.take(limit)
            if len(ready):
                yield ready
            if progress:
                progress(at - begin, end - begin)
            # Pages of the file that are done with would count as ours until the kernel needs them.
            done = at // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
            if done > released:
                self._map.madvise(mmap.MADV_DONTNEED, released, done - released)
                released = done
        self.comms = walker.comms
        self.lost_events, self.lost_samples = int(walker.state[pc.S_LOST]), int(walker.state[pc.S_LOST_SAMPLES])
        self.finished = not self.header.stream or int(walker.state[pc.S_LAST_TYPE]) == pc.FINISHED_ROUND
        counts = {
            "samples of an unknown event": int(walker.state[pc.S_UNKNOWN_ID]),
            "records out of time order": store.late,
        }
        self.dropped = {reason: count for reason, count in counts.items() if count}


def row_width(wanted: Mapping[int, Sequence[str]]) -> int:
    """Columns of the rows ``batches`` gives for ``wanted``; at least the five fields that mremap needs."""
    return pc.FIELD + max([5, *(len(names) for names in wanted.values())])


class _Store:
    """Rows waiting to be put in order. One buffer is used over and over: fresh pages cost more than the sorting.

    :ivar rows: shape ``(capacity, width)``; the first ``count`` are waiting
    :ivar late: rows thrown away because later ones had been handed out
    """

    def __init__(self, width: int) -> None:
        self.rows = np.empty((2 * BATCH, width), np.int64)
        self.count = 0
        self.late = 0
        self._ordered = np.empty_like(self.rows)
        self._flushed = 0

    def room(self) -> np.ndarray:
        """Free rows after those that wait, ``BATCH`` of them."""
        if self.count + BATCH > len(self.rows):
            grown = np.empty((2 * len(self.rows), self.rows.shape[1]), np.int64)
            grown[: self.count] = self.rows[: self.count]
            self.rows, self._ordered = grown, np.empty_like(grown)
        return self.rows[self.count : self.count + BATCH]

    def put(self, rows: np.ndarray) -> None:
        for start in range(0, len(rows), BATCH):
            piece = rows[start : start + BATCH]
            self.room()[: len(piece)] = piece
            self.count += len(piece)

    def take(self, limit: int) -> np.ndarray:
        """Rows up to ``limit`` ns in order. The array is good until the next call."""
        times = self.rows[: self.count, pc.TIME].copy()  # side by side: they are gone over four times
        if self.count > PENDING:
            oldest, newest = int(times.min()), int(times.max())
            limit = max(limit, oldest + (newest - oldest) // 2)
        elif limit <= self._flushed or not self.count:
            return self.rows[:0]
        if (times[1:] < times[:-1]).any():
            order = np.argsort(times, kind="stable")
            np.take(self.rows[: self.count], order, axis=0, out=self._ordered[: self.count], mode="clip")
            self.rows, self._ordered = self._ordered, self.rows
            times = times[order]
        rows = self.rows[: self.count]
        # A record without a time was made by perf and tells how things stood before: it is never late.
        late = (times < self._flushed) & (times > 0)
        if late.any():
            self.late += int(late.sum())
            rows, times = rows[~late], times[~late]
        cut = int(np.searchsorted(times, limit, side="right"))
        self.count = len(rows) - cut
        self._ordered[: self.count] = rows[cut:]
        self.rows, self._ordered = self._ordered, self.rows
        if cut:
            self._flushed = max(self._flushed, int(times[cut - 1]))
        return rows[:cut]


def attribute_tables(header: ph.Header, wanted: Mapping[int, Sequence[str]], fields: int, where: str) -> Tables:
    """What ``perf_columns.walk`` needs to know of the attributes: shared positions, one row each, and the table of
    ids."""
    events = header.events
    attrs = np.zeros((len(events), pc.A_FIELD + pc.FIELD_WIDTH * fields), np.int64)
    shared = np.zeros(2, np.int64)
    positions = {_id_positions(event) for event in events}
    if len(positions) > 1:
        raise FaultpathError("events that keep their id in different places", where, "record them with one perf record")
    shared[:] = positions.pop()
    if len(events) > 1 and not shared[pc.P_ID]:
        raise FaultpathError(
            "several events, but samples without an id", where, "record with perf record, which adds it"
        )
    for number, event in enumerate(events):
        attrs[number, : pc.A_TYPE_OFFSET] = _layout(event)
        if number not in wanted:
            continue
        attrs[number, pc.A_WANTED] = 1
        for bit, what in ((ph.SAMPLE_TIME, "time"), (ph.SAMPLE_TID, "thread")):
            if not event.sample_type & bit:
                raise FaultpathError(
                    f"{event.name} was recorded without {what}", where, "record with perf record -T --sample-cpu"
                )
        if not event.sample_type & ph.SAMPLE_RAW or event.format is None:
            raise FaultpathError(f"{event.name} was recorded without its fields", where, "record with perf record -R")
        for column, name in enumerate(wanted[number]):
            found = event.format.number(name, where)
            at = pc.A_FIELD + pc.FIELD_WIDTH * column
            attrs[number, at : at + pc.FIELD_WIDTH] = found.offset, found.size, found.signed
        common = event.format.fields.get("common_type")
        if common is None or common.size != 2:
            raise FaultpathError(f"the format of {event.name} lacks common_type", where, ph.RECORD_AGAIN)
        attrs[number, [pc.A_TYPE_OFFSET, pc.A_TYPE]] = common.offset, event.config & 0xFFFF
    ids, attribute = pc.id_table({key: number for number, event in enumerate(events) for key in event.ids})
    return shared, attrs, ids, attribute


def _id_positions(event: ph.RecordedEvent) -> tuple[int, int]:
    """Bytes to the id from the start of a sample and from the end of another record: evsel.c,
    __perf_evsel__calc_id_pos."""
    kind = event.sample_type
    if kind & ph.SAMPLE_IDENTIFIER:
        return 8, (8 if event.flags & ph.FLAG_SAMPLE_ID_ALL else 0)
    if not kind & ph.SAMPLE_ID:
        return 0, 0
    before = sum(bool(kind & bit) for bit in (ph.SAMPLE_IP, ph.SAMPLE_TID, ph.SAMPLE_TIME, ph.SAMPLE_ADDR))
    after = sum(bool(kind & bit) for bit in (ph.SAMPLE_STREAM_ID, ph.SAMPLE_CPU))
    return 8 + 8 * before, (8 + 8 * after if event.flags & ph.FLAG_SAMPLE_ID_ALL else 0)


def _layout(event: ph.RecordedEvent) -> list[int]:
    """Columns ``A_WANTED`` to ``A_TRAILER_CPU``: where things are in this event's samples and trailers
    (perf_event.h)."""
    kind = event.sample_type
    at = 8
    found: dict[int, int] = {}
    for bit in (
        ph.SAMPLE_IDENTIFIER,
        ph.SAMPLE_IP,
        ph.SAMPLE_TID,
        ph.SAMPLE_TIME,
        ph.SAMPLE_ADDR,
        ph.SAMPLE_ID,
        ph.SAMPLE_STREAM_ID,
        ph.SAMPLE_CPU,
        ph.SAMPLE_PERIOD,
    ):
        if kind & bit:
            found[bit] = at
            at += 8
    read = 1 | event.read_format << 1 if kind & ph.SAMPLE_READ else 0
    trailer: dict[int, int] = {}
    size = 0
    if event.flags & ph.FLAG_SAMPLE_ID_ALL:
        for bit in (
            ph.SAMPLE_IDENTIFIER,
            ph.SAMPLE_CPU,
            ph.SAMPLE_STREAM_ID,
            ph.SAMPLE_ID,
            ph.SAMPLE_TIME,
            ph.SAMPLE_TID,
        ):
            if kind & bit:
                size += 8
                trailer[bit] = size
    return [
        0,
        found.get(ph.SAMPLE_TID, 0),
        found.get(ph.SAMPLE_TIME, 0),
        found.get(ph.SAMPLE_CPU, 0),
        at,
        read,
        int(bool(kind & ph.SAMPLE_CALLCHAIN)),
        int(bool(kind & ph.SAMPLE_RAW)),
        size,
        trailer.get(ph.SAMPLE_TID, 0),
        trailer.get(ph.SAMPLE_TIME, 0),
        trailer.get(ph.SAMPLE_CPU, 0),
    ]


class _Walker:
    """Goes over all records once, expanding compressed ones, and hands out rows in file order."""

    def __init__(self, header: ph.Header, tables: Tables, where: str) -> None:
        self.header, self.tables, self.where = header, tables, where
        self.state = np.zeros(pc.STATE_SIZE, np.int64)
        self.comms: dict[int, tuple[int, str]] = {}
        self.expander = zstandard.ZstdDecompressor(max_window_size=WINDOW).decompressobj(read_across_frames=True)
        self.rest = b""

    def run(self, whole: np.ndarray, store: _Store) -> Iterator[int]:
        """Put rows into ``store``; stops with the offset it came to whenever it has ``BATCH`` more, and at the end."""
        at, end = self.header.data
        yield from self._records(whole, at, end, store, "")
        at = int(self.state[pc.S_AT])
        if at != end:
            raise FaultpathError(f"the last record is cut off, at {at:#x}", self.where, ph.RECORD_AGAIN)
        if self.rest:
            raise FaultpathError("the compressed data end inside a record", self.where, ph.RECORD_AGAIN)
        yield end

    def _records(self, buf: np.ndarray, at: int, end: int, store: _Store, inside: str) -> Iterator[int]:
        """Walk ``buf[at:end]``, stopping with an offset whenever rows run out; ``state[S_AT]`` is where it ended."""
        state = self.state
        while True:
            out = store.room()
            state[pc.S_ROWS] = 0
            status = pc.walk(buf, at, end, *self.tables, out, state)
            at = int(state[pc.S_AT])
            store.count += int(state[pc.S_ROWS])
            if status < 0:
                raise FaultpathError(f"{pc.ERRORS[status]}, {inside}at {at:#x}", self.where, ph.RECORD_AGAIN)
            if status == pc.FULL:
                yield at
            elif status == pc.NAME:
                name = bytes(buf[state[pc.S_NAME_AT] : state[pc.S_NAME_AT] + 16])
                self._name(store.rows[store.count - 1], name)
            elif status == pc.RARE:
                kind, size = int(pc.u32(buf, at)), int(pc.u16(buf, at + 6))
                if kind in (pc.COMPRESSED, pc.COMPRESSED2):
                    if inside:
                        raise FaultpathError(f"a compressed record {inside}at {at:#x}", self.where, ph.RECORD_AGAIN)
                    for _ in self._compressed(buf, at, size, kind, store):
                        yield at
                at = self._after(buf, at, size, kind, end)
            else:
                return

    def _name(self, row: np.ndarray, text: bytes) -> None:
        time, pid = int(row[pc.TIME]), int(row[pc.PID])
        if pid == row[pc.TID] and time >= self.comms.get(pid, (0, ""))[0]:
            self.comms[pid] = (time, text.split(b"\0", 1)[0].decode("utf-8", "backslashreplace"))

    def _after(self, buf: np.ndarray, at: int, size: int, kind: int, end: int) -> int:
        """Offset after a record that carries more than its size says."""
        extra = 0
        if kind == pc.HEADER_TRACING_DATA and size >= 12:
            extra = int(pc.u32(buf, at + 8))
        elif kind == pc.AUXTRACE and size >= 16:
            extra = int(pc.s64(buf, at + 8))
        if extra < 0 or extra > end - at - size:
            raise FaultpathError(f"a record whose data lie outside the file, at {at:#x}", self.where, ph.RECORD_AGAIN)
        return at + size + extra

    def _compressed(self, buf: np.ndarray, at: int, size: int, kind: int, store: _Store) -> Iterator[int]:
        """Expand one record and walk what comes out; records may straddle the pieces."""
        start, stop = at + 8, at + size
        if kind == pc.COMPRESSED2:  # aligned to eight bytes, so it says how many are meant (perf 6.16)
            length = int(pc.s64(buf, start)) if size >= 16 else -1
            start += 8
            if not 0 <= length <= stop - start:
                raise FaultpathError(
                    f"a compressed record whose size is wrong, at {at:#x}", self.where, ph.RECORD_AGAIN
                )
            stop = start + length
        inside = f"in the compressed record at {at:#x}, "
        for begin in range(start, stop, FEED):
            try:
                piece = self.expander.decompress(bytes(buf[begin : min(begin + FEED, stop)]))
            except zstandard.ZstdError as error:
                raise FaultpathError(
                    f"cannot expand the record at {at:#x} ({error})", self.where, ph.RECORD_AGAIN
                ) from None
            self.rest += piece
            if len(self.rest) >= EXPANDED or begin + FEED >= stop:
                yield from self._records(np.frombuffer(self.rest, np.uint8), 0, len(self.rest), store, inside)
                self.rest = self.rest[self.state[pc.S_AT] :]
        self.state[pc.S_AT] = at
