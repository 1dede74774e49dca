"""JAX: closed forms as rules that are differentiated once, in forward and reverse mode."""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as xp
from jax.core import Tracer

from amidmath.arrays.annotations import Array, ClosedForm, Namespace, Partials
from amidmath.arrays.checks import computing_dtype
from amidmath.arrays.dispatch import scaled_sum
from amidmath.backends import choice
from amidmath.backends.jax_backend import ffi as jax_cpu
from amidmath.backends.jax_backend import rows as jax_rows
from amidmath.backends.jax_backend.derivatives import along_all, evaluate, product, quiet
from amidmath.formulas.differentiated import Differentiated
from amidmath.rows import forms
from amidmath.rows.forms import Chunked, RowForm, rows_per_chunk
from amidmath.values import trees

trees.register_known("jax")


def run(
    form: ClosedForm,
    operands: tuple[Array, ...],
    needs: tuple[bool, ...],
    backend: str | None = None,
) -> tuple[Array, Partials]:
    """The values of rows and the partial derivatives that ``needs`` marks.

    The values may be differentiated once, the partial derivatives may not.
    """
    result: tuple[Array, Partials] = evaluate(Summed(form, -1, backend), needs, *operands)
    return result


def differentiable(
    form: ClosedForm, axis: int | None, backend: str | None, *operands: Array
) -> Array:
    """The closed form's value, with its partial derivatives as the tangent map."""
    value, _ = evaluate(Summed(form, axis, backend), (False,) * len(operands), *operands)
    return value


def total(
    form: RowForm, scale: Any, operands: tuple[Array, ...], backend: str | None = None
) -> Array:
    """The sum of the rows' values times ``scale``, with the gradient made in its final scale."""
    if scale is not None:
        dtype = computing_dtype(xp, *operands[:2])
        operands = (*operands, jax.lax.stop_gradient(xp.asarray(scale, dtype=dtype)))
    rule = _Total(form, scale is not None, backend)
    value, _ = evaluate(rule, (False,) * len(operands), *operands)
    return value


_DIFFERENTIATED = Differentiated(xp, jax.lax.stop_gradient)


def plain(form: ClosedForm, operands: tuple[Array, ...]) -> Array:
    """The closed form's value by JAX's own operations, for as many derivatives as are asked."""
    needs = (False,) * len(operands)
    with quiet():
        if isinstance(form, Chunked) and _numbers(operands[0]) is not None:
            step = rows_per_chunk(operands[0])
            if operands[0].shape[0] > step:
                return jax_rows.in_chunks(form, needs, step, _DIFFERENTIATED, *operands)[0]
        return _core(form, operands, needs, _DIFFERENTIATED)[0]


def at_hand(array: Array) -> bool:
    """Whether the values can be read: on CPUs of this process, and not traced."""
    return not isinstance(array, Tracer) and array.is_fully_addressable and on_cpu(array)


def on_cpu(array: Array) -> bool:
    """Whether the array is on the CPU; of one that is traced, whether JAX would put it there."""
    if not isinstance(array, Tracer):
        return str(next(iter(array.devices())).platform) == "cpu"
    config: Any = jax.config
    default = config.jax_default_device
    if default is None:
        default = jax.default_backend()
    return str(getattr(default, "platform", default)) == "cpu"


@dataclass(frozen=True)
class Summed:
    """A closed form whose tangent is the sum of partial derivatives times tangents over an axis.

    Args:
        form: the closed form.
        axis: None for no sum.
        backend: "reference", "compiled" or None.
    """

    form: ClosedForm
    axis: int | None
    backend: str | None

    def compute(
        self, needs: tuple[bool, ...], operands: tuple[Array, ...]
    ) -> tuple[Array, Partials]:
        """By a kernel or the core."""
        return _computed(self.form, operands, needs, self.backend)

    def asks(self, moving: tuple[bool, ...]) -> tuple[bool, ...]:
        """For all."""
        return moving

    def tangent(
        self,
        value: Array,
        partials: Partials,
        operands: tuple[Array, ...],
        tangents: tuple[Array | None, ...],
    ) -> Array:
        """In the shape of the value."""
        moved = xp.zeros_like(value)
        for by, tangent in zip(partials, tangents, strict=True):
            if by is not None and tangent is not None:
                term = product(by, tangent, value.dtype)
                moved = moved + (term if self.axis is None else xp.sum(term, axis=self.axis))
        return moved


@dataclass(frozen=True)
class _Total:
    """The sum of the values of all rows; the last operand is its scale, if it is scaled."""

    form: RowForm
    scaled: bool
    backend: str | None

    def compute(
        self, needs: tuple[bool, ...], operands: tuple[Array, ...]
    ) -> tuple[Array, Partials]:
        """Partial derivatives are made in their final scale."""
        form, rows, scale = self.form, operands, None
        if self.scaled:
            *of_rows, scale = operands
            rows = tuple(of_rows)
        if not any(needs):
            values, _ = _computed(form, rows, needs[: len(rows)], self.backend)
            return scaled_sum(values, scale, xp), (None,) * len(needs)
        if scale is not None:
            form = replace(form, scaled=True)
            rows = (*rows, xp.broadcast_to(scale, rows[0].shape[:1]))
        values, partials = _computed(form, rows, needs, self.backend)
        return scaled_sum(values, scale, xp), partials

    def asks(self, moving: tuple[bool, ...]) -> tuple[bool, ...]:
        """For all."""
        return moving

    def tangent(
        self,
        value: Array,
        partials: Partials,
        operands: tuple[Array, ...],
        tangents: tuple[Array | None, ...],
    ) -> Array:
        """A number."""
        return along_all(value, partials, tangents)


def _computed(
    form: ClosedForm,
    operands: tuple[Array, ...],
    needs: tuple[bool, ...],
    backend: str | None,
) -> tuple[Array, Partials]:
    """By a kernel, by rows that the lowering decides about, or by operations of the core."""
    numbers = _numbers(operands[0])
    if isinstance(form, Chunked) and numbers is not None:
        kernel = choice.compiled(choice.CPU, jax_cpu.kernel, form, operands, needs, backend)
        if kernel is not None or numbers >= min(choice.CPU.worth, forms.CPU_CHUNK):
            found: tuple[Array, Partials]
            found = jax_rows.rows(form, needs, kernel, backend == "compiled", *operands)
            return found
    return _core(form, operands, needs, xp)


def _core(
    form: ClosedForm, operands: tuple[Array, ...], needs: tuple[bool, ...], names: Namespace
) -> tuple[Array, Partials]:
    """By operations of the core, of that namespace, all rows at once."""
    compute: ClosedForm = form.chunk if isinstance(form, Chunked) else form
    return compute(*operands, needs=needs, xp=names)


def _numbers(array: Array) -> int | None:
    """How many there are in the array; None for a shape that is not known yet (``jax.export``)."""
    return math.prod(array.shape) if all(isinstance(n, int) for n in array.shape) else None
