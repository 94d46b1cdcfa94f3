"""What :func:`faultpath.trace.info.trace_info` found, on a terminal."""

from __future__ import annotations

from typing import IO, Any

from rich import box
from rich.table import Table
from rich.text import Text

from faultpath.report.terminal import console
from faultpath.report.units import duration, number, percent, plural, size

PROCESSES = 20  # with most rows; the others are only counted

KINDS = {
    "unmapped": "nothing mapped",
    "heap": "heap (brk)",
    "stack": "stack",
    "anonymous": "anonymous",
    "anonymous_code": "anonymous, executable",
    "anonymous_shared": "anonymous, shared",
    "file": "file, private",
    "file_code": "file, executable",
    "file_shared": "file, shared",
    "reserved": "no access (PROT_NONE)",
    "inferred": "known by its faults alone",
}
SIZES = {
    "1": "1 page",
    "2-15": "2-15 pages",
    "16-511": "16-511 pages",
    "2MiB": "one aligned 2 MiB",
    "512-": "512 pages and more",
    "all": "the whole address space",
}


def shown(document: dict[str, Any], raw: bool, out: IO[str] | None = None) -> None:
    """Print it."""
    to = console(out, 5)
    to.print(Text(document["name"], style="bold"))
    kernel = f" on Linux {document['kernel']}" if document["kernel"] else ""
    to.print(
        f"{document['format']}{kernel}; {number(document['rows'])} rows, {size(document['bytes'], raw)}, "
        f"{duration(document['duration_ns'], raw)}"
    )
    if document["command"]:
        to.print(f"command: {' '.join(document['command'])}")
    to.print(
        f"invalidations from the {document['invalidations_from']}; "
        f"lost events {number(document['lost_events'], raw)}, lost samples {number(document['lost_samples'], raw)}\n"
    )
    for title, counts in (("operation", document["ops"]), ("invalidation", document["invalidations"])):
        table = _table(title, "rows", text=1, width=16)
        for name, count in counts.items():
            table.add_row(name, number(count, raw))
        if counts:
            to.print(table)
            to.print()
    table = _table("pid", "parent", "rows", "command", text=0)
    table.columns[-1].justify = "left"
    for process in sorted(document["processes"], key=lambda p: -p["rows"])[:PROCESSES]:
        table.add_row(str(process["pid"]), str(process["parent"]), number(process["rows"], raw), process["comm"])
    to.print(table)
    if len(document["processes"]) > PROCESSES:
        to.print(f"and {len(document['processes']) - PROCESSES} processes with fewer rows")
    for reason, count in document["dropped"].items():
        to.print(f"dropped: {number(count, raw)} {reason}")
    for sentence in document["missing"]:
        to.print(f"missing: {sentence}")
    found = document["address_space"]
    if found is None:
        to.print("no page fault and no device access: nothing to say about an address space")
        return
    page = document["page_size"]
    to.print()
    to.print(Text(f"address space of {found['comm'] or 'process'} (pid {found['pid']})", style="bold"))
    for sentence in _sentences(found, page, document["invalidations_from"], raw):
        to.print(f"- {sentence}")
    for table in (
        _timeline(found, page, raw),
        _kinds(found, page, raw),
        _blocks(found, page, raw),
        _invalidations(found, raw),
        _sizes(found, raw),
        _ranges(found, raw),
    ):
        if table.row_count:
            to.print()
            to.print(table)


