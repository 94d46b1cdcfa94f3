"""A program as machine code: compiled by LLVM (the copy that numba brings), kept in the user's cache.

The object file's name is a hash of the assembly, the processor and the compiler, so it is never stale.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

from faultpath.engine.world import Stop, Words
from faultpath.protocol.language import Protocol
from faultpath.protocol.native import STOPPED, assembly
from faultpath.protocol.program import Program
from faultpath.protocol.resumable import Layout, step_function


def cache_folder() -> Path:
    """Where object files are kept: ``$XDG_CACHE_HOME/faultpath``, by default ``~/.cache/faultpath``."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "faultpath"


class Native:
    """Machine code for a program.

    :param known: words of the world that no run changes, and what they hold: compiled in
    :param stepping: give it ``step`` as well, the resumable form
    """

    def __init__(self, program: Program, known: dict[int, int] | None = None, stepping: bool = False) -> None:
        import llvmlite.binding as llvm  # here: loading LLVM takes a tenth of a second

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        self.program = program
        text = assembly(program, known)
        if stepping:
            self.layout = Layout(program)
            text += step_function(program, self.layout)
        target = llvm.Target.from_default_triple()
        cpu, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
        machine = target.create_target_machine(cpu=cpu, features=features, opt=2)
        key = "\0".join([text, cpu, features, llvm.llvm_version_info.__repr__()])
        path = cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.o"
        try:
            image = path.read_bytes()
        except OSError:
            image = _compile(llvm, text, machine)
            _store(path, image)
        builder = llvm.JITLibraryBuilder().add_object_img(image)
        names = [program.names[root] for root in program.roots]
        for name in [*names, *(["step"] if stepping else [])]:
            builder.export_symbol(name)
        self._library = builder.link(llvm.create_lljit_compiler(machine), "program")
        self._functions = {}
        if stepping:
            self._step = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)(self._library["step"])
        for root, name in zip(program.roots, names, strict=True):
            arguments = [ctypes.c_void_p, *[ctypes.c_int64] * len(root.parameters)]
            self._functions[root] = ctypes.CFUNCTYPE(ctypes.c_int64, *arguments)(self._library[name])

    def call(self, root: Protocol, w: Words, *args: int) -> int:
        """Run a root protocol to completion; :class:`Stop` if it could not go on (STATUS says why)."""
        result: int = self._functions[self.program.resolve(root)](w.ctypes.data, *args)
        if result == STOPPED:
            raise Stop
        return result

    def step(self, w: Words, thread: int) -> int:
        """Take a thread one access further: STEPPED, BLOCKED or ENDED; :class:`Stop` if it broke a rule."""
        result: int = self._step(w.ctypes.data, thread)
        if result == STOPPED:
            raise Stop
        return result


def _compile(llvm: Any, text: str, machine: Any) -> bytes:
    """Assembly to an object file."""
    module = llvm.parse_assembly(text)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
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
