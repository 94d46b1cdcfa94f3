"""trace.dat: its events as rows of a trace."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from faultpath.trace.formats import Progress, trace_cmd_command
from faultpath.trace.readers.events import choose, missing, processes
from faultpath.trace.readers.ftrace_tasks import Tasks
from faultpath.trace.readers.rows import CLONE, VFORK, RowMaker
from faultpath.trace.readers.syscalls import FAULT, K_ENTER, K_EXIT, TAP
from faultpath.trace.readers.trace_dat import TraceDat
from faultpath.trace.schema import Columns, TraceMeta


class TraceDatRecording:
    def __init__(self, source: Path) -> None:
        self.source = source
        self.recording = TraceDat(source)
        names = [f"{event.system}:{event.name}" for event in self.recording.events]
        self.wanted, self.kinds, self.names = choose(names, str(source), trace_cmd_command())
        self.tasks = Tasks(self.kinds, self.recording.events)
        self.wanted |= self.tasks.wanted
        self.maker = RowMaker(self.kinds, self.recording.header.page_size, set(), str(source))

    def rows(self, progress: Progress | None = None) -> Iterator[Columns]:
        passes = 1 if self.tasks.told else 2

        def half(done: int, total: int) -> None:
            if progress:
                progress(done, passes * total)

        def rest(done: int, total: int) -> None:
            if progress:
                progress(done + (passes - 1) * total, passes * total)

        if passes == 2:
            making = {
                number: fields
                for number, fields in self.wanted.items()
                if K_ENTER + CLONE <= self.kinds[number] <= K_ENTER + VFORK
                or K_EXIT + CLONE <= self.kinds[number] <= K_EXIT + VFORK
            }
            self.tasks.foresee(self.recording.batches(making, half))
        for events in self.recording.batches(self.wanted, rest):
            yield self.maker.rows(self.tasks.place(events))

    def meta(self) -> TraceMeta:
        header = self.recording.header
        clock = next((buffer.clock for buffer in header.buffers if buffer.cpus), header.clock)
        # Formats may be kept of events that were not switched on, as by trace-cmd extract; what occurred was.
        occurred = self.recording.occurred()
        names = self.names if TAP in occurred else self.names - {TAP}
        said = missing(names, snapshots=True, clone3_flags=True)
        if FAULT not in occurred:
            said.append(f"Page faults: {FAULT} was not recorded, or none occurred.")
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
            invalidations_from="tap" if TAP in names else "model",
            missing=said,
            dropped=self.maker.dropped,
            processes=processes(self.maker.parents(), dict(header.comms)),
        )
