"""Which designs there are, and how a request like ``odp-implicit:child=2M`` or ``mine.py:window=16`` names one."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from faultpath.design import Design, Parameter
from faultpath.engine.counters import DRIVER_COUNTERS
from faultpath.errors import FaultpathError
from faultpath.protocol.language import WORK, Hook, Ops, Protocol

if TYPE_CHECKING:
    from faultpath.scenario import Scenario

BUILT_IN = {
    "nouveau-v6": "faultpath.designs.nouveau_v6",
    "nouveau-v6-fixed": "faultpath.designs.nouveau_v6_fixed",
    "nouveau-upstream": "faultpath.designs.nouveau_upstream",
    "core-tracked": "faultpath.designs.core_tracked",
    "odp-implicit": "faultpath.designs.odp_implicit",
    "odp-implicit-fixed": "faultpath.designs.odp_implicit_fixed",
    "amdkfd": "faultpath.designs.amdkfd",
    "amdkfd-fixed": "faultpath.designs.amdkfd_fixed",
    "drm-gpusvm": "faultpath.designs.drm_gpusvm",
    "full-va": "faultpath.designs.full_va",
    "kvm": "faultpath.designs.kvm",
    "odp-explicit": "faultpath.designs.odp_explicit",
    "rxe-odp": "faultpath.designs.rxe_odp",
    "uvm-hmm": "faultpath.designs.uvm_hmm",
}

_UNITS = {"K": 10, "M": 20, "G": 30, "T": 40}


def find(request: str, *, small: bool = False) -> tuple[Design, dict[str, int | str]]:
    """The design a request names, and its parameters with the requested values in place of the defaults.

    :param request: ``NAME[:param=value,...]`` or ``PATH.py[:param=value,...]``; bytes take K, M, G, T
    :param small: take the defaults that suit the small worlds of ``check``
    :raises FaultpathError: no such design, parameter or value
    """
    name, colon, settings = request.partition(":")
    design = load(name)
    values: dict[str, int | str] = {
        p.name: p.small if small and p.small is not None else p.default for p in design.parameters
    }
    known = {p.name: p for p in design.parameters}
    for setting in settings.split(",") if colon else ():
        key, equals, text = setting.partition("=")
        if key not in known or not equals:
            has = ", ".join(known) or "none"
            raise FaultpathError(f"{design.name} has no parameter '{key}'", f"--design {request}", f"it has: {has}")
        values[key] = _value(known[key], text, request)
    return design, values


def integers(design: Design, values: dict[str, int | str]) -> list[int]:
    """Parameter values as the design's ``open`` takes them: a choice becomes its index."""
    return [p.choices.index(str(values[p.name])) if p.choices else int(values[p.name]) for p in design.parameters]


def label(request: str, design: Design, values: dict[str, int | str]) -> str:
    """How a design is requested with just these values: what differs from the defaults is said."""
    said = settings([p for p in design.parameters if values[p.name] != p.default], values)
    return ":".join([request.partition(":")[0], *([said] if said else [])])


def settings(parameters: Sequence[Parameter], values: dict[str, int | str]) -> str:
    """Values as a request has them: ``child=2M,protection=srcu``."""
    return ",".join(f"{p.name}={text(p, values[p.name])}" for p in parameters)


def text(parameter: Parameter, value: int | str) -> str:
    """A value as a request has it: ``2M`` of bytes."""
    if isinstance(value, int) and value and parameter.unit == "bytes":
        for unit, shift in reversed(_UNITS.items()):
            if value % (1 << shift) == 0:
                return f"{value >> shift}{unit}"
    return str(value)


def load(name: str) -> Design:
    """A built-in design, or the ``design`` that a Python file defines."""
    if name in BUILT_IN:
        design: Design = importlib.import_module(BUILT_IN[name]).design
        return design
    if not name.endswith(".py"):
        raise FaultpathError(
            f"no design '{name}'", "--design", f"one of {', '.join(BUILT_IN)}, or the path of a Python file"
        )
    found = getattr(run_file(name), "design", None)
    if not isinstance(found, Design):
        raise FaultpathError("defines no design", name, "end it with: design = Design(...)")
    if wrong := _problem(found):
        raise FaultpathError(wrong, name, "see docs/writing-a-design.md")
    return found


def _problem(design: Design) -> str:
    """Why a user's design cannot be linked; "" if it can."""
    wanted = {"open": 1 + len(design.parameters), "fault": 3, "walk": 2, "close": 1, "invariant": 1}
    found = [(name, getattr(design, name), count) for name, count in wanted.items()]
    slots = _slots(design)
    for ops in design.ops:
        if not isinstance(ops, Ops):
            return f"ops: {ops!r} is no Ops"
        for slot, function in ops.table.items():
            if slot not in slots:
                return f"nothing calls '{slot}'; slots are {', '.join(slots)}"
            found.append((slot, function, slots[slot]))
    for name, function, count in found:
        if function is None and name == "invariant":
            continue
        if not isinstance(function, Protocol):
            return f"{name}: {function!r} is no protocol"
        if len(function.parameters) != count:
            return f"{name}: {function.__name__} takes {len(function.parameters)} parameters and is given {count}"
    unknown = [name for name in design.counters if name not in DRIVER_COUNTERS]
    return f"counters: no '{unknown[0]}' among {', '.join(DRIVER_COUNTERS)}" if unknown else ""


