"""trace.dat: from the file to its events in time order, as rows of integers.

trace-cmd keeps what each processor recorded apart; within a processor, records are in order. Streams are merged as
``trace-cmd report`` does it: always the earliest next record, of equal ones that of the lower processor.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from faultpath.errors import FaultpathError
from faultpath.trace.formats import Progress
from faultpath.trace.readers import ring_buffer as rb
from faultpath.trace.readers.expand import expand
from faultpath.trace.readers.perf_columns import FIELD, FIELD_WIDTH
from faultpath.trace.readers.perf_data import row_width
from faultpath.trace.readers.trace_dat_header import Buffer, Header, Pages, parse_header
from faultpath.trace.readers.tracing_data import RECORD_AGAIN
from faultpath.trace.schema import check_readable

BATCH = 1 << 16  # rows handed out at a time
DECODED = 1 << 19  # rows decoded and waiting to be merged, of all streams
EXPANDED = 1 << 30  # bytes expanded and waiting to be decoded, of all streams
DONE_WITH = 1 << 20  # bytes of the file that are let go at a time


class TraceDat:
    """An open trace.dat.

    :ivar header: what the file says about itself
    :ivar events: the recorded events' formats; their place here is their number
    :ivar lost_events: reported by the kernel, at least; complete when ``batches`` has run to its end
    :raises FaultpathError: when it cannot be decoded
    """

    def __init__(self, path: Path) -> None:
        check_readable(path)
        self._where = str(path)
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.header: Header = parse_header(memoryview(self._map), self._where)
        self.events = list(self.header.events.values())
        self.lost_events = self.header.lost
        self._seen = np.zeros((0, len(self.events)), np.int64)
        if not any(pages.size for buffer in self.header.buffers for pages in buffer.cpus):
            raise FaultpathError(
                "a recording without events", self._where, "record again; trace-cmd perhaps could not switch them on"
            )

    def occurred(self) -> set[str]:
        """Events that ``batches`` has come across, of those it was asked for: ``system:name``."""
        return {f"{self.events[i].system}:{self.events[i].name}" for i in np.flatnonzero(self._seen.any(axis=0))}

    def batches(self, wanted: Mapping[int, Sequence[str]], progress: Progress | None = None) -> Iterator[np.ndarray]:
        """Rows in time order, as arrays of shape ``(rows, row_width(wanted))`` (int64), with no process. Each is good
        until the next is asked for.

        :param wanted: fields to decode by number of the event; other events are passed over
        :param progress: called with bytes done and bytes in all
        :raises FaultpathError: when a page cannot be decoded
        """
        width = row_width(wanted)
        tables = self._tables(wanted, width - FIELD)
        buffers = self.header.buffers
        count = sum(pages.size > 0 for buffer in buffers for pages in buffer.cpus)
        capacity = max(DECODED // count, 64)
        rows = np.empty((count, capacity, width), np.int64)
        self._seen = seen = np.zeros((len(buffers), len(self.events)), np.int64)
        streams = [
            _Stream(self, buffer, pages, EXPANDED // count, seen[number])
            for number, buffer in enumerate(buffers)
            for pages in buffer.cpus
            if pages.size
        ]
        at, filled, heap = (np.zeros(count, np.int64) for _ in range(3))
        out, total = np.empty((BATCH, width), np.int64), sum(stream.pages.size for stream in streams)
        taken = BATCH
        while taken:
            for number in np.flatnonzero(at == filled):
                at[number], filled[number] = 0, streams[number].fill(rows[number], tables)
            taken = int(rb.merge(rows, at, filled, heap, out))
            if taken:
                yield out[:taken]
            if progress:
                progress(sum(stream.done for stream in streams), total)
        self._refuse_twice()
        self.lost_events = max(sum(int(stream.state[rb.S_LOST]) for stream in streams), self.header.lost)

    def _tables(self, wanted: Mapping[int, Sequence[str]], fields: int) -> tuple[np.ndarray, np.ndarray, int]:
        """What ``ring_buffer.walk`` needs to know of the events: one row each, numbers by id, offset of the id."""
        events = np.zeros((len(self.events), rb.A_FIELD + FIELD_WIDTH * fields), np.int64)
        number_of = np.full(1 << 16, -1, np.int32)
        places = set()
        for number, names in wanted.items():
            event = self.events[number]
            kind, task = (event.number(name, self._where) for name in ("common_type", "common_pid"))
            if (kind.size, task.size) != (2, 4) or event.id >= len(number_of):
                raise FaultpathError(
                    f"the format of {event.system}:{event.name} begins unlike any known", self._where, RECORD_AGAIN
                )
            places.add(kind.offset)
            number_of[event.id] = number
            used = [kind, task, *(event.number(name, self._where) for name in names)]
            events[number, rb.A_NEED] = max(field.offset + field.size for field in used)
            events[number, rb.A_TID] = task.offset
            for column, field in enumerate(used[2:]):
                start = rb.A_FIELD + FIELD_WIDTH * column
                events[number, start : start + FIELD_WIDTH] = field.offset, field.size, field.signed
        if len(places) > 1:
            raise FaultpathError("events that keep their id in different places", self._where, RECORD_AGAIN)
        return events, number_of, places.pop() if places else 0

    def _refuse_twice(self) -> None:
        """An event that two ring buffers recorded would count twice."""
        for number in np.flatnonzero((self._seen > 0).sum(axis=0) > 1)[:1]:
            event = self.events[number]
            where = np.flatnonzero(self._seen[:, number])
            names = ", ".join(self.header.buffers[i].name or "the first" for i in where)
            raise FaultpathError(
                f"{event.system}:{event.name} is in several ring buffers ({names})",
                self._where,
                "record it into one (trace-cmd record -B makes another)",
            )


class _Stream:
    """What one processor recorded into one ring buffer.

    :ivar done: bytes of the file decoded
    """

    def __init__(self, recording: TraceDat, buffer: Buffer, pages: Pages, most: int, seen: np.ndarray) -> None:
        self.header, self.buffer, self.pages, self.most, self.seen = recording.header, buffer, pages, most, seen
        self.map = recording._map
        self.where = f"{recording._where}, CPU {pages.cpu}"
        self.state = np.zeros(rb.S_SIZE, np.int64)
        self.shared = self._shared()
        self.next = pages.offset  # offset of what follows ``buf`` in the file
        # The size of compressed pages counts the four bytes of the number of chunks or not, by version of trace-cmd.
        self.end = min(pages.offset + pages.size + (4 if buffer.compressed else 0), len(self.map))
        self.chunks = 0
        self.buf = np.frombuffer(self.map, np.uint8)
        self.stop = 0  # in ``buf``
        self.released = pages.offset
        if buffer.compressed:
            self.chunks = self._number()
        else:
            self.state[rb.S_PAGE], self.stop, self.next = pages.offset, self.end, self.end
            self._whole(pages.size)

    def _shared(self) -> np.ndarray:
        shared = np.zeros(rb.P_SIZE, np.int64)
        time, commit, data = (self.header.header_page.get(name) for name in ("timestamp", "commit", "data"))
        if not (
            time and commit and data and (time.offset, time.size, commit.offset) == (0, 8, 8)
            and commit.size in (4, 8) and data.offset == 8 + commit.size
        ):  # fmt: skip
            raise FaultpathError("pages of the ring buffer that begin unlike any known", self.where, RECORD_AGAIN)
        shared[[rb.P_PAGE, rb.P_HEAD, rb.P_LONG]] = self.buffer.page_size, data.offset, commit.size
        if self.buffer.clock == "tsc2nsec" and self.header.tsc:
            shared[[rb.P_MULT, rb.P_SHIFT]] = self.header.tsc
        return shared

    @property
    def done(self) -> int:
        at = self.next if self.buffer.compressed else int(self.state[rb.S_PAGE])
        return min(at - self.pages.offset, self.pages.size)

    def fill(self, out: np.ndarray, tables: tuple[np.ndarray, np.ndarray, int]) -> int:
        """Decode the next rows into ``out``; how many there are, 0 at the end of the stream."""
        events, number_of, self.shared[rb.P_TYPE] = tables
        self.state[rb.S_ROWS] = 0
        while True:
            status = rb.walk(
                self.buf, self.stop, self.shared, events, number_of, self.seen, self.pages.cpu, out, self.state
            )
            if status < 0:
                place = f"in the page at {int(self.state[rb.S_PAGE]):#x}"
                if self.buffer.compressed:
                    place += f" of the chunk that ends at {self.next:#x}"
                raise FaultpathError(f"{rb.ERRORS[status]}, {place}", self.where, RECORD_AGAIN)
            self._release()
            if status == rb.FULL or not self.chunks:
                break
            self._expand()
        return int(self.state[rb.S_ROWS])

    def _release(self) -> None:
        """Pages of the file that are done with would count as ours until the kernel needs them."""
        done = (self.pages.offset + self.done) // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        start = self.released // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        if done - start >= DONE_WITH:
            self.map.madvise(mmap.MADV_DONTNEED, start, done - start)
            self.released = done

    def _number(self) -> int:
        if self.next + 4 > self.end:
            raise FaultpathError(f"compressed pages that are cut off at {self.next:#x}", self.where, RECORD_AGAIN)
        value = int.from_bytes(self.map[self.next : self.next + 4], "little")
        self.next += 4
        return value

    def _expand(self) -> None:
        self.chunks -= 1
        at = self.next
        packed, size = self._number(), self._number()
        if packed > self.end - self.next:
            raise FaultpathError(f"a compressed chunk that is cut off at {at:#x}", self.where, RECORD_AGAIN)
        if size > self.most:
            raise FaultpathError(
                f"a compressed chunk of {size} bytes at {at:#x} ({self.most} at most)",
                self.where,
                "convert it with trace-cmd convert --compression none",
            )
        self._whole(size)
        data = memoryview(self.map)[self.next : self.next + packed]
        self.next += packed
        self.buf = np.frombuffer(expand(self.header.codec, data, size, f"{self.where}, chunk at {at:#x}"), np.uint8)
        self.state[[rb.S_PAGE, rb.S_RECORD]] = 0
        self.stop = size

    def _whole(self, size: int) -> None:
        if size % self.buffer.page_size:
            raise FaultpathError(
                f"{size} bytes of pages of {self.buffer.page_size} bytes: the last is cut off", self.where, RECORD_AGAIN
            )
