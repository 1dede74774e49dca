"""The lowering of a scheduled program, the same for every target: what is computed where, of what.

The walk goes through the sweeps and the numbers of the row between them, and has a target spell
what it comes to. A target knows how its language writes an operation, a load, a store and a
reduction, and what a loop over the tokens looks like there; it takes no decision about the program.
"""

from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from amidmath.compiler.graph import Node
from amidmath.compiler.operations import TOKEN
from amidmath.compiler.schedule import Extreme, Program, Sweep, computed
from amidmath.compiler.stages import Stage, staged

Value = TypeVar("Value")
"""The target's name for a number, or for as many tokens' numbers as it computes at a time."""


class Target(Protocol[Value]):
    """The spelling of row programs in one language.

    Outside of ``sweep`` values are numbers of the row, inside they are numbers of tokens.
    """

    def choose(self, kept: Callable[[], None], left_out: Callable[[], None]) -> None:
        """Do the one for rows that the mask keeps, the other for the rest."""
        ...

    # Numbers of the row

    def constant(self, value: float | bool) -> Value:
        """Spell a constant."""
        ...

    def operand(self, name: str) -> Value:
        """Spell what is given: "knob…", "scale", or "param…", a number of the loss."""
        ...

    def operation(self, node: Node, args: Sequence[Value]) -> Value:
        """Spell an elementwise operation, on numbers of the row or of tokens."""
        ...

    def logit_at(self, which: int, place: Value | int) -> Value:
        """Read one logit."""
        ...

    def index(self, place: Value | int) -> Value:
        """Spell a position as a number to compare with."""
        ...

    def result(self, array: str, value: Value) -> None:
        """Write the row's number in "value" or a knob's "partial…"."""
        ...

    def spread(self, which: int, value: Value) -> None:
        """Write a derivative by logits that is the same for all tokens."""
        ...

    # Sweeps

    def across(self, value: Value) -> Value:
        """Spell a number of the row as tokens use it; asked for before the sweep that does."""
        ...

    def sweep(self, stages: Sequence[Stage], turn: Callable[[Stage], None]) -> dict[Node, Value]:
        """Loop over the tokens; the numbers of the row that come of it, by their reductions.

        Args:
            stages: loops to be made one after the other, for a tile of tokens if they are several.
            turn: spells the body of a stage's loop; to be called once for each.
        """
        ...

    def logits(self, which: int) -> Value:
        """Read the tokens' logits."""
        ...

    def positions(self) -> Value:
        """Spell the tokens' positions."""
        ...

    def add(self, total: Node, value: Value) -> None:
        """Add the tokens' numbers to a sum."""
        ...

    def compare(self, extreme: Extreme, value: Value) -> None:
        """Look among the tokens' numbers for one that is larger than those before."""
        ...

    def store(self, which: int, value: Value) -> None:
        """Write the tokens' derivatives by logits."""
        ...


class Memory(Protocol[Value]):
    """Memory close to the processor, where numbers of tokens wait until they are needed again."""

    def keep(self, buffer: int, value: Value) -> None:
        """Write into a buffer of the row's length, for later sweeps."""
        ...

    def kept(self, buffer: int, type_: str) -> Value:
        """Read what is "real" or "bool" from there."""
        ...

    def pass_on(self, place: int, value: Value) -> None:
        """Write into memory of a tile's length, for later stages."""
        ...

    def passed(self, place: int) -> Value:
        """Read from there."""
        ...


def lower(
    program: Program, target: Target[Value], *, masked: bool, memory: Memory[Value] | None = None
) -> None:
    """Have a target spell a program.

    Args:
        program: what is computed on one row.
        target: what spells it.
        masked: whether there is a mask of the rows.
        memory: where the target keeps numbers of tokens, and works in stages; None where a program
            that keeps nothing goes through each sweep at once.
    """
    walk = _Walk(program, target, memory)
    if masked:
        target.choose(walk.row, walk.left_out)
    else:
        walk.row()