def _slots(design: Design) -> dict[str, int]:
    """What tables may set, and how many arguments each is given.

    The function pointers of the core, and those of the modules that the design's functions are in or take others from.
    """
    from faultpath.kernel import mmu_notifier

    tables = [function for ops in design.ops if isinstance(ops, Ops) for function in ops.table.values()]
    own = [design.open, design.fault, design.walk, design.close, *design.replacements(), *tables]
    scopes = {p.__module__: p.fn.__globals__ for p in own if isinstance(p, Protocol)}
    used = [p for scope in scopes.values() for p in scope.values() if isinstance(p, Protocol)]
    scopes |= {p.__module__: p.fn.__globals__ for p in used}
    hooks = [h for scope in (vars(mmu_notifier), *scopes.values()) for h in scope.values() if isinstance(h, Hook)]
    return {hook.slot: len(hook.parameters) for hook in hooks if hook.slot != WORK}


def run_file(name: str) -> ModuleType:
    """A Python file of the user's, run."""
    path = Path(name)
    spec = importlib.util.spec_from_file_location(f"faultpath_user_{path.stem}", path)
    try:
        if spec is None or spec.loader is None or not path.is_file():
            raise FaultpathError("no such file", name, "check the path")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        if (folder := str(path.parent.resolve())) not in sys.path:
            sys.path.append(folder)  # so that files of the user's can import each other
        spec.loader.exec_module(module)
    except FaultpathError:
        raise
    except (Exception, SystemExit) as error:
        where = f"{name}:{getattr(error, 'lineno', None) or _line(error, name)}"
        raise FaultpathError(f"{type(error).__name__}: {error}", where, "the file must run as Python") from None
    return module


def scenarios(request: str) -> list[Scenario]:
    """The scenarios a request names: ``NAME``, ``PATH.py`` for all that a file sets, or ``PATH.py:NAME``.

    :raises FaultpathError: no such scenario, or one that cannot be set up
    """
    from faultpath.scenario import problem
    from faultpath.scenarios import SCENARIOS

    path, colon, name = request.rpartition(":")
    if request.endswith(".py"):
        path, colon, name = request, "", ""
    if not path.endswith(".py"):
        return [_scenario(SCENARIOS, request, "--scenario", ", or the path of a Python file")]
    found = getattr(run_file(path), "scenarios", None)
    if not isinstance(found, list | tuple) or not found:
        raise FaultpathError("sets no scenarios", path, "end it with: scenarios = [Scenario(...)]")
    for index, scenario in enumerate(found):
        if wrong := problem(scenario):
            raise FaultpathError(wrong, f"{path}: scenarios[{index}]", "see the built-in ones: faultpath/scenarios")
    names = [scenario.name for scenario in found]
    if len(set(names)) < len(names):
        raise FaultpathError("two scenarios have one name", path, "rename one")
    return [_scenario(found, name, path, "")] if colon else list(found)


def _scenario(found: Sequence[Scenario], name: str, where: str, also: str) -> Scenario:
    """The one of a name."""
    for scenario in found:
        if scenario.name == name:
            return scenario
    names = ", ".join(scenario.name for scenario in found)
    raise FaultpathError(f"no scenario '{name}'", where, f"one of {names}{also}")


def describe(request: str, source: bool = False) -> dict[str, Any]:
    """A design as a JSON-able document; with ``source``, its file's text."""
    design, _ = find(request)
    document = {
        "name": design.name,
        "title": design.title,
        "models": design.source,
        "parameters": [
            {
                "name": p.name,
                "default": p.default,
                "text": text(p, p.default),
                "unit": p.unit,
                "choices": list(p.choices),
                "doc": p.doc,
            }
            for p in design.parameters
        ],
        "counters": list(design.counters),
        "doc": design.doc.strip(),
    }
    if source:
        name = request.partition(":")[0]
        built_in = importlib.import_module(BUILT_IN[name]) if name in BUILT_IN else None
        document["source"] = inspect.getsource(built_in) if built_in else Path(name).read_text()
    return document


def _line(error: BaseException, name: str) -> int:
    """Line of the user's file in which an exception arose."""
    line, frame = 0, error.__traceback__
    while frame:
        if frame.tb_frame.f_code.co_filename.endswith(Path(name).name):
            line = frame.tb_lineno
        frame = frame.tb_next
    return line


def _value(parameter: Parameter, text: str, request: str) -> int | str:
    where = f"--design {request}"
    if parameter.choices:
        if text not in parameter.choices:
            raise FaultpathError(f"{parameter.name} is not '{text}'", where, f"one of {', '.join(parameter.choices)}")
        return text
    value = _number(text, parameter.unit == "bytes")
    if value is None:
        raise FaultpathError(f"{parameter.name}='{text}' is no number", where, "such as 4096 or 2M")
    if not parameter.minimum <= value <= parameter.maximum or (parameter.power_of_two and value & (value - 1)):
        rule = f"{'a power of two ' if parameter.power_of_two else ''}from {parameter.minimum} to {parameter.maximum}"
        raise FaultpathError(f"{parameter.name}={text} is not allowed", where, rule)
    return value


def size(text: str, option: str) -> int:
    """Bytes as an option takes them: ``512M``."""
    value = _number(text, units=True)
    if value is None or not 1 << 20 <= value <= 1 << 44:
        raise FaultpathError(f"'{text}' is no size", option, "from 1M to 16T, such as 512M or 4G")
    return value


def _number(text: str, units: bool) -> int | None:
    """A number, with ``units`` in K, M, G, T; None if it is none."""
    shift = _UNITS.get(text[-1:].upper(), 0) if units else 0
    digits = text[:-1] if shift else text
    return int(digits) << shift if digits.isascii() and digits.isdigit() and len(digits) < 16 else None
