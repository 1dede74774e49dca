"""JAX: losses in chunks of rows as one compiled loop, with custom rules."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as xp

from amidmath.arrays.annotations import Array, Partials
from amidmath.backends.jax_backend.derivatives import (
    along_all,
    evaluate,
    mapped,
)
from amidmath.backends.jax_backend.moved import MovedValues
from amidmath.pairs.chunk_form import ChunkForm
from amidmath.pairs.chunked import ChunkedCall
from amidmath.pairs.chunks import Chunks, Sums
from amidmath.pairs.layers import Library
from amidmath.pairs.list_rows import CONSTANT
from amidmath.pairs.teachers import LOG_PROBS


class JaxLibrary(Library):
    """Returns new arrays, which XLA writes over the old ones."""

    blocks = 1

    def multiplying_dtype(self, hidden: Array) -> Any:
        """That of the hidden states."""
        return hidden.dtype

    def buffer(self, shape: tuple[int, ...], dtype: Any, like: Array) -> None:
        """XLA's affair."""

    def add_product(self, total: Array, a: Array, b: Array) -> Array:
        """With results in the dtype of the total."""
        return total + xp.matmul(a, b, preferred_element_type=total.dtype)

    def own(self, array: Array) -> Array:
        """Nothing is written into."""
        return array

    def take(self, array: Array, at: Any, fill: float = 0) -> Array:
        """Indices past the end are no row."""
        return xp.take(array, at, axis=0, mode="fill", fill_value=fill)

    def put(self, array: Array, at: Any, new: Array) -> Array:
        """Indices past the end are dropped."""
        return array.at[at].set(new.astype(array.dtype), mode="drop")


