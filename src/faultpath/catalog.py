"""Which designs there are, and how a request like ``odp-implicit:child=2M`` or ``mine.py:window=16`` names one."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

from faultpath.design import Design, Parameter
from faultpath.errors import FaultpathError

BUILT_IN = {
    "nouveau-v6": "faultpath.designs.nouveau_v6",
    "nouveau-v6-fixed": "faultpath.designs.nouveau_v6_fixed",
    "odp-implicit": "faultpath.designs.odp_implicit",
    "full-va": "faultpath.designs.full_va",
}

_UNITS = {"K": 10, "M": 20, "G": 30, "T": 40}


def find(request: str) -> tuple[Design, dict[str, int | str]]:
    """The design a request names, and its parameters with the requested values in place of the defaults.

    :param request: ``NAME[:param=value,...]`` or ``PATH.py[:param=value,...]``; bytes take K, M, G, T
    :raises FaultpathError: no such design, parameter or value
    """
    name, colon, settings = request.partition(":")
    design = load(name)
    values: dict[str, int | str] = {p.name: p.default for p in design.parameters}
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


def load(name: str) -> Design:
    """A built-in design, or the ``design`` that a Python file defines."""
    if name in BUILT_IN:
        design: Design = importlib.import_module(BUILT_IN[name]).design
        return design
    if not name.endswith(".py"):
        raise FaultpathError(
            f"no design '{name}'", "--design", f"one of {', '.join(BUILT_IN)}, or the path of a Python file"
        )
    path = Path(name)
    spec = importlib.util.spec_from_file_location(f"faultpath_user_{path.stem}", path)
    try:
        if spec is None or spec.loader is None or not path.is_file():
            raise FaultpathError("no such file", name, "check the path")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    except FaultpathError:
        raise
    except (Exception, SystemExit) as error:
        where = f"{name}:{getattr(error, 'lineno', None) or _line(error, name)}"
        raise FaultpathError(f"{type(error).__name__}: {error}", where, "the file must run as Python") from None
    found = getattr(module, "design", None)
    if not isinstance(found, Design):
        raise FaultpathError("defines no design", name, "end it with: design = Design(...)")
    return found


def describe(request: str, source: bool = False) -> dict[str, Any]:
    """A design as a JSON-able document; with ``source``, its file's text."""
    design, _ = find(request)
    file = inspect.getsourcefile(design.fault.fn) or ""
    document = {
        "name": design.name,
        "title": design.title,
        "models": design.source,
        "parameters": [
            {"name": p.name, "default": p.default, "unit": p.unit, "choices": list(p.choices), "doc": p.doc}
            for p in design.parameters
        ],
        "doc": design.doc.strip(),
    }
    if source:
        document["source"] = Path(file).read_text()
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
    digits, shift = text, 0
    if parameter.unit == "bytes" and text[-1:].upper() in _UNITS:
        digits, shift = text[:-1], _UNITS[text[-1:].upper()]
    if not (digits.isascii() and digits.isdigit() and len(digits) < 16):
        raise FaultpathError(f"{parameter.name}='{text}' is no number", where, "such as 4096 or 2M")
    value = int(digits) << shift
    if not parameter.minimum <= value <= parameter.maximum or (parameter.power_of_two and value & (value - 1)):
        rule = f"{'a power of two ' if parameter.power_of_two else ''}from {parameter.minimum} to {parameter.maximum}"
        raise FaultpathError(f"{parameter.name}={text} is not allowed", where, rule)
    return value
