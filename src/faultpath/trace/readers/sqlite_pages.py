"""A table of a SQLite file, walked as it lies there: integers of its records, in the order of rowids.

Format: sqlite.org/fileformat2.html, sections 1.6 (b-tree pages, cells) and 2.1 (records). What is taken is what a
program that exports integers writes. Anything else (damage, values of other kinds, columns that records lack, what went
to overflow pages) ends the walk before the record that has it, with LEFT, and is for SQLite to read, or to refuse.
"""

from __future__ import annotations

import numpy as np

from faultpath.jit import jit_inline, jit_plain

END, FULL, LEFT = range(3)

#: Words of a walk's state: how deep it is, -1 at the end; rowid of the last record it went over; records it went over;
#: pages it has seen; rows of the last call.
DEPTH, ROWID, DONE, PAGES, ROWS = range(5)
#: btree.c lets trees be no deeper. Axes of a walk's stack: depth, then page number and next cell.
DEEPEST = 20
#: Words of a plan's rows, one for each value that is wanted, by column: of which column, for which column of the rows
#: (CHOICE: it must be one of the chosen values) and whether NULL is read as -1.
COLUMN, TO, NULLS = range(3)
CHOICE = -1

#: Records of a table mostly have one of few headers (the serial types of their values). So what a header means is
#: learned once and kept, in one of LAYOUTS places. Words of a layout: the header's first 24 bytes as far as they
#: matter; how long a record must be; then WORDS for each wanted value.
LAYOUTS = 64
H0, H1, H2, LENGTH, VALUES = range(5)
OFFSET, SHIFT, MASK, ADD, WORDS = range(5)
UNKNOWN = -1  # no header: H0 of one that begins like that is never kept

INTERIOR, LEAF = 5, 13
NULL, ZERO, ONE, TEXT = 0, 8, 9, 12
#: By serial type, of those that take one byte themselves. Bytes of the value, -1 where there is no such type; how far
#: eight bytes from where it begins are shifted right to leave it; what is added to that. Its value so has no branch,
#: which the processor could not foresee. NEVER and NULLED: it is no integer, it is NULL.
SIZES = np.array([0, 1, 2, 3, 4, 6, 8, 8, 0, 0, -1, -1, *((kind - TEXT) >> 1 for kind in range(TEXT, 128))], np.int64)
SHIFTS = np.array([63, 56, 48, 40, 32, 16, 0, 0, 63, 63], np.int64)
MASKS = np.array([0, *[-1] * 7, 0, 0], np.int64)
ADDED = np.array([-1, *[0] * 8, 1], np.int64)
NEVER, NULLED = 2, 1
KINDS = np.array([NULLED, 0, 0, 0, 0, 0, 0, NEVER, 0, 0, *[NEVER] * 118], np.int64)
FIRST = -(1 << 63)


@jit_inline
def be16(data, at):  # type: ignore[no-untyped-def]
    i = np.uint64(at)  # an unsigned index spares the test for a negative one
    return np.int64(data[i]) << 8 | np.int64(data[i + np.uint64(1)])


@jit_inline
def be32(data, at):  # type: ignore[no-untyped-def]
    return be16(data, at) << 16 | be16(data, at + 2)


@jit_inline
def be64(data, at):  # type: ignore[no-untyped-def]
    """Eight bytes, the last ones zero where the file has ended."""
    value = np.int64(0)
    i = np.uint64(at)
    if at + 8 <= len(data):
        for k in range(8):
            value |= np.int64(data[i + np.uint64(k)]) << (56 - 8 * k)
    else:
        for k in range(len(data) - at):
            value |= np.int64(data[i + np.uint64(k)]) << (56 - 8 * k)
    return value


@jit_plain
def long_varint(data, at, end):  # type: ignore[no-untyped-def]
    """``varint`` of several bytes."""
    value = np.int64(0)
    for i in range(min(9, end - at)):
        byte = np.int64(data[at + i])
        if i == 8:
            return value << 8 | byte, at + 9
        value = value << 7 | byte & 127
        if byte < 128:
            return value, at + i + 1
    return value, end + 1


