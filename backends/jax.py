"""JAX: closed forms as custom JVP rules, so that forward and reverse mode both use them."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as xp
from jax.core import Tracer
from jax.custom_derivatives import SymbolicZero

from amidmath import _trees
from amidmath._differentiated import Differentiated
from amidmath._dispatch import scaled_sum
from amidmath._rows import Chunked, RowForm, rows_per_chunk
from amidmath._typing import Array, ClosedForm, Partials
from amidmath.backends import jax_cpu

_trees.register_known("jax")


def run(
    form: ClosedForm,
    operands: tuple[Array, ...],
    needs: tuple[bool, ...],
    backend: str | None = None,
) -> tuple[Array, Partials]:
    """The closed form's value and the partial derivatives that ``needs`` marks."""
    compiled = jax_cpu.run(form, operands, needs, backend)
    if compiled is not None:
        return compiled
    if isinstance(form, Chunked):
        step = rows_per_chunk(operands[0])
        if operands[0].shape[0] > step:
            value, partials = in_chunks(form, needs, step, *operands)
            return value, partials
    value, partials = form(*operands, needs=needs, xp=xp)
    return value, partials


@partial(jax.jit, static_argnums=(0, 1, 2))
def in_chunks(
    form: Chunked,
    needs: tuple[bool, ...],
    step: int,
    *operands: Array,
) -> tuple[Array, Partials]:
    """The rows a chunk at a time in one compiled loop; arrays here cannot be written into."""

    def one_row(row: tuple[Array, ...]) -> tuple[Array, Partials]:
        return form.chunk(*row, needs=needs, xp=xp)

    mapped: tuple[Array, Partials] = jax.lax.map(one_row, operands, batch_size=step)
    return mapped


_DIFFERENTIATED = Differentiated(xp, jax.lax.stop_gradient)


def plain(form: ClosedForm, operands: tuple[Array, ...]) -> Array:
    """The closed form's value by JAX's own operations, for as many derivatives as are asked."""
    value, _ = form(*operands, needs=(False,) * len(operands), xp=_DIFFERENTIATED)
    return value


def at_hand(array: Array) -> bool:
    """Whether the values can be read: on the CPU, and not traced."""
    return not isinstance(array, Tracer) and array.device.platform == "cpu"


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def differentiable(
    form: ClosedForm, axis: int | None, backend: str | None, *operands: Array
) -> Array:
    """The closed form's value, with its partial derivatives as the tangent map."""
    return run(form, operands, (False,) * len(operands), backend)[0]


@partial(differentiable.defjvp, symbolic_zeros=True)
def _tangent(
    form: ClosedForm,
    axis: int | None,
    backend: str | None,
    primals: tuple[Array, ...],
    tangents: tuple[Any, ...],
) -> tuple[Array, Array]:
    needs = tuple(not isinstance(tangent, SymbolicZero) for tangent in tangents)
    value, partials = run(form, primals, needs, backend)
    total = xp.zeros_like(value)
    for derivative, tangent in zip(partials, tangents, strict=True):
        if derivative is not None:
            term = derivative * tangent
            total = total + (term if axis is None else xp.sum(term, axis=axis)).astype(value.dtype)
    return value, total


def total(
    form: RowForm, scale: Any, operands: tuple[Array, ...], backend: str | None = None
) -> Array:
    """The sum of the rows' values times ``scale``, with the gradient made in its final scale."""
    if scale is None:
        return _total(form, backend, None, *operands)
    computing = xp.float64 if xp.float64 in (operands[0].dtype, operands[1].dtype) else xp.float32
    factor = jax.lax.stop_gradient(xp.asarray(scale, dtype=computing))
    return _total(form, backend, factor, *operands)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _total(form: RowForm, backend: str | None, scale: Array | None, *operands: Array) -> Array:
    values, _ = run(form, operands, (False,) * len(operands), backend)
    return scaled_sum(values, scale, xp)


@partial(_total.defjvp, symbolic_zeros=True)
def _total_tangent(
    form: RowForm, backend: str | None, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Array, Array]:
    scale, *operands = primals
    needs = tuple(not isinstance(tangent, SymbolicZero) for tangent in tangents[1:])
    if scale is not None:
        form = replace(form, scaled=True)
        operands.append(xp.broadcast_to(scale, operands[0].shape[:1]))
        needs = (*needs, False)
    values, partials = run(form, tuple(operands), needs, backend)
    moved = xp.zeros_like(values[:1].sum())
    for derivative, tangent in zip(partials, tangents[1:], strict=False):
        if derivative is not None:
            moved = moved + xp.sum(derivative * tangent, dtype=values.dtype)
    return scaled_sum(values, scale, xp), moved
