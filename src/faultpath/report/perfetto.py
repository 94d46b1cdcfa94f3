"""Perfetto's TrackEvent format, as far as it is needed: tracks with slices on them. Any number of steps, one a tick.

A trace is a Trace message (protos/perfetto/trace/trace.proto) of TracePackets. Field numbers are those of
trace_packet.proto, track_descriptor.proto, process_descriptor.proto, thread_descriptor.proto, track_event.proto and
debug_annotation.proto.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from faultpath.errors import FaultpathError
from faultpath.varint import varint

PACKET = 1  # Trace
TIMESTAMP, TRACK_EVENT, SEQUENCE, SEQUENCE_FLAGS, TRACK_DESCRIPTOR = 8, 11, 10, 13, 60  # TracePacket
UUID, NAME, PROCESS, THREAD, PARENT = 1, 2, 3, 4, 5  # TrackDescriptor
PROCESS_PID, PROCESS_NAME = 1, 6
THREAD_PID, THREAD_TID, THREAD_NAME = 1, 2, 5
ANNOTATION, EVENT_TYPE, EVENT_TRACK, EVENT_CATEGORY, EVENT_NAME = 4, 9, 11, 22, 23  # TrackEvent
ANNOTATION_STRING, ANNOTATION_NAME = 6, 10
SLICE_BEGIN, SLICE_END = 1, 2
CLEARED = 1  # SEQ_INCREMENTAL_STATE_CLEARED
STEP_NS = 1000  # what a step lasts: it has no time of its own


def number(field: int, value: int) -> bytes:
    """A field that holds a number."""
    return varint(field << 3) + varint(value)


def nested(field: int, value: bytes | str) -> bytes:
    """A field that holds bytes, a text or a message."""
    data = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | 2) + varint(len(data)) + data


def packet(body: bytes, first: bool = False) -> bytes:
    """One TracePacket of our only sequence."""
    flags = number(SEQUENCE_FLAGS, CLEARED) if first else b""
    return nested(PACKET, body + number(SEQUENCE, 1) + flags)


def encode(document: dict[str, Any]) -> bytes:
    """The counterexamples of a ``faultpath/check/1`` document: a process each, its threads, a slice for each step."""
    return b"".join(_packets([r for r in document["results"] if r["counterexample"]]))


def _packets(results: list[dict[str, Any]]) -> Iterator[bytes]:
    first = True
    for pid, result in enumerate(results, 1):
        name = f"{result['label']} {result['scenario']}: {result['message']}"
        process = number(UUID, pid << 8) + nested(PROCESS, number(PROCESS_PID, pid) + nested(PROCESS_NAME, name))
        yield packet(nested(TRACK_DESCRIPTOR, process), first)
        first = False
        tracks = {}
        for tid, thread in enumerate(result["threads"], 1):
            tracks[thread] = pid << 8 | tid
            about = number(THREAD_PID, pid) + number(THREAD_TID, pid << 8 | tid) + nested(THREAD_NAME, thread)
            yield packet(
                nested(
                    TRACK_DESCRIPTOR, number(UUID, tracks[thread]) + number(PARENT, pid << 8) + nested(THREAD, about)
                )
            )
        for step in result["counterexample"]:
            yield from _slice(step, tracks[step["thread"]])


def _slice(step: dict[str, Any], track: int) -> Iterator[bytes]:
    """The step's beginning, with what is known of it, and its end."""
    notes = {"function": step["function"], "where": step["where"]}
    notes |= {name: f"{before} -> {after}" for name, before, after in step["changes"]}
    begin = (
        number(EVENT_TYPE, SLICE_BEGIN)
        + number(EVENT_TRACK, track)
        + nested(EVENT_CATEGORY, "violation" if step["violation"] else step["kind"])
        + nested(EVENT_NAME, step["text"])
        + b"".join(
            nested(ANNOTATION, nested(ANNOTATION_NAME, k) + nested(ANNOTATION_STRING, v)) for k, v in notes.items()
        )
    )
    end = number(EVENT_TYPE, SLICE_END) + number(EVENT_TRACK, track)
    yield packet(number(TIMESTAMP, step["step"] * STEP_NS) + nested(TRACK_EVENT, begin))
    yield packet(number(TIMESTAMP, (step["step"] + 1) * STEP_NS) + nested(TRACK_EVENT, end))


def writable(path: Path) -> None:
    """Refuse early what could not be written after a long search.

    :raises FaultpathError: the path is a directory, or in none
    """
    if path.is_dir():
        raise FaultpathError("the output is a directory", str(path), "name a file")
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise FaultpathError("cannot write there", str(path), "check the directory and its rights")


def write(path: Path, document: dict[str, Any]) -> None:
    """Write a document's counterexamples; the file appears under its name only when complete.

    :raises FaultpathError: it cannot be written
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(encode(document))
        os.replace(temporary, path)
    except OSError as error:
        raise FaultpathError(
            f"cannot write ({error.strerror})", str(path), "check the directory and its rights"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
