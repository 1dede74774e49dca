"""The Amari-Chentsov tensor and the α-connections of the simplex, in logit coordinates."""

from amidmath.arrays import checks
from amidmath.arrays.annotations import Array
from amidmath.geometry import points


def amari_chentsov(log_p: Array, u: Array, v: Array, w: Array, *, axis: int = -1) -> Array:
    """The Amari-Chentsov cubic tensor T_p(u, v, w), the third central cross moment under p.

    T = E_p[(u - E u)(v - E v)(w - E w)] for tangent vectors in logit coordinates: symmetric, and
    blind to constants. Differentiable by the array library.

    Source: Amari & Nagaoka (2000), sections 2.2 and 2.3; docs: geometry, I6.

    Args:
        log_p: log-probabilities of p, any shape, real floating dtype.
        u: a change of the logits at each outcome, same library and device, as many outcomes; the
            axes of batches broadcast as NumPy's do. Not read where p is zero.
        v: another one.
        w: another one.
        axis: the axis that runs over the outcomes.

    Returns:
        T(u, v, w), of the shape that the inputs without ``axis`` broadcast to,
        in float32 (float64 if an input is).

    Raises:
        TypeError: not arrays, of different libraries, or not real floating.
        ValueError: shapes do not broadcast, devices differ, or the axis is missing or empty.

    Example:
        >>> import numpy as np
        >>> from amidmath import geometry
        >>> log_p, u = np.log([0.75, 0.25]), np.asarray([0.0, 1.0])
        >>> print(geometry.amari_chentsov(log_p, u, u, u))
        0.09375
    """
    axis, xp, (log_p, u, v, w) = points.checked(axis, {"log_p": log_p}, {"u": u, "v": v, "w": w})
    p, centered = points.centering(log_p, axis, xp)
    return xp.sum(p * centered(u) * centered(v) * centered(w), axis=axis)


def connection(log_p: Array, u: Array, v: Array, *, alpha: float, axis: int = -1) -> Array:
    """The covariant derivative ∇⁽ᵅ⁾_u v at p of fields that are constant in logit coordinates.

    (1-α)/2 (ũṽ - Cov_p(u, v)) with ũ = u - E_p u, ṽ = v - E_p v: a tangent vector in logit
    coordinates, given with mean zero under p. α = 1 is the exponential connection, flat in these
    coordinates: 0; α = -1 is the mixture connection; α = 0 is Levi-Civita. ∇⁽ᵅ⁾ and ∇⁽⁻ᵅ⁾ are dual
    for the Fisher metric. Differentiable by the array library.

    Source: Amari & Nagaoka (2000), section 2.3; docs: geometry, I7.

    Args:
        log_p: log-probabilities of p, any shape, real floating dtype.
        u: a change of the logits at each outcome, same library and device, as many outcomes; the
            axes of batches broadcast as NumPy's do. Not read where p is zero.
        v: another one.
        alpha: α, a finite number.
        axis: the axis that runs over the outcomes.

    Returns:
        ∇⁽ᵅ⁾_u v, of the shape that the inputs broadcast to, in float32 (float64 if an input is); 0
        where p is zero.

    Raises:
        TypeError: not arrays, of different libraries, or not real floating; α not a number.
        ValueError: shapes do not broadcast, devices differ, the axis is missing or empty, or α is
            not finite.

    Example:
        >>> import numpy as np
        >>> from amidmath import geometry
        >>> log_p, u = np.log([0.75, 0.25]), np.asarray([0.0, 1.0])
        >>> print(geometry.connection(log_p, u, u, alpha=-1.0))
        [-0.125  0.375]
    """
    axis, xp, (log_p, u, v) = points.checked(axis, {"log_p": log_p}, {"u": u, "v": v})
    half = (1.0 - checks.number("alpha", alpha)) / 2.0
    _, centered = points.centering(log_p, axis, xp)
    return xp.where(log_p > -xp.inf, half * centered(centered(u) * centered(v)), 0.0)
