"""Row programs of closed forms: traced, their numbers taken out, simplified, put in order."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from amidmath._rowprogram.graph import CONST, Builder, Node, reachable
from amidmath._rowprogram.schedule import Program, scheduled
from amidmath._rowprogram.simplify import built, rebuilt, simplified
from amidmath._rowprogram.trace import FLOAT32, FLOAT64, Traced, trace
from amidmath._rows import RowForm

# Numbers that are part of a program's form, as it may be simpler for them.
_LITERALS = frozenset({0.0, 1.0, -1.0, 0.5, -0.5, 2.0, float("inf"), float("-inf")})


@dataclass(frozen=True)
class RowProgram:
    """What an executor compiles, and the numbers of one loss that it is called with.

    Args:
        structure: equal for programs that differ in their numbers only.
        traced: the computation, its numbers "param" nodes.
        numbers: their values.
    """

    structure: str
    traced: Traced
    numbers: tuple[float, ...]

    def scheduled(self, keeping: bool) -> Program:
        """The program, simplified and in sweeps; see :func:`scheduled`."""
        traced = self.traced
        less = traced.of(traced.builder, simplified(traced.builder, traced.roots))
        return scheduled(less.value, less.partials, keeping)

    def given(self, needs: Sequence[bool]) -> list[int]:
        """The operands that are wanted a partial derivative by, and get one."""
        partials = self.traced.partials
        return [j for j, p in enumerate(partials) if needs[j] and p is not None]


def operand_names(form: RowForm) -> list[str]:
    """What executors call the operands of a closed form, in order."""
    knobs = [f"knob{j}" for j in range(form.knobs)]
    return ["input0", "input1", *knobs, *(["keep"] * form.masked), *(["scale"] * form.scaled)]


@lru_cache(maxsize=1024)
def row_program(form: RowForm, needs: tuple[bool, ...], double: bool) -> RowProgram:
    """The row program of a closed form; raises :class:`UnsupportedError` where there is none.

    Args:
        form: rows of logits to values and gradients.
        needs: which operands' partial derivatives are wanted.
        double: whether it computes in double precision.
    """
    dtype = FLOAT64 if double else FLOAT32
    traced = trace(form.block, needs[: 2 + form.knobs], dtype, form.scaled)
    builder, constants = Builder(), list[float]()

    def change(node: Node, args: tuple[Node, ...]) -> Node:
        if node.op == "const":
            if node.type == "bool" or node.value in _LITERALS:
                return builder.const(node.value)
            if node.value not in constants:
                constants.append(node.value)
            return builder.leaf("param", constants.index(node.value), CONST)
        if not args:
            return builder.leaf(node.op, node.value, node.kind, node.type)
        return built(builder, node, args)

    lifted = traced.of(builder, rebuilt(builder, traced.roots, change))
    return RowProgram(_structure(lifted), lifted, tuple(constants))


def _structure(traced: Traced) -> str:
    """A digest, which is looked up by at every call."""
    place = {node: j for j, node in enumerate(reachable(traced.roots))}
    body = [(n.op, repr(n.value), *(place[a] for a in n.args)) for n in place]
    wanted = [None if p is None else place[p] for p in (traced.value, *traced.partials)]
    return hashlib.sha256(repr((body, wanted)).encode()).hexdigest()
