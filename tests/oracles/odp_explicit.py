"""Explicit on-demand paging, of mlx5 and of rxe: memory regions as a list, their pages as dicts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from faultpath.trace.ops import Event
from oracles.address_space import EFAULT, MAX, PAGE, READ, AddressSpace
from oracles.core import Counts, Driver
from oracles.designs import Xarray, runs
from oracles.rbtree import Node

ENOMEM = 12


def explicit(block: int) -> Callable[[AddressSpace, Counts], Driver]:
    return lambda space, counts: Mlx5(space, counts, block)


def rxe(block: int) -> Callable[[AddressSpace, Counts], Driver]:
    return lambda space, counts: Rxe(space, counts, block)


def invalidations(indices: list[int], end: int) -> int:
    """What mlx5 adds to page_invalidations for these present entries, ascending, of a range that ends before ``end``.

    From the first of a run to the first absent multiple of eight behind it, that one included, or to the range's end.
    """
    total, begin = 0, None
    for index, following in pairwise([*indices, end]):
        begin = index if begin is None else begin
        cut = (index // 8 + 1) * 8
        if cut < following:
            total += cut - begin + 1
            begin = None
    return total + (end - begin if begin is not None else 0)


class Region:
    """A memory region that the application has registered."""

    def __init__(self, start: int, end: int, key: int) -> None:
        self.start, self.end, self.key = start, end, key
        self.pages: dict[int, bool] = {}  # page -> whether it was taken in for writing
        self.node = Node(start, end - 1, self)
        self.bytes = 240 + 16 * ((end - start) // PAGE)


class Verbs(Driver):
    """The application with its list of regions."""

    def __init__(self, space: AddressSpace, counts: Counts, block: int) -> None:
        super().__init__(space, counts)
        self.block = block
        self.regions: list[Region] = []
        self.keys = 0
        self.by_key = Xarray()

    def region_of(self, page: int) -> Region | None:
        return next((r for r in self.regions if r.start <= page < r.end), None)

    def fault(self, page: int, write: bool) -> int:
        self.lock("rwsem")
        region = self.region_of(page)
        fresh = region is None
        if region is None:
            self.lock("rwsem")
            found = self.register(page)
            if isinstance(found, int):
                return found
            region = found
        return self.request(region, page, write, fresh)

    def request(self, region: Region, page: int, write: bool, fresh: bool) -> int:
        raise NotImplementedError

    def made(self, big: bool) -> None:
        """The driver's objects for a region; with ``big``, before its tables could not be had."""
        raise NotImplementedError

    def bounds(self, page: int) -> tuple[int, int] | None:
        if self.block:
            return page // self.block * self.block, (page // self.block + 1) * self.block
        self.lock("mmap_lock read")
        vma = self.space.at(page)
        if vma is None:
            return None
        start = max([vma.start, *(r.end for r in self.regions if r.end <= page)])
        end = min([vma.end, *(r.start for r in self.regions if r.start > page)])
        return start, end

    def register(self, page: int) -> Region | int:
        bounds = self.bounds(page)
        if bounds is None:
            return -EFAULT
        region = Region(*bounds, self.keys)
        self.keys += 1
        big = (region.end - region.start) // PAGE * 8 >= 2 << 30
        self.counts.alloc()
        self.made(big)
        if big:
            self.counts.bytes(240)
            self.counts.bytes(-240)
            return -ENOMEM
        self.counts.alloc()
        self.counts.alloc()
        self.counts.bytes(region.bytes)
        self.insert(region.node)
        self.snapshot(region)
        self.lock("xa_lock")
        self.by_key.entries.add(region.key)
        self.regions.append(region)
        return region

    def snapshot(self, region: Region) -> None:
        self.read_begin()
        self.lock("mmap_lock read")
        self.space.tree.steps = 0
        vma = self.space.find_vma(region.start)
        while vma and vma.start < region.end:
            vma = self.space.find_vma(vma.end)
        self.counts.n["vma_steps"] += self.space.tree.steps
        for vma in self.space.overlapping(region.start, region.end):
            if vma.prot & READ:
                for page in self.space.pages_in(max(vma.start, region.start), min(vma.end, region.end)):
                    region.pages[page] = self.space.pages[page].writable
        self.lock("driver")

    def look_up(self, region: Region) -> None:
        self.counts.n["lookups"] += 1
        self.counts.n["lookup_steps"] += self.by_key.nodes_read(region.key)
        self.lock("xa_lock")

    def take_in(self, region: Region, page: int, write: bool) -> int:
        self.read_begin()
        self.lock("mmap_lock read")
        result = self.hmm_range_fault(page, write)
        if result < 0:
            return result
        self.lock("driver")
        region.pages[page] = write
        return 0

    def clear(self, region: Region, start: int, end: int) -> list[int]:
        """What was present of a range, which goes; the range is clipped, and every page of it looked at."""
        start, end = max(start, region.start), min(end, region.end)
        present = sorted(page for page in region.pages if start <= page < end)
        for page in present:
            del region.pages[page]
        self.counts.n["ptes_probed"] += (end - start) // PAGE
        self.counts.n["ptes_zapped"] += len(present)
        return present

    def close(self) -> None:
        for region in self.regions:
            self.tree.remove(region.node)
            self.removed()
            self.counts.bytes(-region.bytes)


class Mlx5(Verbs):
    """The HCA has tables of its own, with the permissions that the pages were taken in with."""

    def mapped(self, page: int) -> bool | None:
        region = self.region_of(page)
        return region.pages.get(page) if region else None

    def made(self, big: bool) -> None:
        if not big:
            self.counts.alloc()
            self.counts.n["device_commands"] += 1  # fill and enable

    def request(self, region: Region, page: int, write: bool, fresh: bool) -> int:
        if fresh:  # perhaps it can be done by now
            self.lock("rwsem")
            entry = region.pages.get(page)
            if entry is not None and (entry or not write):
                return 0
        self.look_up(region)
        result = self.take_in(region, page, True)
        if result == 0:
            self.counts.n["device_commands"] += 1
            self.counts.n["page_faults"] += 1
        return result

    def callback(self, node: Node, start: int, end: int, event: Event) -> None:
        region: Region = node.payload
        self.lock("driver")
        if not region.pages:
            return
        present = self.clear(region, start, end)
        last = (min(end, region.end, MAX) - region.start) // PAGE
        self.counts.n["device_commands"] += runs(present, region.start)
        self.counts.n["page_invalidations"] += invalidations([(p - region.start) // PAGE for p in present], last)


class Rxe(Verbs):
    """Software: what is in the list may be read and written."""

    def mapped(self, page: int) -> bool | None:
        region = self.region_of(page)
        return True if region and page in region.pages else None

    def made(self, big: bool) -> None:
        self.counts.alloc()

    def request(self, region: Region, page: int, write: bool, fresh: bool) -> int:
        self.look_up(region)
        self.lock("driver")
        return 0 if page in region.pages else self.take_in(region, page, write)

    def callback(self, node: Node, start: int, end: int, event: Event) -> None:
        self.lock("driver")
        self.clear(node.payload, start, end)
