"""Makes the recordings of this folder again: ``sudo python recordings/make.py [NAME...]``.

Needs what ``faultpath record`` needs (root, perf, /dev/kvm), the package installed for this Python, and the programs
named below. A program that is not installed is named and left out. Servers listen on a socket file only.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from faultpath.trace.schema import TraceWriter, open_trace

HERE = Path(__file__).resolve().parent
# The programs get a short, fixed environment: nothing of this machine ends up on their stacks.
ENVIRONMENT = {"LANG": "C.UTF-8", "HOME": ".", "OPENBLAS_NUM_THREADS": "2", "GIT_CONFIG_NOSYSTEM": "1"}


@dataclass(frozen=True)
class Recording:
    """:ivar command: what is recorded, from start to exit
    :ivar prepare: what is run before, not recorded; shell
    :ivar beside: what is run at the same time, not recorded; ends the program"""

    command: str
    prepare: str = "true"
    beside: str = "true"


RECORDINGS = {
    "java-g1": Recording("java -Xms16m -Xmx96m -XX:+UseG1GC -Xshare:auto -cp . Churn", "javac -d . Churn.java"),
    "java-serial": Recording("java -Xms8m -Xmx64m -XX:+UseSerialGC -cp . Churn", "javac -d . Churn.java"),
    "node": Recording("node report.js"),
    "numpy": Recording("python arrays.py"),
    "redis-bgsave": Recording(
        "redis-server --port 0 --unixsocket redis.sock --enable-debug-command local --save '' --daemonize no",
        beside="./redis-load.sh",
    ),
    "sqlite": Recording("sqlite3 -init shop.sql shop.db .quit"),
    "gcc": Recording("gcc -O2 -c source.c", "python source.py > source.c"),
    "rustc": Recording("rustc -C opt-level=2 -C codegen-units=4 primes.rs"),
    "ffmpeg-x264": Recording(
        "ffmpeg -v error -f lavfi -i testsrc2=size=640x360:rate=25:duration=4 -c:v libx264 -preset fast -threads 2"
        " -y out.mp4"
    ),
    "luajit": Recording("luajit shapes.lua"),
    "perl-realloc": Recording("perl words.pl"),
    "git-repack": Recording("git -C history repack -adfq --window=30", "./history.sh"),
}


def make(name: str, recording: Recording) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(HERE / "workloads", folder, dirs_exist_ok=True)
        environment = ENVIRONMENT | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
        raw = Path(folder) / "raw.trace"

        def start(command: list[str]) -> subprocess.Popen[bytes]:
            return subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL)

        if start(["sh", "-c", recording.prepare]).wait():
            sys.exit(f"{name}: {recording.prepare} failed")
        # exec: the program itself is what the recorder starts, not a shell around it.
        recorder = ["sh", "-c", f"exec faultpath record -o raw.trace -- {recording.command}"]
        running = start(recorder)
        beside = start(["sh", "-c", recording.beside]).wait()
        if running.wait() or beside:
            sys.exit(f"{name}: {recording.command} failed")
        publish(raw, HERE / f"{name}.trace", recording)
        print(f"{name}: {(HERE / f'{name}.trace').stat().st_size:,} bytes, {open_trace(raw).rows:,} rows")


def publish(raw: Path, output: Path, recording: Recording) -> None:
    """Copy a trace without what tells about the machine it was recorded on: the kernel's local suffix, any path."""
    trace = open_trace(raw)
    meta = replace(
        trace.meta,
        source=output.name,
        kernel=re.match(r"[0-9.]*", trace.meta.kernel)[0],  # type: ignore[index]
        command=recording.command.split(),
    )
    with TraceWriter(output) as writer:
        for columns in trace.batches():
            writer.write(columns)
        writer.finish(meta)


def main() -> None:
    names = sys.argv[1:] or list(RECORDINGS)
    for name in names:
        program = RECORDINGS[name].command.split()[0]
        if program != "python" and shutil.which(program) is None:
            print(f"{name}: {program} is not installed, left out", file=sys.stderr)
            continue
        make(name, RECORDINGS[name])


if __name__ == "__main__":
    main()