def _table(*headings: str, text: int, width: int = 0) -> Table:
    """So many columns of text, then numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i < text else "right", min_width=width or None, no_wrap=i >= text)
    return table


def _sentences(found: dict[str, Any], page: int, source: str, raw: bool) -> list[str]:
    peaks, faults, churn, all_ = found["peaks"], found["faults"], found["churn"], found["invalidations"]
    met = sum(faults.values())
    again = faults["unmapped"] + faults["invalidated"]
    named = {
        "again after their page was unmapped or discarded": faults["unmapped"],
        "again after an invalidation that left it mapped": faults["invalidated"],
        "on a page that was there": faults["present"],
        "refused by the mapping": faults["refused"],
    }
    lines = [
        f"{plural(met, 'page fault' if found['accesses'] == 'touched' else 'fault or access', raw)}: "
        f"{number(faults['first'], raw)} on addresses not touched before"
        + "".join(f", {number(n, raw)} {what}" for what, n in named.items() if n)
        + f" (refaults: {percent(again, met)}).",
        f"Peaks: {number(peaks['vmas']['value'], raw)} VMAs at {duration(peaks['vmas']['at_ns'], raw)}, "
        f"{size(peaks['mapped_bytes']['value'], raw)} mapped at {duration(peaks['mapped_bytes']['at_ns'], raw)}, "
        f"{size(peaks['touched_pages']['value'] * page, raw)} touched at "
        f"{duration(peaks['touched_pages']['at_ns'], raw)}.",
    ]
    calls = ", ".join(f"{name} {number(n, raw)}" for name, n in churn["calls"].items())
    advice = ", ".join(f"{name} {number(n, raw)}" for name, n in churn["advice"].items())
    if calls:
        lines.append(f"Calls: {calls}{f' (madvise: {advice})' if advice else ''}.")
    seconds = found["duration_ns"] / 1e9
    rate = f" ({number(round(churn['vmas_made'] / seconds, 1), raw)} and " if seconds else ""
    rate += f"{number(round(churn['vmas_gone'] / seconds, 1), raw)} a second)" if seconds else ""
    lines.append(
        f"{plural(churn['vmas_made'], 'VMA', raw)} made, {number(churn['vmas_gone'], raw)} gone{rate}; calls took "
        f"{size(churn['pages_unmapped'] * page, raw)} of touched pages away."
    )
    ages = [(limit, n) for limit, n in churn["unmapped_by_age_ns"].items() if n]
    if ages:
        last = list(churn["unmapped_by_age_ns"])[-2]
        lines.append(
            "Age of VMAs when they were unmapped: "
            + ", ".join(
                f"{number(n, raw)} {'under' if limit != 'more' else 'over'} "
                f"{_whole(int(limit if limit != 'more' else last), raw)}"
                for limit, n in ages
            )
            + "."
        )
    if all_["count"]:
        how = "" if source == "tap" else " (derived from the calls)"
        lines.append(
            f"{plural(all_['count'], 'invalidation', raw)}{how}: {number(all_['useful'], raw)} "
            f"meet a page that was touched since its last one; the other "
            f"{percent(all_['count'] - all_['useful'], all_['count'])} call a driver for nothing."
        )
    needed = sum(kind["vmas_touched"] for kind in found["kinds"])
    blocks = {b["bytes"]: b for b in found["blocks"]}
    lines.append(
        f"Intervals needed when most is touched: {number(needed, raw)} that follow VMAs, "
        + ", ".join(f"{number(b['touched'], raw)} of {size_whole(n)}" for n, b in blocks.items())
        + "."
    )
    return lines


def size_whole(value: int) -> str:
    """``2 MiB``, of a power of two."""
    return size(value).replace(".0", "")


def _whole(ns: int, raw: bool) -> str:
    return duration(ns, raw).replace(".00", "")


def _timeline(found: dict[str, Any], page: int, raw: bool) -> Table:
    happened = {
        "faults": "faults",
        "first": "first_touches",
        "calls": "calls",
        "made": "vmas_made",
        "gone": "vmas_gone",
        "invalid.": "invalidations",
        "useful": "useful",
    }
    table = _table("until", "VMAs", "mapped", "touched", *happened, text=0)
    for line in found["timeline"]:
        table.add_row(
            duration(line["end_ns"], raw),
            number(line["vmas"], raw),
            size(line["mapped_bytes"], raw),
            size(line["touched_pages"] * page, raw),
            *(number(line[name], raw) for name in happened.values()),
        )
    return table


def _kinds(found: dict[str, Any], page: int, raw: bool) -> Table:
    at = duration(found["fullest"]["at_ns"], raw)
    table = _table(
        f"mappings at {at}", "VMAs", "in use", "mapped", "touched", "faults", "again", "invalid.", "useful", text=1
    )
    for line in found["kinds"]:
        faults, raised = line["faults"], line["invalidations"]
        table.add_row(
            KINDS[line["kind"]],
            number(line["vmas"], raw),
            number(line["vmas_touched"], raw),
            size(line["bytes"], raw),
            size(line["touched_pages"] * page, raw),
            number(sum(faults.values()), raw),
            number(faults["unmapped"] + faults["invalidated"], raw),
            number(raised["count"], raw),
            number(raised["useful"], raw),
        )
    return table


def _blocks(found: dict[str, Any], page: int, raw: bool) -> Table:
    at = duration(found["fullest"]["at_ns"], raw)
    table = _table(
        f"blocks at {at}", "touched", "ever", "pages each", "filled", "VMAs each", "most", "several VMAs", text=1
    )
    for line in found["blocks"]:
        n = line["touched"]
        if n:
            table.add_row(
                size_whole(line["bytes"]),
                number(n, raw),
                number(line["touched_ever"], raw),
                number(round(line["pages"] / n, 2), raw),
                percent(line["pages"] * page, n * line["bytes"]),
                number(round(line["vmas"] / n, 2), raw),
                number(line["vmas_most"], raw),
                percent(line["shared"], n),
            )
    return table


def _counted(line: dict[str, int], all_: int, raw: bool) -> list[str]:
    return [
        number(line["count"], raw),
        percent(line["count"], all_),
        number(line["useful"], raw),
        size(line["bytes"], raw),
        number(line["pages_touched"], raw),
        number(line["pages_useful"], raw),
    ]


def _invalidations(found: dict[str, Any], raw: bool) -> Table:
    table = _table("raised by", "event", "count", "share", "useful", "bytes", "pages touched", "pages useful", text=2)
    for line in found["invalidations"]["by_operation"]:
        what = "no call" if line["operation"] == "fault" else line["operation"]
        table.add_row(what, line["event"], *_counted(line, found["invalidations"]["count"], raw))
    return table


def _sizes(found: dict[str, Any], raw: bool) -> Table:
    table = _table("size", "count", "share", "useful", "bytes", "pages touched", "pages useful", text=1)
    for name, line in found["invalidations"]["by_size"].items():
        table.add_row(SIZES[name], *_counted(line, found["invalidations"]["count"], raw))
    return table


def _ranges(found: dict[str, Any], raw: bool) -> Table:
    table = _table("where invalidations begin", "size", "mapping", "count", "share", "useful", "most are", text=1)
    for column in table.columns[:1] + table.columns[2:3] + table.columns[-1:]:
        column.justify, column.no_wrap, column.overflow = "left", False, "fold"
    for line in found["invalidations"]["top_ranges"]:
        event, most = max(line["by_event"].items(), key=lambda e: e[1])
        table.add_row(
            f"{line['start']:012x}-{line['end']:012x}",
            size(line["end"] - line["start"], raw),
            KINDS[line["kind"]],
            number(line["count"], raw),
            percent(line["count"], found["invalidations"]["count"]),
            number(line["useful"], raw),
            f"{event}{'' if most == line['count'] else ' ' + percent(most, line['count'])}",
        )
    return table
