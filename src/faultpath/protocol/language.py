"""The words that protocols are written in.

``@protocol`` marks a function in the checked subset: it runs as ordinary Python (the readable twin, over the current
world) and is what the compiler turns into native code and into steps. ``@primitive`` marks one atomic step of the
modelled kernel, written as a function over the world's words, with ``@helper`` for what primitives share. ``hook``
declares a call whose target a design supplies, chosen by a number stored in the world, as a function pointer is in C.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, get_type_hints

from faultpath.engine.world import INDEX, STATUS, WOULD_BLOCK, Stop, Words
from faultpath.protocol.struct import Struct, current, role_index

NULL: Any = 0
WORK = "work"  # the slot of work handlers: no table has it, a handler is its own number

S = TypeVar("S", bound=Struct)


def _return_type(fn: Callable[..., Any]) -> type:
    hint = get_type_hints(fn).get("return", int)
    return int if hint in (type(None), bool) else hint


class Protocol:
    """A function of the language. Calling it runs it as ordinary Python."""

    def __init__(self, fn: Callable[..., Any], replaces: Protocol | None = None) -> None:
        self.fn = fn
        self.replaces = replaces
        self.__name__ = fn.__name__
        self.__doc__ = fn.__doc__
        self.__module__ = fn.__module__

    @property
    def parameters(self) -> list[tuple[str, type]]:
        """Names and types of the parameters; a parameter without annotation is an int."""
        hints = get_type_hints(self.fn)
        return [(name, hints.get(name, int)) for name in inspect.signature(self.fn).parameters]

    @property
    def returns(self) -> type:
        return _return_type(self.fn)

    @property
    def number(self) -> int:
        """Stands for the function in the world, where C keeps a pointer to it."""
        return zlib.crc32(f"{self.__module__}.{self.__name__}".encode()) & 0x7FFFFFFF

    def __index__(self) -> int:
        return self.number

    __int__ = __index__

    def __call__(self, *args: int) -> Any:
        target = current.program.resolve(self) if current.program else self
        typed = [t(a) if t is not int else int(a) for a, (_, t) in zip(args, target.parameters, strict=True)]
        value = target.fn(*typed)
        return target.returns(value or 0)

    def __repr__(self) -> str:
        return f"<protocol {self.__module__}.{self.__name__}>"


class Primitive:
    """One atomic step, a function ``fn(w, *args)`` of words; ``blocks`` says that it may have to wait."""

    def __init__(
        self,
        fn: Callable[..., Any],
        blocks: bool,
        has_role: bool,
        replaces: Primitive | None = None,
        undone_by: Primitive | None = None,
    ) -> None:
        self.fn = fn
        self.replaces = replaces
        self.undone_by = undone_by
        self.blocks = blocks
        self.has_role = has_role
        self.__name__ = fn.__name__
        self.__doc__ = fn.__doc__
        self.__module__ = fn.__module__

    @property
    def parameters(self) -> list[tuple[str, type]]:
        hints = get_type_hints(self.fn)
        names = list(inspect.signature(self.fn).parameters)[1:]
        return [(n, hints.get(n, int)) for n in names if n != "role"]

    @property
    def returns(self) -> type:
        return _return_type(self.fn)

    def __call__(self, *args: int) -> Any:
        extra = (role_index(type(args[0])),) if self.has_role else ()
        target = current.program.resolve(self) if current.program else self
        value = target.fn(current.w, *(int(a) for a in args), *extra)
        if self.blocks and value:
            current.w[STATUS] = WOULD_BLOCK
            raise Stop
        return Taken(value or 0, self.undone_by, args[0]) if self.undone_by else self.returns(value or 0)

    def __repr__(self) -> str:
        return f"<primitive {self.__name__}>"


class Taken(int):
    """What a primitive returns that another one undoes: ``with mutex_lock(mutex):`` calls that at the block's end."""

    undone_by: Primitive
    what: int

    def __new__(cls, value: int, undone_by: Primitive, what: int) -> Taken:
        self = super().__new__(cls, value)
        self.undone_by, self.what = undone_by, what
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, stopped: type | None, *_: object) -> None:
        if stopped is None:
            self.undone_by(self.what, *[self][: len(self.undone_by.parameters) - 1])


class Helper:
    """A piece that primitives share: a function ``fn(w, ...)`` of words, part of the step that calls it.

    ``raw`` ones belong to the checker: their accesses are not the modelled kernel's.
    """

    def __init__(self, fn: Callable[..., Any], replaces: Helper | None = None, raw: bool = False) -> None:
        self.fn = fn
        self.replaces = replaces
        self.raw = raw
        self.__name__ = fn.__name__
        self.__doc__ = fn.__doc__
        self.__module__ = fn.__module__

    @property
    def parameters(self) -> list[tuple[str, type]]:
        return [(name, int) for name in list(inspect.signature(self.fn).parameters)[1:]]

    def __call__(self, w: Words, *args: int) -> int:
        target = current.program.resolve(self) if current.program else self
        return int(target.fn(w, *args))


class StructCall:
    """Allocation or freeing of a structure: a primitive that is told the structure's size and tag.

    ``kmalloc(SvmmInterval, GFP_ATOMIC)`` calls ``primitive(size_class, tag, interval_bytes, gfp)``;
    ``kfree(smi)`` calls ``primitive(smi, interval_bytes)`` with the static type's bytes.
    """

    def __init__(self, primitive: Primitive, allocates: bool) -> None:
        self.primitive = primitive
        self.allocates = allocates
        self.__name__ = primitive.__name__
        self.__doc__ = primitive.__doc__

    def __call__(self, what: Any, *args: int) -> Any:
        if self.allocates:
            return what(self.primitive(what.size_class(), what.tag(), what.interval_bytes, *args))
        return self.primitive(what, type(what).interval_bytes)


