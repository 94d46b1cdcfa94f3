"""trace.dat: its events as rows of a trace."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from faultpath.trace.formats import Progress, trace_cmd_command
from faultpath.trace.readers.events import choose, missing, processes
from faultpath.trace.readers.ftrace_tasks import TASK_EVENTS, Tasks
from faultpath.trace.readers.rows import CLONE, VFORK, RowMaker
from faultpath.trace.readers.syscalls import K_ENTER, K_EXIT, TAP
from faultpath.trace.readers.trace_dat import TraceDat
from faultpath.trace.schema import Columns, TraceMeta


class TraceDatRecording:
    def __init__(self, source: Path) -> None:
        self.source = source
        self.recording = TraceDat(source)
        names = [f"{event.system}:{event.name}" for event in self.recording.events]
        self.wanted, self.kinds, self.names = choose(names, str(source), trace_cmd_command())
        numbers = {name: number for number, name in enumerate(names)}
        for name, (_, fields) in TASK_EVENTS.items():
            if name in numbers:
                self.wanted[numbers[name]] = fields
        self.tasks = Tasks(self.kinds, numbers)
        self.maker = RowMaker(self.kinds, self.recording.header.page_size, set(), str(source))

    def rows(self, progress: Progress | None = None) -> Iterator[Columns]:
        if not self.tasks.told:
            making = {
                number: fields
                for number, fields in self.wanted.items()
                if K_ENTER + CLONE <= self.kinds[number] <= K_ENTER + VFORK
                or K_EXIT + CLONE <= self.kinds[number] <= K_EXIT + VFORK
            }
            self.tasks.foresee(self.recording.batches(making))
        for events in self.recording.batches(self.wanted, progress):
            yield self.maker.rows(self.tasks.place(events))

    def meta(self) -> TraceMeta:
        header = self.recording.header
        clock = next((buffer.clock for buffer in header.buffers if buffer.cpus), header.clock)
        said = missing(self.names, snapshots=True, clone3_flags=True)
        said.append("Mappings older than the recording or made by exec: ftrace does not record them.")
        said += self.tasks.missing()
        if clock == "local":
            said.append("The exact order of events on different processors: the trace clock was local to each.")
        return TraceMeta(
            format="trace.dat",
            source=self.source.name,
            kernel=header.kernel,
            arch=header.arch,
            page_size=header.page_size,
            clock=clock,
            lost_events=self.recording.lost_events,
            invalidations_from="tap" if TAP in self.names else "model",
            missing=said,
            dropped=self.maker.dropped,
            processes=processes(self.maker.parents(), dict(header.comms)),
        )
