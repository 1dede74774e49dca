"""Row programs as LLVM: one function that takes rows of logits to values and gradients.

Each sweep is a loop over tiles of tokens, and for each of its stages a loop over the vectors of a
tile. The end of a row that does not fill a vector is read as -inf, tokens that neither
distribution has, which take no part in anything.
"""

from functools import partial
from typing import Any

from llvmlite import ir

from amidmath.backends.llvm_kernels.elementary import Lanes
from amidmath.backends.llvm_kernels.memory import (
    F32,
    F64,
    I1,
    I8,
    I32,
    I64,
    SIZE,
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
from amidmath.compiler.operations import TOKEN
from amidmath.compiler.schedule import Program, Sweep, computed
from amidmath.compiler.stages import Stage, staged

TILE = 16
"""Vectors to a tile."""


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
    _Rows(program, layout, function).emit()
    return module


class _Rows:
    """Emits the function."""

    def __init__(self, program: Program, layout: Layout, function: ir.Function) -> None:
        self.program, self.layout, self.function = program, layout, function
        self.builder = b = ir.IRBuilder(function.append_basic_block("entry"))
        self.one = Lanes(b, layout.bits, 1)
        self.many = Lanes(b, layout.bits, layout.width)
        self.vocabulary = function.args[3]
        self.row_pointers: dict[str, Any] = {}
        self.numbers: dict[Node, Any] = {}
        self.points: dict[tuple[Node, Node], Any] = {}
        self.tiles: list[Any] = []

    def emit(self) -> None:
        """The loop over the rows."""
        b, args = self.builder, self.function.args
        for node in self.layout.params:
            address = b.gep(args[2], [ir.Constant(I64, node.value)])
            value = b.load(address)
            self.numbers[node] = value if self.layout.bits == 64 else b.fptrunc(value, F32)
        size = ir.Constant(I64, self.layout.bits // 8)
        width = ir.Constant(I64, self.layout.width)
        vectors = b.udiv(b.add(self.vocabulary, b.sub(width, ir.Constant(I64, 1))), width)
        self.vectors = vectors
        self.buffer_bytes = b.mul(b.mul(vectors, width), size)
        self.iota = None
        self._loop(args[4], args[5], 1, self._row)
        b.ret_void()

    # Control flow

    def _loop(
        self, start: Any, stop: Any, step: int, body: Any, carried: tuple[Any, ...] = ()
    ) -> Any:
        """A counted loop; ``body(index, *carried)`` gives the carried values of the next turn."""
        b = self.builder
        before = b.block
        head = self.function.append_basic_block("head")
        inside = self.function.append_basic_block("body")
        after = self.function.append_basic_block("after")
        b.branch(head)
        b.position_at_end(head)
        index = b.phi(start.type)
        index.add_incoming(start, before)
        phis = [b.phi(value.type) for value in carried]
        for phi, value in zip(phis, carried, strict=True):
            phi.add_incoming(value, before)
        b.cbranch(b.icmp_signed("<", index, stop), inside, after)
        b.position_at_end(inside)
        new = body(index, *phis) or ()
        following = b.add(index, ir.Constant(start.type, step))
        index.add_incoming(following, b.block)
        for phi, value in zip(phis, new, strict=True):
            phi.add_incoming(value, b.block)
        b.branch(head)
        b.position_at_end(after)
        return phis

    # Rows

    def _row(self, row: Any) -> tuple[()]:
        b, args = self.builder, self.function.args
        for j, name in enumerate(self.layout.pointers):
            index = [ir.Constant(I64, j)]
            base, stride = b.load(b.gep(args[0], index)), b.load(b.gep(args[1], index))
            self.row_pointers[name] = b.gep(base, [b.mul(row, stride)])
        outer = dict(self.numbers)
        if self.layout.masked:
            keep = b.load(self.row_pointers["keep"])
            with b.if_else(b.icmp_unsigned("!=", keep, ir.Constant(I8, 0))) as (then, otherwise):
                with then:
                    self._kept_row()
                with otherwise:
                    self._left_out()
        else:
            self._kept_row()
        self.numbers, self.points = outer, {}
        return ()

    def _left_out(self) -> None:
        self._write("value", self.one.real(0.0))
        for j, derivative in enumerate(self.program.partials):
            if derivative is None:
                continue
            if j >= 2:
                self._write(f"partial{j}", self.one.real(0.0))
                continue
            size = ir.Constant(I64, SIZE[self.layout.dtype(f"partial{j}")])
            pointer = self.row_pointers[f"partial{j}"]
            memset = self.builder.module.declare_intrinsic("llvm.memset", [pointer.type, I64])
            length = self.builder.mul(self.vocabulary, size)
            zero, volatile = ir.Constant(I8, 0), ir.Constant(I1, 0)
            self.builder.call(memset, [pointer, zero, length, volatile])

    def _kept_row(self) -> None:
        for at, sweep in enumerate(self.program.sweeps):
            self._sweep(at, sweep)
        self._write("value", self._number(self.program.value))
        for j, derivative in enumerate(self.program.partials):
            if derivative is None:
                continue
            if j >= 2:
                self._write(f"partial{j}", self._number(derivative))
            elif derivative.kind != TOKEN:
                number = self.many.splat(self._number(derivative))
                self._over_tokens(lambda i, j=j, number=number: self._store(j, i, number))

    def _write(self, name: str, value: Any) -> None:
        stored = to_storage(self.layout.dtype(name), value, self.one)
        pointer = self.builder.bitcast(self.row_pointers[name], stored.type.as_pointer())
        self.builder.store(stored, pointer, align=1)

    def _over_tokens(self, body: Any) -> None:
        def turn(i: Any) -> tuple[()]:
            body(i)
            return ()

        self._loop(ir.Constant(I64, 0), self.vectors, 1, turn)

    # Sweeps

    def _sweep(self, at: int, sweep: Sweep) -> None:
        roots = sweep.roots
        if not roots:
            return
        here, _ = computed(roots, self.program.buffers, at)
        fixed: dict[Node, Any] = {}
        for node in sorted(here, key=lambda n: n.order):
            for arg in node.args:
                if arg.kind != TOKEN and arg not in fixed:
                    fixed[arg] = self._splat(arg)
        for root in roots:
            if root.kind != TOKEN and root not in fixed:
                fixed[root] = self._splat(root)
        stages = staged(sweep, self.program.buffers, at)
        reductions = [Reductions(self.many, stage.reductions) for stage in stages]
        b = self.builder
        tile = ir.Constant(I64, TILE)

        def tile_body(start: Any, *carried: Any) -> tuple[Any, ...]:
            end = b.add(start, tile)
            end = b.select(b.icmp_signed("<", end, self.vectors), end, self.vectors)
            new: list[Any] = []
            for stage, reduced in zip(stages, reductions, strict=True):
                mine = carried[len(new) : len(new) + len(reduced.initial())]
                turn = partial(self._turn, at, stage, reduced, fixed, start)
                inner = self._loop(start, end, 1, turn, reduced.opened(mine))
                new += reduced.closed(mine, inner)
            return tuple(new)

        initial = tuple(value for reduced in reductions for value in reduced.initial())
        final = self._loop(ir.Constant(I64, 0), self.vectors, TILE, tile_body, initial)
        for reduced in reductions:
            count = len(reduced.initial())
            self.numbers |= reduced.numbers(final[:count])
            final = final[count:]

    def _turn(
        self,
        at: int,
        stage: Stage,
        reduced: Reductions,
        fixed: dict[Node, Any],
        start: Any,
        i: Any,
        *carried: Any,
    ) -> tuple[Any, ...]:
        """One vector of tokens in one stage."""
        values = _Tokens(self, at, stage, i, self.builder.sub(i, start), fixed)
        for node in sorted(stage.inputs(self.program.buffers, at), key=lambda n: n.order):
            values.of(node)  # before a gradient is written over it
        for node in stage.kept:
            self._keep(node, i, values.of(node))
        for node, place in stage.passed.items():
            self.builder.store(values.of(node), self._in_tile(place, values.turn))
        for j, node in stage.outputs:
            self._store(j, i, values.of(node))
        return reduced.turned(carried, values.of, values.positions)

    def _loaded(self, node: Node, at: int) -> bool:
        return node in self.program.buffers and self.program.buffers[node][1] < at

    # Numbers a row

    def _splat(self, node: Node) -> Any:
        return self.many.splat(self._number(node))

    def _number(self, node: Node) -> Any:
        """A number of the row, or a constant."""
        if node in self.numbers:
            return self.numbers[node]
        if node.op == "const" and node.type == "bool":
            return ir.Constant(I1, int(node.value))
        if node.op == "const":
            return self.one.real(node.value)
        if node.op in ("knob", "scale"):
            name = "scale" if node.op == "scale" else f"knob{node.value}"
            value = self._read(name)
        elif node.op == "at":
            index, expression = node.args
            value = self._point(index, expression)
        else:
            value = operation(self.one, node, [self._number(a) for a in node.args])
        self.numbers[node] = value
        return value

    def _read(self, name: str) -> Any:
        type_ = STORAGE[self.layout.dtype(name)]
        pointer = self.builder.bitcast(self.row_pointers[name], type_.as_pointer())
        raw = self.builder.load(pointer, align=1)
        return from_storage(self.layout.dtype(name), raw, self.one)

    def _point(self, index: Node, node: Node) -> Any:
        """A token expression at one position."""
        if node.kind != TOKEN:
            return self._number(node)
        key = (index, node)
        if key in self.points:
            return self.points[key]
        b = self.builder
        if index.op == "const":
            place = ir.Constant(I64, int(index.value))
        else:
            place = b.sext(self._number(index), I64)
        if node.op == "iota":
            value = b.trunc(place, I32)
        elif node.op == "input":
            name = f"input{node.value}"
            type_ = STORAGE[self.layout.dtype(name)]
            pointer = b.bitcast(self.row_pointers[name], type_.as_pointer())
            raw = b.load(b.gep(pointer, [place]), align=1)
            value = from_storage(self.layout.dtype(name), raw, self.one)
        else:
            value = operation(self.one, node, [self._point(index, a) for a in node.args])
        self.points[key] = value
        return value

    # Memory

    def _buffer(self, node: Node, i: Any) -> Any:
        b = self.builder
        slot, _ = self.program.buffers[node]
        offset = b.mul(self.buffer_bytes, ir.Constant(I64, slot))
        base = b.gep(self.function.args[6], [offset])
        kind = self.many.real_type if node.type == "real" else self._bits
        return b.gep(b.bitcast(base, kind.as_pointer()), [i])

    @property
    def _bits(self) -> Any:
        """A vector of truth values in memory."""
        return ir.IntType(self.layout.width)

    def _keep(self, node: Node, i: Any, value: Any) -> None:
        if node.type == "bool":
            bits = self.builder.bitcast(value, self._bits)
            self.builder.store(bits, self._buffer(node, i), align=1)
        else:
            self.builder.store(value, self._buffer(node, i), align=64)

    def load_kept(self, node: Node, i: Any) -> Any:
        """A vector from a buffer."""
        if node.type == "bool":
            bits = self.builder.load(self._buffer(node, i), align=1)
            return self.builder.bitcast(bits, ir.VectorType(I1, self.layout.width))
        return self.builder.load(self._buffer(node, i), align=64)

    def _in_tile(self, place: int, turn: Any) -> Any:
        """Where a number that is passed on lies: memory of a tile's length, close at hand."""
        while len(self.tiles) <= place:
            with self.builder.goto_entry_block():
                self.tiles.append(self.builder.alloca(self.many.real_type, size=TILE))
        return self.builder.gep(self.tiles[place], [turn])

    def load_passed(self, place: int, turn: Any) -> Any:
        """A vector that an earlier stage passed on."""
        return self.builder.load(self._in_tile(place, turn))

    def load_input(self, which: int, i: Any) -> Any:
        """A vector of logits; -inf beyond the end of the row."""
        name = f"input{which}"
        dtype = self.layout.dtype(name)
        raw = load(dtype, self.row_pointers[name], self._first(i), self.vocabulary, self.many)
        return from_storage(dtype, raw, self.many)

    def _store(self, which: int, i: Any, value: Any) -> None:
        name = f"partial{which}"
        dtype = self.layout.dtype(name)
        stored = to_storage(dtype, value, self.many)
        pointer = self.row_pointers[name]
        store(dtype, stored, pointer, self._first(i), self.vocabulary, self.many)

    def _first(self, i: Any) -> Any:
        """The position of the first token of a vector."""
        return self.builder.mul(i, ir.Constant(I64, self.layout.width))


class _Tokens:
    """The values of token expressions in one turn of a sweep's loop."""

    def __init__(
        self,
        rows: _Rows,
        at: int,
        stage: Stage,
        i: Any,
        turn: Any,
        fixed: dict[Node, Any],
    ) -> None:
        self.rows, self.at, self.stage, self.i, self.turn = rows, at, stage, i, turn
        self.known = dict(fixed)

    def of(self, node: Node) -> Any:
        """A vector of the expression."""
        if node in self.known:
            return self.known[node]
        rows = self.rows
        if node in self.stage.given:
            value = rows.load_passed(self.stage.given[node], self.turn)
        elif node in self.stage.there or rows._loaded(node, self.at):
            value = rows.load_kept(node, self.i)
        elif node.op == "input":
            value = rows.load_input(node.value, self.i)
        elif node.op == "iota":
            value = self.positions()
        else:
            value = operation(rows.many, node, [self.of(a) for a in node.args])
        self.known[node] = value
        return value

    def positions(self) -> Any:
        """The positions of the tokens of this turn."""
        rows, width = self.rows, self.rows.layout.width
        b = rows.builder
        first = b.trunc(b.mul(self.i, ir.Constant(I64, width)), I32)
        steps = ir.Constant(ir.VectorType(I32, width), list(range(width)))
        return b.add(rows.many.splat(first), steps)