@partial(jax.jit, static_argnums=(0, 1, 2))
def _run(
    form: ChunkForm,
    names: tuple[str, ...],
    wanted: tuple[str, ...],
    scale: Array | None,
    *operands: Array,
) -> Sums:
    """Values and gradients; chunks of the rows that are kept, which come first."""
    arrays = dict(zip(names, operands, strict=True))
    chunks = Chunks(form, arrays, wanted, scale, JaxLibrary(xp))
    rows, step = arrays[form.numbers].shape[0], chunks.step
    if rows == 0:
        return chunks.start(arrays, wanted)
    index = xp.arange(-(-rows // step) * step)
    if "keep" in arrays:
        keep = arrays["keep"]
        order = xp.pad(xp.argsort(~keep, stable=True), (0, index.shape[0] - rows))
        count = xp.sum(keep)
    else:
        order, count = index, rows

    def chunk(i: Array, sums: Sums) -> Sums:
        place = i * step + xp.arange(step)
        there = place < count
        at = xp.where(there, order[place], rows)
        return chunks.add(sums, at, step, there)

    # What varies with a mesh axis does so from the start of the loop; no value is read.
    nothing: Array = sum(xp.sum(a[:0], dtype=xp.float32) for a in operands)
    start = jax.tree.map(lambda a: a + nothing.astype(a.dtype), chunks.start(arrays, wanted))
    sums: Sums = jax.lax.fori_loop(0, -(-count // step), chunk, start)
    return sums


def values_and_grads(of: ChunkedCall, wanted: Sequence[str]) -> Sums:
    """Values (N,), and the gradients of the loss by name."""
    arrays = of.arrays
    names = tuple(arrays)
    needs = tuple(name in wanted for name in names)
    values, partials = evaluate(_Values(of.form, names), needs, *arrays.values())
    found = dict(zip(names, partials, strict=True))
    grads: dict[str, Array] = {name: found[name] for name in wanted}
    if of.scale is not None:
        grads = {k: g * xp.asarray(of.scale, values.dtype) for k, g in grads.items()}
    return values, grads


def value(of: ChunkedCall) -> Array:
    """The reduced loss, or values in the shape of the positions, under JAX's transformations."""
    arrays, rule = of.arrays, _Values if of.reduction == "none" else _Total
    nothing = (False,) * len(arrays)
    found: Array = evaluate(rule(of.form, tuple(arrays)), nothing, *arrays.values())[0]
    if of.reduction == "none":
        return found.reshape(of.shape)
    if of.scale is None:
        return found
    constant = of.scale if isinstance(of.scale, float) else jax.lax.stop_gradient(of.scale)
    return found * constant


@dataclass(frozen=True)
class _Rule:
    """A computation of arrays of these names."""

    form: ChunkForm
    names: tuple[str, ...]

    def sums(self, needs: tuple[bool, ...], operands: tuple[Array, ...]) -> tuple[Array, Partials]:
        """Values (N,), and the gradients of their sum."""
        wanted = tuple(name for name, need in zip(self.names, needs, strict=True) if need)
        values, grads = _run(self.form, self.names, wanted, None, *operands)
        return values, tuple(grads.get(name) for name in self.names)

    def students(self, moving: tuple[bool, ...]) -> tuple[bool, ...]:
        """Which arrays that move are differentiated by: the teacher is constant."""
        named = dict(zip(self.names, moving, strict=True))
        if named.get(LOG_PROBS):
            raise ValueError(CONSTANT.format(LOG_PROBS))
        return tuple(moves and not name.startswith("teacher") for name, moves in named.items())


@dataclass(frozen=True)
class _Total(_Rule):
    """The sum of all values."""

    def compute(
        self, needs: tuple[bool, ...], operands: tuple[Array, ...]
    ) -> tuple[Array, Partials]:
        """In one loop."""
        values, partials = self.sums(needs, operands)
        return xp.sum(values), partials

    def asks(self, moving: tuple[bool, ...]) -> tuple[bool, ...]:
        """For those of the student and of the knobs."""
        return self.students(moving)

    def tangent(
        self,
        value: Array,
        partials: Partials,
        operands: tuple[Array, ...],
        tangents: tuple[Array | None, ...],
    ) -> Array:
        """A number."""
        return along_all(value, partials, tangents)


@dataclass(frozen=True)
class _Values(_Rule):
    """Every value; each has a cotangent of its own, which the head's gradient must know."""

    def compute(
        self, needs: tuple[bool, ...], operands: tuple[Array, ...]
    ) -> tuple[Array, Partials]:
        """In one loop."""
        return self.sums(needs, operands)

    def asks(self, moving: tuple[bool, ...]) -> tuple[bool, ...]:
        """For none: those of the sum are of no use."""
        self.students(moving)
        return (False,) * len(moving)

    def tangent(
        self,
        value: Array,
        partials: Partials,
        operands: tuple[Array, ...],
        tangents: tuple[Array | None, ...],
    ) -> Array:
        """Through the layers in forward mode, by another loop over the chunks in reverse mode."""
        moving = self.students(tuple(t is not None for t in tangents))
        directions = [t for t, moves in zip(tangents, moving, strict=True) if moves]
        if not directions:
            return xp.zeros_like(value)
        return mapped((value,), _Moved(self.form, self.names, moving), operands, directions)[0]


@dataclass(frozen=True)
class _Moved(MovedValues, _Rule):
    """How the values move with the arrays that do."""

    moving: tuple[bool, ...]

    def push(self, known: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, ...]:
        """As JAX differentiates the layers, and the rows by their closed forms."""
        names = [name for name, moves in zip(self.names, self.moving, strict=True) if moves]
        arrays = dict(zip(self.names, known, strict=True))

        def values(*moving: Array) -> Array:
            given = arrays | dict(zip(names, moving, strict=True))
            return _run(self.form, self.names, (), None, *given.values())[0]

        return (jax.jvp(values, tuple(arrays[name] for name in names), tangents)[1],)

    def compute(
        self, needs: tuple[bool, ...], operands: tuple[Array, ...]
    ) -> tuple[tuple[Array, ...], Partials]:
        """In one loop."""
        cotangent, *arrays = operands
        of = [
            (name, array.dtype)
            for name, array, moves in zip(self.names, arrays, self.moving, strict=True)
            if moves
        ]
        wanted = tuple(name for name, _ in of)
        _, grads = _run(self.form, self.names, wanted, cotangent, *arrays)
        return tuple(grads[name].astype(dtype) for name, dtype in of), (None,) * len(needs)