class ForEach:
    """A loop over a list: ``for svmm in list_for_each_entry(Svmm, "head", svm.svmms):``, as in C.

    :param first: gives the address of the first node of a list, or 0
    :param following: gives that of the node after one, or 0; it may take the list as well
    :param safe: the next node is read before the body, which may take its own off the list
    """

    def __init__(self, first: Primitive, following: Primitive, safe: bool = False) -> None:
        self.first = first
        self.following = following
        self.safe = safe

    def __call__(self, struct: type[S], member: str, head: int) -> Iterator[S]:
        node = self.first(head)
        while node:
            entry = container_of(struct, member, node)
            following = self.after(entry, member, head) if self.safe else 0
            yield entry
            node = following if self.safe else self.after(entry, member, head)

    def after(self, entry: Struct, member: str, head: int) -> int:
        """The node after that of an entry."""
        return int(self.following(*[getattr(entry, member), head][: len(self.following.parameters)]))


class Hook:
    """A call through a function pointer. The first argument says which table (an Ops number) or handler to use."""

    def __init__(self, fn: Callable[..., Any], slot: str) -> None:
        self.fn = fn
        self.slot = slot
        self.__name__ = fn.__name__
        self.__doc__ = fn.__doc__
        self.__module__ = fn.__module__

    @property
    def parameters(self) -> list[tuple[str, type]]:
        """Names and types of the parameters after the selector."""
        hints = get_type_hints(self.fn)
        return [(n, hints.get(n, int)) for n in inspect.signature(self.fn).parameters][1:]

    @property
    def returns(self) -> type:
        return _return_type(self.fn)

    def __call__(self, selector: int, *args: int) -> Any:
        return current.program.targets(self.slot)[int(selector)](*args)


def protocol(fn: Any = None, *, replaces: Protocol | None = None) -> Any:
    """Mark a function as part of a protocol.

    :param replaces: the protocol whose place it takes in designs built on the module that defines it
    """
    if fn is None:
        return lambda f: Protocol(f, replaces)
    return Protocol(fn)


def primitive(
    fn: Any = None,
    *,
    blocks: bool = False,
    role: bool = False,
    replaces: Primitive | None = None,
    undone_by: Primitive | None = None,
) -> Any:
    """Mark a function ``fn(w, ...)`` as one atomic step.

    :param blocks: it returns 1, having changed nothing, when the caller must wait
    :param role: it takes a last argument ``role``: the lock's role (low eight bits) and class, from its first argument
    :param replaces: the primitive whose place it takes in programs linked with it
    :param undone_by: what gives up what it takes, called with its first argument, and with its result if that takes
        two: ``with`` calls both
    """
    if fn is None:
        return lambda f: Primitive(f, blocks, role, replaces, undone_by)
    return Primitive(fn, blocks, role)


def helper(fn: Any = None, *, replaces: Helper | None = None, raw: bool = False) -> Any:
    """Mark a function ``fn(w, ...)`` that primitives call.

    :param replaces: the helper whose place it takes in programs linked with it
    :param raw: it is the checker's own: what it reads and writes is not checked
    """
    if fn is None:
        return lambda f: Helper(f, replaces, raw)
    return Helper(fn)


def hook(slot: str) -> Callable[[Callable[..., Any]], Hook]:
    """Declare a call through the function pointer ``slot``; the decorated function gives signature and doc only."""
    return lambda fn: Hook(fn, slot)


class Ops(int):
    """A table of function pointers: ``my_ops = Ops("my_ops", invalidate=..., release=...)``.

    As a value it is a number made from its name, so that states and caches do not depend on import order.
    """

    table: dict[str, Protocol]

    def __new__(cls, name: str, **table: Protocol) -> Ops:
        self = super().__new__(cls, zlib.crc32(name.encode()) & 0x7FFFFFFF)
        self.table = table
        return self


# --- words with a meaning to the compiler; the functions below are their ordinary-Python twins


def count(name: str, amount: int = 1) -> None:
    """Add to a counter or gauge of :mod:`faultpath.engine.counters`."""
    current.w[INDEX[name]] += amount


def wait_until(condition: bool) -> None:
    """Go on only when the condition holds. Its loads and the test are one step, repeated when something has changed.

    For what needs no waking: a loop that looks again and again.
    """
    if not condition:
        current.w[STATUS] = WOULD_BLOCK
        raise Stop


def wait_event(queue: int, condition: bool) -> None:
    """wait_event(): go on if the condition holds, else sleep on a WaitQueue until it is woken, and look again.

    Going to sleep and looking are one step: prepare_to_wait() comes before the look, so no waking is lost in between.
    """
    wait_until(condition)


def call_native(address: int, w: Words, *args: int) -> int:
    """Call machine code ``code(w, args...)`` at an address; for helpers of the checker."""
    import ctypes

    code = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, *[ctypes.c_int64] * len(args))(int(address))
    return int(code(w.ctypes.data, *args))


def prefetch(w: Words, addr: int) -> int:
    """Fetch a word into the cache: it will be read soon. For helpers of the checker."""
    return 0


def container_of(struct: type[S], field: str, address: int) -> S:
    """The structure whose embedded field has this address."""
    return struct(address - struct.fields[field].offset)


def has_op(ops: int, slot: str) -> bool:
    """Whether the function pointer ``slot`` of a table is set."""
    return int(ops) in current.program.targets(slot)
