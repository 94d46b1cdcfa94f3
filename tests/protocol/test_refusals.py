"""What is outside the language is refused with the line it stands on and what to do about it."""

from __future__ import annotations

from pathlib import Path

import pytest
from writing import HEAD_LINES, module

from faultpath.errors import FaultpathError
from faultpath.protocol.program import Program

HELPER = "@helper\ndef h(w, a):\n    return a\n"
CALLED = "@protocol\ndef q(a: int, b: int) -> int:\n    return a\n"
HOOK = '@hook("slot")\ndef h(ops: int, a: int) -> int:\n    """A call."""\n'


def body(*lines: str, parameters: str = "a: int") -> str:
    return "\n".join([f"@protocol\ndef p({parameters}) -> int:", *(f"    {line}" for line in lines), ""])


def loop(arguments: str) -> str:
    return body(f"for i in hlist_for_each_entry({arguments}):", "    pass", "return 0", parameters="a: Thing")


def block(taking: str) -> str:
    return body(f"with {taking}:", "    pass", "return 0", parameters="a: Thing")


def primitive(*lines: str) -> str:
    return "\n".join(["@primitive\ndef r(w, a: int) -> int:", *(f"    {line}" for line in lines), body("return r(a)")])


# name: (module, line counted from its first, part of what is said, part of the mend)
REFUSED = {
    "for": (body("for i in range(3):", "    a += i", "return a"), 4, "'for' goes over lists", "while"),
    "two arguments of a list": (loop('Thing, "node"'), 3, "three arguments", "list_for_each_entry"),
    "a list of no structure": (loop('a, "node", a.head'), 3, "'a' is not defined", "import"),
    "a list by no field": (loop('Thing, "nothing", a.head'), 3, "Thing has no field 'nothing'", "node"),
    "a list of a field that is none": (loop('Thing, "node", a.mutex'), 3, "'head' must be a HlistHead", "HlistHead"),
    "a list whose entry is assigned": (
        loop('Thing, "node", a.head').replace("pass", "i = a"), 3, "leads through the list", "another name",
    ),
    "a list under another name": (
        loop('Thing, "node", a.head').replace("    for", "    i = Inner(a)\n    for"),
        4, "'i' is a Inner and is assigned a Thing", "another name",
    ),
    "for over a list": (body("for i in TEXT:", "    a += i", "return a"), 3, "'for' is not", "while"),
    "try": (body("try:", "    a = 1", "finally:", "    a = 2", "return a"), 3, "'try' is not", "assignments"),
    "with": (block("a"), 3, "'a' takes nothing", "mutex_lock"),
    "with what takes nothing": (block("mutex_unlock(a.mutex)"), 3, "takes nothing", "mutex_lock"),
    "with as": (block("mutex_lock(a.mutex) as b"), 3, "takes nothing", "mutex_lock"),
    "with, not a lock": (block("mutex_lock(a)"), 3, "'lock' must be a Mutex", "a field"),
    ":= in a comparison": (body("if (b := a) > 1:", "    return b", "return a"), 3, "is not in the", "integers"),
    ":= as a statement": (body("(b := a)", "return a"), 3, "'expr' is not", "assignments"),
    "assert": (body("assert a", "return a"), 3, "'assert' is not", "assignments"),
    "del": (body("del a", "return 0"), 3, "'delete' is not", "assignments"),
    "import": (body("import os", "return a"), 3, "'import' is not", "assignments"),
    "global": (body("global OFFSET", "return a"), 3, "'global' is not", "assignments"),
    "raise": (body("raise Stop", "return a"), 3, "'raise' is not", "assignments"),
    "a function inside": (body("def f():", "    pass", "return a"), 3, "'functiondef' is not", "assignments"),
    "while else": (body("while a:", "    a = 0", "else:", "    a = 1", "return a"), 3, "'while' is not", "assignments"),
    "an expression alone": (body("a + 1", "return a"), 3, "'expr' is not", "assignments"),
    "two targets": (body("b = c = a", "return b"), 3, "'assign' is not", "assignments"),
    "a declaration alone": (body("b: int", "return a"), 3, "'annassign' is not", "assignments"),
    "a float": (body("return 1.5"), 3, "'1.5' is not in the language", "integers"),
    "a string": (body("b = 'x'", "return a"), 3, "is not in the language", "integers"),
    "a tuple": (body("b = (a, a)", "return a"), 3, "is not in the language", "integers"),
    "unpacking": (body("a, b = a, a", "return a"), 3, "is not in the language", "integers"),
    "a list": (body("return [a]"), 3, "'[a]' is not in the language", "integers"),
    "an index": (body("return a[0]"), 3, "'a[0]' is not in the language", "integers"),
    "true division": (body("return a / 2"), 3, "'a / 2' is not in the language", "arithmetic"),
    "a power": (body("return a ** 2"), 3, "'a ** 2' is not in the language", "arithmetic"),
    "a chain": (body("return 0 < a < 3"), 3, "'0 < a < 3' is not in the language", "single comparisons"),
    "is": (body("return a is None"), 3, "is not in the language", "single comparisons"),
    "a lambda": (body("b = lambda: 1", "return a"), 3, "is not in the language", "calls"),
    "an unknown name": (body("return a + nothing"), 3, "'nothing' is not defined", "import"),
    "a name that is no number": (body("return TEXT"), 3, "'TEXT' is not an integer", "integers"),
    "an unknown attribute": (body("return Thing.nothing"), 3, "'Thing.nothing' is not known", "module"),
    "a field of a number": (body("return a.number"), 3, "'a' is no structure", "annotate"),
    "an unknown field": (body("return a.nothing", parameters="a: Thing"), 3, "Thing has no field 'nothing'", "number"),
    "an embedded field": (
        body("a.mutex = 1", "return 0", parameters="a: Thing"), 3, "'mutex' is embedded", "primitives",
    ),
    "another structure": (
        body("b = Thing(a)", "b = Inner(a)", "return b.value"), 4, "'b' is a Thing and is assigned a Inner", "Thing(",
    ),
    "a local that is no number": (body("b: TEXT = a", "return a"), 3, "a local is an int or", "annotate"),
    "too few arguments": (CALLED + body("return q(a)"), 6, "q takes 2 arguments, not 1", "q(a, b)"),
    "keywords": (CALLED + body("return q(a, b=a)"), 6, "keyword arguments", "position"),
    "what cannot be called": (body("return OFFSET(a)"), 3, "'OFFSET' cannot be called", "protocols"),
    "print": (body("print(a)", "return a"), 3, "'print' is not defined", "import"),
    "a helper": (HELPER + body("return h(a)"), 6, "'h' cannot be called", "protocols and primitives"),
    "not a lock": (body("mutex_lock(a)", "return 0", parameters="a: Thing"), 3, "'lock' must be a Mutex", "a field"),
    "the wrong embedded": (
        body("refcount_inc(a.mutex)", "return 0", parameters="a: Thing"), 3, "must be a RefCount", "RefCount",
    ),
    "freeing a number": (body("kfree(a)", "return 0"), 3, "'a' is no structure", "cast"),
    "an unknown counter": (body('count("nothing")', "return a"), 3, "unknown counter", "lookups"),
    "count as a value": (body('return count("lookups")'), 3, "'count' cannot be called", "protocols"),
    "defaults": (body("return a", parameters="a: int = 3"), 2, "plain parameters", "defaults"),
    "*args": (body("return 0", parameters="*a"), 2, "plain parameters", "*args"),
    "arguments of a hook": (HOOK + body("return h(a)"), 6, "h takes 1 arguments, not 0", "h(a)"),
    "a protocol in a primitive": (CALLED + primitive("return q(a, a)"), 6, "'q' cannot be called", "protocols"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str, tmp_path: Path) -> None:
    text, line, said, mend = REFUSED[what]
    written = module(tmp_path, text)
    with pytest.raises(FaultpathError) as refused:
        Program([written.p])
    assert said in refused.value.what
    assert refused.value.where == f"{written.__file__}:{HEAD_LINES + line}"
    assert mend in refused.value.mend
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("kind", "text"), [("lambda", "p = protocol(lambda a: a)\n"), ("exec", None)])
def test_without_source_there_is_nothing_to_check(kind: str, text: str | None, tmp_path: Path) -> None:
    written = module(tmp_path, text or "scope = {}\nexec('def p(a): return a', scope)\np = protocol(scope['p'])\n")
    with pytest.raises(FaultpathError, match="no source for"):
        Program([written.p])


