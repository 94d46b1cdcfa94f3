"""Back end two: a thread's program as one function ``step(w, thread)`` that takes it further and can stop anywhere.

A thread is words of the world, from its address on: where it is (the number of an instruction; -1: ended), its number,
its result, what it holds, then the registers that matter at that point. Registers that do not matter are zero there,
so that equal states have equal words. Copy the world and it can be taken on from there, in any order with others.

Plain, a call of ``step`` takes exactly one step. Checked (``checked=True``) it also goes on through steps that no other
thread can tell apart from the one before (see :mod:`faultpath.engine.sanitizer`), every access is looked at as a debug
kernel does, and every word written is logged so that it can be undone.
"""

from __future__ import annotations

from faultpath.engine import arena, sanitizer
from faultpath.engine.thread import HEADER, PC, RESULT
from faultpath.engine.world import BAD_ADDRESS, COUNTER, STATUS
from faultpath.kernel.primitives import debug
from faultpath.protocol import ir, steps
from faultpath.protocol.language import Helper, Primitive
from faultpath.protocol.native import FOOT, STOPPED, Emitter, FunctionEmitter, stopping_functions
from faultpath.protocol.program import Program, Source

STEPPED, BLOCKED, ENDED = range(3)  # what step() returns, or STOPPED

MAX_STEPS = 4096  # of one call: a thread that goes on longer by itself spins
MAX_TURNS = 1 << 16  # of loops, in one call: the same for one that makes no step at all

CHECKED = [
    sanitizer.read_word,
    sanitizer.read_field,
    sanitizer.read_global,
    sanitizer.write_word,
    sanitizer.write_field,
    sanitizer.write_global,
    sanitizer.put,
    sanitizer.wake,
    sanitizer.settle,
    sanitizer.shared,
    sanitizer.asleep,
    sanitizer.fall_asleep,
    debug.might_sleep,
    sanitizer.undo_to,
    sanitizer.thread_ends,
]


def plain_step(program: Program, code: steps.Code, name: str) -> str:
    """Text of the plain ``step``, to follow the program's functions in one module."""
    return _StepEmitter(program, code, stopping_functions(program), False).text(name)


def checked_module(program: Program, code: steps.Code, name: str) -> str:
    """Text of a whole module: the checked ``step`` and the primitives that it uses."""
    stopping = stopping_functions(program) | {f for f in program.functions if not isinstance(f, Helper) or not f.raw}
    parts = []
    for source, function in program.functions.items():
        if isinstance(source, Primitive | Helper):
            raw = isinstance(source, Helper) and source.raw
            emitter = (FunctionEmitter if raw else _CheckedFunctionEmitter)(program, function, stopping, False, None)
            if source in CHECKED or isinstance(source, Primitive):
                emitter.attributes = "noinline "  # they are called from everywhere: half the time to compile
            parts.append(emitter.text())
    step = _StepEmitter(program, code, stopping, True).text(name)
    return "\n".join([*parts, step, FOOT, ""])


class _Checked(Emitter):
    """Accesses go through the sanitizer. What is not an object (a named word) is shared state or bookkeeping."""

    def helper(self, target: Helper, *args: str) -> str:
        return self.invoke(target, list(args))

    def load(self, base: ir.Expr, offset: int) -> str:
        index = self.index(base, offset)
        if isinstance(base, ir.Const):
            if arena.is_state(base.value + offset):
                self.helper(sanitizer.read_global, index)
        else:
            self.helper(sanitizer.read_word, index)
        return self.let(f"load i64, ptr {self.word_at(index)}")

    def store(self, base: ir.Expr, offset: int, value: str) -> None:
        index = self.index(base, offset)
        if not isinstance(base, ir.Const):
            self.helper(sanitizer.write_word, index, value)
        elif arena.is_state(base.value + offset):
            self.helper(sanitizer.write_global, index, value)
        else:
            self.put(f"store i64 {value}, ptr {self.word_at(index)}")


