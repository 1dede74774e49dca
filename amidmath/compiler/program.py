"""Row programs of closed forms: traced, their numbers taken out, simplified, put in order.

A loss of other numbers is traced again, as tracing is what tells the numbers that are computed from
them; the graph itself is needed where something is compiled, and not kept for longer.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from amidmath.compiler.builder import Builder
from amidmath.compiler.graph import Node, reachable
from amidmath.compiler.schedule import Program, scheduled
from amidmath.compiler.simplify import built, rebuilt, simplified
from amidmath.compiler.trace import FLOAT32, FLOAT64, Traced, trace
from amidmath.rows.forms import RowForm

# Numbers that are part of a program's form, as it may be simpler for them.
_LITERALS = frozenset({0.0, 1.0, -1.0, 0.5, -0.5, 2.0, float("inf"), float("-inf")})


@dataclass(frozen=True)
class RowProgram:
    """A program for backends to compile, and the numbers of one loss to call it with.

    Args:
        structure: equal for programs that differ in their numbers only.
        numbers: their values.
        given: the operands that are wanted a partial derivative by, and get one.
        form: the closed form that it is the program of.
        needs: which operands' partial derivatives are wanted.
        double: whether it computes in double precision.
    """

    structure: str
    numbers: tuple[float, ...]
    given: tuple[int, ...]
    form: RowForm
    needs: tuple[bool, ...]
    double: bool

    @property
    def traced(self) -> Traced:
        """The computation, its numbers "param" nodes."""
        return _lifted(self.form, self.needs, self.double)

    def scheduled(self, keeping: bool) -> Program:
        """The program, simplified and in sweeps; see :func:`scheduled`."""
        return _scheduled(self.form, self.needs, self.double, keeping)


def operand_names(form: RowForm) -> list[str]:
    """The names of a closed form's operands, in order."""
    knobs = [f"knob{j}" for j in range(form.knobs)]
    return ["input0", "input1", *knobs, *(["keep"] * form.masked), *(["scale"] * form.scaled)]


@lru_cache(maxsize=256)
def row_program(form: RowForm, needs: tuple[bool, ...], double: bool) -> RowProgram:
    """The row program of a closed form; raises :class:`UnsupportedError` where there is none.

    Args:
        form: rows of logits to values and gradients.
        needs: which operands' partial derivatives are wanted.
        double: whether it computes in double precision.
    """
    traced = _traced(form, needs, double)
    nodes = reachable(traced.roots)
    numbers = _numbers(nodes)
    pairs = enumerate(zip(traced.partials, needs, strict=False))
    given = tuple(j for j, (partial, need) in pairs if need and partial is not None)
    structure = _structure(traced, nodes, numbers)
    return RowProgram(structure, tuple(numbers), given, form, needs, double)


def _traced(form: RowForm, needs: tuple[bool, ...], double: bool) -> Traced:
    dtype = FLOAT64 if double else FLOAT32
    return trace(form.block, needs[: 2 + form.knobs], dtype, form.scaled)


def _numbers(nodes: Sequence[Node]) -> dict[float, int]:
    """The numbers that are no part of a program's form, and their places among them."""
    found: dict[float, int] = {}
    for node in nodes:
        if node.op == "const" and node.type == "real" and node.value not in _LITERALS:
            found.setdefault(node.value, len(found))
    return found


def _structure(traced: Traced, nodes: Sequence[Node], numbers: dict[float, int]) -> str:
    """A digest of the graph without its numbers, which is looked up by at every call."""
    place = {node: j for j, node in enumerate(nodes)}
    body: list[Any] = []
    for node in nodes:
        number = numbers.get(node.value) if node.op == "const" and node.type == "real" else None
        body += (node.op, repr(node.value) if number is None else number)
        body += [place[a] for a in node.args]
    wanted = [None if p is None else place[p] for p in (traced.value, *traced.partials)]
    return hashlib.sha256(repr((body, wanted)).encode()).hexdigest()


# A program is asked for its graph several times while it is compiled.


@lru_cache(maxsize=4)
def _lifted(form: RowForm, needs: tuple[bool, ...], double: bool) -> Traced:
    """The graph with "param" nodes for its numbers."""
    traced = _traced(form, needs, double)
    numbers = _numbers(reachable(traced.roots))
    builder = Builder()

    def change(node: Node, args: tuple[Node, ...]) -> Node:
        if node.op == "const" and node.type == "real" and node.value in numbers:
            return builder.leaf("param", numbers[node.value])
        if not args:
            return builder.leaf(node.op, node.value)
        return built(builder, node, args)

    return traced.of(builder, rebuilt(builder, traced.roots, change))


@lru_cache(maxsize=4)
def _scheduled(form: RowForm, needs: tuple[bool, ...], double: bool, keeping: bool) -> Program:
    traced = _lifted(form, needs, double)
    less = traced.of(traced.builder, simplified(traced.builder, traced.roots))
    return scheduled(less.value, less.partials, keeping)
