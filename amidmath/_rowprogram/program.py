"""Row programs of closed forms: traced, their numbers taken out, simplified, put in order."""

from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache

from amidmath._rowprogram.graph import CONST, REDUCTIONS, Builder, Node, reachable
from amidmath._rowprogram.schedule import Program, scheduled
from amidmath._rowprogram.simplify import rebuilt, simplified
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

    structure: Hashable
    traced: Traced
    numbers: tuple[float, ...]

    def scheduled(self, keeping: bool) -> Program:
        """The program, simplified and in sweeps; see :func:`scheduled`."""
        traced = self.traced
        present = [p for p in traced.partials if p is not None]
        value, *rest = simplified(traced.builder, [traced.value, *present])
        new = iter(rest)
        partials = [None if p is None else next(new) for p in traced.partials]
        return scheduled(value, partials, keeping)


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
        if node.op in REDUCTIONS:
            return builder.reduce(node.op, *args)
        return builder.at(*args) if node.op == "at" else builder.apply(node.op, *args)

    present = [p for p in traced.partials if p is not None]
    value, *rest = rebuilt(builder, [traced.value, *present], change)
    new = iter(rest)
    lifted = Traced(
        builder, value, tuple(None if p is None else next(new) for p in traced.partials)
    )
    return RowProgram(_structure(lifted), lifted, tuple(constants))


def _structure(traced: Traced) -> Hashable:
    roots = [traced.value, *(p for p in traced.partials if p is not None)]
    place = {node: j for j, node in enumerate(reachable(roots))}
    body = tuple((n.op, repr(n.value), *(place[a] for a in n.args)) for n in place)
    return body, tuple(None if p is None else place[p] for p in (traced.value, *traced.partials))
