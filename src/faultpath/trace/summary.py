"""What a process did to its address space, as a plain dictionary: pmap over time, and what a driver will meet there.

*Touched* is a page that the process faulted in and that no call has taken away since. An invalidation is *useful* if a
page in its range was touched after the last invalidation of that page: a device that follows the process's faults
(``compare --accesses touched``) has it mapped then. What is not useful calls a driver for nothing, unless it unmaps
more than it is told to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from faultpath.trace import address_map as am
from faultpath.trace import ordered
from faultpath.trace import tally as counts
from faultpath.trace.address_map import KINDS
from faultpath.trace.ops import Event, Op
from faultpath.trace.processes import Derive, Process, Survey, ahead, in_effect, until_birth
from faultpath.trace.schema import Columns, Trace

SLICES = 16
TOP = 10
#: MADV_*, include/uapi/asm-generic/mman-common.h, Linux 6.18.
ADVICE = {
    0: "normal", 1: "random", 2: "sequential", 3: "willneed", 4: "dontneed", 8: "free", 9: "remove", 10: "dontfork",
    11: "dofork", 12: "mergeable", 13: "unmergeable", 14: "hugepage", 15: "nohugepage", 16: "dontdump", 17: "dodump",
    18: "wipeonfork", 19: "keeponfork", 20: "cold", 21: "pageout", 22: "populate_read", 23: "populate_write",
    24: "dontneed_locked", 25: "collapse",
}  # fmt: skip
BLOCKS = (64 << 10, 2 << 20, 512 << 20, 1 << 30)

Numbers = NDArray[np.int64]


def summary(
    trace: Trace, found: Survey, process: Process, derive: Derive | None, progress: Callable[[int], None]
) -> dict[str, Any]:
    """Read a process's rows and count.

    :param derive: where a trace's invalidations are to be derived
    :param progress: called with rows done
    """
    replay = _Replay(trace.meta.page_size, process.accesses > 0)
    for before in until_birth(trace, found, process.pid):
        replay.before_birth(before)
    replay.begin(process)
    done = 0
    derived = derive is not None and trace.meta.invalidations_from == "model"
    rows = derive(trace, found, process) if derived and derive else in_effect(trace.batches(process.pid))
    for columns in ahead(rows):
        if not replay.rows(columns):
            break
        done += len(columns["time"])
        progress(done)
    replay.end()
    comms = {p["pid"]: p["comm"] for p in trace.meta.processes}
    return {
        "pid": process.pid,
        "comm": comms.get(process.pid, ""),
        "rows": process.rows,
        "start_ns": process.first_ns,
        "duration_ns": process.last_ns - process.first_ns,
        "accesses": "recorded" if process.accesses else "touched",
        **replay.document(process),
    }


class _Replay:
    """The state of a run: the address space, what was counted, and how it stood when most pages were touched."""

    def __init__(self, page_size: int, recorded: bool) -> None:
        self.page_size = page_size
        self.recorded = recorded
        self.space = am.space(page_size)
        self.tally = counts.tally([0], recorded)
        self.ever = np.zeros(len(BLOCKS), np.int64)
        self.fullest: dict[str, Any] = {}

    def before_birth(self, pieces: Iterable[Columns]) -> None:
        """An ancestor's rows make the address space that a child is born with."""
        for columns in pieces:
            self.rows(columns)
        am.at_birth(self.space)

    def begin(self, process: Process) -> None:
        """From here on it counts."""
        span = process.last_ns - process.first_ns
        ends = [process.first_ns + -(-span * (i + 1) // SLICES) for i in range(SLICES)]
        self.tally = counts.tally(ends, self.recorded)
        self.space.state[am.MADE :] = 0
        self.ever[:] = 0
        self.fullest = {}

    def rows(self, columns: Columns) -> bool:
        """Count a batch of rows; False once the process has exited."""
        time, op = columns["time"], columns["op"]
        addr, length = columns["addr"].view(np.int64), columns["len"].view(np.int64)
        arg, aux = columns["arg"], columns["aux"]
        numbers = self.tally.numbers
        numbers[counts.AT] = 0
        while True:
            status = counts.run(self.space, self.tally, time, op, addr, length, arg, aux)
            if status == counts.DONE:
                return True
            if status == counts.NO_ROOM:
                self.space = am.with_room(self.space, 2 * int(self.space.state[am.BLOCKS]) + 1)
                self.tally = counts.with_room(self.tally)
            elif status == counts.SLICE_ENDS:
                self._look(int(self.tally.slices[numbers[counts.SLICE_AT], 0]))
                counts.end_slice(self.space, self.tally)
            else:
                if op[numbers[counts.AT]] == Op.EXIT:
                    return False
                self._look(int(time[numbers[counts.AT]]))
                self._leave()
                numbers[counts.CALL + Op.EXEC] += 1
                numbers[counts.AT] += 1

    def end(self) -> None:
        """No more rows: the slices that are left end as things stand."""
        self._look(int(self.space.state[am.NOW]))
        for _ in range(int(self.tally.numbers[counts.SLICE_AT]), len(self.tally.slices)):
            counts.end_slice(self.space, self.tally)
        self._leave()

    def _leave(self) -> None:
        """The address space goes; what was counted in it stays."""
        self.ever += [len(ids) for ids, _ in self._blocks(am.EVER)]
        old, self.space = self.space, am.space(self.page_size)
        self.space.state[am.MADE :] = old.state[am.MADE :]

    def _blocks(self, bit: np.int64) -> list[tuple[Numbers, Numbers]]:
        """By size in BLOCKS: numbers (address / size) of the blocks with pages that have the bit, and how many."""
        blocks = ordered.rows(self.space.blocks)
        unit = min(max(BLOCKS[0] // self.page_size, 1), am.BLOCK_PAGES)  # pages
        number = np.zeros((len(blocks), am.BLOCK_PAGES // unit), np.int64)
        am.count_pages(self.space.pages, blocks[:, am.INDEX].copy(), bit, number)
        ids = blocks[:, am.BLOCK, None] * (am.BLOCK_PAGES // unit) + np.arange(am.BLOCK_PAGES // unit)
        ids, number = ids[number > 0], number[number > 0]
        found = []
        for size in BLOCKS:
            larger = max(size // (unit * self.page_size), 1)
            ids, unit = ids // larger, unit * larger
            first = np.flatnonzero(np.diff(ids, prepend=-1))
            ids, number = ids[first], np.add.reduceat(number, first) if first.size else number
            found.append((ids * unit * self.page_size // size, number))
        return found

    def _look(self, now: int) -> None:
        """If there are more pages than whenever it was looked: how the address space stands."""
        state = self.space.state
        if self.fullest and state[am.PAGES_IN] <= self.fullest["touched"]:
            return
        by_kind = np.zeros((len(KINDS), 4), np.int64)
        am.census(self.space, by_kind)
        vmas = ordered.rows(self.space.vmas)
        vmas = vmas[vmas[:, am.PROT] != 0]
        blocks = []
        for size, (ids, pages) in zip(BLOCKS, self._blocks(am.IN), strict=True):
            shift = size.bit_length() - 1
            first = np.searchsorted(ids, vmas[:, am.START] >> shift)
            end = np.searchsorted(ids, (vmas[:, am.END] - 1) >> shift, side="right")
            change = np.bincount(first, minlength=len(ids) + 1) - np.bincount(end, minlength=len(ids) + 1)
            sharing = np.cumsum(change)[: len(ids)]
            blocks.append(
                {
                    "bytes": size,
                    "touched": len(ids),
                    "pages": int(pages.sum()),
                    "vmas": int(sharing.sum()),
                    "shared": int((sharing > 1).sum()),
                    "vmas_most": int(sharing.max(initial=0)),
                }
            )
        self.fullest = {"at": now, "touched": int(state[am.PAGES_IN]), "by_kind": by_kind, "blocks": blocks}

    def document(self, process: Process) -> dict[str, Any]:
        """What was counted."""
        t, begin = self.tally, process.first_ns
        faults = t.faults.sum(axis=0)
        state, calls = self.space.state, t.numbers[counts.CALL : counts.ADVICE]
        invalidations = t.counted.reshape(len(Event), counts.OPS, len(counts.SIZES), len(counts.COUNTED))
        kinds = []
        for k, name in enumerate(KINDS):
            vmas, vmas_touched, size, pages = map(int, self.fullest["by_kind"][k])
            met = _named(counts.MET, t.faults[k])
            line = {
                "kind": name,
                "vmas": vmas,
                "vmas_touched": vmas_touched,
                "bytes": size,
                "touched_pages": pages,
                "faults": met,
                "invalidations": _named(counts.COUNTED, t.by_kind[k]),
            }
            if vmas or t.faults[k].any() or t.by_kind[k].any():
                kinds.append(line)
        return {
            "touched_pages": int(faults[0]),
            "faults": _named(counts.MET, faults),
            "peaks": {
                name: {"value": int(value), "at_ns": int(at) - begin if value else 0}
                for name, (value, at) in zip(
                    counts.PEAKS, t.numbers[counts.PEAK : counts.CALL].reshape(-1, 2), strict=True
                )
            },
            "timeline": [{**_named(counts.SLICE, line), "end_ns": int(line[0]) - begin} for line in t.slices],
            "churn": {
                "calls": {op.name.lower(): int(calls[op]) for op in counts.CALLS if calls[op]},
                "advice": {ADVICE.get(a, "other"): int(n) for a, n in enumerate(t.numbers[counts.ADVICE :]) if n},
                "vmas_made": int(state[am.MADE]),
                "vmas_gone": int(state[am.GONE]),
                "pages_unmapped": int(state[am.PAGES_UNMAPPED]),
                "unmapped_by_age_ns": _named([*map(str, am.AGES), "more"], state[am.AGE :]),
            },
            "fullest": {"at_ns": max(self.fullest["at"] - begin, 0), "touched_pages": self.fullest["touched"]},
            "kinds": kinds,
            "blocks": [
                {**block, "touched_ever": int(ever)}
                for block, ever in zip(self.fullest["blocks"], self.ever, strict=True)
            ],
            "invalidations": {
                **_named(counts.COUNTED, invalidations.sum(axis=(0, 1, 2))),
                "by_event": _groups([e.name.lower() for e in Event], invalidations.sum(axis=(1, 2))),
                "by_size": _groups(counts.SIZES, invalidations.sum(axis=(0, 1))),
                "by_operation": _by_operation(invalidations.sum(axis=2)),
                "top_ranges": _top_ranges(ordered.rows(t.hot)),
            },
        }


def _named(names: Iterable[str], values: Iterable[int]) -> dict[str, int]:
    return {name: int(value) for name, value in zip(names, values, strict=True)}


def _groups(names: Iterable[str], values: Numbers) -> dict[str, dict[str, int]]:
    return {name: _named(counts.COUNTED, line) for name, line in zip(names, values, strict=True) if line.any()}


def _by_operation(values: Numbers) -> list[dict[str, Any]]:
    """Most frequent first; axes: event, op, COUNTED."""
    found = [
        {
            "operation": Op(op).name.lower(),
            "event": Event(event).name.lower(),
            **_named(counts.COUNTED, values[event, op]),
        }
        for event, op in np.argwhere(values[:, :, 0])
    ]
    return sorted(found, key=lambda line: -line["count"])


def _top_ranges(hot: Numbers) -> list[dict[str, Any]]:
    """Where most invalidations begin: hot places of one kind that overlap or lie side by side are one range."""
    if not len(hot):
        return []
    kind = hot[:, 0] & ((1 << counts.KIND_SHIFT) - 1)
    block = hot[:, 0] >> counts.KIND_SHIFT
    sequence = np.lexsort((block, kind))
    hot, kind, block = hot[sequence], kind[sequence], block[sequence]
    # Addresses are below 2^57: the kind above them keeps kinds apart in one running maximum.
    low, high = (kind << 57) + hot[:, counts.HOT_LOW], (kind << 57) + hot[:, counts.HOT_HIGH]
    reached = np.maximum.accumulate(high)[:-1]
    apart = (kind[1:] != kind[:-1]) | ((low[1:] > reached) & (block[1:] > block[:-1] + 1))
    first = np.concatenate([[0], np.flatnonzero(apart) + 1])
    total = np.add.reduceat(hot, first)
    end = np.maximum.reduceat(hot[:, counts.HOT_HIGH], first)
    most = np.lexsort((first, -total[:, counts.HOT_COUNTED]))[:TOP]
    return [
        {
            "start": int(hot[first[i], counts.HOT_LOW]),
            "end": int(end[i]),
            "kind": KINDS[kind[first[i]]],
            **_named(counts.COUNTED, total[i, counts.HOT_COUNTED : counts.HOT_EVENT]),
            "by_event": {
                event.name.lower(): int(total[i, counts.HOT_EVENT + event])
                for event in Event
                if total[i, counts.HOT_EVENT + event]
            },
        }
        for i in most
    ]
