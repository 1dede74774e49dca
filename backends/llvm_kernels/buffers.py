"""Vectors of tokens kept close to the processor: in buffers of a row's length, or of a tile's."""

from typing import Any

from llvmlite import ir

from amidmath.backends.llvm_kernels.elementary import Lanes
from amidmath.backends.llvm_kernels.memory import I1, I64

TILE = 16
"""Vectors to a tile."""


class Buffers:
    """The memory of a thread.

    Args:
        lanes: vectors of tokens.
        base: where the buffers begin.
        size: the bytes of each.
    """

    def __init__(self, lanes: Lanes, base: Any, size: Any) -> None:
        """Start with no memory of a tile's length."""
        self.lanes, self.base, self.size = lanes, base, size
        self._tiles: list[Any] = []
        self._vector: Any = None
        self._turn: Any = None

    def begin(self, vector: Any, turn: Any) -> None:
        """Go to a vector of the row, given its place in the tile."""
        self._vector, self._turn = vector, turn

    def keep(self, buffer: int, value: Any) -> None:
        """Write the vector into a buffer; truth values take a bit each."""
        b = self.lanes.builder
        if value.type == self._truths:
            b.store(b.bitcast(value, self._bits), self._at(buffer, self._bits), align=1)
        else:
            b.store(value, self._at(buffer, value.type), align=64)

    def kept(self, buffer: int, type_: str) -> Any:
        """Read it."""
        b = self.lanes.builder
        if type_ == "bool":
            return b.bitcast(b.load(self._at(buffer, self._bits), align=1), self._truths)
        return b.load(self._at(buffer, self.lanes.real_type), align=64)

    def pass_on(self, place: int, value: Any) -> None:
        """Write the vector into memory of a tile's length."""
        self.lanes.builder.store(value, self._in_tile(place))

    def passed(self, place: int) -> Any:
        """Read it."""
        return self.lanes.builder.load(self._in_tile(place))

    @property
    def _truths(self) -> Any:
        return ir.VectorType(I1, self.lanes.width)

    @property
    def _bits(self) -> Any:
        """A vector of truth values in memory."""
        return ir.IntType(self.lanes.width)

    def _at(self, buffer: int, kind: Any) -> Any:
        b = self.lanes.builder
        base = b.gep(self.base, [b.mul(self.size, ir.Constant(I64, buffer))])
        return b.gep(b.bitcast(base, kind.as_pointer()), [self._vector])

    def _in_tile(self, place: int) -> Any:
        b = self.lanes.builder
        while len(self._tiles) <= place:
            with b.goto_entry_block():
                self._tiles.append(b.alloca(self.lanes.real_type, size=TILE))
        return b.gep(self._tiles[place], [self._turn])
