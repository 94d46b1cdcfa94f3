"""What a scenario is: what happened before, and which threads run at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from faultpath.protocol.language import Protocol

PAGE = 4096
SPAN = 0x10000  # page 0 of a scenario is here: above vm.mmap_min_addr

MM = "mm"
DEVICE = "device"
SECOND_DEVICE = "second device"

Argument = int | str


@dataclass(frozen=True)
class Call:
    """A protocol and its arguments; ``MM``, ``DEVICE`` and ``SECOND_DEVICE`` stand for the scenario's own.

    :param name: what a thread that runs it is called in a counterexample
    """

    name: str
    protocol: Protocol
    args: tuple[Argument, ...]


@dataclass(frozen=True)
class Scenario:
    """A small situation in which everything that can happen is tried.

    :param name: how users call it
    :param doc: one sentence
    :param setup: what happened before, in order, undisturbed
    :param threads: what then happens at the same time
    :param pages: pages of address space that matter, from 0
    :param devices: device files open on the mm
    :param failures: how many atomic allocations may fail
    """

    name: str
    doc: str
    setup: Sequence[Call]
    threads: Sequence[Call]
    pages: int = 4
    devices: int = 1
    failures: int = 0


def address(page: int) -> int:
    """Address of a scenario's page."""
    return SPAN + page * PAGE
