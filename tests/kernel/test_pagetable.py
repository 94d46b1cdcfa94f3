"""Page tables, and mlx5's zapping of them, against a dict."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rig import Bench

from faultpath.engine.world import BAD_ADDRESS, BRK, Stop

PAGE = 4096
VALID, WRITE = 1, 2


class Table:
    """A page table in the world and a dict of its valid entries."""

    def __init__(self, python: bool, start: int, end: int, **geometry: int) -> None:
        self.bench = Bench(python, **geometry)
        self.start, self.end = start, end
        self.bench.pt_init(self.bench.rig, start, end)
        self.entries: dict[int, int] = {}

    def inside(self, start: int, end: int) -> list[int]:
        return sorted(a for a in self.entries if start <= a < end)

    def agrees(self, random: Random) -> None:
        bench = self.bench
        for a in {*self.entries, *(random.randrange(self.start, self.end) // PAGE * PAGE for _ in range(4))}:
            assert bench.pt_get(bench.rig, a) == self.entries.get(a, 0)
            assert bench.pt_get(bench.rig, a + PAGE - 1) == self.entries.get(a, 0)

    def step(self, random: Random, border: int) -> None:
        """One random operation, near a border of tables or anywhere."""
        bench, rig = self.bench, self.bench.rig

        def address() -> int:
            if random.random() < 0.8:
                a = border + random.randint(-20, 20) * PAGE
                return min(max(a, self.start), self.end - PAGE)
            return random.randrange(self.start, self.end) // PAGE * PAGE

        a = address()
        b = max(a, address()) if random.random() < 0.2 else a + random.randint(0, 30) * PAGE
        inside = self.inside(a, b)
        match random.choice(["set", "set", "set", "clear", "protect", "any", "next", "move", "zap", "mtt"]):
            case "set":
                for page in range(random.randint(1, 9)):
                    if a + page * PAGE < self.end:
                        entry = VALID | random.choice([0, WRITE]) | random.randint(1, 63) << 2
                        bench.pt_set(rig, a + page * PAGE, entry)
                        self.entries[a + page * PAGE] = entry
            case "clear":
                assert bench.pt_clear(rig, a, b) == len(inside)
                for page in inside:
                    del self.entries[page]
            case "zap":
                probed, zapped = bench.counter("ptes_probed"), bench.counter("ptes_zapped")
                assert bench.pt_zap(rig, a, b) == len(inside)
                assert bench.counter("ptes_probed") - probed == bench.counter("ptes_zapped") - zapped == len(inside)
                for page in inside:
                    del self.entries[page]
            case "mtt" if b <= self.end and b - a <= 200 * PAGE:
                probed, posts = bench.counter("ptes_probed"), bench.counter("device_commands")
                assert bench.mtt_zap(rig, a, b) == len(inside)
                assert bench.counter("ptes_probed") - probed == (b - a) // PAGE
                present = [a + p * PAGE in self.entries for p in range((b - a) // PAGE)]
                assert bench.counter("device_commands") - posts == posted((a - self.start) // PAGE, present)
                for page in inside:
                    del self.entries[page]
            case "protect":
                bench.pt_write_protect(rig, a, b)
                for page in inside:
                    self.entries[page] &= ~WRITE
            case "any":
                assert bench.pt_any(rig, a, b) == bool(inside)
            case "next":
                assert bench.pt_next(rig, a, b) == min(inside, default=b)
            case "move":
                to = address()
                size = b - a
                if size < 1000 * PAGE and to + size <= self.end and (to + size <= a or b <= to):
                    bench.pt_move(rig, a, to, size)
                    for page in inside:
                        self.entries[page - a + to] = self.entries.pop(page)


def posted(index: int, present: list[bool]) -> int:
    """The loop of mlx5_ib_invalidate_range() as it stands, over entries ``index`` ...: UMR posts."""
    posts, in_block = 0, False
    for i, there in enumerate(present):
        if there:
            in_block = True
        elif in_block and (index + i) % 8 == 0:
            posts += 1
            in_block = False
    return posts + in_block


SPANS = [(0, 1 << 47), (1 << 30, 2 << 30), (1 << 30, (1 << 30) + (2 << 20)), (8 * PAGE, 12 * PAGE), (PAGE, 2 * PAGE)]


@pytest.mark.parametrize("python", [False, True], ids=["native", "python"])
@pytest.mark.parametrize("span", SPANS, ids=["47 bits", "1G", "2M", "4 pages", "1 page"])
@pytest.mark.filterwarnings(
    "ignore:overflow encountered:RuntimeWarning"
)  # eight entries are counted by a multiplication
@settings(deadline=None, max_examples=12, database=None)
@example(seed=3624, small=True)  # moves a range whose end is behind the table's
@given(seed=st.integers(0, 1 << 32), small=st.booleans())
def test_a_page_table_is_a_dict(python: bool, span: tuple[int, int], seed: int, small: bool) -> None:
    start, end = span
    if small and end > 1 << 31:
        end = start + (1 << 26)
    geometry = {"leaf_bits": 3, "dir_bits": 2} if small else {}
    random = Random(seed)
    table = Table(python, start, end, **geometry)
    border = random.choice([start, end, start + (2 << 20), start + (1 << 30), start + 32 * PAGE])
    border = border if start <= border <= end else start
    for _ in range(40):
        table.step(random, border)
        table.agrees(random)
    used = int(table.bench.w[BRK])
    table.bench.pt_free(table.bench.rig)
    assert table.bench.pt_get(table.bench.rig, border) == 0
    # Nothing is lost: a second table of the same content finds room in what the first one gave back.
    for page in table.entries:
        table.bench.pt_set(table.bench.rig, page, VALID)
    assert table.bench.w[BRK] == used


def test_outside_its_bounds_nothing_is_found_and_nothing_can_be_set() -> None:
    bench = Bench()
    bench.pt_init(bench.rig, 8 * PAGE, 16 * PAGE)
    assert bench.pt_get(bench.rig, 7 * PAGE) == bench.pt_get(bench.rig, 16 * PAGE) == 0
    assert bench.pt_clear(bench.rig, 0, 1 << 40) == 0
    for outside in (7 * PAGE, 16 * PAGE):
        with pytest.raises(Stop):
            bench.pt_set(bench.rig, outside, VALID)
        assert (bench.status, bench.w[2]) == (BAD_ADDRESS, outside)


def test_runs_are_cut_at_blocks_of_eight_only() -> None:
    """Examples by hand: gaps within a block are swallowed, one that holds a multiple of eight is not."""
    for pages, posts in (([1, 3, 6], 1), ([7, 9], 2), ([7, 8], 1), ([0, 15], 2), ([8, 15, 16], 1), ([], 0), ([5], 1)):
        bench = Bench()
        bench.pt_init(bench.rig, 1 << 30, 2 << 30)
        for page in pages:
            bench.pt_set(bench.rig, (1 << 30) + page * PAGE, VALID)
        bench.mtt_zap(bench.rig, 1 << 30, (1 << 30) + 64 * PAGE)
        assert bench.counter("device_commands") == posts, pages
        assert bench.counter("ptes_probed") == 64
        assert bench.counter("ptes_zapped") == len(pages)


@pytest.mark.parametrize("python", [False, True], ids=["native", "python"])
def test_an_entry_changes_only_if_it_is_what_was_seen(python: bool) -> None:
    bench = Bench(python)
    rig, at = bench.rig, 1 << 30
    bench.pt_init(rig, 0, 1 << 40)
    seen, other, new = VALID | 5 << 2, VALID | WRITE | 5 << 2, VALID | 6 << 2
    assert bench.pt_cmpxchg(rig, at, seen, new) == 0
    assert bench.pt_get(rig, at) == 0
    assert bench.pt_cmpxchg(rig, at, 0, seen) == 0
    assert bench.pt_cmpxchg(rig, at, other, new) == seen
    assert bench.pt_get(rig, at) == seen
    assert bench.pt_cmpxchg(rig, at, seen, other) == seen
    assert bench.pt_unmap_frame(rig, at, 6) == 0
    assert bench.pt_unmap_frame(rig, at + PAGE, 0) == 0
    assert bench.pt_get(rig, at) == other
    assert bench.pt_unmap_frame(rig, at, 5) == other  # the frame counts, not what may be done with it
    assert bench.pt_get(rig, at) == 0


@pytest.mark.parametrize("python", [False, True], ids=["native", "python"])
def test_of_two_that_saw_the_same_entry_one_changes_it(python: bool) -> None:
    bench = Bench(python)
    rig, at = bench.rig, 1 << 30
    bench.pt_init(rig, 0, 1 << 40)
    assert bench.device_cmpxchg(rig, at, 0, VALID | 5 << 2) == 0
    assert bench.device_cmpxchg(rig, at, 0, VALID | 6 << 2) == VALID | 5 << 2
    assert bench.pt_get(rig, at) == VALID | 5 << 2


def test_a_dma_unmap_looks_at_every_entry() -> None:
    bench = Bench()
    bench.pt_init(bench.rig, 0, 1 << 40)
    bench.pt_set(bench.rig, 7 * PAGE, VALID)
    assert bench.dma_unmap(bench.rig, 0, 600 * PAGE) == 1
    assert (bench.counter("ptes_probed"), bench.counter("ptes_zapped")) == (600, 1)
    assert bench.counter("device_commands") == 0


@pytest.mark.parametrize("pages", [511, 512, 513, 700, 1023, 1024, 512 * 512 + 1])
def test_a_table_of_any_size_has_room_for_all_its_pages(pages: int) -> None:
    bench = Bench()
    rig, at = bench.rig, 5 * PAGE
    bench.pt_init(rig, at, at + pages * PAGE)
    bench.pt_set(rig, at, VALID)
    assert not any(bench.pt_get(rig, at + n * PAGE) for n in (1, 511, 512, 1024, 512 * 512) if n < pages)
    bench.pt_set(rig, at + (pages - 1) * PAGE, VALID | WRITE)
    assert bench.pt_get(rig, at) == VALID
    assert bench.pt_clear(rig, at, at + pages * PAGE) == 2


@pytest.mark.parametrize("python", [False, True], ids=["native", "python"])
def test_what_is_valid_in_one_table_is_written_to_another(python: bool) -> None:
    bench = Bench(python)
    rig, at = bench.rig, 1 << 30
    bench.pt_init(rig, 0, 1 << 40)
    bench.pt_init_other(rig, at, at + (4 << 20))
    pages = {0: VALID | 5 << 2, 3: VALID | WRITE | 6 << 2, 511: VALID | 7 << 2, 512: VALID | 8 << 2}
    for page, entry in pages.items():
        bench.pt_set(rig, at + page * PAGE, entry)
    assert bench.pt_copy(rig, at + PAGE, at + 512 * PAGE) == 2
    copied = {page: entry for page in range(1024) if (entry := bench.pt_get_other(rig, at + page * PAGE))}
    assert copied == {3: pages[3], 511: pages[511]}
    bench.pt_set(rig, at + 3 * PAGE, VALID)
    bench.pt_set(rig, at + 511 * PAGE, 0)
    assert bench.pt_copy(rig, at, at + 512 * PAGE) == 2
    assert [bench.pt_get_other(rig, at + page * PAGE) for page in (0, 3, 511)] == [pages[0], VALID, pages[511]]


def test_frames_are_never_zero_and_change() -> None:
    bench = Bench()
    frames = [bench.new_frame() >> 2 for _ in range(130)]
    assert frames == [i % 63 + 1 for i in range(130)]
