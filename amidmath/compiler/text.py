"""Row programs as lines of text, for executors that compile source: Triton and CUDA C++.

What a line says is the same everywhere; how a language writes it is in a :class:`Language`.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from amidmath.compiler.graph import Node, UnsupportedError, reachable
from amidmath.compiler.operations import REDUCTIONS, TOKEN
from amidmath.compiler.schedule import Program, Sweep


@dataclass(frozen=True)
class Language:
    """How operations are written.

    Args:
        name: the language's name.
        operations: a format for each elementwise operation, of its arguments.
        number: writes a constant.
        read: writes an input's element, of the input's number and a position.
        position: what a token's position is called in a loop over the tokens.
    """

    name: str
    operations: dict[str, str]
    number: Callable[[float | bool], str]
    read: Callable[[int, str], str]
    position: str


Lines = list[tuple[str, str]]
"""Names, and the expressions that they stand for."""


@dataclass
class Loop:
    """A sweep: lines computed for every token, and what becomes of them.

    Args:
        lines: names and expressions, in order.
        reductions: the kind, the name of the row's number, and the token's name.
        outputs: the operand whose derivative it is, and the token's name.
    """

    lines: Lines = field(default_factory=list)
    reductions: list[tuple[str, str, str]] = field(default_factory=list)
    outputs: list[tuple[int, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Listing:
    """A program's lines.

    Args:
        steps: for each sweep the row's lines before it, and the sweep; at last the row's lines
            after all sweeps, with no sweep.
        value: the name of the row's value.
        knobs: operands that are knobs, and the names of the derivatives by them.
        uniform: operands that are logits, whose derivative is the same for all tokens.
        arrays: the arrays that take part: "input0", "input1", "knob…", "scale", "value",
            "partial…", in this order.
        params: which of the program's numbers take part.
    """

    steps: list[tuple[Lines, Loop | None]]
    value: str
    knobs: list[tuple[int, str]]
    uniform: list[tuple[int, str]]
    arrays: list[str]
    params: list[int]

    @property
    def logits(self) -> list[int]:
        """The operands by which the derivative is one number a token."""
        each = [j for _, loop in self.steps if loop is not None for j, _ in loop.outputs]
        return [*each, *(j for j, _ in self.uniform)]


def listed(program: Program, language: Language) -> Listing:
    """The lines of a program that keeps nothing in buffers; ``UnsupportedError`` if it has none."""
    nodes = reachable(program.roots)
    known = {*language.operations, *REDUCTIONS, *_LEAVES, "at"}
    unknown = next((node.op for node in nodes if node.op not in known), None)
    if unknown is not None:
        raise UnsupportedError(f"{unknown} in {language.name}")
    return _Lister(program, language).listing(nodes)


_LEAVES = ("input", "knob", "scale", "const", "param", "iota")


def _arrays(nodes: Sequence[Node], program: Program) -> list[str]:
    """The names of the arrays that the nodes and the results are in."""
    inputs = sorted(n.value for n in nodes if n.op == "input")
    knobs = sorted(n.value for n in nodes if n.op == "knob")
    scale = ["scale"] if any(n.op == "scale" for n in nodes) else []
    partials = [f"partial{j}" for j, p in enumerate(program.partials) if p is not None]
    read = [*(f"input{j}" for j in inputs), *(f"knob{j}" for j in knobs), *scale]
    return [*read, "value", *partials]


class _Lister:
    def __init__(self, program: Program, language: Language) -> None:
        self.program, self.language = program, language
        self.names: dict[Node, str] = {}
        self.points: dict[tuple[Node, Node], str] = {}

    def listing(self, nodes: Sequence[Node]) -> Listing:
        steps: list[tuple[Lines, Loop | None]] = []
        for sweep in self.program.sweeps:
            before: Lines = []
            loop = self._loop(sweep, before)
            steps.append((before, loop))
        after: Lines = []
        value = self._number(self.program.value, after)
        present = [(j, p) for j, p in enumerate(self.program.partials) if p is not None]
        row = [(j, self._number(p, after)) for j, p in present if p.kind != TOKEN]
        steps.append((after, None))
        knobs, uniform = [n for n in row if n[0] >= 2], [n for n in row if n[0] < 2]
        arrays = _arrays(nodes, self.program)
        params = sorted(n.value for n in nodes if n.op == "param")
        return Listing(steps, value, knobs, uniform, arrays, params)

    def _loop(self, sweep: Sweep, before: Lines) -> Loop:
        loop, here = Loop(), dict[Node, str]()

        def token(node: Node) -> str:
            if node.kind != TOKEN:
                return self._number(node, before)
            if node in here:
                return here[node]
            if node.op == "iota":
                return self.language.position
            if node.op == "input":
                expression = self.language.read(node.value, self.language.position)
            else:
                expression = self._expression(node, [token(a) for a in node.args])
            here[node] = f"t{node.order}"
            loop.lines.append((here[node], expression))
            return here[node]

        for reduction in sweep.reductions:
            self.names[reduction] = f"r{reduction.order}"
            argument = token(reduction.args[0])
            loop.reductions.append((reduction.op, self.names[reduction], argument))
        loop.outputs = [(j, token(node)) for j, node in sweep.outputs]
        return loop

    def _number(self, node: Node, lines: Lines) -> str:
        """The name of a number of the row, after the lines that compute it."""
        if node in self.names:
            return self.names[node]
        if node.op == "const":
            return self.language.number(node.value)
        if node.op in ("param", "knob"):
            return f"{node.op}{node.value}"
        if node.op == "scale":
            return "scale"
        if node.op == "at":
            index, expression = node.args
            self.names[node] = self._point(index, expression, lines)
            return self.names[node]
        expression_text = self._expression(node, [self._number(a, lines) for a in node.args])
        self.names[node] = f"r{node.order}"
        lines.append((self.names[node], expression_text))
        return self.names[node]

    def _point(self, index: Node, node: Node, lines: Lines) -> str:
        """The name of a token's number at one position."""
        if node.kind != TOKEN:
            return self._number(node, lines)
        key = (index, node)
        if key in self.points:
            return self.points[key]
        place = "0" if index.op == "const" else self._number(index, lines)
        if node.op == "iota":
            return place
        if node.op == "input":
            expression = self.language.read(node.value, place)
        else:
            arguments = [self._point(index, a, lines) for a in node.args]
            expression = self._expression(node, arguments)
        self.points[key] = f"p{index.order}_{node.order}"
        lines.append((self.points[key], expression))
        return self.points[key]

    def _expression(self, node: Node, arguments: list[str]) -> str:
        return self.language.operations[node.op].format(*arguments)


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
