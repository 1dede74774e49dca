"""Row programs as LLVM: one function that takes rows of logits to values and gradients.

Each sweep is a loop over tiles of tokens, and for each of its stages a loop over the vectors of a
tile. The end of a row that does not fill a vector is read as -inf, tokens that neither
distribution has, which take no part in anything.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from llvmlite import ir

from amidmath.backends.llvm_kernels.buffers import TILE, Buffers
from amidmath.backends.llvm_kernels.elementary import Lanes
from amidmath.backends.llvm_kernels.loops import Carried, counted
from amidmath.backends.llvm_kernels.memory import (
    F32,
    F64,
    I1,
    I8,
    I32,
    I64,
    STORAGE,
    Layout,
    from_storage,
    load,
    store,
    to_storage,
)
from amidmath.backends.llvm_kernels.operations import operation
from amidmath.backends.llvm_kernels.reductions import Reductions
from amidmath.compiler.graph import Node
from amidmath.compiler.lower import lower
from amidmath.compiler.schedule import Extreme, Program, Sweep
from amidmath.compiler.stages import Stage


def module_of(program: Program, layout: Layout) -> ir.Module:
    """A module with the function ``rows(addresses, strides, constants, V, first, last, buffers)``.

    ``addresses`` and ``strides`` (in bytes) are those of ``layout.pointers``; ``buffers`` has room
    for as many rows as the program keeps, each a whole number of vectors.
    """
    module = ir.Module(name="amidmath")
    pointer = I8.as_pointer()
    arguments = [pointer.as_pointer(), I64.as_pointer(), F64.as_pointer(), I64, I64, I64, pointer]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), name="rows")
    for name, argument in zip(
        ("addresses", "strides", "constants", "vocabulary", "first", "last", "buffers"),
        function.args,
        strict=True,
    ):
        argument.name = name
    _function(program, layout, function)
    return module


def _function(program: Program, layout: Layout, function: ir.Function) -> None:
    """The loop over the rows."""
    addresses, strides, constants, vocabulary, first, last, buffers = function.args
    b = ir.IRBuilder(function.append_basic_block("entry"))
    params: dict[str, Any] = {}
    for number in layout.params:
        value = b.load(b.gep(constants, [ir.Constant(I64, number)]))
        params[f"param{number}"] = value if layout.bits == 64 else b.fptrunc(value, F32)
    size = ir.Constant(I64, layout.bits // 8)
    width = ir.Constant(I64, layout.width)
    vectors = b.udiv(b.add(vocabulary, b.sub(width, ir.Constant(I64, 1))), width)
    many = Lanes(b, layout.bits, layout.width)
    memory = Buffers(many, buffers, b.mul(b.mul(vectors, width), size))

    def row(number: Any) -> None:
        pointers: dict[str, Any] = {}
        for j, name in enumerate(layout.pointers):
            index = [ir.Constant(I64, j)]
            base, stride = b.load(b.gep(addresses, index)), b.load(b.gep(strides, index))
            pointers[name] = b.gep(base, [b.mul(number, stride)])
        target = _Row(b, layout, pointers, params, vocabulary, vectors, memory)
        lower(program, target, masked=layout.masked, memory=memory)

    counted(b, first, last, 1, row)
    b.ret_void()


class _Row:
    """The target: one row, at the end of the builder's block.

    Args:
        builder: where instructions go.
        layout: how the function's arguments are laid out.
        pointers: where the row begins in each of the arrays.
        params: the numbers of the loss.
        vocabulary: tokens in a row.
        vectors: vectors in a row.
        memory: where vectors are kept; it is told which one is at hand.
    """

    def __init__(
        self,
        builder: ir.IRBuilder,
        layout: Layout,
        pointers: dict[str, Any],
        params: dict[str, Any],
        vocabulary: Any,
        vectors: Any,
        memory: Buffers,
    ) -> None:
        self.builder, self.layout, self.memory = builder, layout, memory
        self.pointers, self.params = pointers, params
        self.vocabulary, self.vectors = vocabulary, vectors
        self.one, self.many = Lanes(builder, layout.bits, 1), memory.lanes
        self.lanes = self.one
        self.vector: Any = None
        self.reduced = Reductions(self.many, Sweep())

    def choose(self, kept: Callable[[], None], left_out: Callable[[], None]) -> None:
        b = self.builder
        keep = b.load(self.pointers["keep"])
        with b.if_else(b.icmp_unsigned("!=", keep, ir.Constant(I8, 0))) as (then, otherwise):
            with then:
                kept()
            with otherwise:
                left_out()

    # Numbers of the row

    def constant(self, value: float | bool) -> Any:
        return ir.Constant(I1, int(value)) if isinstance(value, bool) else self.one.real(value)

    def operand(self, name: str) -> Any:
        return self.params[name] if name in self.params else self._read(name)

    def operation(self, node: Node, args: Sequence[Any]) -> Any:
        return operation(self.lanes, node, list(args))

    def logit_at(self, which: int, place: Any) -> Any:
        return self._read(f"input{which}", self._offset(place))

    def index(self, place: Any) -> Any:
        return self.builder.trunc(self._offset(place), I32)

    def result(self, array: str, value: Any) -> None:
        stored = to_storage(self.layout.dtype(array), value, self.one)
        pointer = self.builder.bitcast(self.pointers[array], stored.type.as_pointer())
        self.builder.store(stored, pointer, align=1)

    def spread(self, which: int, value: Any) -> None:
        vector = self.many.splat(value)

        def turn(i: Any) -> None:
            self._write(which, i, vector)

        counted(self.builder, ir.Constant(I64, 0), self.vectors, 1, turn)

    def _offset(self, place: Any) -> Any:
        if isinstance(place, int):
            return ir.Constant(I64, place)
        return self.builder.sext(place, I64)

    def _read(self, name: str, place: Any = None) -> Any:
        dtype = self.layout.dtype(name)
        pointer = self.builder.bitcast(self.pointers[name], STORAGE[dtype].as_pointer())
        if place is not None:
            pointer = self.builder.gep(pointer, [place])
        return from_storage(dtype, self.builder.load(pointer, align=1), self.one)

    # Sweeps

    def across(self, value: Any) -> Any:
        return self.many.splat(value)

    def sweep(self, stages: Sequence[Stage], turn: Callable[[Stage], None]) -> dict[Node, Any]:
        b, tile = self.builder, ir.Constant(I64, TILE)
        reductions = [Reductions(self.many, stage) for stage in stages]

        def tile_body(start: Any, *carried: Any) -> Carried:
            end = b.add(start, tile)
            end = b.select(b.icmp_signed("<", end, self.vectors), end, self.vectors)
            new: list[Any] = []
            for stage, reduced in zip(stages, reductions, strict=True):
                mine = carried[len(new) : len(new) + len(reduced.initial())]
                body = partial(self._turn, stage, reduced, turn, start)
                new += reduced.closed(mine, counted(b, start, end, 1, body, reduced.opened(mine)))
            return tuple(new)

        initial = tuple(value for reduced in reductions for value in reduced.initial())
        final = counted(b, ir.Constant(I64, 0), self.vectors, TILE, tile_body, initial)
        numbers: dict[Node, Any] = {}
        for reduced in reductions:
            count = len(reduced.initial())
            numbers |= reduced.numbers(final[:count])
            final = final[count:]
        return numbers

    def _turn(
        self,
        stage: Stage,
        reduced: Reductions,
        turn: Callable[[Stage], None],
        start: Any,
        vector: Any,
        *carried: Any,
    ) -> Carried:
        """One vector of tokens in one stage."""
        self.lanes, self.vector, self.reduced = self.many, vector, reduced
        self.memory.begin(vector, self.builder.sub(vector, start))
        reduced.begin(carried)
        turn(stage)
        self.lanes = self.one
        return reduced.turned()

    def logits(self, which: int) -> Any:
        dtype = self.layout.dtype(f"input{which}")
        pointer = self.pointers[f"input{which}"]
        raw = load(dtype, pointer, self._first(self.vector), self.vocabulary, self.many)
        return from_storage(dtype, raw, self.many)

    def positions(self) -> Any:
        b, width = self.builder, self.layout.width
        first = b.trunc(b.mul(self.vector, ir.Constant(I64, width)), I32)
        steps = ir.Constant(ir.VectorType(I32, width), list(range(width)))
        return b.add(self.many.splat(first), steps)

    def add(self, total: Node, value: Any) -> None:
        self.reduced.add(total, value)

    def compare(self, extreme: Extreme, value: Any) -> None:
        self.reduced.compare(extreme, value, self.positions)

    def store(self, which: int, value: Any) -> None:
        self._write(which, self.vector, value)

    def _write(self, which: int, vector: Any, value: Any) -> None:
        dtype = self.layout.dtype(f"partial{which}")
        stored = to_storage(dtype, value, self.many)
        pointer = self.pointers[f"partial{which}"]
        store(dtype, stored, pointer, self._first(vector), self.vocabulary, self.many)

    def _first(self, vector: Any) -> Any:
        """The position of the first token of a vector."""
        return self.builder.mul(vector, ir.Constant(I64, self.layout.width))
