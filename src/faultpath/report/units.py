"""Numbers for people: thousands separated, sizes in binary units, times in the unit that fits."""

from __future__ import annotations


def number(value: float, raw: bool = False) -> str:
    """``1234567`` as ``1,234,567``; small fractions keep three digits."""
    if isinstance(value, int) or value == int(value):
        return str(int(value)) if raw else f"{int(value):,}"
    if raw:
        return repr(value)
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"


def size(value: int, raw: bool = False) -> str:
    """Bytes as ``4.0 MiB``."""
    if raw or value < 1024:
        return str(value) if raw else f"{value} B"
    amount = float(value)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        amount /= 1024
        if amount < 1024 or unit == "TiB":
            break
    return f"{amount:,.1f} {unit}"


def duration(ns: int, raw: bool = False) -> str:
    """Nanoseconds as ``1.23 s``."""
    if raw:
        return str(ns)
    for limit, unit in ((10**9, "s"), (10**6, "ms"), (10**3, "us")):
        if ns >= limit:
            return f"{ns / limit:.2f} {unit}"
    return f"{ns} ns"


def percent(part: int, whole: int) -> str:
    """A share that is said to be all or nothing only if it is; 0 % of nothing."""
    share = 100 * part / max(whole, 1)
    return f"{share:.0f} %" if part in (0, whole) or 1 <= share <= 99 else f"{share:.1f} %"


def plural(count: int, word: str, raw: bool = False) -> str:
    """``1 callback``, ``2 callbacks``."""
    return f"{number(count, raw)} {word}{'' if count == 1 else 's'}"
