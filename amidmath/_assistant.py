"""The α-mixture of two distributions, pointwise: log ratios to its sources, and its weights."""

import math
from typing import Any, NamedTuple

from amidmath._pointwise import exp_bregman, expm1_near, expm1_quotient, log1p_near
from amidmath._typing import Array, Namespace

# Beyond this the limit α = ±inf is exact: |log M - limit| <= |log min λ| / |k|, below any eps.
_INFINITE = 2.0**80
# Where |k l| is below this, the limit k = 0 of ∂log r̃/∂α is exact, and its square would underflow.
SMALL_POWER = 1e-17

Ratios = tuple[Array, Array, Array, Array]
"""log(r̃/p), log(r̃/q), π = ∂log r̃/∂log p, w = ∂log r̃/∂log q."""


def exponent(alpha: float) -> float:
    """Exponent k = (1 - α)/2 of the f_α-mean; ±inf where the mean is the max or the min."""
    k = (1.0 - alpha) / 2.0
    return math.copysign(math.inf, k) if abs(k) >= _INFINITE else k


def exponents(alpha: Array, xp: Namespace) -> Array:
    """The same for an array of α."""
    k = (1.0 - alpha) / 2.0
    limit = xp.where(k > 0.0, xp.inf, xp.zeros_like(k) - xp.inf)
    return xp.where(xp.abs(k) >= _INFINITE, limit, k)


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


def mixture_ratios(log_ratio: Array, k: float, lam: float, xp: Namespace) -> Ratios:
    """Log ratios log(r̃/p), log(r̃/q) and weights π, w of r̃ = (λpᵏ + (1-λ)qᵏ)^(1/k).

    Both ratios keep their relative precision however close r̃ is to that source, which a
    subtraction of logarithms would not. Docs: mixtures, M3 to M6.

    Args:
        log_ratio: l = log p - log q; ±inf where one of them is zero, 0 where both are.
        k: the exponent; 0 is the geometric mean, ±inf the maximum and the minimum.
        lam: λ, the weight of p, in [0, 1].
        xp: the namespace that computes.
    """
    zero = xp.zeros_like(log_ratio)
    if lam == 0.0:
        return -log_ratio, zero, zero, zero + 1.0
    if lam == 1.0:
        return zero, log_ratio, zero + 1.0, zero
    if k == 0.0:
        return (lam - 1.0) * log_ratio, lam * log_ratio, zero + lam, zero + (1.0 - lam)
    if math.isinf(k):
        return _extreme(log_ratio if k > 0.0 else -log_ratio, log_ratio, lam, xp)
    return power_ratios(log_ratio, k, log_odds(lam, xp), xp)[:4]


class Reweighted(NamedTuple):
    """The ratios of r̃ less what they are at a base, the weights, and the weights' logarithms.

    The logarithms are right to a few units in the last place of 1, and only where r̃ is a power
    mean (k finite and not 0, 0 < λ < 1).
    """

    over_p: Array
    over_q: Array
    pi: Array
    w: Array
    log_pi: Array
    log_w: Array


def power_ratios(
    log_ratio: Array, k: Array | float, odds: Array | float, xp: Namespace
) -> Reweighted:
    """The ratios at a finite k that is not 0, by the log odds log(π/w) where p = q.

    With μ the lighter weight there, and y = ±k l growing with it, the sum of powers over the
    heavier source's is 1 + μ(eʸ - 1) = (1-μ)(1 + e^{y - |odds|}); docs: mixtures, M4.
    """
    x = k * log_ratio
    q_lighter, size = _lighter(odds + xp.zeros_like(x), xp)
    y = xp.where(q_lighter, -x, x)
    rest = xp.exp(-size)
    lighter, log_heavier = rest / (1.0 + rest), -xp.log1p(rest)
    lead = y - size  # log odds of the lighter source here
    lighter_leads = lead > 0.0
    shrunk = xp.exp(xp.where(lighter_leads, -lead, lead))  # not -|lead|; see _lighter
    # The first form below y = -0.8 would bring log1p where JAX's is wrong (see log_near_one).
    near = (y > -0.8) & (y < 1.0)
    y_near = xp.where(near, y, 0.0)
    log_rest = log1p_near(xp.where(near, lighter * expm1_near(y_near, xp), shrunk), xp)
    above, below = xp.where(lighter_leads, lead, 0.0), xp.where(lighter_leads, 0.0, lead)
    both = log_heavier + log_rest
    log_total = xp.where(near, log_rest, both + above)
    # The same over the lighter source's power.
    log_other = xp.where(near, log_rest - y_near, both - xp.where(lighter_leads, size, y))
    log_heavy = xp.where(near, log_heavier, -above) - log_rest
    log_light = xp.where(near, log_heavier + lead, below) - log_rest
    heavy, light = log_total / k, log_other / k
    major = 1.0 / (1.0 + shrunk)
    minor = shrunk * major
    q_leads = q_lighter == lighter_leads
    return Reweighted(
        xp.where(q_lighter, heavy, light),
        xp.where(q_lighter, light, heavy),
        xp.where(q_leads, minor, major),
        xp.where(q_leads, major, minor),
        xp.where(q_lighter, log_heavy, log_light),
        xp.where(q_lighter, log_light, log_heavy),
    )


