"""Programs as machine code: compiled by LLVM (the copy that numba brings), kept in the user's cache.

The object file's name is a hash of the assembly, the processor and the compiler, so it is never stale.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from faultpath.engine.world import Stop, Words
from faultpath.protocol.language import Helper, Protocol
from faultpath.protocol.native import STOPPED, assembly
from faultpath.protocol.program import Program

QUICK = 0  # LLVM's effort: a twentieth of the time to compile, half the speed
effort = 2


@contextmanager
def compiled_quickly() -> Iterator[None]:
    """For what is compiled once and runs for a moment."""
    global effort
    before, effort = effort, QUICK
    try:
        yield
    finally:
        effort = before


def cache_folder() -> Path:
    """Where object files are kept: ``$XDG_CACHE_HOME/faultpath``, by default ``~/.cache/faultpath``."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "faultpath"


class Library:
    """A module of LLVM assembly, compiled and loaded.

    :param exports: names of the functions wanted from it
    :param quickly: with little effort, unless the cache has it with more
    :ivar effort: with how much it was compiled
    """

    def __init__(self, text: str, exports: Sequence[str], quickly: bool = False) -> None:
        self.effort = effort
        path = _kept(text, effort)
        if quickly and not path.exists():
            self.effort = QUICK
            path = _kept(text, QUICK)
        llvm, machine, _ = _compiler(self.effort)
        try:
            image = path.read_bytes()
        except OSError:
            image = _compile(llvm, text, machine, self.effort)
            _store(path, image)
        builder = llvm.JITLibraryBuilder().add_object_img(image)
        for name in exports:
            builder.export_symbol(name)
        # A library of each lives in a space of its own: names may repeat.
        self._jit = llvm.create_lljit_compiler(machine)
        self._library = builder.link(self._jit, "program")

    def address(self, name: str) -> int:
        """Where an exported function is."""
        return int(self._library[name])

    def function(self, name: str, arguments: int) -> Any:
        """An exported function ``name(w, ...)`` with so many integers after the world."""
        return _prototype(arguments)(self.address(name))


def _kept(text: str, level: int) -> Path:
    """The object file of an assembly, where it would be."""
    key = f"{text}{_compiler(level)[2]}"
    return cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.o"


@cache
def _prototype(arguments: int) -> Any:
    return ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, *[ctypes.c_int64] * arguments)


@cache
def _compiler(level: int) -> tuple[Any, Any, str]:
    """LLVM, the machine it compiles for, and a text that tells these and the level from others."""
    import llvmlite.binding as llvm  # here: loading LLVM takes a tenth of a second

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    cpu, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    machine = target.create_target_machine(cpu=cpu, features=features, opt=level)
    return llvm, machine, "\0".join(["", cpu, features, repr(llvm.llvm_version_info), str(level)])


class Native:
    """Machine code for a program's roots, to be run in order and to completion.

    :param known: words of the world that no run changes, and what they hold: compiled in
    :param quickly: as for a library
    """

    def __init__(self, program: Program, known: dict[int, int] | None = None, quickly: bool = False) -> None:
        self.program = program
        self.library = Library(assembly(program, known), [program.names[root] for root in program.roots], quickly)
        self._functions = {
            root: self.library.function(program.names[root], len(root.parameters)) for root in program.roots
        }

    def call(self, root: Protocol | Helper, w: Words, *args: int) -> int:
        """Run a root to completion; :class:`Stop` if it could not go on (STATUS says why)."""
        result = self.call_raw(root, w, *args)
        if result == STOPPED:
            raise Stop
        return result

    def call_raw(self, root: Protocol | Helper, w: Words, *args: int) -> int:
        """The same, STOPPED included in what it may return."""
        result: int = self._functions[self.program.resolve(root)](w.ctypes.data, *args)
        return result

    def address(self, root: Protocol | Helper) -> int:
        """Where a root's code is."""
        return self.library.address(self.program.names[self.program.resolve(root)])


def _compile(llvm: Any, text: str, machine: Any, level: int) -> bytes:
    """Assembly to an object file."""
    module = llvm.parse_assembly(text)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=level)
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    image: bytes = machine.emit_object(module)
    return image


def _store(path: Path, image: bytes) -> None:
    """Keep an object file for next time; a cache that cannot be written is no error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(fd, "wb") as out:
            out.write(image)
        os.replace(temporary, path)
    except OSError:
        pass
