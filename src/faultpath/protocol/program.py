"""A program: a design linked with the kernel it runs on, every function checked, every call bound."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar, cast

from faultpath.errors import FaultpathError
from faultpath.protocol import ir
from faultpath.protocol.check import check
from faultpath.protocol.language import WORK, Helper, Ops, Primitive, Protocol

Source = Protocol | Primitive | Helper
S = TypeVar("S", bound=Source)


class Program:
    """Everything reachable from some root protocols.

    :param roots: protocols that a scheduler calls
    :param ops: tables of function pointers that hooks may meet
    :param core: functions that take the place of others (those with ``replaces`` do)
    :param handlers: work handlers that somebody else may queue
    """

    def __init__(
        self,
        roots: Iterable[Source],
        ops: Iterable[Ops] = (),
        core: Iterable[Source] = (),
        handlers: Iterable[Protocol] = (),
    ) -> None:
        self.ops = list(ops)
        self.replaced: dict[Source, Source] = {p.replaces: p for p in core if p.replaces is not None}
        self.functions: dict[Source, ir.Function] = {}  # callees before callers
        self.handlers: dict[int, Protocol] = {p.number: p for p in handlers}
        self.roots: list[Source] = [self.resolve(p) for p in roots]
        # Work handlers are met while functions are checked, and become targets of the hook that runs them.
        found = -1
        while found != len(self.handlers):
            found = len(self.handlers)
            self.functions.clear()
            for root in self.roots:
                self._visit(root, ())
        self.names = self._names()

    def resolve(self, source: S) -> S:
        """The function that runs when this one is called."""
        while source in self.replaced:
            source = cast(S, self.replaced[source])
        return source

    def targets(self, slot: str) -> dict[int, Protocol]:
        """What a hook's selector can name: number of the table, or of the handler, to protocol."""
        if slot == WORK:
            return {number: self.resolve(p) for number, p in sorted(self.handlers.items())}
        return {int(ops): self.resolve(ops.table[slot]) for ops in self.ops if slot in ops.table}

    def _visit(self, source: Source, path: tuple[Source, ...]) -> None:
        if source in path and not (isinstance(source, Helper) and source is path[-1]):
            cycle = " -> ".join(p.__name__ for p in (*path[path.index(source) :], source))
            raise FaultpathError("recursion is not in the language", cycle, "use a while loop")
        if source in self.functions or source in path:
            return
        function = check(source)
        self.handlers.update({p.number: p for p in function.numbers})
        callees: list[Source] = [self.resolve(p) for p in function.calls]
        for hook in function.hooks:
            callees += self.targets(hook.slot).values()
        for callee in callees:
            self._visit(callee, (*path, source))
        self.functions[source] = function

    def _names(self) -> dict[Source, str]:
        names: dict[Source, str] = {}
        taken: set[str] = set()
        for source in self.functions:
            name = source.__name__
            while name in taken:
                name = f"{source.__module__.rpartition('.')[2]}.{name}"
            taken.add(name)
            names[source] = name
        return names
