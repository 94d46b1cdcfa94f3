"""Numbers, names and line ends in a buffer of bytes: what the readers of text share, compiled.

Every function looks at ``buf[at:stop]`` only. Those that read something return it with the offset after it, which is
``at`` when it is not there.
"""

from __future__ import annotations

import numpy as np

from faultpath.jit import jit
from faultpath.trace.readers.perf_columns import id_table

NAME_BITS = (1 << 55) - 1  # of a hash: times 131 it still fits a signed word
MOST_DIGITS = 20  # of a 64-bit number
LATEST = 9_000_000_000  # seconds whose nanoseconds still fit a signed word


def hash_name(name: str) -> int:
    """What ``name_at`` makes of it."""
    value = 0
    for byte in name.encode():
        value = (value * 131 + byte) & NAME_BITS
    return value


def name_table(values: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """The table in which ``perf_columns.attribute_of`` finds a name's value, not negative, by the name's hash."""
    hashes = {hash_name(name): value for name, value in values.items()}
    if len(hashes) < len(values):
        raise ValueError("two names have one hash")
    return id_table(hashes)


def word(text: bytes) -> np.ndarray:
    """A constant for ``is_at``."""
    return np.frombuffer(text, np.uint8)


@jit
def line_end(buf, at, end):  # type: ignore[no-untyped-def]
    """Offset of the next newline, or ``end``."""
    i, last = np.uint64(at), np.uint64(end)
    while i < last and buf[i] != 10:
        i += np.uint64(1)
    return np.int64(i)


@jit
def is_at(buf, at, stop, constant):  # type: ignore[no-untyped-def]
    """Whether the word lies at ``at``."""
    if stop - at < len(constant):
        return False
    for i in range(len(constant)):  # noqa: SIM110 - all() does not compile
        if buf[at + i] != constant[i]:
            return False
    return True


@jit
def skip_spaces(buf, at, stop):  # type: ignore[no-untyped-def]
    while at < stop and buf[at] == 32:
        at += 1
    return at


@jit
def decimal_at(buf, at, stop):  # type: ignore[no-untyped-def]
    """An unsigned decimal number; one of 2^63 and more keeps its bits."""
    value, i = np.uint64(0), at
    while i < stop and 48 <= buf[i] <= 57 and i - at <= MOST_DIGITS:
        value = value * np.uint64(10) + np.uint64(buf[i]) - np.uint64(48)
        i += 1
    return np.int64(value), i if i - at <= MOST_DIGITS else at


@jit
def hex_at(buf, at, stop):  # type: ignore[no-untyped-def]
    """Hexadecimal digits, at most sixteen, without a prefix."""
    value, i = np.uint64(0), at
    while i < stop and i - at <= 16:
        c = np.int64(buf[i])
        if 48 <= c <= 57:
            digit = c - 48
        elif 97 <= c | 32 <= 102:
            digit = (c | 32) - 87
        else:
            break
        value = value << np.uint64(4) | np.uint64(digit)
        i += 1
    return np.int64(value), i if i - at <= 16 else at


@jit
def number_at(buf, at, stop):  # type: ignore[no-untyped-def]
    """A number as C writes it: ``0x...``, decimal, perhaps with a minus sign."""
    if at + 2 < stop and buf[at] == 48 and buf[at + 1] == 120:
        value, next_ = hex_at(buf, at + 2, stop)
        return value, next_ if next_ > at + 2 else at
    if at < stop and buf[at] == 45:
        value, next_ = decimal_at(buf, at + 1, stop)
        return -value, next_ if next_ > at + 1 else at
    return decimal_at(buf, at, stop)


@jit
def name_at(buf, at, stop):  # type: ignore[no-untyped-def]
    """The hash of a C identifier, or of a number taken as one."""
    value, i = np.int64(0), at
    while i < stop:
        c = np.int64(buf[i])
        if not (97 <= c | 32 <= 122 or 48 <= c <= 57 or c == 95):
            break
        value = (value * 131 + c) & NAME_BITS
        i += 1
    return value, i


@jit
def seconds_at(buf, at, stop):  # type: ignore[no-untyped-def]
    """``seconds.fraction`` in ns, of one to nine decimals."""
    seconds, dot = decimal_at(buf, at, stop)
    if dot == at or dot - at > 10 or seconds >= LATEST or dot + 1 >= stop or buf[dot] != 46:
        return np.int64(0), at
    fraction, next_ = decimal_at(buf, dot + 1, stop)
    digits = next_ - dot - 1
    if digits == 0 or digits > 9:
        return np.int64(0), at
    for _ in range(9 - digits):
        fraction *= 10
    return seconds * 1_000_000_000 + fraction, next_
