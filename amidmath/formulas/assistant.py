"""The α-mixture of two distributions, pointwise: log ratios to its sources, and its weights."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from amidmath.arrays.annotations import Array, Namespace
from amidmath.formulas.assistant_derivatives import drift
from amidmath.formulas.differentiated import differentiates, held
from amidmath.formulas.pointwise import expm1_near, log1p_near, log_odds

# Beyond this the limit α = ±inf is exact: |log M - limit| <= |log min λ| / |k|, below any eps.
_INFINITE = 2.0**80

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
        return _extreme(log_ratio, k, lam, xp)
    return power_ratios(log_ratio, 0.0, k, log_odds(lam, xp), xp)[:4]


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
    log_ratio: Array, base: Array | float, k: Array | float, odds: Array | float, xp: Namespace
) -> Reweighted:
    """The ratios at a finite k that is not 0, less what they are at l = base; docs: mixtures, M4.

    With μ the lighter weight at the base, and y = ±k(l - base) growing with it, the sum of powers
    over the heavier source's is 1 + μ(eʸ - 1) = (1-μ)(1 + e^{lead}), where lead, the log odds of
    the lighter source, is made of l itself: next to a base far away, l - base knows little of l.

    Args:
        log_ratio: l = log p - log q.
        base: a finite log ratio, a number or one a row.
        k: the exponent.
        odds: log(λ/(1-λ)).
        xp: the namespace that computes.
    """
    odds_there = odds + k * base
    if isinstance(odds_there, float):
        odds_there = xp.zeros_like(log_ratio) + odds_there
    q_lighter, size = _lighter(odds_there, xp)
    zero = xp.zeros_like(size)
    turn = xp.where(q_lighter, zero - 1.0, zero + 1.0)
    y = (turn * k) * (log_ratio - base)
    rest = xp.exp(-size)
    lighter, log_heavier = rest / (1.0 + rest), -xp.log1p(rest)
    lead = turn * odds + (turn * k) * log_ratio
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


def _extreme(log_ratio: Array, k: Array | float, lam: Array | float, xp: Namespace) -> Ratios:
    """The maximum (k = inf) or the minimum (k = -inf) of the two."""
    zero = xp.zeros_like(log_ratio)
    if isinstance(k, float):
        p_leads = log_ratio > 0.0 if k > 0.0 else log_ratio < 0.0
    else:
        p_leads = xp.where(k > 0.0, log_ratio, -log_ratio) > 0.0
    pi = xp.where(log_ratio == 0.0, zero + lam, xp.where(p_leads, zero + 1.0, zero))
    return xp.where(p_leads, 0.0, -log_ratio), xp.where(p_leads, log_ratio, 0.0), pi, 1.0 - pi


def mixture_ratios_of(
    log_ratio: Array, k: Array | float, lam: Array | float, xp: Namespace
) -> Ratios:
    """:func:`mixture_ratios` where k or λ may be arrays that broadcast with the log ratio."""
    return anchored_ratios("p", log_ratio, 0.0, k, lam, xp)


def anchored_ratios(
    side: str,
    log_ratio: Array,
    base: Array | float,
    k: Array | float,
    lam: Array | float,
    xp: Namespace,
) -> Ratios:
    """Both log ratios less one number, that of log(r̃/u) where the log ratio is ``base``; π and w.

    r̃ over its value there is again a mixture, of p and q over theirs, with the weights that they
    have there: so the differences keep their relative precision. Docs: mixtures, M11.

    Args:
        side: the source u, "p" or "q".
        log_ratio: l = log p - log q.
        base: a finite log ratio, one a row; the number 0 takes nothing off.
        k: the exponent, a number or an array.
        lam: λ, a number or an array.
        xp: the namespace that computes.
    """
    if isinstance(k, float) and isinstance(lam, float):
        if math.isinf(k) or lam in (0.0, 1.0):
            return _anchored_limit(side, log_ratio, base, partial(mixture_ratios, k=k, lam=lam), xp)
        if k == 0.0:
            return _anchored_geometric(side, log_ratio, base, lam, xp)
        return _anchored_power(side, log_ratio, base, k, lam, xp)
    zero = xp.zeros_like(log_ratio)
    k, lam = zero + k, zero + lam
    if not differentiates(xp):
        return _anchored_arrays(side, log_ratio, base, k, lam, xp)
    still = held(k, xp), held(lam, xp)
    over_p, over_q, pi, w = _anchored_arrays(side, log_ratio, base, *still, xp)
    # Where a source is zero r̃ is too, or a large ratio stands for it.
    positive = still[0] > 0.0
    far = 1e3 / xp.where(positive, still[0], 1.0)
    for zero, there, ratio in (
        (log_ratio == xp.inf, positive & (still[1] > 0.0), far),
        (log_ratio == -xp.inf, positive & (still[1] < 1.0), -far),
    ):
        log_ratio = xp.where(zero, xp.where(there, ratio, 0.0), log_ratio)
    ratios = _anchored_arrays("p", log_ratio, 0.0, *still, xp)
    moving = drift(log_ratio, k, lam, *ratios[:2], *still, xp)
    return over_p + moving, over_q + moving, pi, w


def _anchored_arrays(
    side: str, log_ratio: Array, base: Array | float, k: Array, lam: Array, xp: Namespace
) -> Ratios:
    sharp, flat = xp.isinf(k), k == 0.0
    none, full = lam == 0.0, lam == 1.0
    share = xp.where(none | full, 0.5, lam)
    result = _anchored_power(side, log_ratio, base, xp.where(sharp | flat, 1.0, k), share, xp)
    limit = partial(_anchored_limit, side, log_ratio, base)
    for holds, values in (
        (sharp, limit(partial(_extreme, k=k, lam=share), xp)),
        (flat, _anchored_geometric(side, log_ratio, base, share, xp)),
        (none, limit(partial(mixture_ratios, k=1.0, lam=0.0), xp)),
        (full, limit(partial(mixture_ratios, k=1.0, lam=1.0), xp)),
    ):
        result = tuple(xp.where(holds, a, b) for a, b in zip(values, result, strict=True))
    return result


def _anchored_limit(
    side: str,
    log_ratio: Array,
    base: Array | float,
    ratios: Callable[..., Ratios],
    xp: Namespace,
) -> Ratios:
    """Those of a source, a maximum or a minimum: each is 0 or ±l, and taken off as it is."""
    over_p, over_q, pi, w = ratios(log_ratio, xp=xp)
    if isinstance(base, float):
        return over_p, over_q, pi, w
    there = ratios(base, xp=xp)[0 if side == "p" else 1]
    return over_p - there, over_q - there, pi, w


def _anchored_geometric(
    side: str, log_ratio: Array, base: Array | float, lam: Array | float, xp: Namespace
) -> Ratios:
    """Those at k = 0, each by terms that are no larger than they need to be."""
    mu = 1.0 - lam
    zero = xp.zeros_like(log_ratio)
    d = log_ratio - base
    if side == "p":
        return -mu * d, lam * log_ratio + mu * base, zero + lam, zero + mu
    return -mu * log_ratio - lam * base, lam * d, zero + lam, zero + mu


def _anchored_power(
    side: str,
    log_ratio: Array,
    base: Array | float,
    k: Array | float,
    lam: Array | float,
    xp: Namespace,
) -> Ratios:
    """Those at a finite k that is not 0.

    The ratio to the other source v, less the same number, is the one to u plus l, and the one to v
    plus the base; and where v counts the weights know it: r̃ᵏ/vᵏ is the weight of v over its share.
    Whichever has the smaller terms is taken.
    """
    odds = log_odds(lam, xp)
    ratios = power_ratios(log_ratio, base, k, odds, xp)
    if isinstance(base, float):
        return ratios[:4]
    sign, own, to_v, share, log_share = (
        (1.0, ratios.over_p, ratios.over_q, ratios.w, ratios.log_w)
        if side == "p"
        else (-1.0, ratios.over_q, ratios.over_p, ratios.pi, ratios.log_pi)
    )
    q_lighter, size = _lighter(odds + k * base, xp)
    log_heavier = -xp.log1p(xp.exp(-size))
    heavier = q_lighter if side == "p" else ~q_lighter
    log_share_there = xp.where(heavier, log_heavier, log_heavier - size)
    known = (log_share_there - sign * odds - log_share) / k
    smaller = abs(odds) - log_share_there < xp.abs(k * base)
    apart = (share > 0.25) & (xp.abs(k * log_ratio) > 1.0) & smaller
    by_base = xp.abs(base) < xp.abs(log_ratio)
    other = xp.where(by_base, to_v + sign * base, own + sign * log_ratio)
    other = xp.where(apart, known, other)
    over_p, over_q = (own, other) if side == "p" else (other, own)
    return over_p, over_q, ratios.pi, ratios.w


def log_mixture(log_p: Array, log_q: Array, ratios: Ratios, xp: Namespace) -> Array:
    """Return log r̃, added up from the source that leads the mean, so that no infinities cancel.

    Ratios may be those of :func:`anchored_ratios`, less one number. Docs: mixtures, M6.
    """
    over_p, over_q, pi, w = ratios
    p_leads = ((pi >= w) & (over_p < xp.inf)) | (over_q == xp.inf)
    return xp.where(p_leads, log_p + over_p, log_q + over_q)
