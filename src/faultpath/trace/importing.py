"""A recording in, a trace out."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from faultpath.errors import FaultpathError
from faultpath.trace.formats import Progress, recognise
from faultpath.trace.readers.reader import Reader
from faultpath.trace.schema import Columns, TraceMeta, TraceWriter

#: The reader of each format, ``module:class``: a module is imported when a file of its format comes.
READERS = {
    "perf.data": "perf_recording:PerfRecording",
    "trace.dat": "trace_dat_recording:TraceDatRecording",
    "kfd-smi": "kfd_smi:KfdSmiLog",
    "nsys-sqlite": "nsys_sqlite:NsysExport",
    "perf script": "perf_text:PerfText",
    "strace": "strace:StraceRecording",
}


def import_recording(
    source: Path, output: Path, progress: Progress | None = None, extra_rows: Columns | None = None
) -> TraceMeta:
    """Read ``source`` and write the trace ``output``, which appears only when complete.

    :param progress: called with bytes done and bytes in all
    :param extra_rows: VMA rows the recorder took itself (``/proc/PID/maps``), columns of the schema, times in the
        recording's clock; for their processes perf's own records of mappings are not used. perf.data only
    :raises FaultpathError: when ``source`` cannot be imported; nothing is written then
    """
    found = recognise(source)
    if found == "trace":
        raise FaultpathError("already a trace", str(source), "use it as it is")
    if output.exists() and output.samefile(source):
        raise FaultpathError("the trace would overwrite the recording", str(output), "name another file with -o")
    module, name = READERS[found].split(":")
    kind = getattr(import_module(f"faultpath.trace.readers.{module}"), name)
    reader: Reader = kind(source) if extra_rows is None else kind(source, extra_rows)
    with TraceWriter(output) as writer:
        for rows in reader.rows(progress):
            writer.write(rows)
        meta = reader.meta()
        writer.finish(meta)
    return meta
