"""The Fisher metric of the simplex in logit coordinates."""

from amidmath.arrays import libraries
from amidmath.arrays.annotations import Array
from amidmath.geometry import points


def fisher_metric(log_p: Array, u: Array, v: Array, *, axis: int = -1) -> Array:
    """The Fisher metric g_p(u, v) = Cov_p(u, v) of two tangent vectors in logit coordinates.

    Adding a constant to u or v changes nothing, to rounding. Differentiable by the array library.

    Source: Amari & Nagaoka (2000), section 2.2; docs: geometry, I4.

    Args:
        log_p: log-probabilities of p, any shape, real floating dtype.
        u: a change of the logits at each outcome, same library and device, as many outcomes; the
            axes of batches broadcast as NumPy's do. Not read where p is zero.
        v: another one.
        axis: the axis that runs over the outcomes.

    Returns:
        g(u, v), of the shape that the inputs without ``axis`` broadcast to,
        in float32 (float64 if an input is).

    Raises:
        TypeError: not arrays, of different libraries, or not real floating.
        ValueError: shapes do not broadcast, devices differ, or the axis is missing or empty.

    Example:
        >>> import numpy as np
        >>> from amidmath import geometry
        >>> log_p, u = np.log([0.5, 0.25, 0.25]), np.asarray([1.0, 0.0, 0.0])
        >>> print(geometry.fisher_metric(log_p, u, u))
        0.25
    """
    axis, xp, (log_p, u, v) = points.checked(axis, {"log_p": log_p}, {"u": u, "v": v})
    p, centered = points.centering(log_p, axis, xp)
    return xp.sum(p * centered(u) * centered(v), axis=axis)


def fisher_information(log_p: Array) -> Array:
    """The Fisher information matrix diag(p) - p pᵀ in logit coordinates.

    Every entry is right to its own rounding, also the diagonal where a probability is near 1, and
    the rows sum to zero. It has V² entries; :func:`fisher_metric` and :func:`natural_gradient`
    need only V. Differentiable by the array library.

    Source: Amari & Nagaoka (2000), section 2.2; docs: geometry, I5.

    Args:
        log_p: log-probabilities of p, shape (..., V), real floating dtype.

    Returns:
        Shape (..., V, V), in float32 (float64 if the input is).

    Raises:
        TypeError: not an array, or not real floating.
        ValueError: there is no axis, or no outcome along the last.

    Example:
        >>> import numpy as np
        >>> from amidmath import geometry
        >>> print(geometry.fisher_information(np.log([0.5, 0.25, 0.25])))
        [[ 0.25   -0.125  -0.125 ]
         [-0.125   0.1875 -0.0625]
         [-0.125  -0.0625  0.1875]]
    """
    _, xp, (log_p,) = points.checked(-1, {"log_p": log_p})
    p = xp.exp(log_p)
    products = xp.expand_dims(p, axis=-1) * xp.expand_dims(p, axis=-2)
    on_diagonal = xp.eye(p.shape[-1], dtype=p.dtype, device=libraries.device(p)) > 0.5
    off = xp.where(on_diagonal, 0.0, products)
    return xp.where(on_diagonal, xp.sum(off, axis=-1, keepdims=True), -off)
