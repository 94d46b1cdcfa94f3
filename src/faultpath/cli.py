"""The command line: the only place that knows a terminal. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import click

import faultpath
from faultpath.errors import FaultpathError

DEFAULT_DESIGNS = ("nouveau-v6", "odp-implicit", "full-va")
SHOW_AFTER_SECONDS = 0.5


@click.group(no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(faultpath.__version__, prog_name="faultpath")
def cli() -> None:
    """How should a driver place its mmu_interval_notifiers? Record a process, replay it through designs, count."""


@cli.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Trace to write [NAME.trace]")
@click.option("--pid", type=int, help="Attach to a running process instead of starting CMD")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def record(output: Path | None, pid: int | None, command: tuple[str, ...]) -> None:
    """Record the address space of CMD and its children: page faults, memory calls, notifier invalidations.

    Exits with CMD's own status (128+N for signal N).
    """
    from faultpath.trace.record import record

    if output is None:
        output = Path(f"{Path(command[0]).name if command else f'pid-{pid}'}.trace")
    sys.exit(record(list(command) or None, pid, output))


@cli.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Trace to write [IN with suffix .trace]")
def import_(source: Path, output: Path | None) -> None:
    """Turn a recording (perf.data, trace.dat, text of strace ...) into a trace. What it holds tells its format."""
    from faultpath.trace.importing import import_recording

    with progress() as show:
        output = output or source.with_suffix(".trace")
        import_recording(source, output, lambda done, total: show("import", done, total))


@cli.command()
@click.argument("kind", required=False)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Trace to write [KIND.trace]")
def synth(kind: str | None, output: Path | None) -> None:
    """Make the trace of an extreme that no recording shows alone; without KIND, list the kinds."""
    from faultpath.trace.synth import KINDS, synthesize

    if kind is None:
        for name, made in KINDS.items():
            print(f"{name:15} {made.__doc__}")
    elif kind in KINDS:
        synthesize(kind, output or Path(f"{kind}.trace"))
    else:
        raise FaultpathError(f"no kind '{kind}'", "synth", f"one of {', '.join(KINDS)}")


@cli.command()
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("--pid", type=int, help="The process to summarise [the one with most page faults]")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output")
@click.option("--raw", is_flag=True, help="Plain numbers instead of units")
def info(trace: Path, pid: int | None, as_json: bool, raw: bool) -> None:
    """What is in TRACE and what is missing; what a process does to its address space, and what drivers meet there."""
    from faultpath.trace.formats import as_trace
    from faultpath.trace.info import trace_info

    def derive(*of: Any) -> Any:
        from faultpath.engine.derive import with_derived  # here: most traces do not need it

        return with_derived(*of)

    with progress() as show, as_trace(trace, lambda done, total: show("import", done, total)) as path:
        document = trace_info(path, trace.name, pid, derive, show)
    if as_json:
        print_json(document)
        return
    from faultpath.report.info import shown

    shown(document, raw)


@cli.command()
@click.argument("traces", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-d", "--design", "designs", multiple=True, help="NAME or FILE.py, with :param=value,...")
@click.option("--all", "everything", is_flag=True, help="Every built-in design as well")
@click.option("-c", "--count", "wanted", multiple=True, help="Only NAME or NAME/NAME, of all traces and designs")
@click.option("--accesses", type=click.Choice(["touched", "resident"]), default="touched", show_default=True)
@click.option("--pid", type=int, help="The process to replay [the one with most page faults]")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output")
@click.option("--raw", is_flag=True, help="Plain numbers instead of units")
def compare(
    traces: tuple[Path, ...],
    designs: tuple[str, ...],
    everything: bool,
    wanted: tuple[str, ...],
    accesses: str,
    pid: int | None,
    as_json: bool,
    raw: bool,
) -> None:
    """Replay each trace through each design, count what it costs, and say what differs.

    Without --design and --all: nouveau-v6, odp-implicit and full-va.
    """
    from faultpath.catalog import BUILT_IN
    from faultpath.compare import compare
    from faultpath.report.pivot import parse, pivots

    pairs = parse(wanted)
    requests = [*(BUILT_IN if everything else ()), *designs] or DEFAULT_DESIGNS
    with progress() as show:
        document = compare(traces, requests, accesses=accesses, pid=pid, progress=show)
    if as_json:
        print_json(document)
        return
    if pairs:
        from faultpath.report.verdicts import columns

        print("\n".join(pivots(document, pairs, raw, columns())))
        return
    from faultpath.report import terminal

    terminal.compared(document, raw)


@cli.command()
@click.argument("traces", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--pid", type=int, help="The process [the one with most page faults]")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output")
def agreement(traces: tuple[Path, ...], pid: int | None, as_json: bool) -> None:
    """Derive invalidations from the calls and faults of each TRACE alone, and compare with those the tap recorded.

    Two agree that were raised in the same call or fault, over the same range, as the same event.
    """
    from faultpath.agreement import agreement

    with progress() as show:
        document = agreement(traces, pid, show)
    if as_json:
        print_json(document)
        return
    from faultpath.report.agreement import agreed

    agreed(document)


@cli.command()
@click.argument("designs", metavar="DESIGN...", nargs=-1)
@click.option("-s", "--scenario", "scenarios", multiple=True, help="NAME, FILE.py or FILE.py:NAME [all that apply]")
@click.option(
    "--all", "everything", is_flag=True, help="Every built-in design as well; show the matrix, no counterexample"
)
@click.option(
    "--cases",
    is_flag=True,
    help="Instead: bugs the kernel had, before and after their fixes; DESIGN... names some [all]",
)
@click.option("--memory", default="4G", show_default=True, metavar="SIZE", help="For the table of states; K, M, G")
@click.option("--no-reduction", is_flag=True, help="Interleave every access, also those no other thread can tell apart")
@click.option("--no-symmetry", is_flag=True, help="Tell threads apart that run the same on the same")
@click.option("--no-page-symmetry", is_flag=True, help="Tell pages apart by the order in which they came in")
@click.option("--full", is_flag=True, help="Every access of a counterexample, and every counterexample")
@click.option("--replay", metavar="ID", default="", help="Show a counterexample again instead of searching")
@click.option("--perfetto", type=click.Path(path_type=Path), metavar="OUT", help="Write counterexamples as tracks")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output")
def check(
    designs: tuple[str, ...],
    scenarios: tuple[str, ...],
    everything: bool,
    cases: bool,
    memory: str,
    no_reduction: bool,
    no_symmetry: bool,
    no_page_symmetry: bool,
    full: bool,
    replay: str,
    perfetto: Path | None,
    as_json: bool,
) -> None:
    """Try every interleaving of a driver's fault and invalidate paths, in small scenarios.

    DESIGN is a name or a FILE.py, with :param=value,... Exit status: 0 every property holds in every state; 1 one is
    violated, with a shortest interleaving that does it; 2 the request is wrong, or none was found violated but not
    everything could be explored in the memory given ("bounded", which proves nothing).

    With --cases, DESIGN is CASE or CASE/VARIANT. Exit status: 0 every verdict is as expected, 1 one is not.
    """
    if cases:
        if scenarios or everything or perfetto or no_reduction or no_symmetry or no_page_symmetry:
            raise click.UsageError("--cases goes with names of cases, --full, --replay and --json only")
        check_cases(designs, replay, full, as_json)
    from faultpath.catalog import BUILT_IN, size

    if not designs and not everything:
        raise click.UsageError("Missing argument 'DESIGN...', or --all")
    requests = list(dict.fromkeys([*(BUILT_IN if everything else ()), *designs]))
    limit = size(memory, "--memory")
    if perfetto:
        from faultpath.report.perfetto import writable

        writable(perfetto)
    from faultpath.check import check, status
    from faultpath.report import verdicts

    said = (lambda result: None) if as_json else verdicts.said
    with progress() as show:
        document = check(
            requests,
            scenarios,
            memory=limit,
            reduce=not no_reduction,
            symmetry=not no_symmetry,
            page_symmetry=not no_page_symmetry,
            replay=replay,
            progress=show,
            found=said,
        )
    if perfetto:
        from faultpath.report.perfetto import write

        write(perfetto, document)
    if as_json:
        print_json(document)
    else:
        verdicts.checked(document, everything, full, bool(scenarios))
    sys.stdout.flush()
    exit_with(status(document))


def check_cases(names: tuple[str, ...], replay: str, full: bool, as_json: bool) -> NoReturn:
    """``check --cases``."""
    from faultpath.cases import run
    from faultpath.report import cases

    with progress() as show:
        document = run.check_cases(names, replay=replay, progress=show)
    if as_json:
        print_json(document)
    else:
        cases.checked(document, bool(names), full)
    sys.stdout.flush()
    sys.exit(run.status(document))


@cli.command("designs")
@click.argument("design", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output")
def designs_(design: str | None, as_json: bool) -> None:
    """List designs with their parameters, or show one with its source."""
    from faultpath import catalog

    if design is None:
        found = [catalog.describe(name) for name in catalog.BUILT_IN]
    else:
        found = [catalog.describe(design, source=True)]
    if as_json:
        print_json({"schema": "faultpath/designs/1", "version": faultpath.__version__, "designs": found})
        return
    from faultpath.report import terminal

    terminal.designs(found)


def exit_with(status: int) -> None:
    """Leave with an exit status; 2 has its line."""
    if status == 2:
        fail("not everything was explored: check: more --memory, fewer threads or pages")
    sys.exit(status)


def print_json(document: dict[str, Any]) -> None:
    """One document, keys in the order they were made."""
    print(json.dumps(document, indent=2))


@contextlib.contextmanager
def progress() -> Iterator[Any]:
    """A bar on standard error, if the work takes longer than half a second and somebody is there to see it."""
    begin = time.monotonic()
    bar: Any = None
    task: Any = None

    def show(what: str, done: int, total: int) -> None:
        nonlocal bar, task
        if bar is None:
            if not sys.stderr.isatty() or time.monotonic() - begin < SHOW_AFTER_SECONDS:
                return
            from rich.console import Console
            from rich.progress import Progress

            bar = Progress(console=Console(stderr=True), transient=True)
            bar.start()
            task = bar.add_task(what, total=total)
        bar.update(task, description=what, completed=done, total=total)

    try:
        yield show
    finally:
        if bar is not None:
            bar.stop()


def main() -> None:
    """Run, and turn whatever goes wrong into one line and the exit status of CONTRACT: 2, or 130 after Ctrl-C."""
    # Collecting garbage while modules load, and again at exit, took a third of a second of each command.
    gc.disable()
    atexit.register(gc.freeze)
    try:
        # Not cli.main(): that one ends with status 1 when the reader of a pipe goes away.
        with cli.make_context("faultpath", sys.argv[1:]) as context:
            cli.invoke(context)
        sys.stdout.flush()
    except FaultpathError as error:
        fail(str(error))
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "faultpath"
        fail(f"{error.format_message().rstrip('.')}: {command}: see {command} --help")
    except click.ClickException as error:
        fail(error.format_message())
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    except BrokenPipeError:
        # The reader of a pipe went away: nothing to say, and nothing to flush to at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except MemoryError:
        fail("not enough memory: this machine: close other programs, or replay fewer traces at once")


def fail(message: str) -> None:
    """One line on standard error, exit status 2."""
    print(f"faultpath: {message}", file=sys.stderr)
    sys.exit(2)
