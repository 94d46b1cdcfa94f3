"""What a protocol, primitive or helper is once it has been checked: a small tree that the two back ends read."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from faultpath.protocol.language import Helper, Hook, Primitive, Protocol


@dataclass(frozen=True)
class Const:
    value: int


@dataclass(frozen=True)
class Local:
    name: str


@dataclass(frozen=True)
class Load:
    """The word at ``base + offset``: one access to shared state."""

    base: Expr
    offset: int


@dataclass(frozen=True)
class Address:
    """``base + offset``, the address of an embedded field: no access."""

    base: Expr
    offset: int


@dataclass(frozen=True)
class Unary:
    op: str
    a: Expr


@dataclass(frozen=True)
class Binary:
    """Arithmetic or comparison; comparisons give 0 or 1."""

    op: str
    a: Expr
    b: Expr


@dataclass(frozen=True)
class Logic:
    """``and`` / ``or``, evaluated left to right and only as far as needed; gives 0 or 1."""

    op: str
    parts: tuple[Expr, ...]


@dataclass(frozen=True)
class Select:
    """``then if test else otherwise``."""

    test: Expr
    then: Expr
    otherwise: Expr


@dataclass(frozen=True)
class Call:
    target: Protocol | Primitive | Helper
    args: tuple[Expr, ...]


@dataclass(frozen=True)
class HookCall:
    target: Hook
    args: tuple[Expr, ...]  # the selector first


@dataclass(frozen=True)
class HasOp:
    slot: str
    selector: Expr


@dataclass(frozen=True)
class LockClass:
    """Which lock a primitive takes: its role, and the structure and field it is (lockdep's lock class)."""

    role: int
    name: str

    @property
    def number(self) -> int:
        """The role in the low eight bits, a number for the name above them."""
        return zlib.crc32(self.name.encode()) << 8 | self.role


@dataclass(frozen=True)
class CallNative:
    """A call of machine code by its address: ``code(w, args...)``."""

    address: Expr
    args: tuple[Expr, ...]


@dataclass(frozen=True)
class Prefetch:
    """A word that will be read soon."""

    address: Expr


Expr = (
    Const
    | Local
    | Load
    | Address
    | Unary
    | Binary
    | Logic
    | Select
    | Call
    | HookCall
    | HasOp
    | LockClass
    | CallNative
    | Prefetch
)


@dataclass(frozen=True)
class Assign:
    name: str
    value: Expr
    line: int


@dataclass(frozen=True)
class Store:
    base: Expr
    offset: int
    value: Expr
    line: int


@dataclass(frozen=True)
class Count:
    """Add to a counter: bookkeeping, not a step."""

    index: int
    amount: Expr
    line: int


@dataclass(frozen=True)
class Evaluate:
    value: Expr
    line: int


@dataclass(frozen=True)
class Wait:
    condition: Expr
    queue: Expr | None  # what one sleeps on until woken; none needed if one looks again and again
    line: int


@dataclass(frozen=True)
class If:
    test: Expr
    then: list[Stmt]
    otherwise: list[Stmt]
    line: int


@dataclass(frozen=True)
class While:
    test: Expr
    body: list[Stmt]
    line: int


@dataclass(frozen=True)
class Return:
    value: Expr
    line: int


@dataclass(frozen=True)
class Break:
    line: int


@dataclass(frozen=True)
class Continue:
    line: int


@dataclass(frozen=True)
class Stop:
    """The run ends here; STATUS says why."""

    line: int


Stmt = Assign | Store | Count | Evaluate | Wait | If | While | Return | Break | Continue | Stop


@dataclass
class Function:
    """A checked function: parameter names (the world aside), locals (parameters first) and body."""

    source: Protocol | Primitive | Helper
    parameters: list[str]
    body: list[Stmt]
    filename: str
    locals: list[str] = field(default_factory=list)
    calls: list[Protocol | Primitive | Helper] = field(default_factory=list)
    hooks: list[Hook] = field(default_factory=list)
    numbers: list[Protocol] = field(default_factory=list)  # protocols used as values: work handlers
