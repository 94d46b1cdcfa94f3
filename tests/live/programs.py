"""Random programs of memory calls, for live/tapped.py and live/modelled.py to run."""

from __future__ import annotations

from random import Random

from hypothesis import strategies as st

from live.kernel import Call

PAGE = 4096
PMD = 2 << 20
PUD = 1 << 30
FAR = 2 * PUD

# Where things happen: near the borders of page tables, so that VMAs and tables end beside each other.
ANCHORS = [0, 0, 0, PMD, PMD, 2 * PMD, 3 * PMD, PUD - PMD, PUD, PUD + PMD]
PRIVATE, SHARED = 0x02, 0x01
ANONYMOUS, GROWSDOWN, NORESERVE, STACK, HUGETLB = 0x20, 0x100, 0x4000, 0x20000, 0x40000
KINDS = [PRIVATE | ANONYMOUS] * 3 + [SHARED | ANONYMOUS, PRIVATE, SHARED]
KINDS += [PRIVATE | ANONYMOUS | more for more in (NORESERVE, GROWSDOWN, STACK)]
PRIVATE_MEMORY = [kind for kind in KINDS if kind & PRIVATE and kind & ANONYMOUS]
OF_FILES = [kind for kind in KINDS if kind not in PRIVATE_MEMORY]
NONE, READ, READ_WRITE = 0, 1, 3
MAY_MOVE_FIXED, DONT_UNMAP = 3, 4
DONTNEED, FREE, REMOVE, COLD, PAGEOUT, DONTNEED_LOCKED = 4, 8, 9, 20, 21, 24
HUGE, COLLAPSE = 14, 25
# Of a mapping: not in a child, without huge pages, not in a core dump, empty in a child; and the way back.
MARKS = [10, 11, 15, 16, 17, 18, 19]

few = st.integers(1, 9).map(lambda pages: pages * PAGE)
files = st.integers(0, 1)
offsets = st.integers(0, 11).map(lambda page: page * PAGE)


def addresses(pages: st.SearchStrategy[int]) -> st.SearchStrategy[int]:
    return st.builds(lambda anchor, page: anchor + page * PAGE, st.sampled_from(ANCHORS), pages)


@st.composite
def ranges(draw: st.DrawFn, at: st.SearchStrategy[int], far: int) -> tuple[int, int]:
    """A start, and a few pages or, ``far`` times out of four, up to some other place."""
    start = draw(at)
    if draw(st.integers(0, 3)) < far:
        end = draw(at)
        if end > start:
            return start, end - start
    return start, draw(few)


@st.composite
def moves(draw: st.DrawFn, at: st.SearchStrategy[int], where: st.SearchStrategy[tuple[int, int]]) -> Call | None:
    """mremap() to a given place that does not overlap."""
    start, size = draw(where)
    to = draw(at) + (FAR if draw(st.booleans()) else 0)
    keep = draw(st.integers(0, 3)) == 0
    new_size = size if keep or draw(st.booleans()) else draw(few)
    if start < to + new_size and to < start + size:
        return None
    return "mremap", start, size, new_size, MAY_MOVE_FIXED | (DONT_UNMAP if keep else 0), to


