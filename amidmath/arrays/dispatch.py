"""Closed forms on a caller's arrays, by the adapter of their library."""

from typing import Any

from amidmath.arrays.adapters import adapter_of
from amidmath.arrays.annotations import Array, ClosedForm, Namespace, Partials


def apply(
    form: ClosedForm, axis: int | None, *operands: Array, backend: str | None = None
) -> Array:
    """The value of a closed form, differentiable where the caller's library differentiates.

    Args:
        form: the closed form; frozen and hashable, since JAX compiles once for each.
        axis: the axis over which the tangent is summed, None for an elementwise form.
        *operands: arrays of one library.
        backend: "reference", "compiled" or None; see :meth:`amidmath.Loss.__call__`.

    Returns:
        The value, an array of the same library.
    """
    return adapter_of(operands[0]).apply(form, axis, operands, backend)


def total(
    form: Any, scale: Array | float | None, *operands: Array, backend: str | None = None
) -> Array:
    """The sum of the values of all rows, times ``scale`` (None is 1); differentiable.

    Args:
        form: rows of operands to values, such as :class:`amidmath.rows.forms.RowForm`.
        scale: a number or a scalar array, constant in derivatives.
        *operands: those of the form.
        backend: as for :func:`apply`.

    Returns:
        A scalar array.
    """
    return adapter_of(operands[0]).total(form, scale, operands, backend)


def value_and_partials(
    form: ClosedForm,
    needs: tuple[bool, ...],
    *operands: Array,
    backend: str | None = None,
    overwrite: bool = False,
) -> tuple[Array, Partials]:
    """The value of a closed form and the partial derivatives asked for, on any library.

    Args:
        form: the closed form.
        needs: which operands' partial derivatives are wanted.
        *operands: arrays of one library.
        backend: as for :func:`apply`.
        overwrite: whether the derivative by the first operand may take its place in memory, which
            the others then must not share. It does where a kernel computes and each of the
            operand's numbers has a place of its own; elsewhere the operand stays as it is.
    """
    return adapter_of(operands[0]).value_and_partials(form, needs, operands, backend, overwrite)


def table_values(form: Any, table: Any, x: Array, y: Array, backend: str | None) -> Array:
    """The values (P,) of all pairs of rows of a table, differentiable.

    Args:
        form: rows of operands to values.
        table: which rows make each pair, an :class:`amidmath.rows.tables.Table`.
        x: rows (A, V), in the dtype that is computed in.
        y: rows (B, V), likewise.
        backend: as for :func:`apply`.
    """
    return adapter_of(x).table_values(form, table, x, y, backend)


def table_gradients(
    form: Any, table: Any, x: Array, y: Array, backend: str | None
) -> tuple[Array, Partials]:
    """The values of a table, and the gradients (A, V) and (B, V) of their sum, on any library."""
    return adapter_of(x).table_gradients(form, table, x, y, backend)


def scaled_sum(values: Array, scale: Array | float | None, xp: Namespace) -> Array:
    """The sum of the values times ``scale``."""
    summed = xp.sum(values)
    return summed if scale is None else summed * scale


def at_hand(array: Array) -> bool:
    """Whether the array's values can be looked at without waiting for a device or a trace."""
    return adapter_of(array).at_hand(array)


def on_cpu(array: Array) -> bool:
    """Whether the array is in the memory of the CPU; if JAX traces it, whether it would be."""
    return adapter_of(array).on_cpu(array)


FIRST_ONLY = (
    "first derivatives only: the second derivative of a closed form was asked for. Pass "
    'backend="reference", as in loss(student, teacher, backend="reference"), whose '
    "value is differentiated operation by operation, as often as asked. Losses of logits, "
    "divergences and means take it; of an am.Hidden make the logits, of an am.Shard the whole "
    "rows, and call the loss on them"
)
"""What is said where there is no derivative, of the partial derivatives of a closed form."""