class _Walk(Generic[Value]):
    def __init__(
        self, program: Program, target: Target[Value], memory: Memory[Value] | None
    ) -> None:
        self.program, self.target, self.memory = program, target, memory
        self.numbers: dict[Node, Value] = {}
        self.points: dict[tuple[Node, Node], Value] = {}

    def row(self) -> None:
        """Compute a row."""
        for at, sweep in enumerate(self.program.sweeps):
            self._sweep(at, sweep)
        self.target.result("value", self._number(self.program.value))
        for which, partial in self.program.wanted:
            if partial.kind != TOKEN:
                self._write(which, self._number(partial))

    def left_out(self) -> None:
        """Write zeros."""
        self.target.result("value", self.target.constant(0.0))
        for which, _ in self.program.wanted:
            self._write(which, self.target.constant(0.0))

    def _write(self, which: int, value: Value) -> None:
        if which < 2:
            self.target.spread(which, value)
        else:
            self.target.result(f"partial{which}", value)

    def _sweep(self, at: int, sweep: Sweep) -> None:
        across = self._across(at, sweep)
        buffers = self.program.buffers
        stages = [Stage.whole(sweep)] if self.memory is None else staged(sweep, buffers, at)

        def turn(stage: Stage) -> None:
            _Tokens(self, at, stage, across).turn()

        self.numbers |= self.target.sweep(stages, turn)

    def _across(self, at: int, sweep: Sweep) -> dict[Node, Value]:
        """The numbers of the row that the tokens of a sweep use."""
        here, _ = computed(sweep.roots, self.program.buffers, at)
        used = [arg for node in sorted(here, key=_order) for arg in node.args]
        row = dict.fromkeys(node for node in (*used, *sweep.roots) if node.kind != TOKEN)
        return {node: self.target.across(self._number(node)) for node in row}

    def _number(self, node: Node) -> Value:
        """A number of the row, or a constant."""
        if node in self.numbers:
            return self.numbers[node]
        if node.op == "const":
            value = self.target.constant(node.value)
        elif node.op == "scale":
            value = self.target.operand("scale")
        elif node.op in ("knob", "param"):
            value = self.target.operand(f"{node.op}{node.value}")
        elif node.op == "at":
            index, expression = node.args
            value = self._point(index, expression)
        else:
            value = self.target.operation(node, [self._number(a) for a in node.args])
        self.numbers[node] = value
        return value

    def _point(self, index: Node, node: Node) -> Value:
        """A token expression at one position."""
        if node.kind != TOKEN:
            return self._number(node)
        key = (index, node)
        if key not in self.points:
            self.points[key] = self._point_anew(index, node)
        return self.points[key]

    def _point_anew(self, index: Node, node: Node) -> Value:
        if node.op not in ("input", "iota"):
            args = [self._point(index, a) for a in node.args]
            return self.target.operation(node, args)
        place = int(index.value) if index.op == "const" else self._number(index)
        if node.op == "iota":
            return self.target.index(place)
        return self.target.logit_at(node.value, place)


class _Tokens(Generic[Value]):
    """The numbers of the tokens in one turn of a stage's loop."""

    def __init__(
        self, walk: _Walk[Value], at: int, stage: Stage, across: dict[Node, Value]
    ) -> None:
        self.target, self.memory = walk.target, walk.memory
        self.buffers, self.at, self.stage = walk.program.buffers, at, stage
        self.known = dict(across)

    def turn(self) -> None:
        """Compute them, and do with them what the stage says."""
        stage, target = self.stage, self.target
        for node in sorted(stage.inputs(self.buffers, self.at), key=_order):
            self.of(node)  # before a gradient is written over it
        if self.memory is not None:
            for node in stage.kept:
                self.memory.keep(self.buffers[node].slot, self.of(node))
            for node, place in stage.passed.items():
                self.memory.pass_on(place, self.of(node))
        for which, node in stage.outputs:
            target.store(which, self.of(node))
        for total in stage.totals:
            target.add(total, self.of(total.args[0]))
        for extreme in stage.extremes:
            target.compare(extreme, self.of(extreme.of))

    def of(self, node: Node) -> Value:
        """The tokens' numbers of an expression."""
        if node not in self.known:
            self.known[node] = self._anew(node)
        return self.known[node]

    def _anew(self, node: Node) -> Value:
        if self.memory is not None:
            if node in self.stage.given:
                return self.memory.passed(self.stage.given[node])
            buffer = self.buffers.get(node)
            if buffer is not None and (node in self.stage.there or buffer.filled < self.at):
                return self.memory.kept(buffer.slot, node.type)
        if node.op == "input":
            return self.target.logits(node.value)
        if node.op == "iota":
            return self.target.positions()
        return self.target.operation(node, [self.of(a) for a in node.args])


def _order(node: Node) -> int:
    return node.order