def calls(at: st.SearchStrategy[int], far: int, kinds: list[int], advice: list[int]) -> st.SearchStrategy[Call | None]:
    where = ranges(at, far)
    return st.one_of(
        st.builds(
            lambda where, prot, kind, file, offset: ("mmap", *where, prot, kind, file, offset),
            where,
            st.sampled_from([READ_WRITE, READ_WRITE, READ_WRITE, READ, NONE]),
            st.sampled_from(kinds),
            files,
            offsets,
        ),
        where.map(lambda where: ("munmap", *where)),
        st.builds(
            lambda where, prot: ("mprotect", *where, prot), where, st.sampled_from([NONE, READ, READ, READ_WRITE])
        ),
        st.builds(lambda where, advice: ("madvise", *where, advice), where, st.sampled_from(advice)),
        moves(at, where),
        at.map(lambda at: ("read", at)),
        at.map(lambda at: ("write", at)),
        at.map(lambda at: ("write", at)),
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


def alive(program: list[Call]) -> list[Call]:
    """Without the ends of children that were not made."""
    made = [call[1] for call in program if call[0] == "fork"]
    return [call for call in program if call[0] != "ends" or call[1] in made]


programs = st.lists(
    calls(
        addresses(st.integers(0, 8)),
        1,
        KINDS,
        [DONTNEED, DONTNEED, DONTNEED_LOCKED, FREE, REMOVE, COLD, PAGEOUT, *MARKS],
    ),
    min_size=5,
    max_size=60,
).map(numbered)


# --- programs that stay where something is mapped

BLOCKS = 4  # of 2 MiB
SOMEWHERE_ELSE = 8 * PMD
MOST_CHILDREN = 7  # from the first one that lives on: of which it is known whether a page was kept from them


class Dense:
    """One random program of calls in a few blocks of 2 MiB, most of them mapped, most with huge pages."""

    unit = PAGE
    elsewhere = SOMEWHERE_ELSE
    more_advice: tuple[int, ...] = ()
    collapses_files = True

    def __init__(self, random: Random) -> None:
        self.random = random
        self.collapses = random.random() < 0.5
        # Else what a child maps of files, and where, would have to be known.
        self.removes = not (self.collapses and self.collapses_files)
        self.huge = random.random() < 0.8
        self.alive = self.forks = 0
        self.program: list[Call | None] = []

    def draw(self) -> list[Call]:
        start = self.random.choice([0, 0, 0, self.unit, 5 * self.unit])
        self.program.append(("mmap", start, BLOCKS * PMD, READ_WRITE, self.random.choice(PRIVATE_MEMORY), 0, 0))
        for _ in range(self.random.randint(0, 2)):
            self.mmap(*self.place())
        if self.huge:
            self.program.append(("madvise", 0, BLOCKS * PMD, HUGE))
        for _ in range(self.random.randint(8, 40)):
            self.call()
        return numbered(self.program)

    def address(self) -> int:
        block = self.random.randrange(BLOCKS)
        return block * PMD + self.random.choice([0, 0, 0, 1, 2, 3, 5, 8, 511]) * PAGE

    def place(self) -> tuple[int, int]:
        """A start and a size: pages, up to the end of a block, whole blocks, or nearly."""
        start = self.address()
        few = self.random.randint(1, 9) * PAGE
        whole = self.random.randint(1, 3) * PMD
        return start, self.random.choice(
            [few, few, PMD - start % PMD, whole, whole, BLOCKS * PMD - start, whole - PAGE]
        )

    def mmap(self, start: int, size: int) -> None:
        kinds = OF_FILES if self.random.random() < 0.15 else PRIVATE_MEMORY
        if self.collapses and kinds is OF_FILES and self.collapses_files:
            kinds = [SHARED | ANONYMOUS, SHARED]
        elif self.collapses and kinds is OF_FILES:
            size = min(size, PMD - PAGE)
        prot = self.random.choice([READ_WRITE] * 5 + [READ, NONE])
        where = self.random.randint(0, 1), self.random.randint(0, 11) * PAGE
        self.program.append(("mmap", start, size, prot, self.random.choice(kinds), *where))

    def call(self) -> None:
        random, where = self.random, self.place()
        calls: list[Call | None] = [None]
        match random.choices(range(9), [20, 10, 25, 10, 4, 8, 8, 4, 4])[0]:
            case 0:
                calls = [("write", self.address()) for _ in range(random.randint(1, 3))]
            case 1:
                calls = [("read", self.address())]
            case 2:
                advice = [DONTNEED] * 4 + [FREE] * 3 + [PAGEOUT] * 2 + [COLD, *MARKS] + [REMOVE] * self.removes
                advice += [*self.more_advice] + [HUGE] * 3 * self.huge + [COLLAPSE] * 3 * self.collapses
                calls = [("madvise", *where, random.choice(advice))]
            case 3:
                calls = [("mprotect", *where, random.choice([NONE, READ, READ, READ_WRITE, READ_WRITE]))]
            case 4:
                calls = [("munmap", *where)]
            case 5:
                calls = [self.move(*where)]
            case 6:
                self.forks = self.forks + 1 if self.alive else 1
                if self.forks <= MOST_CHILDREN:
                    self.alive += 1
                    calls = [("fork",)]
            case 7:
                self.alive = max(self.alive - 1, 0)
                calls = [("ends", random.randrange(8))]
            case 8:
                self.mmap(*where)
                calls = [("madvise", *where, HUGE)] if self.huge else []
        self.program += calls

    def move(self, start: int, size: int) -> Call | None:
        to = self.random.choice([start + self.elsewhere] * 2 + [self.address(), self.elsewhere])
        to += self.random.choice([0, 0, 0, self.unit, PMD])
        keep = self.random.random() < 0.3
        new_size = size if keep or self.random.random() < 0.7 else self.place()[1]
        if start < to + new_size and to < start + size:
            return None
        return "mremap", start, size, new_size, MAY_MOVE_FIXED | (DONT_UNMAP if keep else 0), to


def dense(seed: int) -> list[Call]:
    return Dense(Random(seed)).draw()


class Small(Dense):
    """The same in a few pages on either side of borders of page tables, of files as well, none huge."""

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.collapses = self.huge = False
        self.kinds = random.choice([KINDS, KINDS, PRIVATE_MEMORY, [PRIVATE, SHARED]])
        borders = random.sample(sorted(set(ANCHORS)), random.choice([1, 1, 2, 2, 3]))
        self.first = [max(border - random.choice([0, 4, 8]) * PAGE, 0) for border in borders]

    def draw(self) -> list[Call]:
        for start in self.first:
            self.mmap(start, self.random.randint(6, 16) * PAGE)
        for _ in range(self.random.randint(0, 3)):
            self.mmap(*self.place())
        for _ in range(self.random.randint(10, 50)):
            self.call()
        return numbered(self.program)

    def address(self) -> int:
        return self.random.choice(self.first) + self.random.randint(0, 15) * PAGE

    def place(self) -> tuple[int, int]:
        start, other = self.address(), self.address()
        if start < other and self.random.random() < 0.3:
            return start, other - start
        return start, self.random.randint(1, 9) * PAGE

    def mmap(self, start: int, size: int) -> None:
        prot = self.random.choice([READ_WRITE] * 5 + [READ, NONE])
        where = self.random.randint(0, 1), self.random.randint(0, 11) * PAGE
        self.program.append(("mmap", start, size, prot, self.random.choice(self.kinds), *where))

    def call(self) -> None:
        random = self.random
        match random.choices(range(3), [30, 1, 1])[0]:
            case 0:
                super().call()
            case 1:
                self.program.append(("punch", random.randint(0, 1), random.randint(0, 11) * PAGE, self.place()[1]))
            case 2:
                self.program.append(("truncate", random.randint(0, 1), random.randint(1, 24) * PAGE))


def small(seed: int) -> list[Call]:
    return Small(Random(seed)).draw()


class SwappedDense(Dense):
    """With swap, where MADV_PAGEOUT takes most pages, and huge ones whole; those of files are not modelled then."""

    more_advice = (PAGEOUT,) * 8
    collapses_files = False


class SwappedSmall(Small):
    """The same of a few small pages."""

    more_advice = (PAGEOUT,) * 12


def swapped_dense(seed: int) -> list[Call]:
    return SwappedDense(Random(seed)).draw()


def swapped_small(seed: int) -> list[Call]:
    return SwappedSmall(Random(seed)).draw()


class HugeTLB(Dense):
    """Of blocks, of which MAP_HUGETLB's and others' lie side by side; some of GiB, of which little is there.

    In every other program calls are for whole blocks alone.
    """

    unit = PMD

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.collapses = False
        self.huge = random.random() < 0.3
        self.gigabytes = random.random() < 0.3
        self.parts = 0.4 if random.random() < 0.5 else 0.0
        self.elsewhere = 4 * PUD if self.gigabytes else SOMEWHERE_ELSE

    def address(self) -> int:
        block = self.random.randrange(BLOCKS) * PMD
        return block + self.random.randrange(3) * PUD if self.gigabytes else block

    def place(self) -> tuple[int, int]:
        size = self.random.randint(1, 3) * PMD
        if self.gigabytes and self.random.random() < 0.5:
            size += self.random.choice([PUD, PUD, 2 * PUD]) - 2 * PMD
        return self.part(self.address()), size - self.part(0)

    def part(self, address: int) -> int:
        """The address, or one inside a page there."""
        if self.random.random() < self.parts:
            address += self.random.choice([1, 2, 8, 511]) * PAGE
        return address

    def move(self, start: int, size: int) -> Call | None:
        """Never to where a page table could be shared: there the kernel waits for itself (docs/cpu-side.md)."""
        return super().move(start, size) if size <= PUD - PMD else None

    def mmap(self, start: int, size: int) -> None:
        kind = self.random.choice([PRIVATE, SHARED]) | ANONYMOUS
        if self.random.random() < 0.8:
            # A part of private memory that moves leaks what was reserved for the rest, for good (6.18.44).
            kind |= HUGETLB | (NORESERVE if kind & PRIVATE or self.gigabytes else 0)
        prot = self.random.choice([READ_WRITE] * 5 + [READ, NONE])
        self.program.append(("mmap", start, size, prot, kind, 0, 0))


def hugetlb(seed: int) -> list[Call]:
    return HugeTLB(Random(seed)).draw()


class HugeFiles(Dense):
    """Of whole blocks of files and shared memory that huge pages can map, of which parts are mapped at several places.

    Where holes are made, or files mapped privately, a child ends at once: where its VMAs stand among the others, and
    what it maps there, is not modelled.
    """

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.collapses = random.random() < 0.8
        self.huge = random.random() < 0.7
        self.kinds = random.choice([[SHARED], [SHARED, PRIVATE], [SHARED, SHARED | ANONYMOUS], [PRIVATE], OF_FILES])
        self.files = random.choice([[2], [2], [2, 3], [0, 2]])
        self.removes = PRIVATE in self.kinds or random.random() < 0.8

    def draw(self) -> list[Call]:
        for _ in range(self.random.randint(1, 3)):
            self.mmap(*self.place())
        self.program.append(("mmap", 4 * PMD, 2 * PMD, READ_WRITE, self.random.choice(self.kinds), self.files[0], 0))
        if self.huge:
            self.program.append(("madvise", 0, 6 * PMD, HUGE))
        for _ in range(self.random.randint(8, 40)):
            self.call()
        return numbered(self.program)

    def place(self) -> tuple[int, int]:
        start, size = super().place()
        return (start & -PMD, size) if self.random.random() < 0.4 else (start, size)

    def mmap(self, start: int, size: int) -> None:
        random = self.random
        prot = random.choice([READ_WRITE] * 5 + [READ, NONE])
        kinds = PRIVATE_MEMORY if random.random() < 0.1 else self.kinds
        offset = random.randint(0, 2) * PMD + start % PMD if random.random() < 0.8 else random.randint(0, 11) * PAGE
        self.program.append(("mmap", start, size, prot, random.choice(kinds), random.choice(self.files), offset))

    def call(self) -> None:
        random, file = self.random, self.random.choice(self.files)
        start, size = self.place()
        match random.choices(range(3), [20, self.removes, self.removes])[0]:
            case 0:
                super().call()
                if self.program[-1] == ("fork",) and self.removes:
                    self.program.append(("ends", 0))
                    self.alive = 0
            case 1:
                self.program.append(("punch", file, start, size))
            case 2:
                self.program.append(("truncate", file, random.choice([start + PAGE, start + size, 32 * PMD])))


def huge_files(seed: int) -> list[Call]:
    return HugeFiles(Random(seed)).draw()