def _lighter(odds: Array, xp: Namespace) -> tuple[Array, Array]:
    """Whether q is the lighter source, and |odds|.

    As a choice, for a library that differentiates it: abs has no derivative at 0, and what is made
    of the two here has one.
    """
    q_lighter = odds >= 0.0
    return q_lighter, xp.where(q_lighter, odds, -odds)


def _extreme(signed: Array, log_ratio: Array, lam: Array | float, xp: Namespace) -> Ratios:
    """The maximum, or the minimum, of the two: the source where ``signed`` is positive is p."""
    zero = xp.zeros_like(log_ratio)
    p_leads = signed > 0.0
    pi = xp.where(signed == 0.0, zero + lam, xp.where(p_leads, zero + 1.0, zero))
    return xp.where(p_leads, 0.0, -log_ratio), xp.where(p_leads, log_ratio, 0.0), pi, 1.0 - pi


def mixture_ratios_of(
    log_ratio: Array, k: Array | float, lam: Array | float, xp: Namespace
) -> Ratios:
    """:func:`mixture_ratios` where k or λ may be arrays that broadcast with the log ratio."""
    return reweighted(log_ratio, 0.0, k, lam, xp)[:4]


def reweighted(
    log_ratio: Array,
    base: Array | float,
    k: Array | float,
    lam: Array | float,
    xp: Namespace,
) -> Reweighted:
    """The ratios less what they are where the log ratio is ``base``, and the weights.

    r̃ over its value there is again a mixture, of p and q over theirs, with the weights that they
    have there: so the differences keep their relative precision. Docs: mixtures, M11.

    Args:
        log_ratio: l = log p - log q.
        base: a finite log ratio, a number or one a row.
        k: the exponent, a number or an array.
        lam: λ, a number or an array.
        xp: the namespace that computes.
    """
    d = log_ratio - base
    if isinstance(k, float) and isinstance(lam, float):
        if math.isinf(k) and 0.0 < lam < 1.0:
            return Reweighted(*_extreme_from(log_ratio, base, k, lam, xp), d, d)
        if k == 0.0 or lam in (0.0, 1.0):
            return Reweighted(*mixture_ratios(d, k, lam, xp), d, d)
        return power_ratios(d, k, log_odds(lam, xp) + k * base, xp)
    zero = xp.zeros_like(d)
    k, lam = zero + k, zero + lam
    sharp, flat = xp.isinf(k), k == 0.0
    none, full = lam == 0.0, lam == 1.0
    share = xp.where(none | full, 0.5, lam)
    inside = xp.where(sharp | flat, 1.0, k)
    power = power_ratios(d, inside, log_odds(share, xp) + inside * base, xp)
    result: Ratios = power[:4]
    for holds, values in (
        (sharp, _extreme_from(log_ratio, base, k, share, xp)),
        (flat, ((share - 1.0) * d, share * d, share, 1.0 - share)),
        (none, (-d, zero, zero, zero + 1.0)),
        (full, (zero, d, zero + 1.0, zero)),
    ):
        result = tuple(xp.where(holds, a, b) for a, b in zip(values, result, strict=True))
    return Reweighted(*result, power.log_pi, power.log_w)


