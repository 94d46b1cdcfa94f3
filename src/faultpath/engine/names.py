"""Words of a checked world by name: objects, fields, locks and values as somebody reads them who knows the C code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from faultpath.engine import arena
from faultpath.engine.world import Words
from faultpath.kernel import errno
from faultpath.kernel.mmu_notifier import ULONG_MAX
from faultpath.kernel.primitives import pagetable
from faultpath.protocol.language import Primitive
from faultpath.protocol.struct import Field, Mutex, PageTable, RwLock, RwSem, SpinLock, Struct
from faultpath.trace.ops import Event

ERRORS = {value: name for name, value in vars(errno).items() if name.startswith("E")}
HEXADECIMAL_FROM = 4096  # addresses of pages begin here
TREE_FIELDS = {"rb_parent_color", "rb_left", "rb_right", "subtree_last"}  # how a tree looks inside


@dataclass(frozen=True)
class Object:
    """An object that is there, or was."""

    start: int
    words: int
    struct: type[Struct] | None  # None: a table of a page table or of an XArray
    name: str


class Names:
    """What is called how in one execution. An object keeps its name after it is freed, until its place is used again.

    :param threads: what threads are called, as owners of locks
    :param numbers: what other numbers stand for: function tables, and the functions of work items
    :param modules: where structures are looked for first, should two of them have one name
    """

    def __init__(self, w: Words, threads: list[str], numbers: dict[int, str], modules: set[str]) -> None:
        self.w = w
        self.threads = threads
        self.numbers = numbers
        self.structs = structures(modules)
        self.made: dict[str, int] = {}  # how many of each kind
        self.units: dict[int, Object] = {}  # by eight words
        self.owned: dict[int, str] = {}  # tables, by address
        for unit in range(arena.SHADOW_WORDS):
            self.meet(arena.SHADOW + unit)

    def learn(self) -> None:
        """Objects that the step in the log has made."""
        w = self.w
        for entry in range(arena.LOG, int(w[arena.LOG_TOP]), 2):
            addr, before = int(w[entry]), int(w[entry + 1])
            if arena.SHADOW <= addr < arena.STATE_END and not before & arena.ALIVE:
                self.meet(addr)

    def meet(self, shadow: int) -> None:
        """Name the object that a shadow word belongs to, when it is the object's first."""
        value = int(self.w[shadow])
        start = arena.ARENA + (shadow - arena.SHADOW << 3)
        if not value & arena.ALIVE or value >> 4 != start:
            return
        header = int(self.w[start])
        struct = self.structs.get(header >> 8)
        kind = spelled(struct.__name__) if struct else "table"
        number = self.made[kind] = self.made.get(kind, 0) + 1
        words = 8 * (header >> 1 & 127)
        found = Object(start, words, struct, kind if number == 1 else f"{kind}#{number}")
        self.owned.pop(start, None)
        for unit in range(start, start + words, 8):
            self.units[unit >> 3] = found

    def objects(self) -> Iterator[Object]:
        """Those alive."""
        for unit, found in self.units.items():
            if unit == found.start >> 3 and self.w[arena.SHADOW + ((found.start - arena.ARENA) >> 3)] & arena.ALIVE:
                yield found

    def object_at(self, addr: int) -> Object | None:
        """The object a word is in, alive or freed."""
        return self.units.get(addr >> 3)

    def path(self, addr: int) -> list[Field]:
        """The field a word is in; before it, from the outside inwards, those that this one is a member of."""
        found = self.object_at(addr)
        return list(fields_of(found.struct, addr - found.start)) if found and found.struct else []

    def field_at(self, addr: int) -> Field | None:
        """The field a word is in."""
        return next(reversed(self.path(addr)), None)

    # --- words

    def is_object(self, addr: int) -> bool:
        """Whether a value points into an object."""
        return arena.OBJECTS <= addr < arena.SHADOW and self.object_at(addr) is not None

    def word(self, addr: int) -> str:
        """``svmm.mutex``: the object, and the field."""
        found = self.object_at(addr)
        if found is None:
            return hex(addr)
        name = self.table(found) if found.struct is None else found.name
        return ".".join([name, *(field.name for field in self.path(addr))])

    def table(self, found: Object) -> str:
        """A table of a page table or XArray, by whose it is."""
        if found.start not in self.owned:
            for other in self.objects():
                for word in range(other.start + 1, other.start + other.words):
                    if self.w[word] == found.start and (other.struct or other.start in self.owned):
                        self.owned[found.start] = self.word(word)
                        return self.owned[found.start]
            return found.name
        return self.owned[found.start]

    def leaf(self, addr: int) -> str:
        """The page table whose leaf a word is in, or "": its entries are shown one by one."""
        found = self.object_at(addr)
        if found is None or found.struct is not None or addr == found.start:
            return ""
        for other in self.objects():
            for at in page_tables(other.struct, other.start) if other.struct else ():
                if self.w[at] == found.start and self.w[at + 1] == 0:
                    return self.word(at)
        return ""

    def changes(self) -> Iterator[tuple[str, str, str]]:
        """What the step in the log changed in objects: word, before and after, each once."""
        w = self.w
        before: dict[int, int] = {}
        for entry in range(arena.LOG, int(w[arena.LOG_TOP]), 2):
            before.setdefault(int(w[entry]), int(w[entry + 1]))
        end = int(w[arena.POOLS]) + arena.MAX_THREADS * int(w[arena.POOL])
        for addr, old in before.items():
            now = int(w[addr])
            found = self.object_at(addr)
            if not arena.OBJECTS <= addr < end or old == now or found is None or addr == found.start:
                continue
            if table := self.leaf(addr):
                yield from self.entries(table, addr, found, old, now)
            elif (field := self.field_at(addr)) and field.name not in TREE_FIELDS:
                yield self.word(addr), self.held(addr, old), self.held(addr, now)

    def entries(self, table: str, addr: int, leaf: Object, old: int, now: int) -> Iterator[tuple[str, str, str]]:
        """The page-table entries in a word that differ."""
        for slot in range(1 << pagetable.PER_WORD):
            before, after = (value >> (slot << pagetable.ENTRY) & pagetable.FULL for value in (old, now))
            if before != after:
                page = ((addr - leaf.start - 1) << pagetable.PER_WORD) + slot
                yield f"{table}[{page * pagetable.PAGE_SIZE:#x}]", entry(before), entry(after)

    # --- values

    def held(self, addr: int, value: int) -> str:
        """A value as the field at an address holds it."""
        field = self.field_at(addr)
        if field is None:
            return self.value(value)
        if issubclass(field.type, Mutex | SpinLock | RwSem | RwLock):
            return self.owner(value, issubclass(field.type, RwSem | RwLock))
        if field.name == "event":
            return event(value)
        return self.value(value, pointer=issubclass(field.type, Struct))

    def owner(self, value: int, semaphore: bool) -> str:
        """A lock's word: who holds it."""
        if value == 0:
            return "free"
        if semaphore and value > 0:
            return f"{value} reader{'s' if value > 1 else ''}"
        thread = abs(value) - 2
        return self.threads[thread] if 0 <= thread < len(self.threads) else str(value)

    def value(self, value: int, pointer: bool = False) -> str:
        """Any number: what it points to, an error, an address, or itself."""
        if self.is_object(value):
            return self.word(value)
        if value == 0 and pointer:
            return "NULL"
        if value in self.numbers:
            return self.numbers[value]
        if value == ULONG_MAX:
            return "ULONG_MAX"
        if -value in ERRORS:
            return f"-{ERRORS[-value]}"
        return hex(value) if value >= HEXADECIMAL_FROM else str(value)

    # --- calls

    def call(self, target: Primitive, values: list[int]) -> str:
        """A primitive and its arguments, as the protocol's text has them."""
        name = target.__name__.lstrip("_")
        if name in ("kmalloc", "on_stack", "embedded"):
            struct = self.structs.get(values[1])
            shown = [spelled(struct.__name__) if struct else "table"]
            if name == "kmalloc":
                shown.append(("GFP_KERNEL", "GFP_ATOMIC", "GFP_NOMEMALLOC")[values[3]])
        elif name in ("kfree", "off_stack"):
            shown = [self.value(values[0], pointer=True)]
        else:
            parameters = [p for p in target.parameters if p[0] != "steps"]
            shown = [self.argument(target, n, t, v) for (n, t), v in zip(parameters, values, strict=False)]
        return f"{name}({', '.join(shown)})"

    def argument(self, target: Primitive, name: str, type_: type, value: int) -> str:
        if _is_entry(target, name):
            return entry(value)
        if name == "event":
            return event(value)
        return self.value(value, pointer=issubclass(type_, Struct))

    def gave(self, target: Primitive, value: int) -> str:
        """What a primitive returned."""
        if target.__name__ in ("pt_get", "pt_cmpxchg", "pt_unmap_frame", "tlb_access"):
            return entry(value)
        finds = ("itree_", "hlist_", "xa_load", "xa_cmpxchg", "xa_erase", "_kmalloc", "take_work", "work_object")
        return self.value(value, pointer=target.__name__.startswith(finds))


