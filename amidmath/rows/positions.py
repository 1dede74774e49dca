"""Logits, knobs and masks as rows, one a position, and the reduction of the rows' values."""

from typing import Any

from amidmath.arrays import checks, dispatch, kinds, libraries
from amidmath.arrays.annotations import Array, Namespace

REDUCTIONS = ("mean", "sum", "none")


def logit_rows(**logits: Array) -> tuple[Namespace, tuple[int, ...], tuple[Array, ...]]:
    """The library of logits (..., V), the shape of their positions, and each as rows (N, V).

    Raises:
        TypeError: not arrays of one library and of real floating dtypes.
        ValueError: shapes or devices that differ, or no axis over a vocabulary.
    """
    xp = checks.namespace(**logits)
    checks.real_floating(xp, **logits)
    checks.same_shape(**logits)
    checks.same_device(**logits)
    name, first = next(iter(logits.items()))
    if first.ndim == 0 or first.shape[-1] == 0:
        raise ValueError(
            f"{name} must have a last axis over a vocabulary of at least one token, "
            f"got shape {tuple(first.shape)}"
        )
    flat = (-1, first.shape[-1])
    return xp, first.shape[:-1], tuple(xp.reshape(a, flat) for a in logits.values())


def knob_rows(
    knobs: dict[str, Array],
    beside: tuple[str, Array],
    shape: tuple[int, ...],
    dtype: Any,
    xp: Namespace,
) -> list[Array]:
    """The knobs as rows (N, 1), one number a position, in the dtype that is computed in.

    Args:
        knobs: arrays that broadcast to the positions, by name.
        beside: the name and the array whose library and device they must share.
        shape: that of the positions.
        dtype: kernels have no wider one for knobs.
        xp: their namespace.
    """
    rows = []
    first, array = beside
    for name, knob in knobs.items():
        checks.namespace(**{first: array, name: knob})
        checks.same_device(**{first: array, name: knob})
        wide = xp.astype(knob, dtype, copy=False)
        rows.append(xp.reshape(checks.broadcast(name, wide, shape, xp), (-1, 1)))
    return rows


def mask_rows(
    mask: Array | None, beside: tuple[str, Array], shape: tuple[int, ...], xp: Namespace
) -> Array | None:
    """Whether each position (N,) is kept, None for all; the arguments are those of the knobs."""
    if mask is None:
        return None
    name, array = beside
    checks.namespace(**{name: array, "mask": mask})
    checks.same_device(**{name: array, "mask": mask})
    if not kinds.is_of(mask, "bool", xp):
        if not kinds.is_of(mask, "integral", xp):
            raise TypeError(f"mask must be boolean or 0/1 integers, got dtype {mask.dtype}")
        checks.values_hold("mask", mask, (mask != 0) & (mask != 1), "boolean or 0/1 integers")
        mask = xp.astype(mask, xp.bool)
    return xp.reshape(checks.broadcast("mask", mask, shape, xp), (-1,))


def scale_of(
    reduction: str,
    denominator: Any,
    beside: tuple[str, Array],
    operands: tuple[Array, ...],
    keep: Array | None,
    xp: Namespace,
) -> Array | float | None:
    """The factor of each position's value in the result: 1/denominator, None for 1.

    Args:
        reduction: one of ``REDUCTIONS``.
        denominator: a number, a scalar array, or None for how many positions are kept.
        beside: as for the knobs.
        operands: rows of both sides.
        keep: see :func:`mask_rows`.
        xp: their namespace.
    """
    checks.choice("reduction", reduction, REDUCTIONS)
    if reduction != "mean":
        if denominator is not None:
            raise ValueError(
                f"denominator goes with reduction 'mean', got reduction {reduction!r} "
                f"and denominator {checks.shortened(denominator)}"
            )
        return None
    dtype = checks.computing_dtype(xp, *operands[:2])
    if denominator is None:
        if keep is None:
            return 1.0 / max(1, operands[0].shape[0])
        count = xp.astype(xp.sum(xp.astype(keep, xp.int32)), dtype)
        return 1.0 / xp.where(count > 0.0, count, 1.0)
    checks.denominator(*beside, denominator)
    if checks.is_array(denominator):
        return 1.0 / xp.astype(denominator, dtype)
    return 1.0 / float(denominator)


def row_scale(scale: Array | float, operands: tuple[Array, ...], xp: Namespace) -> Array:
    """The scale of every row.

    Not made of the logits: where they are shards, JAX would take it to differ between them.
    """
    dtype = checks.computing_dtype(xp, *operands[:2])
    device = libraries.device(operands[0])
    return xp.zeros(operands[0].shape[0], dtype=dtype, device=device) + scale


def unbroadcast(grad: Array, array: Array, shape: tuple[int, ...], xp: Namespace) -> Array:
    """The gradient of an array from that of its broadcast to the positions."""
    grad = xp.reshape(grad, shape)
    missing = len(shape) - array.ndim
    spread = tuple(range(missing)) + tuple(
        missing + axis
        for axis, size in enumerate(array.shape)
        if size == 1 and shape[missing + axis] != 1
    )
    summed = xp.sum(grad, axis=spread) if spread else grad
    return xp.astype(xp.reshape(summed, array.shape), array.dtype, copy=False)


def reduced(
    values: Array,
    scale: Array | float | None,
    reduction: str,
    shape: tuple[int, ...],
    xp: Namespace,
) -> Array:
    """The values in the shape of the positions, or their sum times the scale."""
    if reduction == "none":
        return xp.reshape(values, shape)
    return dispatch.scaled_sum(values, scale, xp)


def wanted_of(wrt: str | tuple[str, ...], names: list[str]) -> tuple[str, ...]:
    """The names to differentiate by, in a tuple, which must be among ``names``."""
    wanted = (wrt,) if isinstance(wrt, str) else tuple(wrt)
    for name in wanted:
        checks.choice("wrt", name, names)
    return wanted


def as_asked(wrt: str | tuple[str, ...], grads: dict[str, Any]) -> Any:
    """The gradients as ``wrt`` asks for them: one, or a tuple."""
    return grads[wrt] if isinstance(wrt, str) else tuple(grads[name] for name in wrt)
