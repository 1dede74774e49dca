"""Sums, maxima and their positions over the tokens, in vectors.

Sums are added up in the computing dtype over a tile of tokens and in double precision over the
tiles; a maximum and its position go on from tile to tile as they are.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from amidmath.backends.llvm_kernels.elementary import Lanes
from amidmath.backends.llvm_kernels.memory import F32, F64, I32
from amidmath.compiler.graph import Node

Values = tuple[Any, ...]


class Reductions:
    """The reductions of one loop over the tokens of a tile.

    Args:
        lanes: vectors of tokens.
        reductions: what is reduced; a maximum and its position are of the same numbers.
    """

    def __init__(self, lanes: Lanes, reductions: Sequence[Node]) -> None:
        """Tell sums from the rest."""
        self.lanes = lanes
        self.sums = [r for r in reductions if r.op == "sum"]
        self.largest = {r.args[0]: r for r in reductions if r.op == "max"}
        places = {r.args[0]: r for r in reductions if r.op == "argmax"}
        # The largest is at hand where its position is looked for.
        self.rest = [places.get(x, r) for x, r in {**places, **self.largest}.items()]

    def initial(self) -> Values:
        """What goes into the first tile."""
        lanes = self.lanes
        wide = ir.Constant(ir.VectorType(F64, lanes.width), [0.0] * lanes.width)
        values: list[Any] = [wide for _ in self.sums]
        for r in self.rest:
            values.append(lanes.real(-math.inf))
            if r.op == "argmax":
                values.append(ir.Constant(ir.VectorType(I32, lanes.width), [0] * lanes.width))
        return tuple(values)

    def opened(self, carried: Values) -> Values:
        """What goes into a tile's first vector, of what goes into the tile."""
        count = len(self.sums)
        return (*(self.lanes.real(0.0) for _ in self.sums), *carried[count:])

    def turned(
        self, carried: Values, value: Callable[[Node], Any], positions: Callable[[], Any]
    ) -> Values:
        """What goes into the next vector.

        Args:
            carried: what went into this one.
            value: a vector of a token's number.
            positions: the positions of the tokens.
        """
        b, count = self.lanes.builder, len(self.sums)
        new: list[Any] = [
            b.fadd(part, value(r.args[0])) for r, part in zip(self.sums, carried, strict=False)
        ]
        state = iter(carried[count:])
        for r in self.rest:
            x, best = value(r.args[0]), next(state)
            above = b.fcmp_ordered(">", x, best)  # a NaN shows in the sums
            new.append(b.select(above, x, best))
            if r.op == "argmax":
                new.append(b.select(above, positions(), next(state)))
        return tuple(new)

    def closed(self, carried: Values, inner: Sequence[Any]) -> Values:
        """What goes into the next tile, of what went into this one and came out of its loop."""
        count = len(self.sums)
        wide = [
            self.lanes.builder.fadd(total, self._widened(part))
            for total, part in zip(carried[:count], inner[:count], strict=True)
        ]
        return (*wide, *inner[count:])

    def numbers(self, final: Sequence[Any]) -> dict[Node, Any]:
        """The numbers of the row."""
        state = iter(final)
        found = {r: self._narrow(self._total(next(state))) for r in self.sums}
        for r in self.rest:
            best = next(state)
            if r.op == "argmax":
                found[r] = self._place(best, next(state))
            if r.args[0] in self.largest:
                found[self.largest[r.args[0]]] = self._largest(best)
        return found

    def _widened(self, value: Any) -> Any:
        if self.lanes.bits == 64:
            return value
        return self.lanes.builder.fpext(value, ir.VectorType(F64, self.lanes.width))

    def _narrow(self, value: Any) -> Any:
        return value if self.lanes.bits == 64 else self.lanes.builder.fptrunc(value, F32)

    def _each(self, vector: Any) -> list[Any]:
        b = self.lanes.builder
        return [b.extract_element(vector, ir.Constant(I32, j)) for j in range(self.lanes.width)]

    def _total(self, vector: Any) -> Any:
        parts = self._each(vector)
        while len(parts) > 1:
            pairs = zip(parts[::2], parts[1::2], strict=True)
            parts = [self.lanes.builder.fadd(a, b) for a, b in pairs]
        return parts[0]

    def _largest(self, vector: Any) -> Any:
        b = self.lanes.builder
        first, *others = self._each(vector)
        for other in others:
            first = b.select(b.fcmp_ordered(">", other, first), other, first)
        return first

    def _place(self, best: Any, places: Any) -> Any:
        """The first position of the largest."""
        b = self.lanes.builder
        values, positions = self._each(best), self._each(places)
        value, position = values[0], positions[0]
        for other, there in zip(values[1:], positions[1:], strict=True):
            level = b.and_(b.fcmp_ordered("==", other, value), b.icmp_signed("<", there, position))
            better = b.or_(b.fcmp_ordered(">", other, value), level)
            value, position = b.select(better, other, value), b.select(better, there, position)
        return position
