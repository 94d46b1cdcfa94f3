"""Numbers as bytes, seven bits in each, the lowest first (LEB128; Protocol Buffers' varint)."""

from __future__ import annotations

from collections.abc import Iterator


def varint(number: int) -> bytes:
    """A number that is not negative."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def varints(data: bytes) -> Iterator[int]:
    """The numbers in ``data``; one that is cut off is none."""
    number = shift = 0
    for byte in data:
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            yield number
            number = shift = 0
