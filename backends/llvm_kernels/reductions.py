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
from amidmath.compiler.schedule import Extreme, Sweep

Values = tuple[Any, ...]


class Reductions:
    """The reductions of one loop over the tokens of a tile.

    What goes from turn to turn is a vector a sum, and for each extreme one of the largest numbers,
    followed by one of their positions if those are wanted.

    Args:
        lanes: vectors of tokens.
        sweep: what is reduced.
    """

    def __init__(self, lanes: Lanes, sweep: Sweep) -> None:
        """Note what there is."""
        self.lanes, self.totals, self.extremes = lanes, sweep.totals, sweep.extremes
        self._total: dict[Node, Any] = {}
        self._largest: dict[Extreme, Any] = {}
        self._place: dict[Extreme, Any] = {}

    def initial(self) -> Values:
        """The vectors that go into the first tile."""
        lanes = self.lanes
        wide = ir.Constant(ir.VectorType(F64, lanes.width), [0.0] * lanes.width)
        values: list[Any] = [wide for _ in self.totals]
        for extreme in self.extremes:
            values.append(lanes.real(-math.inf))
            if extreme.place is not None:
                values.append(ir.Constant(ir.VectorType(I32, lanes.width), [0] * lanes.width))
        return tuple(values)

    def opened(self, carried: Values) -> Values:
        """Those that go into a tile's first turn, of those that go into the tile."""
        count = len(self.totals)
        return (*(self.lanes.real(0.0) for _ in self.totals), *carried[count:])

    def begin(self, carried: Values) -> None:
        """Begin a turn with the vectors that go into it."""
        values = iter(carried)
        self._total = {total: next(values) for total in self.totals}
        for extreme in self.extremes:
            self._largest[extreme] = next(values)
            if extreme.place is not None:
                self._place[extreme] = next(values)

    def add(self, total: Node, value: Any) -> None:
        """Add a vector to a sum."""
        self._total[total] = self.lanes.builder.fadd(self._total[total], value)

    def compare(self, extreme: Extreme, value: Any, positions: Callable[[], Any]) -> None:
        """Keep, lane by lane, what is larger, and its position."""
        b, best = self.lanes.builder, self._largest[extreme]
        above = b.fcmp_ordered(">", value, best)  # a NaN shows in the sums
        self._largest[extreme] = b.select(above, value, best)
        if extreme.place is not None:
            self._place[extreme] = b.select(above, positions(), self._place[extreme])

    def turned(self) -> Values:
        """The vectors that go into the next turn."""
        values = list(self._total.values())
        for extreme in self.extremes:
            values.append(self._largest[extreme])
            values += [self._place[extreme]] if extreme.place is not None else []
        return tuple(values)

    def closed(self, carried: Values, inner: Sequence[Any]) -> Values:
        """Those that go into the next tile, of those that went into this one and left its loop."""
        count = len(self.totals)
        wide = [
            self.lanes.builder.fadd(total, self._widened(part))
            for total, part in zip(carried[:count], inner[:count], strict=True)
        ]
        return (*wide, *inner[count:])

    def numbers(self, final: Sequence[Any]) -> dict[Node, Any]:
        """The numbers of the row."""
        values = iter(final)
        found = {total: self._narrow(self._sum(next(values))) for total in self.totals}
        for extreme in self.extremes:
            best = next(values)
            if extreme.place is not None:
                found[extreme.place] = self._first(best, next(values))
            if extreme.largest is not None:
                found[extreme.largest] = self._maximum(best)
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

    def _sum(self, vector: Any) -> Any:
        parts = self._each(vector)
        while len(parts) > 1:
            pairs = zip(parts[::2], parts[1::2], strict=True)
            parts = [self.lanes.builder.fadd(a, b) for a, b in pairs]
        return parts[0]

    def _maximum(self, vector: Any) -> Any:
        b = self.lanes.builder
        first, *others = self._each(vector)
        for other in others:
            first = b.select(b.fcmp_ordered(">", other, first), other, first)
        return first

    def _first(self, best: Any, places: Any) -> Any:
        """The first position of the largest."""
        b = self.lanes.builder
        values, positions = self._each(best), self._each(places)
        value, position = values[0], positions[0]
        for other, there in zip(values[1:], positions[1:], strict=True):
            level = b.and_(b.fcmp_ordered("==", other, value), b.icmp_signed("<", there, position))
            better = b.or_(b.fcmp_ordered(">", other, value), level)
            value, position = b.select(better, other, value), b.select(better, there, position)
        return position