def _is_entry(target: Primitive, name: str) -> bool:
    """Whether an argument is a page-table entry."""
    return target.__module__ == pagetable.__name__ and (
        name == "entry" or (target.__name__ == "pt_cmpxchg" and name in ("old", "new"))
    )


def entry(value: int) -> str:
    """A page-table entry: ``V W frame 3``."""
    if not value & pagetable.VALID:
        return "none"
    return (
        f"V{' W' if value & pagetable.WRITE else ''} frame {(value & pagetable.DEVICE_BITS) >> pagetable.FRAME_SHIFT}"
    )


def event(value: int) -> str:
    """``enum mmu_notifier_event``."""
    return Event(value).name if value in list(Event) else str(value)


def spelled(name: str) -> str:
    """``SvmmInterval`` as C has it: ``svmm_interval``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def fields_of(struct: type[Struct], word: int) -> Iterator[Field]:
    """The field that a word of a structure is in; then, if that is a member, the one of it."""
    for field in struct.fields.values():
        if 0 <= word - field.offset < field.words:
            yield field
            if field.member and word > field.offset:
                yield from fields_of(field.type, word - field.offset)


def page_tables(struct: type[Struct], start: int) -> Iterator[int]:
    """Addresses of the page tables in an object, those in its members as well."""
    for field in struct.fields.values():
        if field.member:
            yield from page_tables(field.type, start + field.offset)
        elif issubclass(field.type, PageTable):
            yield start + field.offset


def structures(modules: set[str]) -> dict[int, type[Struct]]:
    """Every structure by the tag that its objects carry; of two with one name, the one from ``modules``."""
    found: dict[int, type[Struct]] = {}

    def visit(struct: Any) -> None:
        for sub in struct.__subclasses__():
            if sub.tag() not in found or sub.__module__ in modules:
                found[sub.tag()] = sub
            visit(sub)

    visit(Struct)
    return found
