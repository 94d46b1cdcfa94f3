"""The modelled CPU side against the running kernel, where there is swap: what MADV_PAGEOUT takes, and its way back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from faultpath.kernel.mm import huge, lazyfree, pages
from faultpath.kernel.mm import swap as swap_mm
from faultpath.kernel.mm.swap import SWAP
from live import kernel
from live.kernel import Call, Kernel
from live.programs import PAGE, PMD, swapped_dense, swapped_small
from live.swap import swap
from live.test_live import ANON, HUGE, PROGRAMS, agree, compare, found_out, says_as_recorded

RECORDED = Path(__file__).with_name("recorded_swap.json")
FOUR: Call = ("mmap", 0, 4 * PAGE, 3, ANON, 0, 0)

CASES: dict[str, list[Call]] = {
    "a page that comes back is writable, even if it was only read": [
        FOUR, ("write", 0), ("write", PAGE), ("madvise", 0, 4 * PAGE, 21), ("read", 0), ("madvise", 0, 4 * PAGE, 21),
        ("mprotect", 0, 4 * PAGE, 1), ("read", PAGE), ("mprotect", 0, 4 * PAGE, 3), ("write", PAGE), ("fork", 1),
        ("write", PAGE), ("write", 0), ("ends", 1), ("write", 0),
    ],
    "what a child has of swap makes a write copy, until it has gone": [
        FOUR, ("write", 0), ("write", PAGE), ("write", 2 * PAGE), ("madvise", 0, 4 * PAGE, 21), ("fork", 1),
        ("write", 0), ("read", PAGE), ("madvise", 0, 4 * PAGE, 21), ("read", PAGE), ("write", PAGE), ("read", 2 * PAGE),
        ("ends", 1), ("write", 2 * PAGE), ("madvise", 0, 4 * PAGE, 21),
    ],
    "a page that a child maps is not taken": [
        FOUR, ("write", 0), ("write", PAGE), ("fork", 1), ("madvise", 0, 4 * PAGE, 21), ("write", PAGE),
        ("madvise", 0, 4 * PAGE, 21), ("ends", 1), ("madvise", 0, 4 * PAGE, 21), ("write", 0),
    ],
    "what is kept from a child has no second owner": [
        FOUR, ("write", 0), ("madvise", 0, PAGE, 21), ("madvise", 0, PAGE, 10), ("fork", 1), ("madvise", 0, PAGE, 11),
        ("write", 0), ("madvise", 0, PAGE, 21), ("fork", 2), ("ends", 1), ("read", 0), ("write", 0),
    ],
    "a page that was let go of is discarded, or stays once before it is taken": [
        FOUR, ("write", 0), ("write", PAGE), ("madvise", 0, 2 * PAGE, 8), ("write", PAGE), ("madvise", 0, 2 * PAGE, 21),
        ("madvise", 0, 2 * PAGE, 21), ("read", 0), ("read", PAGE), ("write", 0), ("write", PAGE),
    ],
    "MADV_FREE frees what was swapped out, and lets nothing go that a child has there": [
        FOUR, ("write", 0), ("write", PAGE), ("madvise", 0, 2 * PAGE, 21), ("madvise", 0, PAGE, 8), ("read", 0),
        ("write", 0), ("fork", 1), ("read", PAGE), ("madvise", PAGE, PAGE, 8), ("madvise", PAGE, PAGE, 21),
        ("read", PAGE), ("write", PAGE),
    ],
    "it moves, and goes with its VMA": [
        FOUR, ("write", 0), ("write", PAGE), ("write", 2 * PAGE), ("madvise", 0, 4 * PAGE, 21),
        ("mremap", 0, 2 * PAGE, 2 * PAGE, 3, PMD), ("write", PMD), ("fork", 1), ("write", PMD + PAGE),
        ("munmap", 2 * PAGE, PAGE), ("madvise", PMD, PAGE, 4), ("madvise", PMD, 2 * PAGE, 21),
    ],
    "mprotect tells of a table that has nothing but swap": [
        FOUR, ("write", 0), ("madvise", 0, PAGE, 21), ("mprotect", 0, 2 * PAGE, 1), ("read", 0), ("write", 0),
    ],
    "it is told where the page might be mapped as well": [
        FOUR, ("write", 0), ("mremap", 0, 4 * PAGE, 4 * PAGE, 7, 16 * PAGE), ("write", PAGE),
        ("mremap", 0, 2 * PAGE, 2 * PAGE, 7, 32 * PAGE), ("write", 0), ("madvise", 16 * PAGE, PAGE, 21),
        ("madvise", 32 * PAGE, 2 * PAGE, 21), ("read", 16 * PAGE), ("write", 33 * PAGE),
    ],
    "a file in memory goes to swap, and what is there is not mapped around": [
        ("mmap", 0, 8 * PAGE, 3, 1, 0, 0), ("mmap", 16 * PAGE, 8 * PAGE, 3, 2, 0, 0), ("write", 0), ("write", PAGE),
        ("write", 2 * PAGE), ("madvise", 0, 2 * PAGE, 21), ("read", 18 * PAGE), ("write", 16 * PAGE),
        ("write", 17 * PAGE), ("write", 18 * PAGE), ("madvise", 16 * PAGE, 4 * PAGE, 21), ("punch", 0, 0, 4 * PAGE),
        ("read", 16 * PAGE), ("truncate", 0, PAGE), ("read", 17 * PAGE),
    ],
    "a huge page goes whole, inside one event, and comes back page by page": [
        *HUGE, ("write", PMD), ("madvise", PMD, PMD, 21), ("write", PMD), ("read", PMD + PAGE),
        ("madvise", PMD, PMD, 21), ("mprotect", PMD, PMD, 1), ("madvise", PMD, PAGE, 4),
    ],
    "of a huge page a part is split off, and zeroes do not go": [
        *HUGE, ("write", PMD), ("write", PMD + PAGE), ("madvise", PMD, 4 * PAGE, 21), ("write", PMD + 2 * PAGE),
        ("madvise", PMD, PMD, 21),
    ],
    "zeroes that came back from swap are zeroes in the next huge page": [
        *HUGE, ("write", PMD), ("madvise", PMD, PMD, 21), ("madvise", PMD, PMD, 25), ("madvise", PMD, 8 * PAGE, 21),
    ],
    "all of a folio that was let go of is dirty once it is split, if one page was written since": [
        *HUGE, ("write", PMD + PAGE), ("madvise", PMD, PMD, 8), ("mprotect", PMD + 8 * PAGE, PAGE, 1), ("write", PMD),
        ("madvise", PMD, 3 * PAGE, 21), ("madvise", PMD, 2 * PAGE, 21),
    ],
    "a huge page that was let go of and written to stays once": [
        *HUGE, ("write", PMD), ("madvise", PMD, PMD, 8), ("write", PMD + PAGE), ("madvise", PMD, PMD, 21),
        ("madvise", PMD, PMD, 21),
    ],
}  # fmt: skip


@pytest.fixture
def swapping() -> Iterator[Kernel]:
    """A tapped process with swap, for one test: nobody else is under the tap meanwhile."""
    if why := kernel.missing():
        pytest.skip(f"the running kernel cannot be asked: {why}")
    with ExitStack() as undo:
        try:
            undo.enter_context(swap())
        except OSError as error:
            pytest.skip(f"no swap: {error}")
        it = Kernel(swap=True)
        undo.callback(it.close)
        it.start()
        yield it


def test_known_cases(swapping: Kernel) -> None:
    for program in CASES.values():
        compare(swapping, program)


@pytest.mark.parametrize("draw", [swapped_small, swapped_dense])
def test_random_programs_raise_what_they_raise_for_real(swapping: Kernel, draw: Callable[[int], list[Call]]) -> None:
    agree(swapping, draw, PROGRAMS // 8)


# Changes that must not go unnoticed: a function, what stands in it, and what does instead.
WRONG = {
    "a child has nothing of swap": (pages.give_swap_entries, ("1 << (KEPT_SHIFT + child)", "0")),
    "what a child has is written": (swap_mm.do_swap_page, ("if write:\n            do", "if 0:\n            do")),
    "who has it is forgotten on the way back": (swap_mm.do_swap_page, ("zeroes | holders(mm, page, pte)", "zeroes")),
    "MADV_FREE keeps what is swapped out": (lazyfree.free_swap_entries, ("        if pte and", "        if 0 and")),
    "a move leaves behind who has it": (huge.move_page_tables, ("    pt_move(known.swapped, old, new, size)\n", "")),
    "zeroes are data": (pages.is_all_zeroes, ("& ZEROES", "& 0")),
    "a file in memory stays in its cache": (pages.remove_mapping, ("total_swap_pages(mm) or", "0 or")),
    "a huge page is split first": (huge.stays_whole, (" or total_swap_pages(mm)", "")),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_model_is_found_out(what: str) -> None:
    assert found_out(*WRONG[what], CASES, RECORDED, tuple(SWAP))


def test_the_model_says_what_linux_6_18_said(request: pytest.FixtureRequest) -> None:
    """Where the running kernel cannot be asked: its recorded answers. ``REWRITE=1`` records them anew."""
    if os.environ.get("REWRITE"):
        asked = request.getfixturevalue("swapping")
        said = {what: asked.run(program) for what, program in CASES.items()}
        RECORDED.write_text(json.dumps(said, indent=1) + "\n")
    recorded = json.loads(RECORDED.read_text())
    assert recorded.keys() == CASES.keys()
    for what, program in CASES.items():
        says_as_recorded(program, recorded[what], tuple(SWAP))
