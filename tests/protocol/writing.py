"""Protocols from text: a module is written to a file, imported, and linked, as a user's design would be."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path
from types import ModuleType

from faultpath.engine import world
from faultpath.engine.native import Native
from faultpath.protocol.language import Ops, Protocol
from faultpath.protocol.program import Program
from faultpath.protocol.struct import current

HEAD = """\
from __future__ import annotations
from faultpath.engine.world import INDEX, SCRATCH, STATUS, Stop
from faultpath.kernel.primitives.heap import GFP_KERNEL, kfree, kmalloc, on_stack
from faultpath.kernel.primitives.list_head import (
    list_add_tail, list_del, list_for_each_entry, list_for_each_entry_safe
)
from faultpath.kernel.primitives.lists import (
    hlist_add_head, hlist_del, hlist_for_each_entry, hlist_for_each_entry_safe
)
from faultpath.kernel.primitives.locks import mutex_lock, mutex_unlock, refcount_inc
from faultpath.kernel.srcu import Srcu, srcu_gp_start, srcu_read_lock, synchronize_srcu
from faultpath.protocol.language import (
    NULL, Ops, container_of, count, has_op, helper, hook, primitive, protocol, wait_until
)
from faultpath.protocol.struct import HlistHead, HlistNode, ListHead, Member, Mutex, Struct
OFFSET = 7
TEXT = "text"
class Inner(Struct):
    value: int
class Thing(Struct):
    number: int
    inner: Inner
    mutex: Mutex
    other: Mutex
    node: HlistNode
    head: HlistHead
    link: ListHead
    links: ListHead
"""
HEAD_LINES = HEAD.count("\n")
_serial = itertools.count()


def module(folder: Path, text: str) -> ModuleType:
    """Import ``text``, after HEAD, as a module of its own."""
    name = f"written_{next(_serial)}"
    path = folder / f"{name}.py"
    path.write_text(HEAD + text)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found
    spec.loader.exec_module(found)
    return found


class Both:
    """A root protocol in both back ends, each in a world of its own."""

    def __init__(self, root: Protocol, ops: list[Ops] | None = None, core: list[Protocol] | None = None) -> None:
        self.root = root
        self.program = Program([root], ops or [], core or [])
        self.native = Native(self.program)
        self.worlds = [world.new_world(1 << 21), world.new_world(1 << 21)]

    def machine(self, *args: int) -> int:
        return self.native.call(self.root, self.worlds[0], *args)

    def python(self, *args: int) -> int:
        current.w, current.program = self.worlds[1], self.program
        return int(self.root(*args))

    def __call__(self, *args: int) -> int:
        """The result, which must be the same in both, as must be the states."""
        ours, theirs = self.machine(*args), self.python(*args)
        assert ours == theirs, f"machine code {ours}, Python {theirs}"
        assert (world.state(self.worlds[0]) == world.state(self.worlds[1])).all()
        return ours
