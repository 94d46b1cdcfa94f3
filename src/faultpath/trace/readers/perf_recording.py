"""perf.data: its events as rows of a trace."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from faultpath.trace.formats import Progress
from faultpath.trace.readers import perf_columns as pc
from faultpath.trace.readers.events import choose, missing, processes
from faultpath.trace.readers.perf_data import PerfData, row_width
from faultpath.trace.readers.rows import SNAPSHOT, RowMaker
from faultpath.trace.readers.syscalls import TAP
from faultpath.trace.schema import Columns, TraceMeta


class PerfRecording:
    """:param extra_rows: VMA rows the recorder took itself, as in ``import_recording``"""

    def __init__(self, source: Path, extra_rows: Columns | None = None) -> None:
        self.source = source
        self.recording = PerfData(source)
        self.wanted, kinds, self.names = choose([event.name for event in self.recording.header.events], str(source))
        tracing = self.recording.header.tracing
        page_size = tracing.page_size if tracing else 4096
        self.extra = None if extra_rows is None else _snapshot_events(extra_rows, row_width(self.wanted))
        self.snapshots = set() if extra_rows is None else {int(p) for p in extra_rows["pid"]}
        self.maker = RowMaker(kinds, page_size, self.snapshots, str(source))

    def rows(self, progress: Progress | None = None) -> Iterator[Columns]:
        for events in self.recording.batches(self.wanted, self.extra, progress):
            yield self.maker.rows(events)

    def meta(self) -> TraceMeta:
        recording, header = self.recording, self.recording.header
        names = self.names if self.maker.tapped else self.names - {TAP}
        said = missing(names, snapshots=bool(self.snapshots))
        if not recording.finished:
            said.append("Perhaps the end: the recording does not end with a finished round, as when perf is killed.")
        return TraceMeta(
            format="perf.data",
            source=self.source.name,
            kernel=header.kernel,
            arch=header.arch,
            page_size=self.maker.page_size,
            clock=header.clock,
            lost_events=recording.lost_events,
            lost_samples=recording.lost_samples,
            invalidations_from="tap" if TAP in names else "model",
            missing=said,
            dropped={**recording.dropped, **self.maker.dropped},
            processes=processes(self.maker.parents(), {pid: comm for pid, (_, comm) in recording.comms.items()}),
            command=header.command,
        )


def _snapshot_events(rows: Columns, width: int) -> np.ndarray:
    events = np.zeros((len(rows["time"]), width), np.int64)
    fields = range(pc.FIELD, pc.FIELD + 4)
    for name, column in zip(("time", "pid", "tid", "cpu"), (pc.TIME, pc.PID, pc.TID, pc.CPU), strict=True):
        events[:, column] = rows[name]
    for name, column in zip(("addr", "len", "arg", "aux"), fields, strict=True):
        events[:, column] = rows[name].astype(np.int64)
    events[:, pc.EVENT] = SNAPSHOT
    return events
