"""Back end two: a program as one function ``step(w, thread)`` that takes a thread one access to shared state further.

A thread is words of the world, from its address on: program counter, frame, number, result, then its stack. A frame
is: program counter to return to, frame to return to, register for the result, then the registers. The program counter
is the number of an instruction, counted over the whole program; -1 says that the thread has ended.

All that a thread knows is in those words: copy the world and it can be taken on from there, in any order with others.
"""

from __future__ import annotations

from faultpath.engine.world import BAD_ADDRESS, STATUS, TID
from faultpath.protocol import steps
from faultpath.protocol.language import Protocol
from faultpath.protocol.native import STOPPED, Emitter, stopping_functions
from faultpath.protocol.program import Program

PC, FRAME, NUMBER, RESULT, STACK = range(5)
RETURN_PC, RETURN_FRAME, RETURN_REGISTER, REGISTERS = range(4)

STEPPED, BLOCKED, ENDED = range(3)  # what step() returns, or STOPPED


class Layout:
    """Where every instruction and register of a program is."""

    def __init__(self, program: Program) -> None:
        self.codes = {
            source: steps.flatten(program, function)
            for source, function in program.functions.items()
            if isinstance(source, Protocol)
        }
        self.entry: dict[Protocol, int] = {}
        self.lines: list[tuple[Protocol, int]] = []  # of each instruction
        for protocol, code in self.codes.items():
            self.entry[protocol] = len(self.lines)
            self.lines += [(protocol, instruction.line) for instruction in code.instructions]
        self.program = program

    def frame_words(self, protocol: Protocol) -> int:
        """Words of a protocol's frame."""
        return REGISTERS + len(self.codes[protocol].registers)

    def stack_words(self, protocol: Protocol) -> int:
        """Words of stack that a thread needs which starts with a protocol: its deepest chain of calls."""
        callees = [i.target for i in self.codes[protocol].instructions if isinstance(i, steps.Enter)]
        return self.frame_words(protocol) + max(map(self.stack_words, callees), default=0)


def step_function(program: Program, layout: Layout) -> str:
    """Text of ``step``, to follow the program's functions in one module."""
    return _StepEmitter(program, layout).text()


