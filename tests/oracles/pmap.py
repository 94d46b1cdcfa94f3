"""What ``faultpath info`` says of an address space, from a dict of pages: slow, obvious, for small address spaces."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

from faultpath.trace.ops import Event, Op

PAGE = 4096
MIB = 1 << 20
STACK_LIMIT = 8 * MIB
SHARED, PRIVATE, ANONYMOUS, GROWSDOWN = 1, 2, 0x20, 0x100
ZAPPING = {4, 9, 21, 24}
BLOCKS = (64 << 10, 2 * MIB, 512 * MIB, 1024 * MIB)

Row = dict[str, int]


@dataclass(frozen=True)
class Mapping:
    """What a page belongs to. ``origin``: the call that mapped it, of what does not merge with another call's."""

    prot: int
    backing: str  # anonymous, heap, stack, file, inferred
    shared: bool
    origin: int

    @property
    def kind(self) -> str:
        if self.backing == "inferred":
            return "inferred"
        if not self.prot:
            return "reserved"
        if self.backing in ("heap", "stack"):
            return self.backing
        if self.shared:
            return f"{self.backing}_shared"
        return f"{self.backing}_code" if self.prot & 4 else self.backing


def mapping(prot: int, flags: int, origin: int) -> Mapping:
    shared = bool(flags & SHARED)
    backing = "stack" if flags & GROWSDOWN else "anonymous" if flags & ANONYMOUS else "file"
    merges = bool(flags & ANONYMOUS) and not shared
    return Mapping(prot & 7, backing, shared, 0 if merges else origin)