@jit_inline
def varint(data, at, end):  # type: ignore[no-untyped-def]
    """A variable-length integer, and where it ends; beyond ``end`` if it does not before that."""
    if at + 3 < end:
        i = np.uint64(at)
        b0, b1, b2 = np.int64(data[i]), np.int64(data[i + np.uint64(1)]), np.int64(data[i + np.uint64(2)])
        if b0 < 128:
            return b0, at + 1
        if b1 < 128:
            return (b0 & 127) << 7 | b1, at + 2
        if b2 < 128:
            return (b0 & 127) << 14 | (b1 & 127) << 7 | b2, at + 3
    return long_varint(data, at, end)


@jit_plain
def learn(data, at, end, plan, layouts, place):  # type: ignore[no-untyped-def]
    """What the header of the record in ``data[at:end]`` means; False if SQLite is to read the record."""
    size, kinds = varint(data, at, end)
    header_end = at + size
    if kinds > end or size < 0 or header_end > end or header_end < at:
        return False
    value_at = header_end
    column, kind, size = 0, np.int64(NULL), np.int64(0)
    for i in range(len(plan)):
        while column <= plan[i, COLUMN]:
            if kinds >= header_end or value_at > end:
                return False
            kind, kinds = varint(data, kinds, header_end)
            if kinds > header_end or kind < 0:
                return False
            size = SIZES[kind] if kind < len(SIZES) else (kind - TEXT) >> 1
            if size < 0 or size > end:
                return False
            value_at += size
            column += 1
        if kind > ONE or KINDS[kind] > plan[i, NULLS] or value_at > end:
            return False
        word = VALUES + WORDS * i
        layouts[place, word + OFFSET], layouts[place, word + SHIFT] = value_at - size - at, SHIFTS[kind]
        layouts[place, word + MASK], layouts[place, word + ADD] = MASKS[kind], ADDED[kind]
    layouts[place, LENGTH] = value_at - at
    return True


@jit_inline
def header_mask(size, word):  # type: ignore[no-untyped-def]
    """Of a header's ``size`` bytes, those that lie in this word of eight."""
    left = min(max(size - 8 * word, 0), 8)
    return np.int64(-1) << (64 - 8 * left) if left else np.int64(0)


@jit_inline
def layout_of(data, at, end, plan, size, m0, m1, m2, layouts):  # type: ignore[no-untyped-def]
    """The place of the layout of the record in ``data[at:end]``, or -1 if SQLite is to read that."""
    h0 = be64(data, at) & m0
    h1 = be64(data, at + 8) & m1 if size > 8 else np.int64(0)
    h2 = be64(data, at + 16) & m2 if size > 16 else np.int64(0)
    mixed = h0 ^ h1 ^ h2
    place = np.uint64((mixed ^ mixed >> 7 ^ mixed >> 17 ^ mixed >> 31 ^ mixed >> 43) & (LAYOUTS - 1))
    if layouts[place, H0] == h0 and layouts[place, H1] == h1 and layouts[place, H2] == h2 and h0 >= 0:
        return np.int64(place) if layouts[place, LENGTH] <= end - at else np.int64(-1)
    if not learn(data, at, end, plan, layouts, np.int64(place)):
        layouts[place, H0] = UNKNOWN
        return np.int64(-1)
    # Only what these bytes say alone can be known again: no size of more than one byte among them.
    known = size <= 24 and h0 >= 0
    for k in range(size):
        known = known and data[at + k] < 128
    layouts[place, H0], layouts[place, H1], layouts[place, H2] = h0 if known else np.int64(UNKNOWN), h1, h2
    return np.int64(place)


