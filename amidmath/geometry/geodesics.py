"""The α-geodesic between two distributions."""

from amidmath.arrays import checks
from amidmath.arrays.annotations import Array
from amidmath.geometry import points
from amidmath.means import alpha_mixture


def geodesic(
    log_p: Array, log_q: Array, t: float | Array, *, alpha: float | Array, axis: int = -1
) -> Array:
    """Log of the point at t of the α-geodesic from p (t = 0) to q (t = 1).

    The point is r ∝ ((1-t)pᵏ + t qᵏ)^(1/k), k = (1-α)/2: the straight line between the
    α-representations pᵏ and qᵏ (log p and log q at α = 1), normalised. It runs along a geodesic
    of the α-connection (:func:`connection`); t is an affine parameter for α = ±1 only, and
    otherwise the speed along the geodesic changes, as docs: geometry, I3 says.

    For p and q with different supports and t in (0, 1), the line has the union of the supports
    for α < 1 and the intersection for α >= 1. Differentiable in every array argument through its
    closed form, once.

    Source: Amari & Nagaoka (2000), Methods of Information Geometry, section 2.6; docs: geometry,
    I3.

    Args:
        log_p: log-probabilities of p, any shape, real floating dtype.
        log_q: log-probabilities of q, same library and device, as many outcomes; the axes of
            batches broadcast as NumPy's do.
        t: the position on the line in [0, 1], a number or an array that broadcasts to the shape
            of the batches.
        alpha: α in [-∞, ∞], likewise.
        axis: the axis that runs over the outcomes.

    Returns:
        log r, of the shape that the inputs broadcast to, in float32 (float64 if an input is); -inf
        everywhere where the line does not exist (disjoint supports at α >= 1, t in (0, 1)).

    Raises:
        TypeError: not arrays, of different libraries, or not real floating; t or α not a number.
        ValueError: shapes do not broadcast, devices differ, α is NaN, t lies outside [0, 1], or
            there is no such axis.

    Example:
        >>> import numpy as np
        >>> from amidmath import geometry
        >>> log_p, log_q = np.log([0.9, 0.1]), np.log([0.1, 0.9])
        >>> for t in (0.0, 0.5, 1.0):
        ...     print(np.exp(geometry.geodesic(log_p, log_q, t, alpha=1.0)).round(3))
        [0.9 0.1]
        [0.5 0.5]
        [0.1 0.9]
    """
    axis, xp, (p, q) = points.checked(axis, {"log_p": log_p, "log_q": log_q})
    t, alpha = (
        check(name, value, like=("log_p", log_p))
        for name, value, check in (("t", t, checks.weight), ("alpha", alpha, checks.alpha))
    )
    positions = p.shape[:axis] + p.shape[axis + 1 :]
    if checks.is_array(t):
        t = checks.broadcast("t", t, positions, xp)
    # q is the source that t weighs: 1 - t would lose a small t.
    return alpha_mixture(q, p, alpha=alpha, lam=t, axis=axis)