class _CheckedFunctionEmitter(_Checked, FunctionEmitter):
    """A primitive, or a helper of one, whose accesses are checked and logged."""


class _StepEmitter(Emitter):
    """One function with a way in at every step. Registers that outlive a step are words, the others on its stack."""

    def __init__(self, program: Program, code: steps.Code, stopping: set[Source], checked: bool) -> None:
        super().__init__(program, stopping)
        self.code = code
        self.checked = checked
        self.places: dict[str, str] = {}

    def text(self, name: str) -> str:
        code = self.code
        ends = [i for i, instruction in enumerate(code.instructions) if isinstance(instruction, steps.STEPS)]
        body: list[str] = []
        self.lines = body
        for i, instruction in enumerate(code.instructions):
            self.instruction(i, instruction)
        for label, value in (("stepped", STEPPED), ("blocked", BLOCKED), ("stopped", STOPPED)):
            self.label(label)
            self.put(f"ret i64 {value}")
        self.lines = [f'define i64 @"{name}"(ptr %w, i64 %thread) nounwind {{']
        for place in self.places.values():
            self.put(f"{place} = alloca i64")
            self.put(f"store i64 0, ptr {place}")
        self.put("%taken = alloca i64")
        self.put("store i64 0, ptr %taken")
        self.put("%turns = alloca i64")
        self.put("store i64 0, ptr %turns")
        self.put("%mark = alloca i64")
        self.put("%asked = alloca i64")
        pc = self.word("%thread", PC)
        if self.checked:
            self.invoke(sanitizer.wake, ["%thread", str(code.slot_count)])
        cases = " ".join(f"i64 {i}, label %do.{i}" for i in ends)
        self.put(f"switch i64 {pc}, label %at.0 [ {cases} ]")
        return "\n".join([*self.lines, *body, "}", ""])

    # --- words and registers

    def slot(self) -> str:
        name = f"%{self.fresh('slot')}"
        self.places[name] = name
        return name

    def word(self, base: str, offset: int) -> str:
        return self.let(f"load i64, ptr {self.word_at(self.let(f'add i64 {base}, {offset}'))}")

    def named(self, index: int) -> str:
        return self.let(f"load i64, ptr {self.word_at(str(index))}")

    def set_named(self, index: int, value: str) -> None:
        self.put(f"store i64 {value}, ptr {self.word_at(str(index))}")

    def place(self, name: str) -> str:
        """Where a register is: one that outlives a step among the thread's words (checked: in a copy of them)."""
        if name not in self.code.slots:
            return self.places.setdefault(name, f"%register.{len(self.places)}")
        slot = self.code.slots[name]
        if self.checked:
            return self.word_at(str(arena.REGISTERS + slot))
        return self.word_at(self.let(f"add i64 %thread, {HEADER + slot}"))

    def read(self, name: str) -> str:
        return self.let(f"load i64, ptr {self.place(name)}")

    def set(self, name: str, value: str) -> None:
        if name:
            self.put(f"store i64 {value}, ptr {self.place(name)}")

    def write(self, offset: int, value: str) -> None:
        """A word of the thread."""
        index = self.let(f"add i64 %thread, {offset}")
        if self.checked:
            self.invoke(sanitizer.put, [index, value])
        else:
            self.put(f"store i64 {value}, ptr {self.word_at(index)}")

    def save(self, pc: int, live: list[str]) -> None:
        """Where the thread is; zero for the registers that do not matter there."""
        self.write(PC, str(pc))
        kept = {self.code.slots[name] for name in live}
        if self.checked:
            mask = sum(1 << slot for slot in kept)
            self.invoke(sanitizer.settle, ["%thread", str(self.code.slot_count), str(mask)])
            return
        for slot in range(self.code.slot_count):
            if slot not in kept:
                self.write(HEADER + slot, "0")

    # --- instructions

    def instruction(self, i: int, instruction: steps.Instruction) -> None:
        self.label(f"at.{i}")
        if isinstance(instruction, steps.STEPS):
            self.arrive(i, instruction)
            self.label(f"do.{i}")
            self.step(i, instruction)
            return
        match instruction:
            case steps.Let(to=to, value=value):
                if to:
                    self.set(to, self.value(value))
                self.put(f"br label %at.{i + 1}")
            case steps.Count(index=counter) if self.checked:
                self.set_named(arena.SEEN + counter - COUNTER, "1")
                self.put(f"br label %at.{i + 1}")
            case steps.Count(index=counter, amount=amount):
                self.set_named(counter, self.let(f"add i64 {self.named(counter)}, {self.value(amount)}"))
                self.put(f"br label %at.{i + 1}")
            case steps.Jump(to=to):
                if self.checked and to <= i:
                    turns = self.let(f"add i64 {self.let('load i64, ptr %turns')}, 1")
                    self.put(f"store i64 {turns}, ptr %turns")
                    self.stop_if(self.let(f"icmp sgt i64 {turns}, {MAX_TURNS}"), arena.SPINS)
                self.put(f"br label %at.{to}")
            case steps.Branch():
                ways = steps.following(instruction, i)
                if len(ways) == 1:
                    self.put(f"br label %at.{ways[0]}")
                else:
                    self.put(f"br i1 {self.test(instruction.test)}, label %at.{ways[0]}, label %at.{ways[1]}")
            case steps.End(value=value):
                result = self.value(value)
                if self.checked:
                    self.invoke(sanitizer.thread_ends, [result])  # notes it; a state does not remember it
                else:
                    self.write(RESULT, result)
                self.save(-1, [])
                self.put(f"ret i64 {ENDED}")
            case steps.Unbound():
                self.set_named(STATUS, str(BAD_ADDRESS))
                self.put("br label %stopped")

    def arrive(self, i: int, instruction: steps.Step) -> None:
        """Before a step: stop here, unless it is this call's first or one that nobody else can tell."""
        go, stay = self.fresh("go"), self.fresh("stay")
        taken = self.let("load i64, ptr %taken")
        if not self.checked:
            self.put(f"br i1 {self.let(f'icmp eq i64 {taken}, 0')}, label %do.{i}, label %{stay}")
        else:
            self.put(f"br i1 {self.let(f'icmp eq i64 {taken}, 0')}, label %do.{i}, label %{go}")
            self.label(go)
            if isinstance(instruction, steps.Load | steps.Store):
                write = "1" if isinstance(instruction, steps.Store) else "0"
                shared = self.invoke(sanitizer.shared, [self.value(instruction.address), write])
                self.put(f"br i1 {self.let(f'icmp ne i64 {shared}, 0')}, label %{stay}, label %do.{i}")
            else:
                # Whether others can tell is known afterwards: then it is undone, and taken by the next call.
                fine = self.let(f"icmp eq i64 {self.named(arena.FINE)}, 0")
                self.put(f"store i64 {self.named(arena.LOG_TOP)}, ptr %mark")
                self.put(f"store i64 {self.named(arena.ASKED)}, ptr %asked")
                self.put(f"br i1 {fine}, label %do.{i}, label %{stay}")
        self.label(stay)
        self.save(i, self.code.live[i])
        self.put("br label %stepped")
        if self.checked and not isinstance(instruction, steps.Load | steps.Store):
            self.label(f"back.{i}")
            first = self.let(f"icmp eq i64 {self.let('load i64, ptr %taken')}, 0")
            undo = self.fresh("undo")
            self.put(f"br i1 {first}, label %blocked, label %{undo}")
            self.label(undo)
            self.invoke(sanitizer.undo_to, [self.let("load i64, ptr %mark")])
            self.set_named(arena.ASKED, self.let("load i64, ptr %asked"))
            self.put(f"br label %{stay}")

    def step(self, i: int, instruction: steps.Step) -> None:
        back = f"back.{i}" if self.checked else "blocked"
        match instruction:
            case steps.Load(to=to, address=address):
                index = self.value(address)
                if self.checked:
                    self.invoke(sanitizer.read_field, [index])
                self.set(to, self.let(f"load i64, ptr {self.word_at(index)}"))
            case steps.Store(address=address, value=value):
                result, index = self.value(value), self.value(address)
                if self.checked:
                    self.invoke(sanitizer.write_field, [index, result])
                else:
                    self.put(f"store i64 {result}, ptr {self.word_at(index)}")
            case steps.Invoke(to=to, target=target, args=args):
                if self.checked:
                    self.set_named(arena.VISIBLE, "0")
                result = self.invoke(target, [self.value(a) for a in args])
                if self.checked and not target.blocks:
                    self.set_named(arena.GAVE, result)
                if target.blocks:
                    self.leave_if(self.let(f"icmp ne i64 {result}, 0"), back)
                self.stop_if_others_can_tell(back)
                self.set(to, result)
            case steps.Guard(condition=condition):
                if self.checked:
                    self.set_named(arena.VISIBLE, "0")
                test = _GuardEmitter(self) if self.checked else self
                self.leave_if(self.let(f"xor i1 {test.test(condition)}, true"), back)
                self.stop_if_others_can_tell(back)
            case steps.Sleep(to=to, condition=condition) if not self.checked:
                # Nobody else is there to forget a waking.
                self.leave_if(self.let(f"xor i1 {self.test(condition)}, true"), back)
                self.set(to, "1")
            case steps.Sleep(to=to, queue=queue, condition=condition):
                self.set_named(arena.VISIBLE, "0")
                self.leave_if(self.let(f"icmp ne i64 {self.invoke(sanitizer.asleep, [])}, 0"), back)
                self.invoke(self.program.resolve(debug.might_sleep), [])
                holds = _GuardEmitter(self).test(condition)
                goes_on, sleeps = self.fresh("goes_on"), self.fresh("sleeps")
                self.put(f"br i1 {holds}, label %{goes_on}, label %{sleeps}")
                self.label(sleeps)
                self.invoke(sanitizer.fall_asleep, [self.value(queue)])
                self.put(f"br label %{goes_on}")
                self.label(goes_on)
                self.stop_if_others_can_tell(back)
                self.set(to, self.let(f"zext i1 {holds} to i64"))
        count = self.let(f"add i64 {self.let('load i64, ptr %taken')}, 1")
        self.put(f"store i64 {count}, ptr %taken")
        if self.checked:
            self.set_named(arena.AT, str(i))
            self.set_named(arena.TAKEN, count)
            self.stop_if(self.let(f"icmp sgt i64 {count}, {MAX_STEPS}"), arena.SPINS)
        self.put(f"br label %at.{i + 1}")

    def stop_if_others_can_tell(self, back: str) -> None:
        """A step after the first that turned out to be visible is taken back."""
        if self.checked:
            seen = self.let(f"icmp ne i64 {self.named(arena.VISIBLE)}, 0")
            later = self.let(f"icmp ne i64 {self.let('load i64, ptr %taken')}, 0")
            self.leave_if(self.let(f"and i1 {seen}, {later}"), back)

    def leave_if(self, condition: str, label: str) -> None:
        on = self.fresh("on")
        self.put(f"br i1 {condition}, label %{label}, label %{on}")
        self.label(on)


class _GuardEmitter(_Checked):
    """The condition of a guard: its accesses are part of the step, and checked."""

    def __init__(self, step: _StepEmitter) -> None:
        super().__init__(step.program, step.stopping)
        self.outer = step
        self.lines = step.lines

    def fresh(self, kind: str = "t") -> str:
        return self.outer.fresh(kind)

    def read(self, name: str) -> str:
        return self.outer.read(name)

    def slot(self) -> str:
        return self.outer.slot()
