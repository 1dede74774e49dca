"""Row programs as lines of text, for targets that are source code: Triton and CUDA C++.

The walk over a program is noted down here, since such a target puts its functions together from
parts: a row that several programs share takes the same numbers of the row more than once. How a
language writes a line is in its :class:`Language`.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

from amidmath.compiler.graph import Node, UnsupportedError
from amidmath.compiler.lower import lower
from amidmath.compiler.schedule import Extreme, Program
from amidmath.compiler.stages import Stage


@dataclass(frozen=True)
class Language:
    """The spelling of expressions.

    Args:
        operations: a format for each elementwise operation, of its operands.
        constant: writes a constant.
        logits: writes the logits of the tokens of a loop, of the input's number.
        logit: writes one logit, of the input's number and a position.
        positions: the tokens' positions in a loop.
    """

    operations: dict[str, str]
    constant: Callable[[float | bool], str]
    logits: Callable[[int], str]
    logit: Callable[[int, str], str]
    positions: str


class Line(NamedTuple):
    """A name, and the expression that it stands for."""

    name: str
    expression: str


class Total(NamedTuple):
    """A sum: its name, and that of the tokens' numbers."""

    name: str
    of: str


class Largest(NamedTuple):
    """A maximum: its name, that of its position if wanted, and that of the tokens' numbers."""

    name: str
    place: str | None
    of: str


class Stored(NamedTuple):
    """An array of the caller's, and the name of what is written there."""

    array: str
    value: str


@dataclass
class Loop:
    """A sweep: lines computed for every token, and what becomes of them."""

    lines: list[Line] = field(default_factory=list)
    totals: list[Total] = field(default_factory=list)
    extremes: list[Largest] = field(default_factory=list)
    stores: list[Stored] = field(default_factory=list)


@dataclass
class Results:
    """Arrays to write: those with one number a row, and those with the same for all tokens."""

    once: list[Stored] = field(default_factory=list)
    spread: list[Stored] = field(default_factory=list)


class Step(NamedTuple):
    """A sweep, after the lines that compute the numbers of the row that it needs."""

    before: list[Line]
    loop: Loop


@dataclass(frozen=True)
class Listing:
    """A program's lines.

    Args:
        steps: the sweeps.
        after: lines of the row after all sweeps.
        results: what is written then.
        left_out: what is written of a row that the mask leaves out.
        arrays: the arrays that take part: "input0", "input1", "knob…", "scale", "value",
            "partial…", in this order.
        params: which of the program's numbers take part.
    """

    steps: list[Step]
    after: list[Line]
    results: Results
    left_out: Results
    arrays: list[str]
    params: list[int]


def listed(program: Program, language: Language) -> Listing:
    """The lines of a program that keeps nothing in buffers."""
    recorder = _Recorder(language)
    lower(program, recorder, masked=True)
    once = [name for name in recorder.read if not name.startswith("param")]
    written = [f"partial{which}" for which, _ in program.wanted]
    params = sorted(int(name.removeprefix("param")) for name in recorder.read - set(once))
    arrays = sorted([*once, "value", *written], key=_place)
    return Listing(
        recorder.steps, recorder.lines, recorder.results, recorder.left_out, arrays, params
    )


_ARRAYS = ("input", "knob", "scale", "value", "partial")


def _place(array: str) -> tuple[int, int]:
    """An array's place among the arguments of a kernel."""
    kind = array.rstrip("0123456789")
    return _ARRAYS.index(kind), int(array.removeprefix(kind) or 0)


class _Recorder:
    """The target that notes down what it is told to spell."""

    def __init__(self, language: Language) -> None:
        self.language = language
        self.steps: list[Step] = []
        self.lines: list[Line] = []
        self.loop = Loop()
        self.results, self.left_out = Results(), Results()
        self.read: set[str] = set()
        self.reduced: dict[Node, str] = {}
        self.names = count()

    def choose(self, kept: Callable[[], None], left_out: Callable[[], None]) -> None:
        kept()
        results, self.results = self.results, self.left_out
        left_out()
        self.results = results

    def constant(self, value: float | bool) -> str:
        return self.language.constant(value)

    def operand(self, name: str) -> str:
        self.read.add(name)
        return name

    def operation(self, node: Node, args: Sequence[str]) -> str:
        return self._line(self.language.operations[node.op].format(*args))

    def logit_at(self, which: int, place: str | int) -> str:
        self.read.add(f"input{which}")
        return self._line(self.language.logit(which, str(place)))

    def index(self, place: str | int) -> str:
        return str(place)

    def result(self, array: str, value: str) -> None:
        self.results.once.append(Stored(array, value))

    def spread(self, which: int, value: str) -> None:
        self.results.spread.append(Stored(f"partial{which}", value))

    def across(self, value: str) -> str:
        return value

    def sweep(self, stages: Sequence[Stage], turn: Callable[[Stage], None]) -> dict[Node, str]:
        (stage,) = stages
        self.reduced = {reduction: self._name() for reduction in stage.reductions}
        self.loop = Loop()
        before, self.lines = self.lines, self.loop.lines
        turn(stage)
        self.steps.append(Step(before, self.loop))
        self.lines = []
        return self.reduced

    def logits(self, which: int) -> str:
        self.read.add(f"input{which}")
        return self._line(self.language.logits(which))

    def positions(self) -> str:
        return self.language.positions

    def add(self, total: Node, value: str) -> None:
        self.loop.totals.append(Total(self.reduced[total], value))

    def compare(self, extreme: Extreme, value: str) -> None:
        name = self._name() if extreme.largest is None else self.reduced[extreme.largest]
        place = None if extreme.place is None else self.reduced[extreme.place]
        self.loop.extremes.append(Largest(name, place, value))

    def store(self, which: int, value: str) -> None:
        self.loop.stores.append(Stored(f"partial{which}", value))

    def _line(self, expression: str) -> str:
        self.lines.append(Line(self._name(), expression))
        return self.lines[-1].name

    def _name(self) -> str:
        return f"x{next(self.names)}"


def number(value: float | bool, infinity: str, true: str, false: str) -> str:
    """A constant, given how the language writes what differs between languages."""
    if isinstance(value, bool):
        return true if value else false
    if math.isnan(value):
        raise UnsupportedError("a constant that is NaN")
    if math.isinf(value):
        return infinity if value > 0.0 else f"(-{infinity})"
    return f"({value!r})" if value < 0.0 else repr(value)


def indented(lines: Iterable[str]) -> list[str]:
    """The lines one level further in."""
    return ["    " + line for line in lines]