class _StepEmitter(Emitter):
    """Registers live in the frame instead of on the native stack; expressions are those of the native back end."""

    def __init__(self, program: Program, layout: Layout) -> None:
        super().__init__(program, stopping_functions(program))
        self.layout = layout
        self.code = next(iter(layout.codes.values()))

    def text(self) -> str:
        self.lines = ["define i64 @step(ptr %w, i64 %thread) nounwind {"]
        for name in ("acted", "frame", "pc"):
            self.put(f"%{name} = alloca i64")
        self.put("store i64 0, ptr %acted")
        self.put(f"store i64 {self.word('%thread', FRAME)}, ptr %frame")
        self.put(f"store i64 {self.word('%thread', PC)}, ptr %pc")
        self.put(f"store i64 {self.word('%thread', NUMBER)}, ptr {self.place(str(TID), 0)}")
        self.put("br label %dispatch")
        for protocol, code in self.layout.codes.items():
            self.code = code
            first = self.layout.entry[protocol]
            for index, instruction in enumerate(code.instructions):
                self.label(f"at.{first + index}")
                self.instruction(instruction, first, first + index)
        self.label("dispatch")
        cases = " ".join(f"i64 {i}, label %at.{i}" for i in range(len(self.layout.lines)))
        self.put(f"switch i64 {self.let('load i64, ptr %pc')}, label %stopped [ {cases} ]")
        for name, value in (("stepped", STEPPED), ("blocked", BLOCKED)):
            self.label(name)
            self.save()
            self.put(f"ret i64 {value}")
        self.label("ended")
        self.put(f"store i64 -1, ptr {self.place('%thread', PC)}")
        self.put(f"ret i64 {ENDED}")
        self.label("stopped")
        self.save()
        self.put(f"ret i64 {STOPPED}")
        return "\n".join([*self.lines, "}", ""])

    def save(self) -> None:
        self.put(f"store i64 {self.let('load i64, ptr %pc')}, ptr {self.place('%thread', PC)}")
        self.put(f"store i64 {self.let('load i64, ptr %frame')}, ptr {self.place('%thread', FRAME)}")

    # --- words of the world

    def place(self, base: str, offset: int) -> str:
        index = self.let(f"add i64 {base}, {offset}")
        return self.let(f"getelementptr i64, ptr %w, i64 {index}")

    def word(self, base: str, offset: int) -> str:
        return self.let(f"load i64, ptr {self.place(base, offset)}")

    def register(self, name: str) -> str:
        """Address of a register of the running frame."""
        return self.place(self.let("load i64, ptr %frame"), REGISTERS + self.code.registers.index(name))

    def read(self, name: str) -> str:
        return self.let(f"load i64, ptr {self.register(name)}")

    # --- instructions

    def instruction(self, instruction: steps.Instruction, first: int, index: int) -> None:
        if isinstance(instruction, steps.STEPS):
            self.once(index)
        following = f"br label %at.{index + 1}"
        match instruction:
            case steps.Let(to=to, value=value):
                result = self.value(value)
                self.put(f"store i64 {result}, ptr {self.register(to)}")
                self.put(following)
            case steps.Load(to=to, address=address):
                result = self.word(self.value(address), 0)
                self.put(f"store i64 {result}, ptr {self.register(to)}")
                self.put(following)
            case steps.Store(address=address, value=value):
                result = self.value(value)
                self.put(f"store i64 {result}, ptr {self.place(self.value(address), 0)}")
                self.put(following)
            case steps.Invoke(to=to, target=target, args=args):
                result = self.invoke(target, [self.value(a) for a in args])
                if target.blocks:
                    self.block_if(self.let(f"icmp ne i64 {result}, 0"))
                self.put(f"store i64 {result}, ptr {self.register(to)}")
                self.put(following)
            case steps.Guard(condition=condition):
                self.block_if(self.let(f"xor i1 {self.test(condition)}, true"))
                self.put(following)
            case steps.Count(index=counter, amount=amount):
                total = self.let(f"add i64 {self.word(str(counter), 0)}, {self.value(amount)}")
                self.put(f"store i64 {total}, ptr {self.place(str(counter), 0)}")
                self.put(following)
            case steps.Jump(to=to):
                self.put(f"br label %at.{first + to}")
            case steps.Branch(test=test, yes=yes, no=no):
                self.put(f"br i1 {self.test(test)}, label %at.{first + yes}, label %at.{first + no}")
            case steps.Enter():
                self.enter(instruction, index)
            case steps.Leave(value=value):
                self.leave(self.value(value))
            case steps.Unbound():
                self.put(f"store i64 {BAD_ADDRESS}, ptr {self.place(str(STATUS), 0)}")
                self.put("br label %stopped")

    def once(self, index: int) -> None:
        """One access per call: the second one waits for the next."""
        go = self.fresh("go")
        self.put(f"store i64 {index}, ptr %pc")
        acted = self.let("load i64, ptr %acted")
        self.put(f"br i1 {self.let(f'icmp ne i64 {acted}, 0')}, label %stepped, label %{go}")
        self.label(go)
        self.put("store i64 1, ptr %acted")

    def block_if(self, condition: str) -> None:
        on = self.fresh("on")
        self.put(f"br i1 {condition}, label %blocked, label %{on}")
        self.label(on)

    def enter(self, call: steps.Enter, index: int) -> None:
        values = [self.value(a) for a in call.args]
        frame = self.let("load i64, ptr %frame")
        new = self.let(f"add i64 {frame}, {REGISTERS + len(self.code.registers)}")
        register = self.code.registers.index(call.to)
        for offset, value in ((RETURN_PC, index + 1), (RETURN_FRAME, frame), (RETURN_REGISTER, register)):
            self.put(f"store i64 {value}, ptr {self.place(new, offset)}")
        registers = self.layout.codes[call.target].registers
        # Unused registers are zeroed, so that equal states have equal words.
        for number in range(len(registers)):
            value = values[number] if number < len(values) else "0"
            self.put(f"store i64 {value}, ptr {self.place(new, REGISTERS + number)}")
        self.put(f"store i64 {new}, ptr %frame")
        self.put(f"br label %at.{self.layout.entry[call.target]}")

    def leave(self, value: str) -> None:
        """Back to the caller's frame, or the end of the thread; the frame left behind is zeroed."""
        frame = self.let("load i64, ptr %frame")
        back = self.word(frame, RETURN_PC)
        caller = self.word(frame, RETURN_FRAME)
        register = self.word(frame, RETURN_REGISTER)
        for offset in range(REGISTERS + len(self.code.registers)):
            self.put(f"store i64 0, ptr {self.place(frame, offset)}")
        self.put(f"store i64 {caller}, ptr %frame")
        self.put(f"store i64 {back}, ptr %pc")
        last, on = self.fresh("last"), self.fresh("on")
        self.put(f"br i1 {self.let(f'icmp slt i64 {back}, 0')}, label %{last}, label %{on}")
        self.label(last)
        self.put(f"store i64 {value}, ptr {self.place('%thread', RESULT)}")
        self.put("br label %ended")
        self.label(on)
        to = self.let(f"add i64 {caller}, {register}")
        self.put(f"store i64 {value}, ptr {self.place(to, REGISTERS)}")
        self.put("br label %dispatch")
