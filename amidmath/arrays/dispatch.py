"""How a closed form runs on a caller's arrays, and how their library differentiates it.

A *closed form* is a hashable callable ``f(*operands, needs, xp) -> (value, partials)`` that gives
a value together with its partial derivatives in one go, for the operands that ``needs`` marks.
The tangent of the value is ``Σ_j partials[j]·d operand_j``, summed over ``axis`` (over no axis
where that is None). So much is enough for torch's autograd and JAX's forward and reverse modes to
use it, and they are the only places that know about them.
"""

from typing import TYPE_CHECKING

from amidmath.arrays import libraries
from amidmath.arrays.annotations import Array, ClosedForm, Namespace

if TYPE_CHECKING:
    from amidmath.rows.forms import RowForm


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
    value, _ = _run(form, axis, operands, None, backend)
    return value


def total(
    form: "RowForm", scale: Array | float | None, *operands: Array, backend: str | None = None
) -> Array:
    """The sum of the values of all rows, times ``scale`` (None is 1); differentiable.

    Args:
        form: rows of operands to values.
        scale: a number or a scalar array, constant in derivatives.
        *operands: those of the form.
        backend: as for :func:`apply`.

    Returns:
        A scalar array.
    """
    if libraries.is_torch_array(operands[0]):
        from amidmath.backends.torch_backend import adapter as torch_backend

        return torch_backend.total(form, scale, operands, backend)
    if libraries.is_jax_array(operands[0]) and backend != "reference":
        from amidmath.backends.jax_backend import adapter as jax_backend

        return jax_backend.total(form, scale, operands, backend)
    values = apply(form, -1, *operands, backend=backend)
    return scaled_sum(values, scale, libraries.array_namespace(values))


def scaled_sum(values: Array, scale: Array | float | None, xp: Namespace) -> Array:
    """The sum of the values times ``scale``."""
    summed = xp.sum(values)
    return summed if scale is None else summed * scale


def value_and_partials(
    form: ClosedForm,
    needs: tuple[bool, ...],
    *operands: Array,
    backend: str | None = None,
    overwrite: bool = False,
) -> tuple[Array, tuple[Array | None, ...]]:
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
    return _run(form, None, operands, needs, backend, overwrite)


def _run(
    form: ClosedForm,
    axis: int | None,
    operands: tuple[Array, ...],
    needs: tuple[bool, ...] | None,
    backend: str | None,
    overwrite: bool = False,
) -> tuple[Array, tuple[Array | None, ...]]:
    first = operands[0]
    none = (False,) * len(operands)
    if libraries.is_torch_array(first):
        from amidmath.backends.torch_backend import adapter as torch_backend

        if needs is None:
            return torch_backend.differentiable(form, axis, operands, backend), none
        return torch_backend.run(form, operands, needs, backend, overwrite)
    if libraries.is_jax_array(first):
        from amidmath.backends.jax_backend import adapter as jax_backend

        if needs is None and backend == "reference":
            return jax_backend.plain(form, operands), none
        if needs is None:
            return jax_backend.differentiable(form, axis, backend, *operands), none
        return jax_backend.run(form, operands, needs, backend)
    if libraries.is_numpy_array(first):
        from amidmath.backends.numpy_backend import adapter as numpy_backend

        return numpy_backend.run(form, operands, needs or none, backend, overwrite)
    if libraries.is_cupy_array(first):
        from amidmath.backends.cupy_backend import adapter as cupy_backend

        return cupy_backend.run(form, operands, needs or none, backend, overwrite)
    if backend == "compiled":
        raise ValueError(
            "backend 'compiled' is for arrays of NumPy, torch, JAX and CuPy, "
            f"got {type(first).__module__}.{type(first).__name__}"
        )
    return form(*operands, needs=needs or none, xp=libraries.array_namespace(first))


def at_hand(array: Array) -> bool:
    """Whether the array's values can be looked at without waiting for a device or a trace."""
    if libraries.is_torch_array(array):
        from amidmath.backends.torch_backend import adapter as torch_backend

        return torch_backend.at_hand(array)
    if libraries.is_jax_array(array):
        from amidmath.backends.jax_backend import adapter as jax_backend

        return jax_backend.at_hand(array)
    return not (libraries.is_cupy_array(array) or libraries.is_dask_array(array))


def on_cpu(array: Array) -> bool:
    """Whether the array is in the memory of the CPU; if JAX traces it, whether it would be."""
    if libraries.is_jax_array(array):
        from amidmath.backends.jax_backend import adapter as jax_backend

        return jax_backend.on_cpu(array)
    return "cpu" in str(getattr(array, "device", "cpu")).lower()


FIRST_ONLY = (
    "first derivatives only: the second derivative of a closed form was asked for. Pass "
    'backend="reference", as in loss(student_logits, teacher_logits, backend="reference"), whose '
    "value is differentiated operation by operation, as often as asked. Losses, divergences and "
    "means take it; for a loss from hidden states make the logits, for a VocabParallel loss the "
    "whole rows, and call the loss on them"
)
"""What is said where there is no derivative, of the partial derivatives of a closed form."""
