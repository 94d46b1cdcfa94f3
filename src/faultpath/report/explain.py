"""Two or three sentences under a comparison: what differs between the designs, and why. Computed from the counters."""

from __future__ import annotations

from typing import Any

from faultpath.report.units import number, percent, plural, size

Result = dict[str, Any]


def sentences(trace: dict[str, Any]) -> list[str]:
    """What a reader should take from one trace's results."""
    results: list[Result] = trace["results"]
    found = [_callbacks(results), _fault_cost(results), _memory(results), *_refused(results), *_overlap(results)]
    return [sentence for sentence in found if sentence]


def _callbacks(results: list[Result]) -> str:
    events = results[0]["counters"]["invalidations"]
    if not events:
        return "Nothing was invalidated while the process ran: the designs differ only in what a fault costs."
    parts = []
    for result in results:
        c = result["counters"]
        empty = f", {percent(c['callbacks_empty'], c['callbacks'])} of them for nothing" if c["callbacks"] else ""
        parts.append(f"{result['design']} {plural(c['callbacks'], 'callback')}{empty}")
    return f"{plural(events, 'invalidation')} became: {'; '.join(parts)}."


def _fault_cost(results: list[Result]) -> str:
    parts = []
    for result in results:
        c = result["counters"]
        faults = c["device_faults"]
        if not faults:
            return ""
        parts.append(f"{result['design']} {number(c['lookup_steps'] / faults)} nodes in {_lookup_words(c, faults)}")
    return f"To find its interval a device fault reads: {'; '.join(parts)}."


def _lookup_words(counters: dict[str, int], faults: int) -> str:
    per_fault = number(round(counters["lookups"] / faults, 2))
    return f"{per_fault} lookup{'' if per_fault == '1' else 's'}" if counters["lookups"] else "no lookup"


def _memory(results: list[Result]) -> str:
    parts = [
        f"{r['design']} {size(r['counters']['interval_bytes_peak'])} for "
        f"{plural(r['counters']['intervals_peak'], 'interval')}"
        for r in results
    ]
    return f"Memory for intervals at its peak: {'; '.join(parts)}."


def _refused(results: list[Result]) -> list[str]:
    return [
        f"{r['design']} refused {number(refused)} access{'' if refused == 1 else 'es'}: no mapping is "
        f"known there, or it forbids what the driver asks for"
        f"{' (a writable implicit MR asks for write access also to read)' if r['design'] == 'odp-implicit' else ''}."
        for r in results
        if (refused := r["counters"]["device_faults_refused"])
    ]


def _overlap(results: list[Result]) -> list[str]:
    """The series' left-neighbour search: it takes the first interval of the VMA, not the nearest."""
    return [
        f"{r['design']}'s intervals overlap here (one event calls back {number(c['callbacks'] / c['invalidations'])} "
        f"of them on average): for its left neighbour a new interval takes the first in the VMA, not the nearest."
        for r in results
        if r["design"] == "nouveau-v6" and (c := r["counters"])["callbacks"] > 4 * max(1, c["invalidations"])
    ]
