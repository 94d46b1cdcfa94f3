"""The one decorator for code that runs compiled.

Import it only in modules that are themselves imported when needed: numba takes a third of a second to load.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


def jit(function: F, *, cache: bool = True, references: bool = True, inline: bool = False) -> F:
    """Compile ``function`` on first call and keep the result on disk (``cache=False``: in its callers' results only).

    ``FAULTPATH_NO_JIT=1`` leaves plain Python, for a debugger or for coverage. Division by zero follows numpy (no
    exception); the interpreter lock is released, so that another thread may write a file meanwhile.

    :param references: False if it makes no array, no view of one and returns none: then none are counted, where each
        call would cost two atomic operations for each array that it takes
    :param inline: put it into its callers, for what runs for each row: a call hands on every word of every array
    """
    if os.environ.get("FAULTPATH_NO_JIT") == "1":
        return function
    import numba

    options: dict[str, Any] = {"cache": cache, "error_model": "numpy", "nogil": True}
    if not references:
        options["_nrt"] = False  # numba's own name for it, which its documentation leaves out
    if inline:
        options["forceinline"] = True
    compiled: Any = numba.njit(**options)(function)
    return cast(F, compiled)


def jit_plain(function: F) -> F:
    """``jit`` of what makes no arrays."""
    return jit(function, references=False)


def jit_inline(function: F) -> F:
    """``jit_plain``, in its callers."""
    return jit(function, references=False, inline=True)
