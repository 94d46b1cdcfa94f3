"""C structures of the modelled kernel: typed views of words in the world.

A structure is a subclass of :class:`Struct` whose annotations are its fields, laid out in order after one header word::

    class SvmmInterval(IntervalNotifier):     # embeds its base first: container_of is a cast, SvmmInterval(sub)
        svmm: Svmm                            # a pointer, one word
        bytes: int                            # a number, one word
        mutex: Mutex                          # embedded: the field's address stands for it
        other: Member[Notifier]               # a structure embedded, found again by container_of()

At run time an instance *is* the word index (a subclass of int), so the same text works in ordinary Python, where a
field reads and writes the current world, and compiled, where it becomes an array access.
"""

from __future__ import annotations

import inspect
import sys
import zlib
from typing import Annotated, Any, ClassVar, TypeVar, get_args

from faultpath.engine.world import Words

CLASS_WORDS = 8

# What a lock is for, as the report names it; the index is its place among the world's LOCK counters.
ROLES = ("mmap_lock", "driver", "driver_parent", "subscriptions", "xa_lock", "srcu", "spinlock", "rwsem")


class World:
    """The world that ordinary Python runs on, and the program whose functions it calls."""

    w: Words
    program: Any = None


current = World()


class Field:
    """One field: its offset in words from the object, and what it holds."""

    def __init__(self, name: str, offset: int, type_: type, owner: str, member: bool) -> None:
        self.name = name
        self.owner = owner  # the structure that declares it
        self.offset = offset
        self.type = type_
        self.member = member
        self.embedded = member or issubclass(type_, Embedded)
        self.words: int = type_.words if self.embedded else 1  # type: ignore[attr-defined]

    def __get__(self, obj: int | None, owner: type) -> Any:
        if obj is None:
            return self
        if self.embedded:
            return self.type(obj + self.offset)
        value = int(current.w[obj + self.offset])
        return self.type(value) if self.type is not int else value

    def __set__(self, obj: int, value: int) -> None:
        if self.embedded:
            raise AttributeError(f"{self.name} is embedded: it is changed by its own primitives, not by assignment")
        current.w[obj + self.offset] = int(value)


class Embedded(int):
    """A member that lives inside its structure; its address is passed to primitives."""

    words: ClassVar[int] = 1
    role: ClassVar[str | None] = None


class Struct(int):
    """Base of all structures. ``interval_bytes``: bytes of interval memory that one stands for (C size, x86-64)."""

    fields: ClassVar[dict[str, Field]] = {}
    words: ClassVar[int] = 1
    interval_bytes: ClassVar[int] = 0

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.fields = dict(cls.__mro__[1].fields)  # type: ignore[attr-defined]
        offset = cls.__mro__[1].words  # type: ignore[attr-defined]
        scope = vars(sys.modules[cls.__module__]) | {cls.__name__: cls}
        for name, annotation in inspect.get_annotations(cls).items():
            # Not typing.get_type_hints: that would evaluate the bases' annotations in this module.
            type_ = eval(annotation, scope) if isinstance(annotation, str) else annotation
            if member := MEMBER in get_args(type_):
                type_ = get_args(type_)[0]
            if not (isinstance(type_, type) and issubclass(type_, Struct if member else int)):
                raise TypeError(f"{cls.__name__}.{name}: a field is an int, a Struct or an embedded type, not {type_}")
            field = Field(name, offset, type_, cls.__name__, member)
            setattr(cls, name, field)
            cls.fields[name] = field
            offset += field.words
        cls.words = offset

    @classmethod
    def size_class(cls) -> int:
        """Units of eight words that an object takes."""
        return -(-cls.words // CLASS_WORDS)

    @classmethod
    def tag(cls) -> int:
        """A number for the structure's name that does not depend on the order of definitions."""
        return zlib.crc32(cls.__name__.encode()) & 0xFFFFFF


S = TypeVar("S", bound=Struct)
MEMBER = "member"
Member = Annotated[S, MEMBER]  # a field that is a structure itself, where the structure alone would be a pointer to one


class Mutex(Embedded):
    """``struct mutex``; one word, the owner's thread number plus one, or 0."""

    role = "driver"


class SpinLock(Embedded):
    """``spinlock_t``; one word, like Mutex."""

    role = "spinlock"


class RwSem(Embedded):
    """``struct rw_semaphore``; one word: readers, or minus the writer's thread number minus one."""

    role = "rwsem"


class RwLock(Embedded):
    """``rwlock_t``; one word, like RwSem. Whoever waits for it spins."""

    role = "driver"


class MmapLock(RwSem):
    """``mm->mmap_lock`` (``mmap_sem`` before 5.8)."""

    role = "mmap_lock"


class SubscriptionsLock(SpinLock):
    """``mmu_notifier_subscriptions.lock``."""

    role = "subscriptions"


class XaLock(SpinLock):
    """``xa_lock`` of an XArray."""

    role = "xa_lock"


class ParentMutex(Mutex):
    """A driver's second, outer mutex: for ODP the parent MR's ``umem_mutex``."""

    role = "driver_parent"


class RefCount(Embedded):
    """``refcount_t``."""


class WaitQueue(Embedded):
    """``wait_queue_head_t``: its lock. Who sleeps on it is told by the sleeping thread (engine/thread.py, ASLEEP)."""


class HlistHead(Embedded):
    """``struct hlist_head``: the first node."""


class HlistNode(Embedded):
    """``struct hlist_node``: next node, and the word that points to this one."""

    words = 2


class ListHead(Embedded):
    """``struct list_head``: next and previous node; zeros stand for its own address."""

    words = 2


class IntervalTree(Embedded):
    """``struct rb_root_cached`` of an interval tree: root node, leftmost node."""

    words = 2


class RangeTreeNode(Embedded):
    """A node of a driver's own tree of ranges, laid out as an IntervalNode; its first word is not used."""

    words = 7


class XArray(Embedded):
    """``struct xarray``: head node (or the entry at index 0), and the height in nodes."""

    words = 2


class PageTable(Embedded):
    """Root of a page table: node, levels above the leaves, first address, end address."""

    words = 4


class Work(Embedded):
    """``struct work_struct``: next in queue, handler number (0: idle), the object it is for."""

    words = 3


def role_index(type_: type) -> int:
    """The place of an embedded lock's role in ROLES."""
    role = getattr(type_, "role", None)
    if role not in ROLES:
        raise TypeError(f"{type_.__name__}.role is {role!r}; a lock's role is one of {', '.join(ROLES)}")
    return ROLES.index(role)