class Pmap:
    """What is mapped, page by page, and what was touched of it."""

    def __init__(self) -> None:
        self.maps: dict[int, Mapping] = {}  # by page number
        self.present: set[int] = set()
        self.device: set[int] = set()
        self.ever: set[int] = set()
        self.brk = 0
        self.calls = 0
        self.faults: Counter[tuple[str, str]] = Counter()
        self.taken = 0
        self.invalidations: list[dict[str, Any]] = []

    # --- how things stand

    def vmas(self) -> list[tuple[int, int, Mapping]]:
        """Runs of pages of one mapping: first page, end, what it is."""
        found: list[tuple[int, int, Mapping]] = []
        for page in sorted(self.maps):
            if found and found[-1][1] == page and found[-1][2] == self.maps[page]:
                found[-1] = (found[-1][0], page + 1, self.maps[page])
            else:
                found.append((page, page + 1, self.maps[page]))
        return found

    def now(self) -> dict[str, int]:
        reserved = sum(1 for m in self.maps.values() if not m.prot)
        return {
            "vmas": len(self.vmas()),
            "mapped_bytes": (len(self.maps) - reserved) * PAGE,
            "reserved_bytes": reserved * PAGE,
            "touched_pages": len(self.present),
        }

    def kinds(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(("vmas", "used", "bytes", "touched"), 0))
        for first, end, what in self.vmas():
            pages = sum(1 for page in self.present if first <= page < end)
            line = found[what.kind]
            line["vmas"] += 1
            line["used"] += pages > 0
            line["bytes"] += (end - first) * PAGE
            line["touched"] += pages
        return dict(found)

    def blocks(self) -> list[dict[str, int]]:
        found = []
        for size in BLOCKS:
            of = lambda page, size=size: page * PAGE // size  # noqa: E731
            sharing = {of(page): 0 for page in self.present}
            for first, end, what in self.vmas():
                for block in sharing:
                    sharing[block] += bool(what.prot) and of(first) <= block <= of(end - 1)
            found.append(
                {
                    "bytes": size,
                    "touched": len(sharing),
                    "pages": len(self.present),
                    "vmas": sum(sharing.values()),
                    "shared": sum(1 for n in sharing.values() if n > 1),
                    "vmas_most": max(sharing.values(), default=0),
                    "touched_ever": len({of(page) for page in self.ever}),
                }
            )
        return found

    # --- rows

    def row(self, row: Row) -> None:
        op, addr, end, arg, aux = Op(row["op"]), row["addr"], row["addr"] + row["len"], row["arg"], row["aux"]
        if op == Op.FAULT:
            self.touch(addr // PAGE, bool(arg & 2))
        elif op == Op.INVALIDATE:
            self.invalidate(addr, end, Event(arg), Op(aux))
        elif op == Op.VMA:
            self.put(addr, end, mapping(arg, aux, self.new_call()))
        elif op == Op.MMAP:
            self.unmap(addr, end)
            self.put(addr, end, mapping(arg, aux, self.new_call()))
        elif op == Op.MUNMAP:
            self.unmap(addr, end)
        elif op == Op.MPROTECT:
            for page in pages(addr, end):
                if page in self.maps:
                    was = self.maps[page]
                    backing = "anonymous" if was.backing == "inferred" else was.backing
                    self.maps[page] = Mapping(arg & 7, backing, was.shared, was.origin)
        elif op == Op.MADVISE:
            if arg in ZAPPING:
                self.take(addr, end)
        elif op == Op.BRK:
            self.set_brk(addr)
        elif op == Op.MREMAP:
            self.mremap(addr, end, arg, arg + aux // PAGE * PAGE, bool(aux & 4))

    def new_call(self) -> int:
        self.calls += 1
        return self.calls

    def put(self, start: int, end: int, what: Mapping) -> None:
        self.maps.update(dict.fromkeys(pages(start, end), what))

    def take(self, start: int, end: int) -> None:
        for page in pages(start, end):
            self.taken += page in self.present
            self.present.discard(page)

    def unmap(self, start: int, end: int) -> None:
        self.take(start, end)
        for page in pages(start, end):
            self.maps.pop(page, None)

    def set_brk(self, brk: int) -> None:
        old, new = -(-self.brk // PAGE) * PAGE, -(-brk // PAGE) * PAGE
        known, self.brk = self.brk, brk
        if not known:
            return
        if new > old:
            # The mapping that ends at the break is the heap.
            page = old // PAGE - 1
            what = self.maps.get(page)
            if what == mapping(3, PRIVATE | ANONYMOUS, 0) and self.maps.get(page + 1) != what:
                while self.maps.get(page) == what:
                    self.maps[page] = Mapping(3, "heap", False, 0)
                    page -= 1
            self.put(old, new, Mapping(3, "heap", False, 0))
            self.new_call()
        else:
            self.unmap(new, old)

    def mremap(self, old: int, old_end: int, new: int, new_end: int, keep: bool) -> None:
        what = self.maps.get(old // PAGE, mapping(3, PRIVATE | ANONYMOUS, 0))
        size, new_size = old_end - old, new_end - new
        if new != old:
            self.unmap(new, new_end)
        elif new_size > size:
            self.unmap(old_end, old + new_size)
        if new_size < size:
            self.unmap(old + new_size, old_end)
        if new == old:
            if new_size > size:
                self.put(old_end, old + new_size, what)
                self.new_call()
            return
        moved = min(size, new_size)
        if moved:
            for page in pages(old, old + moved):
                to = page + (new - old) // PAGE
                if page in self.present:
                    self.present.discard(page)
                    self.present.add(to)
            if not keep:
                self.unmap(old, old + moved)
        if new_size:
            alone = what.shared or what.backing == "file"
            self.put(new, new_end, Mapping(what.prot, what.backing, what.shared, self.new_call() if alone else 0))

    def touch(self, page: int, write: bool) -> None:
        if page < 16:
            self.faults["unmapped", "refused"] += 1
            return
        if page not in self.maps:
            above = min((p for p in self.maps if p > page), default=None)
            first = self.maps[above] if above is not None else None
            top = next((end for start, end, _ in self.vmas() if start == above), 0) if first else 0
            if above is not None and first and first.backing == "stack" and (top - page) * PAGE <= STACK_LIMIT:
                self.put(page * PAGE, above * PAGE, first)
            else:
                self.maps[page] = Mapping(3, "inferred", False, 0)
        what = self.maps[page]
        if not what.prot or (write and not what.prot & 2):
            self.faults[what.kind, "refused"] += 1
            return
        if page not in self.ever:
            met = "first"
        elif page not in self.present:
            met = "unmapped"
        else:
            met = "present" if page in self.device else "invalidated"
        self.faults[what.kind, met] += 1
        self.ever.add(page)
        self.present.add(page)
        self.device.add(page)

    def invalidate(self, start: int, end: int, event: Event, op: Op) -> None:
        inside = [page for page in pages(start, end) if page in self.present]
        useful = [page for page in pages(start, end) if page in self.device]
        self.device.difference_update(useful)
        met = [(first * PAGE, last * PAGE, what) for first, last, what in self.vmas() if last * PAGE > start]
        low, high, kind = start, end, "unmapped"
        if met and met[0][0] < end:
            low, high, kind = max(start, met[0][0]), min(end, met[0][1]), met[0][2].kind
        self.invalidations.append(
            {
                "event": event.name.lower(),
                "operation": op.name.lower(),
                "size": size_class(start, end),
                "kind": kind,
                "low": low,
                "high": high,
                "counted": {
                    "count": 1,
                    "touched": int(bool(inside)),
                    "useful": int(bool(useful)),
                    "bytes": end - start,
                    "pages_touched": len(inside),
                    "pages_useful": len(useful),
                },
            }
        )

    # --- what was counted

    def grouped(self, *names: str) -> dict[Any, dict[str, int]]:
        """Counts of invalidations by what they have in common."""
        found: dict[Any, Counter[str]] = defaultdict(Counter)
        for one in self.invalidations:
            found[tuple(one[name] for name in names)].update(one["counted"])
        return {key: {name: counter[name] for name in ("count", *counter)} for key, counter in found.items()}

    def top_ranges(self) -> list[dict[str, Any]]:
        """All ranges, most frequent first: of one kind, joined where extents touch or blocks of 2 MiB are next."""
        places: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
        for one in self.invalidations:
            places[one["kind"], one["low"] // (2 * MIB)].append(one)
        ranges: list[list[Any]] = []
        for kind, block in sorted(places):
            here = places[kind, block]
            low, high = min(one["low"] for one in here), max(one["high"] for one in here)
            if ranges and ranges[-1][0] == kind and (low <= ranges[-1][2] or block <= ranges[-1][4] + 1):
                ranges[-1][2:] = [max(ranges[-1][2], high), ranges[-1][3] + here, block]
            else:
                ranges.append([kind, low, high, here, block])
        return [
            {
                "kind": kind,
                "start": low,
                "end": high,
                "count": len(here),
                "useful": sum(one["counted"]["useful"] for one in here),
                "by_event": dict(Counter(one["event"] for one in here)),
            }
            for kind, low, high, here, _ in sorted(ranges, key=lambda r: -len(r[3]))
        ]


def pages(start: int, end: int) -> range:
    return range(start // PAGE, end // PAGE)


def size_class(start: int, end: int) -> str:
    n = (end - start) // PAGE
    if end - start >= 1 << 46:
        return "all"
    if n == 512 and start % (2 * MIB) == 0:
        return "2MiB"
    return "1" if n == 1 else "2-15" if n < 16 else "16-511" if n < 512 else "512-"
