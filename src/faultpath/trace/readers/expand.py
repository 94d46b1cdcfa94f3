"""Expanding compressed pieces whose size is known beforehand, never further than that."""

from __future__ import annotations

import zlib

import zstandard

from faultpath.errors import FaultpathError

CODECS = ("none", "zlib", "zstd")


def expand(codec: str, data: memoryview, size: int, where: str) -> bytes:
    """:param size: bytes that come out
    :raises FaultpathError: when it is anything else
    """
    mend = "the file is damaged; record again"
    try:
        if codec == "zlib":
            stream = zlib.decompressobj()
            found = stream.decompress(data, size + 1)
        elif codec == "zstd":
            if zstandard.frame_content_size(data) > size:
                raise FaultpathError(f"more than the announced {size} bytes compressed", where, mend)
            found = zstandard.ZstdDecompressor().decompress(data, max_output_size=size) if size else b""
        else:
            raise FaultpathError("compressed, but the file does not say how", where, mend)
    except (zstandard.ZstdError, zlib.error) as error:
        raise FaultpathError(f"cannot expand the compressed data ({error})", where, mend) from None
    if len(found) != size:
        raise FaultpathError(f"{len(found)} bytes compressed where {size} are announced", where, mend)
    return found
