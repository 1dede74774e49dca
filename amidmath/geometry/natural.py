"""The natural gradient: a gradient by logits, turned into a change of the logits."""

from amidmath.arrays import checks
from amidmath.arrays.annotations import Array
from amidmath.geometry import points


def natural_gradient(log_q: Array, grad: Array, *, damping: float = 0.0, axis: int = -1) -> Array:
    """Solve (F + δI) x = grad for the Fisher information F = diag(q) - q qᵀ, in O(V).

    For a positive damping δ, x is the one solution. F itself knows no constants: at δ = 0, x is
    the solution modulo constants with Σ q x = 0, and ``grad`` is first taken to where one
    exists, to grad - q Σ grad; a gradient by logits sums to zero and stays as it is.

    Where q is zero (below the smallest normal number), δ > 0 gives x = grad/δ there; at δ = 0 such
    an outcome takes no part and x = 0.

    At δ > 0 the constant part of x is Σ grad/(δV). It changes no probability, but holds the
    rounding of Σ grad, divided by δ. Differentiable by the array library.

    Source: Amari (1998), Natural gradient works efficiently in learning, Neural Computation 10;
    docs: geometry, I8.

    Args:
        log_q: log-probabilities of q, any shape, real floating dtype.
        grad: a gradient by logits, same library and device, as many outcomes; the axes of batches
            broadcast as NumPy's do.
        damping: δ, a finite number >= 0.
        axis: the axis that runs over the outcomes.

    Returns:
        x, of the shape that the inputs broadcast to, in float32 (float64 if an input is).

    Raises:
        TypeError: not arrays, of different libraries, or not real floating; δ not a number.
        ValueError: shapes do not broadcast, devices differ, the axis is missing or empty, or δ is
            negative or not finite.

    Example:
        >>> import numpy as np
        >>> from amidmath import geometry
        >>> q, p = np.asarray([0.5, 0.5]), np.asarray([0.75, 0.25])
        >>> print(geometry.natural_gradient(np.log(q), q - p))
        [-0.5  0.5]
    """
    axis, xp, (log_q, grad) = points.checked(axis, {"log_q": log_q}, {"grad": grad})
    damping = checks.number("damping", damping)
    if damping < 0.0:
        raise ValueError(f"damping must be a finite number >= 0, got {damping!r}")
    q, centered = points.centering(log_q, axis, xp)
    if damping == 0.0:
        present = q >= float(xp.finfo(q.dtype).smallest_normal)
        x = xp.where(present, grad, 0.0) / xp.where(present, q, 1.0)
        return xp.where(present, centered(x), 0.0)
    share = q / (q + damping)
    mean = xp.sum(share * grad, axis=axis, keepdims=True)
    mean = mean / xp.sum(share, axis=axis, keepdims=True)
    return (grad + q * (mean / damping)) / (q + damping)
