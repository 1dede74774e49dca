"""Elementwise building blocks, each written once for every backend.

The last argument ``xp`` names what computes ``exp``, ``where`` and the like: an array library
here, a module of scalar functions inside a Numba kernel, ``triton.language`` inside a Triton one.
Nothing else is assumed, so the same function runs in all of them.

Notation: a number is carried as its logarithm, and next to two logarithms ``n`` and ``m`` comes
their difference ``z = n - m``, which callers know more precisely than they could subtract it.
"""

import math
from typing import Any

from amidmath.arrays.annotations import Array, Namespace

# A factor below this acts as zero to the last bit, and its square would underflow.
NEGLIGIBLE = 1e-20
# Logarithms of the smallest normal numbers.
LEAST_LOG, LEAST_LOG_SINGLE = -1022.0 * math.log(2.0), -126.0 * math.log(2.0)


def _series(highest: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """1/(j+2)! for even and for odd j, from the highest down."""
    return tuple(
        tuple(1.0 / math.factorial(j + 2) for j in range(highest, -1, -1) if j % 2 == odd)
        for odd in (0, 1)
    )  # type: ignore[return-value]


# What is left out is below half a unit in the last place.
_PHI2, _PHI2_SINGLE = _series(16), _series(9)


def phi2(z: Array, xp: Namespace) -> Array:
    """φ₂(z) = (eᶻ - 1 - z)/z² by its Taylor series, for |z| <= 1 (docs: stable evaluation, S1)."""
    even, odd = _PHI2_SINGLE if _is_single(z, xp) else _PHI2
    square = z * z
    return _horner(even, square) + z * _horner(odd, square)


def _horner(coefficients: tuple[float, ...], z: Array) -> Array:
    p: Array = coefficients[0]
    for coefficient in coefficients[1:]:
        p = coefficient + z * p
    return p


def _is_single(z: Array, xp: Namespace) -> bool:
    """Whether an array is in single precision; plain numbers are not."""
    return hasattr(z, "dtype") and xp.finfo(z.dtype).bits == 32


def expm1_near(z: Array, xp: Namespace) -> Array:
    """eᶻ - 1 for |z| <= 1, where it shares its series with :func:`exp_bregman`; docs: S1."""
    return z + z * z * phi2(z, xp)


def exp_difference(n: Array, m: Array, z: Array, xp: Namespace) -> Array:
    """eⁿ - eᵐ without cancellation for nearby n and m (docs: stable evaluation, S2)."""
    near = xp.abs(z) <= 1.0
    e_m = xp.exp(m)
    return xp.where(near, e_m * expm1_near(xp.where(near, z, 0.0), xp), xp.exp(n) - e_m)


def exp_bregman(n: Array, m: Array, z: Array, xp: Namespace) -> Array:
    """eⁿ - eᵐ - eᵐ(n - m) >= 0, the Bregman divergence of exp (docs: stable evaluation, S3).

    Right at n = -inf (+inf unless m = -inf too), at n = +inf, at m = -inf (eⁿ), and where both
    are -inf and z = 0; +inf where the powers overflow.
    """
    near = xp.abs(z) <= 1.0
    z_near = xp.where(near, z, 0.0)
    e_n, e_m = xp.exp(n), xp.exp(m)
    gap = z_near * z_near * phi2(z_near, xp)
    # Where there is no mass the factor is replaced, not the product, whose derivative is 0·∞ there.
    tangent = e_m * xp.where(e_m == 0.0, 0.0, 1.0 + z)
    # The tangent lies below the curve; where it does not, both have overflowed (or underflowed).
    far = xp.where(e_n <= tangent, e_n, e_n - tangent)
    # NaN at n = m where the powers overflow, and only there; not a choice by gap > 0, which would
    # make the term a constant at n = m, and its second derivative 0.
    close = e_m * gap
    return xp.where(near, xp.where(close >= 0.0, close, 0.0), far)


def exp_quotient(n: Array, m: Array, g: float, d: Array, xp: Namespace) -> Array:
    """(eⁿ - eᵐ)/g for n = m + g·d, and its limit eᵐ·d at g = 0 (docs: stable evaluation, S6)."""
    if abs(g) < NEGLIGIBLE:
        return weighted(xp.exp(m), d, xp)
    return exp_difference(n, m, g * d, xp) / g


def expm1_quotient(c: Array | float, x: Array, xp: Namespace) -> Array:
    """E(c, x) = (e^{cx} - 1)/c, x at c = 0, 0 at c = ±inf (docs: stable evaluation, S6)."""
    c = xp.zeros_like(x) + c
    sharp, bounded = xp.isinf(c), xp.where(xp.isinf(x), 0.0, x)
    z = xp.where(sharp, 1.0, c) * xp.where(c == 0.0, bounded, x)
    near = xp.abs(z) <= 1.0
    z_near = xp.where(near, z, 0.0)
    close = x + bounded * (z_near * phi2(z_near, xp))
    z_far, c_far = xp.where(near, 1.0, z), xp.where(near | sharp, 1.0, c)
    far = xp.expm1(z_far) / c_far
    return xp.where(sharp, 0.0, xp.where(near, close, far))


def difference_parts(a: Array, b: Array, xp: Namespace) -> tuple[Array, Array]:
    """Return a - b rounded, and what rounding took away: Knuth's exact sum; docs: S5."""
    rounded = a - b
    back = rounded - a
    lost = (a - (rounded - back)) - (b + back)
    return rounded, xp.where(xp.abs(rounded) < xp.inf, lost, 0.0)


def weighted(mass: Array, x: Array, xp: Namespace) -> Array:
    """Mass times x, and 0 where there is no mass, though x be infinite (docs: S6)."""
    return xp.where(mass != 0.0, mass * xp.where(mass != 0.0, x, 0.0), 0.0)


def log_near_one(excess: Array, log_total: Array, xp: Namespace) -> Array:
    """Return log(1 + excess), which log_total is too, but for rounding near excess = 0.

    Docs: stable evaluation, S4. The threshold keeps clear of [-0.53, -0.28], where XLA's log1p in
    float64 is wrong by up to 129 ulp on the CPU (github.com/jax-ml/jax/issues/39707).
    """
    near = (excess > -0.25) & (excess < 1e36)
    return xp.where(near, xp.log1p(xp.where(near, excess, 0.0)), log_total)


def is_near_one(excess: Array) -> Array:
    """Whether log(1 + excess) is small, and has its digits from the excess; docs: S4."""
    return (excess > -0.25) & (excess < 1.0)


def log_odds(lam: Array | float, xp: Namespace) -> Any:
    """log(λ/(1-λ)), without cancellation for λ near ½, ±inf at the ends.

    Of a number in double precision, whatever the dtype: λ itself may not be a number of it.
    """
    if isinstance(lam, float):
        if lam in (0.0, 1.0):
            return math.copysign(math.inf, lam - 0.5)
        if 0.25 < lam < 0.75:
            return -math.log1p((1.0 - 2.0 * lam) / lam)
        return math.log(lam) - math.log1p(-lam)
    inside = xp.where((lam > 0.0) & (lam < 1.0), lam, 0.5)
    middle = (inside > 0.25) & (inside < 0.75)
    near = xp.where(middle, inside, 0.5)
    odds = xp.where(
        middle, -xp.log1p((1.0 - 2.0 * near) / near), xp.log(inside) - xp.log1p(-inside)
    )
    return xp.where(lam == 0.0, -xp.inf, xp.where(lam == 1.0, xp.inf, odds))


def log1p_near(x: Array, xp: Namespace) -> Array:
    """log(1 + x) for -0.28 < x <= 1, for which a kernel may have a shorter way."""
    return getattr(xp, "log1p_near", xp.log1p)(x)


def absent(log_x: Array, log_y: Array, xp: Namespace) -> Array:
    """Whether a token takes no part in a divergence: neither distribution has it.

    A probability below the smallest normal number is none: some backends keep a few bits of it,
    others round it to 0, and one next to an exact 0 would be infinitely far from it here and at no
    distance there. Docs: stable evaluation, S8.
    """
    least = LEAST_LOG_SINGLE if _is_single(log_x, xp) else LEAST_LOG
    return (log_x < least) & (log_y < least)


def shared_support(
    log_x: Array, log_y: Array, log_ratio: Array, xp: Namespace
) -> tuple[Array, Array, Array]:
    """The three arguments, with x = y = 1 put where neither has mass: every divergence is 0 there.

    A token that neither distribution has (a padded vocabulary entry) takes no part in them.
    """
    return without(absent(log_x, log_y, xp), log_x, log_y, log_ratio, xp)


def without(
    nothing: Array, log_x: Array, log_y: Array, log_ratio: Array, xp: Namespace
) -> tuple[Array, Array, Array]:
    """The three arguments, with x = y = 1 put where ``nothing`` is true."""
    x, y, ratio = (xp.where(nothing, 0.0, a) for a in (log_x, log_y, log_ratio))
    return x, y, ratio


def ratio_of(log_x: Array, log_y: Array, log_ratio: Array, xp: Namespace) -> Array:
    """The log ratio, and 0 where both logarithms are -inf."""
    return xp.where((log_x == -xp.inf) & (log_y == -xp.inf), 0.0, log_ratio)
