"""Random programs of memory calls, for live/tapped.py and live/modelled.py to run."""

from __future__ import annotations

from hypothesis import strategies as st

from live.kernel import Call

PAGE = 4096
PMD = 2 << 20
PUD = 1 << 30
FAR = 2 * PUD

# Where things happen: near the borders of page tables, so that VMAs and tables end beside each other.
ANCHORS = [0, 0, 0, PMD, PMD, 2 * PMD, 3 * PMD, PUD - PMD, PUD, PUD + PMD]
PRIVATE, SHARED = 0x02, 0x01
ANONYMOUS, GROWSDOWN, NORESERVE, STACK = 0x20, 0x100, 0x4000, 0x20000
KINDS = [PRIVATE | ANONYMOUS] * 3 + [SHARED | ANONYMOUS, PRIVATE, SHARED]
KINDS += [PRIVATE | ANONYMOUS | more for more in (NORESERVE, GROWSDOWN, STACK)]
NONE, READ, READ_WRITE = 0, 1, 3
MAY_MOVE_FIXED, DONT_UNMAP = 3, 4
DONTNEED, FREE, REMOVE, COLD, PAGEOUT, DONTNEED_LOCKED = 4, 8, 9, 20, 21, 24
# Of a mapping: not in a child, without huge pages, not in a core dump, empty in a child; and the way back.
MARKS = [10, 11, 15, 16, 17, 18, 19]

addresses = st.builds(lambda anchor, page: anchor + page * PAGE, st.sampled_from(ANCHORS), st.integers(0, 8))
few = st.integers(1, 9).map(lambda pages: pages * PAGE)
files = st.integers(0, 1)
offsets = st.integers(0, 11).map(lambda page: page * PAGE)


@st.composite
def ranges(draw: st.DrawFn) -> tuple[int, int]:
    """A start, and a few pages or up to some other place."""
    start = draw(addresses)
    if draw(st.integers(0, 3)) == 0:
        end = draw(addresses)
        if end > start:
            return start, end - start
    return start, draw(few)


@st.composite
def moves(draw: st.DrawFn) -> Call | None:
    """mremap() to a given place that does not overlap."""
    start, size = draw(ranges())
    to = draw(addresses) + (FAR if draw(st.booleans()) else 0)
    keep = draw(st.integers(0, 3)) == 0
    new_size = size if keep or draw(st.booleans()) else draw(few)
    if start < to + new_size and to < start + size:
        return None
    return "mremap", start, size, new_size, MAY_MOVE_FIXED | (DONT_UNMAP if keep else 0), to


calls = st.one_of(
    st.builds(
        lambda where, prot, kind, file, offset: ("mmap", *where, prot, kind, file, offset),
        ranges(),
        st.sampled_from([READ_WRITE, READ_WRITE, READ_WRITE, READ, NONE]),
        st.sampled_from(KINDS),
        files,
        offsets,
    ),
    ranges().map(lambda where: ("munmap", *where)),
    st.builds(
        lambda where, prot: ("mprotect", *where, prot), ranges(), st.sampled_from([NONE, READ, READ, READ_WRITE])
    ),
    st.builds(
        lambda where, advice: ("madvise", *where, advice),
        ranges(),
        st.sampled_from([DONTNEED, DONTNEED, DONTNEED_LOCKED, FREE, REMOVE, COLD, PAGEOUT, *MARKS]),
    ),
    moves(),
    addresses.map(lambda at: ("read", at)),
    addresses.map(lambda at: ("write", at)),
    addresses.map(lambda at: ("write", at)),
    st.one_of(
        st.just(("fork",)),
        st.integers(0, 7).map(lambda which: ("ends", which)),
        st.builds(lambda file, at, size: ("punch", file, at, size), files, offsets, few),
        st.builds(lambda file, size: ("truncate", file, size), files, few),
    ),
)


def numbered(drawn: list[Call | None]) -> list[Call]:
    """Forks get numbers, ends those of a child that lives; what names none goes."""
    program: list[Call] = []
    alive: list[int] = []
    for call in drawn:
        if call is None:
            continue
        if call[0] == "fork":
            alive.append(len(program))
            program.append(("fork", len(program)))
        elif call[0] == "ends":
            if alive:
                program.append(("ends", alive.pop(int(call[1]) % len(alive))))
        else:
            program.append(call)
    return program


programs = st.lists(calls, min_size=5, max_size=60).map(numbered)
