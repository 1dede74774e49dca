"""JAX: the loss from hidden states as one compiled loop, with custom rules."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as xp
from jax.custom_derivatives import SymbolicZero

from amidmath._linear_arguments import Given
from amidmath._linear_form import LinearForm
from amidmath._linear_layer import Library
from amidmath._linear_rows import Chunks, Sums
from amidmath._linear_teacher import LOG_PROBS
from amidmath._sparse_rows import CONSTANT
from amidmath._typing import Array


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

    def take(self, array: Array, at: Any, fill: float = 0) -> Array:
        """Indices past the end are no row."""
        return xp.take(array, at, axis=0, mode="fill", fill_value=fill)

    def put(self, array: Array, at: Any, new: Array) -> Array:
        """Indices past the end are dropped."""
        return array.at[at].set(new.astype(array.dtype), mode="drop")


@partial(jax.jit, static_argnums=(0, 1, 2))
def _run(
    form: LinearForm,
    names: tuple[str, ...],
    wanted: tuple[str, ...],
    scale: Array | None,
    *operands: Array,
) -> Sums:
    """Values and gradients; chunks of the rows that are kept, which come first."""
    arrays = dict(zip(names, operands, strict=True))
    chunks = Chunks(form, arrays, wanted, scale, JaxLibrary(xp))
    rows, step = arrays["student_hidden"].shape[0], chunks.step
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


def values_and_grads(of: Given, wanted: Sequence[str]) -> Sums:
    """Values (N,), and the gradients of the loss by name."""
    arrays = of.arrays
    values, grads = _run(of.form, tuple(arrays), tuple(wanted), None, *arrays.values())
    if of.scale is not None:
        grads = {k: g * xp.asarray(of.scale, values.dtype) for k, g in grads.items()}
    return values, grads


def linear(of: Given) -> Array:
    """The reduced loss, or values in the shape of the positions, under JAX's transformations."""
    form, arrays = of.form, of.arrays
    if not of.reduced:
        values: Array = _values(form, tuple(arrays), *arrays.values())
        return values.reshape(of.shape)
    total: Array = _total(form, tuple(arrays), *arrays.values())
    return total if of.scale is None else total * of.scale


def _students(moving: Iterable[str]) -> list[str]:
    """What to differentiate by, of what moves: the teacher is constant."""
    names = list(moving)
    if LOG_PROBS in names:
        raise ValueError(CONSTANT.format(LOG_PROBS))
    return [name for name in names if not name.startswith("teacher_")]


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _total(form: LinearForm, names: tuple[str, ...], *operands: Array) -> Array:
    """The sum of all values."""
    return xp.sum(_run(form, names, (), None, *operands)[0])


@partial(_total.defjvp, symbolic_zeros=True)
def _tangent(
    form: LinearForm, names: tuple[str, ...], primals: tuple[Array, ...], tangents: tuple[Any, ...]
) -> tuple[Array, Array]:
    given = dict(zip(names, tangents, strict=True))
    wanted = _students(k for k, tangent in given.items() if not isinstance(tangent, SymbolicZero))
    moving = {name: given[name] for name in wanted}
    values, grads = _run(form, names, tuple(moving), None, *primals)
    value = xp.sum(values)
    total = xp.zeros_like(value)
    for name, tangent in moving.items():
        total = total + xp.sum(grads[name].astype(value.dtype) * tangent.astype(value.dtype))
    return value, total


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _values(form: LinearForm, names: tuple[str, ...], *operands: Array) -> Array:
    """Every value; each has a cotangent of its own, which the head's gradient must know."""
    return _run(form, names, (), None, *operands)[0]


def _forward(
    form: LinearForm, names: tuple[str, ...], *operands: Any
) -> tuple[Array, tuple[dict[str, None], tuple[Array, ...]]]:
    primals = tuple(operand.value for operand in operands)
    moving = (name for name, o in zip(names, operands, strict=True) if o.perturbed)
    wanted = dict.fromkeys(_students(moving))  # as keys, which are no values to JAX
    return _values(form, names, *primals), (wanted, primals)


def _backward(form: LinearForm, names: tuple[str, ...], kept: Any, cotangent: Any) -> Any:
    wanted, operands = kept
    if isinstance(cotangent, SymbolicZero):
        return (None,) * len(names)
    _, grads = _run(form, names, tuple(wanted), cotangent, *operands)
    return tuple(
        grads[name].astype(operand.dtype) if name in grads else None
        for name, operand in zip(names, operands, strict=True)
    )


_values.defvjp(_forward, _backward, symbolic_zeros=True)