@jit_inline
def take_record(data, at, end, plan, values, size, m0, m1, m2, chosen, layouts, out, row):  # type: ignore[no-untyped-def]
    """The record in ``data[at:end]`` into a row: 1, or 0 where it has none of the chosen values, or -1 to leave it.

    :param size: bytes of a header that matter; the masks have those in each of its words
    """
    place = layout_of(data, at, end, plan, size, m0, m1, m2, layouts)
    if place < 0:
        return -1
    selected = 1
    for i in range(values):
        k, word = np.uint64(place), np.uint64(VALUES + WORDS * i)
        value = be64(data, at + layouts[k, word]) >> layouts[k, word + np.uint64(SHIFT)]
        value = (value & layouts[k, word + np.uint64(MASK)]) + layouts[k, word + np.uint64(ADD)]
        to = plan[np.uint64(i), np.uint64(TO)]
        if to >= 0:
            out[np.uint64(row), np.uint64(to)] = value
        else:
            selected = 0
            for j in range(len(chosen)):
                if chosen[j] == value:
                    selected = 1
    return selected


@jit_plain
def walk(data, page_size, reserved, plan, chosen, layouts, stack, state, out):  # type: ignore[no-untyped-def]
    """Go on with a walk until its END, until ``out`` is FULL, or until something is LEFT.

    :param data: the file, uint8; pages of ``page_size`` bytes, of which the last ``reserved`` are not used
    :param plan: shape ``(values, 3)``, by column
    :param chosen: values of which that of CHOICE must be one
    :param layouts: shape ``(LAYOUTS, VALUES + WORDS * values)``; H0 is UNKNOWN at the start
    :param stack: shape ``(DEEPEST, 2)``; the first is the table's root page and 0 at the start
    :param out: shape ``(rows, columns of a row)``, int64
    """
    usable = page_size - reserved
    pages = len(data) // page_size
    values, size = len(plan), plan[len(plan) - 1, COLUMN] + 2
    m0, m1, m2 = header_mask(size, 0), header_mask(size, 1), header_mask(size, 2)
    last, done, rows = state[ROWID], state[DONE], 0
    status = END
    while state[DEPTH] >= 0 and status == END:
        depth = state[DEPTH]
        number = stack[depth, 0]
        if number < 1 or number > pages:
            status = LEFT
            break
        base = (number - 1) * page_size
        header = base + (100 if number == 1 else 0)
        kind, cells = np.int64(data[header]), be16(data, header + 3)
        pointers = header + (12 if kind == INTERIOR else 8)
        if (kind != INTERIOR and kind != LEAF) or pointers + 2 * cells > base + usable:
            status = LEFT
            break
        at = stack[depth, 1]
        if kind == INTERIOR:
            if at > cells:
                state[DEPTH] -= 1
                continue
            cell = be16(data, pointers + 2 * at) if at < cells else np.int64(0)
            state[PAGES] += 1
            if cell > usable - 4 or depth + 1 == DEEPEST or state[PAGES] > pages:
                status = LEFT
                break
            stack[depth + 1, 0] = be32(data, base + cell) if at < cells else be32(data, header + 8)
            stack[depth + 1, 1] = 0
            stack[depth, 1] = at + 1
            state[DEPTH] += 1
            continue
        end_of_page = base + usable
        while at < cells:
            if rows == len(out):
                status = FULL
                break
            cell = base + be16(data, pointers + 2 * at)
            payload, place = varint(data, cell, end_of_page)
            rowid, place = varint(data, min(place, end_of_page), end_of_page)
            if payload < 0 or payload > usable - 35 or place + payload > end_of_page or rowid <= last:
                status = LEFT
                break
            took = take_record(
                data, place, place + payload, plan, values, size, m0, m1, m2, chosen, layouts, out, rows,
            )  # fmt: skip
            if took < 0:
                status = LEFT
                break
            last = rowid
            done += 1
            rows += took
            at += 1
        stack[depth, 1] = at
        if at == cells:
            state[DEPTH] -= 1
    state[ROWID], state[DONE], state[ROWS] = last, done, rows
    return status
