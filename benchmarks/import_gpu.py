"""`faultpath import` of GPU recordings against other ways of getting the same fields out: a median each, and the ratio.

``python benchmarks/import_gpu.py [RECORDS]``, by default a million records of each kind, constructed as the tests'
samples are (there is nothing here that needs a GPU).

* An Nsight Systems export of migrations, made by nsys: ``nsys stats -r cuda_gpu_trace`` printing them, where nsys is
  installed. It prints no page faults one by one.
* An Nsight Systems export: ``sqlite3`` printing the same columns of the same tables as text, in no order and by time.
  ``select`` is the bare loop over the module's cursor, without which nothing that uses SQLite can do.
* A log of amdkfd's SMI events, for which there is no tool: ``awk`` printing its fields.
"""

from __future__ import annotations

import itertools
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "trace" / "readers"))
import kfd_sample
import nsys_sample

from faultpath.trace.readers.kfd_smi import KfdSmiLog
from faultpath.trace.readers.nsys_sqlite import TABLES, NsysExport
from timing import median

ROUNDS = 3


def printing(out: Path, *command: str | Path) -> float:
    def run() -> None:
        with out.open("wb") as file:
            subprocess.run(command, stdout=file, check=True)

    return median(run, ROUNDS)


def whole(path: Path, output: Path) -> float:
    run = "import sys; from faultpath.cli import main; sys.exit(main())"
    return median(lambda: subprocess.run([sys.executable, "-c", run, "import", path, "-o", output], check=True), ROUNDS)


def select(path: Path, queries: list[str]) -> None:
    database = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
    for query in queries:
        np.fromiter(itertools.chain.from_iterable(database.execute(query)), np.int64)


def line(what: str, count: int, seconds: float, peer: str, theirs: float) -> None:
    print(f"  {what:<14} {seconds:6.2f} s, {count / seconds / 1e6:5.2f} M/s: {theirs / seconds:5.2f} times {peer}")


def ours(kind: type[NsysExport | KfdSmiLog], path: Path, output: Path, count: int, peer: str, theirs: float) -> None:
    line("decode", count, median(lambda: [len(rows["time"]) for rows in kind(path).rows()], ROUNDS), peer, theirs)
    line("import", count, whole(path, output), peer, theirs)


def nsys(folder: Path, records: int) -> None:
    path = nsys_sample.make(folder / "export.sqlite", story=nsys_sample.storm(records))
    queries = [f"SELECT {', '.join(table.fields.values())} FROM {table.name}" for table in TABLES]
    ordered = [f"{query} ORDER BY start" for query in queries]
    plain = printing(folder / "text", "sqlite3", path, "; ".join(queries))
    by_time = printing(folder / "text", "sqlite3", path, "; ".join(ordered))
    print(f"Nsight Systems export, {records} records; sqlite3 {plain:.2f} s, by time {by_time:.2f} s")
    line("select", records, median(lambda: select(path, queries), ROUNDS), "sqlite3", plain)
    ours(NsysExport, path, folder / "out.trace", records, "sqlite3 by time", by_time)


def nsys_itself(folder: Path, records: int) -> None:
    story = (entry for entry in nsys_sample.storm(6 * records) if entry[0] in ("copy", "memory"))
    path, _ = nsys_sample.recorded(folder, story)
    report = folder / "text"
    theirs = printing(report, "nsys", "stats", "-q", "-r", "cuda_gpu_trace", "-f", "csv", path)
    with report.open("rb") as file:
        count = sum(1 for _ in file) - 1
    if count < 1:
        sys.exit("nsys stats has printed nothing")
    print(f"export by nsys, {count} migrations; nsys stats {theirs:.2f} s")
    ours(NsysExport, path, folder / "out.trace", count, "nsys stats", theirs)


def kfd(folder: Path, count: int) -> None:
    path = folder / "log"
    with path.open("w") as file:
        file.writelines(kfd_sample.storm(count))
    theirs = printing(folder / "text", "awk", "{ print $1, $2, $3, $4, $5, $6 }", path)
    print(f"amdkfd SMI events, {count} lines; awk {theirs:.2f} s")
    ours(KfdSmiLog, path, folder / "out.trace", count, "awk", theirs)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as name:
        if shutil.which("sqlite3"):
            nsys(Path(name), count)
        else:
            print("no sqlite3 to compare with")
        if shutil.which("nsys"):
            nsys_itself(Path(name), count)
        else:
            print("no nsys to compare with")
        kfd(Path(name), count)


if __name__ == "__main__":
    main()
