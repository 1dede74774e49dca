"""Row programs as LLVM: one function that takes rows of logits to values and gradients.

Each sweep is a loop over vectors of tokens. Sums are added up in the computing dtype over a tile
and in double precision over the tiles. The end of a row that does not fill a vector is read as
-inf, tokens that neither distribution has, which take no part in anything.
"""

import math
from typing import Any

from llvmlite import ir

from amidmath._rowprogram.graph import TOKEN, Node
from amidmath._rowprogram.schedule import Program, Sweep, computed
from amidmath.backends.llvm_math import Lanes
from amidmath.backends.llvm_memory import (
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
    tail,
    to_storage,
)
from amidmath.backends.llvm_operations import operation

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
        for j, partial in enumerate(self.program.partials):
            if partial is None:
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
        for j, partial in enumerate(self.program.partials):
            if partial is None:
                continue
            if j >= 2:
                self._write(f"partial{j}", self._number(partial))
            elif partial.kind != TOKEN:
                number = self.many.splat(self._number(partial))
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
        sums = [r for r in sweep.reductions if r.op == "sum"]
        places = {r.args[0]: r for r in sweep.reductions if r.op == "argmax"}
        # The largest is at hand where its position is looked for.
        rest = [r for r in sweep.reductions if r.op != "sum" and places.get(r.args[0], r) is r]
        rest_start = tuple(v for r in rest for v in self._start(r))
        totals = tuple(self._wide(0.0) for _ in sums)
        b = self.builder
        tile = ir.Constant(I64, TILE)
        inputs = sorted((n for n in here if n.op == "input"), key=lambda n: n.order)

        def tile_body(start: Any, *carried: Any) -> tuple[Any, ...]:
            end = b.add(start, tile)
            end = b.select(b.icmp_signed("<", end, self.vectors), end, self.vectors)
            zeros = tuple(self.many.real(0.0) for _ in sums)
            inner = self._loop(start, end, 1, vector_body, (*zeros, *carried[len(sums) :]))
            wide = [
                b.fadd(total, self._widened(part))
                for total, part in zip(carried[: len(sums)], inner[: len(sums)], strict=True)
            ]
            return (*wide, *inner[len(sums) :])

        def vector_body(i: Any, *carried: Any) -> tuple[Any, ...]:
            values = _Tokens(self, at, i, fixed)
            for node in inputs:  # before a gradient is written over them
                values.of(node)
            for node in sweep.kept:
                self._keep(node, i, values.of(node))
            for j, node in sweep.outputs:
                self._store(j, i, values.of(node))
            new: list[Any] = [
                b.fadd(part, values.of(r.args[0]))
                for r, part in zip(sums, carried[: len(sums)], strict=True)
            ]
            state = list(carried[len(sums) :])
            for r in rest:
                x = values.of(r.args[0])
                best = state.pop(0)
                above = b.fcmp_ordered(">", x, best)  # a NaN shows in the sums
                new.append(b.select(above, x, best))
                if r.op == "argmax":
                    new.append(b.select(above, values.positions(), state.pop(0)))
            return tuple(new)

        final = self._loop(
            ir.Constant(I64, 0), self.vectors, TILE, tile_body, (*totals, *rest_start)
        )
        state = list(final)
        for r in sums:
            self.numbers[r] = self._narrow(self._summed(state.pop(0)))
        for r in rest:
            best = state.pop(0)
            if r.op == "argmax":
                self.numbers[r] = self._place(best, state.pop(0))
            for other in sweep.reductions:
                if other.op == "max" and other.args[0] is r.args[0]:
                    self.numbers[other] = self._largest(best)

    def _loaded(self, node: Node, at: int) -> bool:
        return node in self.program.buffers and self.program.buffers[node][1] < at

    def _start(self, reduction: Node) -> tuple[Any, ...]:
        lowest = self.many.real(-math.inf)
        if reduction.op == "max":
            return (lowest,)
        return lowest, ir.Constant(ir.VectorType(I32, self.layout.width), [0] * self.layout.width)

    def _wide(self, value: float) -> Any:
        return ir.Constant(ir.VectorType(F64, self.layout.width), [value] * self.layout.width)

    def _widened(self, value: Any) -> Any:
        if self.layout.bits == 64:
            return value
        return self.builder.fpext(value, ir.VectorType(F64, self.layout.width))

    def _narrow(self, value: Any) -> Any:
        return value if self.layout.bits == 64 else self.builder.fptrunc(value, F32)

    def _lanes(self, vector: Any) -> list[Any]:
        return [
            self.builder.extract_element(vector, ir.Constant(I32, j))
            for j in range(self.layout.width)
        ]

    def _summed(self, vector: Any) -> Any:
        parts = self._lanes(vector)
        while len(parts) > 1:
            pairs = zip(parts[::2], parts[1::2], strict=True)
            parts = [self.builder.fadd(a, b) for a, b in pairs]
        return parts[0]

    def _largest(self, vector: Any) -> Any:
        first, *others = self._lanes(vector)
        for other in others:
            above = self.builder.fcmp_ordered(">", other, first)
            first = self.builder.select(above, other, first)
        return first

    def _place(self, best: Any, places: Any) -> Any:
        """The first position of the largest."""
        values, positions = self._lanes(best), self._lanes(places)
        value, position = values[0], positions[0]
        for other, there in zip(values[1:], positions[1:], strict=True):
            b = self.builder
            level = b.and_(b.fcmp_ordered("==", other, value), b.icmp_signed("<", there, position))
            better = b.or_(b.fcmp_ordered(">", other, value), level)
            value, position = b.select(better, other, value), b.select(better, there, position)
        return position

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
        typed = b.bitcast(base, self.many.real_type.as_pointer())
        return b.gep(typed, [i])

    def _keep(self, node: Node, i: Any, value: Any) -> None:
        self.builder.store(value, self._buffer(node, i), align=64)

    def load_kept(self, node: Node, i: Any) -> Any:
        """A vector from a buffer."""
        return self.builder.load(self._buffer(node, i), align=64)

    def load_input(self, which: int, i: Any) -> Any:
        """A vector of logits; -inf beyond the end of the row."""
        b, width = self.builder, self.layout.width
        dtype = self.layout.dtype(f"input{which}")
        element = STORAGE[dtype]
        first = b.mul(i, ir.Constant(I64, width))
        pointer = b.bitcast(self.row_pointers[f"input{which}"], element.as_pointer())
        start = b.gep(pointer, [first])
        full = b.icmp_signed("<=", b.add(first, ir.Constant(I64, width)), self.vocabulary)
        vector = ir.VectorType(element, width)
        with b.if_else(full, likely=True) as (then, otherwise):
            with then:
                whole = b.load(b.bitcast(start, vector.as_pointer()), align=1)
                whole_block = b.block
            with otherwise:
                rest = b.sub(self.vocabulary, first)
                partial = b.call(tail(b.module, "load", dtype, width), [start, rest])
                partial_block = b.block
        raw = b.phi(vector)
        raw.add_incoming(whole, whole_block)
        raw.add_incoming(partial, partial_block)
        return from_storage(dtype, raw, self.many)

    def _store(self, which: int, i: Any, value: Any) -> None:
        b, width = self.builder, self.layout.width
        dtype = self.layout.dtype(f"partial{which}")
        stored = to_storage(dtype, value, self.many)
        first = b.mul(i, ir.Constant(I64, width))
        pointer = b.bitcast(self.row_pointers[f"partial{which}"], STORAGE[dtype].as_pointer())
        start = b.gep(pointer, [first])
        full = b.icmp_signed("<=", b.add(first, ir.Constant(I64, width)), self.vocabulary)
        with b.if_else(full, likely=True) as (then, otherwise):
            with then:
                b.store(stored, b.bitcast(start, stored.type.as_pointer()), align=1)
            with otherwise:
                rest = b.sub(self.vocabulary, first)
                b.call(tail(b.module, "store", dtype, width), [start, rest, stored])


class _Tokens:
    """The values of token expressions in one turn of a sweep's loop."""

    def __init__(self, rows: _Rows, at: int, i: Any, fixed: dict[Node, Any]) -> None:
        self.rows, self.at, self.i = rows, at, i
        self.known = dict(fixed)

    def of(self, node: Node) -> Any:
        """A vector of the expression."""
        if node in self.known:
            return self.known[node]
        rows = self.rows
        if rows._loaded(node, self.at):
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
