"""What a design is: the protocols a scheduler calls, their parameters, and where they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType

from faultpath.protocol.language import Ops, Protocol

# What a scenario may ask for that cannot happen with every driver.
PARALLEL_FAULTS = "faults in parallel"
CLOSE_DURING_FAULT = "close during a fault"


@dataclass(frozen=True)
class Parameter:
    """A knob of a design.

    :param default: an int, or one of ``choices``
    :param unit: "bytes" lets users write K, M, G, T
    :param choices: names that stand for 0, 1, 2 ...
    :param small: what ``check`` takes unless asked otherwise, where the default would be out of scale in its worlds
    :param power_of_two: the value must be one
    """

    name: str
    default: int | str
    doc: str
    unit: str = ""
    choices: tuple[str, ...] = ()
    minimum: int = 0
    maximum: int = 1 << 47
    power_of_two: bool = False
    small: int | str | None = None


@dataclass(frozen=True, eq=False)
class Design:
    """A way to mirror an mm.

    :param name: how users call it
    :param source: the code it models: file, version, date
    :param open: ``open(mm, *parameters) -> device``: the driver's file is opened, mirroring begins; NULL without
        memory. ``device`` is what outlives the mirror: the structure in which a fault begins to look for it
    :param fault: ``fault(device, addr, write) -> 0 or -errno``: the device could not access the page at ``addr``. It
        may come while the file is being closed, and after that
    :param walk: ``walk(device, addr) -> entry``: what the device's MMU finds for an address, 0 if nothing valid.
        Hardware: it happens at one instant, whatever the driver is at
    :param close: ``close(device)``: the file is closed; afterwards nothing may be left but ``device`` itself
    :param ops: the tables of function pointers that the driver registers
    :param disjoint: the design promises that its intervals do not overlap
    :param never: situations that cannot arise with this driver (``PARALLEL_FAULTS``: of one device;
        ``CLOSE_DURING_FAULT``), and why: scenarios that need one do not apply to it
    :param core: module whose protocols replace mainline's where they say so
    :param replaces: protocols that replace those of a design that it builds on
    :param counters: what the driver itself counts and exports, names of ``DRIVER_COUNTERS``
    :param invariant: ``invariant(device) -> 0, or anything else where it is broken``: a rule of the design's own, which
        ``check`` holds it to in every state it finds while the file is open. It may not change anything
    """

    name: str
    title: str
    source: str
    open: Protocol
    fault: Protocol
    walk: Protocol
    close: Protocol
    ops: Sequence[Ops]
    parameters: Sequence[Parameter] = ()
    core: ModuleType | None = None
    replaces: Sequence[Protocol] = ()
    doc: str = ""
    disjoint: bool = False
    never: Mapping[str, str] = field(default_factory=dict)
    counters: Sequence[str] = ()
    invariant: Protocol | None = None

    def replacements(self) -> list[Protocol]:
        """The protocols that take another's place, in the core and in the driver."""
        core = [p for p in vars(self.core).values() if isinstance(p, Protocol)] if self.core else []
        return [*core, *self.replaces]

    def driver(self) -> Ops:
        """The design as a table of function pointers: the slots of :mod:`faultpath.kernel.mirror`."""
        own = {"device_invariant": self.invariant} if self.invariant else {}
        return Ops(self.name, device_fault=self.fault, device_walk=self.walk, device_close=self.close, **own)