def from_the_other(
    side: str,
    base: Array,
    k: Array | float,
    lam: Array | float,
    ratios: Reweighted,
    xp: Namespace,
) -> Array:
    """log(r̃/v) less log(r̃/u) at ``base``, for the side u and the other source v.

    The two would cancel in the sum of the reweighted ratio and ``base`` where that is large; the
    weights know it: r̃ᵏ/vᵏ is the weight of v over its share. Docs: mixtures, M11.
    """
    sign, over, share, log_share = (
        (1.0, ratios.over_q, ratios.w, ratios.log_w)
        if side == "p"
        else (-1.0, ratios.over_p, ratios.pi, ratios.log_pi)
    )
    added = over + sign * base
    numbers = isinstance(k, float) and isinstance(lam, float)
    if numbers and (k == 0.0 or math.isinf(k) or lam in (0.0, 1.0)):
        return added
    usable: Array = True
    if not numbers:
        zero = xp.zeros_like(base)
        k, lam = zero + k, zero + lam
        usable = (k != 0.0) & ~xp.isinf(k) & (lam > 0.0) & (lam < 1.0)
        k, lam = xp.where(usable, k, 1.0), xp.where(usable, lam, 0.5)
    odds = log_odds(lam, xp)
    q_lighter, size = _lighter(odds + k * base, xp)
    log_heavier = -xp.log1p(xp.exp(-size))
    heavier = q_lighter if side == "p" else ~q_lighter
    log_share_there = xp.where(heavier, log_heavier, log_heavier - size)
    apart = (xp.abs(k * base) > 1.0) & (share > 0.25) & usable
    known = (log_share_there - sign * odds - log_share) / k
    return xp.where(apart, known, added)


def _extreme_from(
    log_ratio: Array, base: Array | float, k: Array | float, lam: Array | float, xp: Namespace
) -> Ratios:
    zero = xp.zeros_like(log_ratio)
    sign = xp.where(zero + k > 0.0, 1.0, zero - 1.0)
    base = zero + base
    there = _extreme(sign * base, base, lam, xp)
    over_p, over_q, pi, w = _extreme(sign * log_ratio, log_ratio, lam, xp)
    return over_p - there[0], over_q - there[1], pi, w


def log_mixture(log_p: Array, log_q: Array, ratios: Ratios, xp: Namespace) -> Array:
    """Return log r̃, added up from the source that leads the mean, so that no infinities cancel.

    Ratios may be those of :func:`reweighted`, less one number. Docs: mixtures, M6.
    """
    over_p, over_q, pi, w = ratios
    p_leads = ((pi >= w) & (over_p < xp.inf)) | (over_q == xp.inf)
    return xp.where(p_leads, log_p + over_p, log_q + over_q)


def by_lam(
    k: Array | float, lam: Array | float, log_ratio: Array, ratios: Ratios, xp: Namespace
) -> Array:
    """∂log r̃/∂λ = E(k, log(p/r̃)) - E(k, log(q/r̃)), of opposite signs (docs: mixtures, M8)."""
    over_p, over_q, pi, w = ratios
    direct = expm1_quotient(k, -over_p, xp) - expm1_quotient(k, -over_q, xp)
    # The same by the weights, where the exponents are large and so is their rounding.
    k, lam = xp.zeros_like(over_p) + k, xp.zeros_like(over_p) + lam
    apart = (xp.abs(k * log_ratio) > 1.0) & ~xp.isinf(k) & (k != 0.0) & (lam > 0.0) & (lam < 1.0)
    k, share = xp.where(apart, k, 1.0), xp.where(apart, lam, 0.5)
    return xp.where(apart, (pi / share - w / (1.0 - share)) / k, direct)


def by_alpha(
    k: Array | float,
    lam: Array | float,
    log_ratio: Array,
    over_p: Array,
    over_q: Array,
    xp: Namespace,
) -> Array:
    """∂log r̃/∂α = -KL(π‖λ)/(2k²), a sum of two negatives (docs: mixtures, M9)."""
    k, lam = xp.zeros_like(over_p) + k, xp.zeros_like(over_p) + lam
    mixed = (lam > 0.0) & (lam < 1.0)
    over_p, over_q = xp.where(mixed, over_p, 0.0), xp.where(mixed, over_q, 0.0)
    extreme, geometric = xp.isinf(k), xp.abs(k * log_ratio) < SMALL_POWER
    inside = xp.where(extreme | geometric, 1.0, k)
    total = lam * kl_share(inside * over_p, xp) + (1.0 - lam) * kl_share(inside * over_q, xp)
    power = -0.5 * (total / inside) / inside
    limit = -0.25 * lam * (1.0 - lam) * xp.where(geometric & mixed, log_ratio * log_ratio, 0.0)
    return xp.where(extreme | ~mixed, 0.0, xp.where(geometric, limit, power))


def kl_share(z: Array, xp: Namespace) -> Array:
    """1 - e^{-z}(1 + z): the term of KL(π‖λ) over λ, with π = λe^{-z} (docs: mixtures, M9)."""
    return exp_bregman(xp.zeros_like(z), -z, z, xp)