# What would be a traceback of Python or LLVM, or mean one thing in Python and another compiled.
UNCLEAR = {
    "min of three": body("return min(a, 1, 2)"),
    "container_of an unknown field": body('return container_of(Thing, "nothing", a)'),
    "container_of a computed field": body("return container_of(Thing, a, a)"),
    "container_of no structure": body('return container_of(int, "a", a)'),
    "kmalloc of nothing": body("return kmalloc()"),
    "kmalloc without flags": body("return kmalloc(Thing)"),
    "count of nothing": body("count()", "return a"),
    "waiting for nothing": body("wait_until()", "return a"),
    "has_op of a computed slot": body("return has_op(a, a)"),
    "a hook without a table": HOOK + body("return h()"),
    "a parameter of an unknown type": body("return a", parameters="a: Nothing"),
    "a float parameter": body("return a", parameters="a: float"),
    "and/or as a value": body("return a or 5"),
    "a local set on one way only": body("if a:", "    b = 1", "return b"),
    "a negative step": primitive("for i in range(5, 0, -1):", "    a += i", "return a"),
}


@pytest.mark.parametrize("what", UNCLEAR)
def test_what_python_and_compiled_code_would_take_differently_is_refused(what: str, tmp_path: Path) -> None:
    written = module(tmp_path, UNCLEAR[what])
    with pytest.raises(FaultpathError, match=r"\.py:\d+: "):
        Program([written.p])
