"""The α-mixture of two distributions, pointwise: log ratios to its sources, and its weights."""

import math

from amidmath._pointwise import log_near_one
from amidmath._typing import Array, Namespace

# Beyond this the limit α = ±inf is exact: |log M - limit| <= |log min λ| / |k|, below any eps.
_INFINITE = 2.0**80


def exponent(alpha: float) -> float:
    """Exponent k = (1 - α)/2 of the f_α-mean; ±inf where the mean is the max or the min."""
    k = (1.0 - alpha) / 2.0
    return math.copysign(math.inf, k) if abs(k) >= _INFINITE else k


def mixture_ratios(
    log_ratio: Array, k: float, lam: float, exp_limit: float, xp: Namespace
) -> tuple[Array, Array, Array, Array]:
    """Log ratios log(r̃/p), log(r̃/q) and weights π, w of r̃ = (λpᵏ + (1-λ)qᵏ)^(1/k).

    Both ratios keep their relative precision however close r̃ is to that source, which a
    subtraction of logarithms would not. Docs: mixtures, M3 to M6.

    Args:
        log_ratio: l = log p - log q; ±inf where one of them is zero, 0 where both are.
        k: the exponent; 0 is the geometric mean, ±inf the maximum and the minimum.
        lam: λ, the weight of p, in [0, 1].
        exp_limit: the largest x for which both exp(x) and exp(-x) are normal numbers.
        xp: the namespace that computes.

    Returns:
        log(r̃/p), log(r̃/q), π = ∂log r̃/∂log p, w = ∂log r̃/∂log q.
    """
    zero = xp.zeros_like(log_ratio)
    if lam == 0.0:
        return -log_ratio, zero, zero, zero + 1.0
    if lam == 1.0:
        return zero, log_ratio, zero + 1.0, zero
    if k == 0.0:
        return (lam - 1.0) * log_ratio, lam * log_ratio, zero + lam, zero + (1.0 - lam)
    if math.isinf(k):
        signed = math.copysign(1.0, k) * log_ratio
        p_leads = signed > 0.0
        tie = signed == 0.0
        pi = xp.where(tie, lam, xp.where(p_leads, 1.0, zero))
        return xp.where(p_leads, 0.0, -log_ratio), xp.where(p_leads, log_ratio, 0.0), pi, 1.0 - pi

    x = k * log_ratio
    p_leads = x > 0.0
    size = xp.abs(x)
    inside = xp.where(size < exp_limit, size, exp_limit)
    beyond = size - inside
    shrink = xp.exp(-inside)
    down = xp.expm1(-inside)
    up = -down / shrink
    # total_*: the sum of powers over the leading source's; excess_*: the same minus one.
    total_p = lam + (1.0 - lam) * shrink
    total_q = (1.0 - lam) + lam * shrink
    excess_p = (1.0 - lam) * xp.where(p_leads, down, up)
    excess_q = lam * xp.where(p_leads, up, down)
    over_p = (log_near_one(excess_p, xp.log(total_p), xp) + xp.where(p_leads, 0.0, beyond)) / k
    over_q = (log_near_one(excess_q, xp.log(total_q), xp) + xp.where(p_leads, beyond, 0.0)) / k
    pi = xp.where(p_leads, lam / total_p, lam * shrink / total_q)
    w = xp.where(p_leads, (1.0 - lam) * shrink / total_p, (1.0 - lam) / total_q)
    return over_p, over_q, pi, w


def log_mixture(
    log_p: Array,
    log_q: Array,
    over_p: Array,
    over_q: Array,
    k: float,
    lam: float,
    xp: Namespace,
) -> Array:
    """Return log r̃, added up from the source that leads the mean, so that no infinities cancel."""
    if lam == 0.0:
        return log_q
    if lam == 1.0:
        return log_p
    p_leads = (log_p > log_q) if k >= 0.0 else (log_p < log_q)
    return xp.where(p_leads, log_p + over_p, log_q + over_q)
