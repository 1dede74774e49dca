"""Derivatives of the α-mixture by its knobs, α and λ, pointwise."""

from collections.abc import Callable
from typing import NamedTuple

from amidmath.arrays.annotations import Array, Namespace
from amidmath.formulas.pointwise import exp_bregman, expm1_quotient, log_odds, phi2, weighted

Ratios = tuple[Array, Array, Array, Array]


class Shares(NamedTuple):
    """π and w where |k l| > 1 at a finite k that is not 0; docs: mixtures, M8, M9.

    Args:
        apart: where that is.
        p_leads: whether π is the larger one.
        minor: the smaller one.
        short: by how much KL(π‖λ) is below -log of the leader's weight.
        k: the exponent, 1 where it is not used.
        lam: λ, ½ where it is not used.
        odds: log(λ/(1-λ)).
    """

    apart: Array
    p_leads: Array
    minor: Array
    short: Array
    k: Array
    lam: Array
    odds: Array


def shares(k: Array | float, lam: Array | float, log_ratio: Array, xp: Namespace) -> Shares:
    """The shares of both sources, to the precision of the smaller one."""
    zero = xp.zeros_like(log_ratio)
    k, lam = zero + k, zero + lam
    usable = ~xp.isinf(k) & (k != 0.0) & (lam > 0.0) & (lam < 1.0)
    k, lam = xp.where(usable, k, 1.0), xp.where(usable, lam, 0.5)
    odds, x = log_odds(lam, xp), k * log_ratio
    p_over_q = odds + x
    p_leads = p_over_q > 0.0
    rest = xp.exp(xp.where(p_leads, -p_over_q, p_over_q))
    minor = rest / (1.0 + rest)
    short = xp.log1p(rest) + weighted(minor, xp.where(p_leads, x, -x), xp)
    return Shares(usable & (xp.abs(x) > 1.0), p_leads, minor, short, k, lam, odds)


def by_lam(k: Array | float, at: Shares, ratios: Ratios, xp: Namespace) -> Array:
    """∂log r̃/∂λ = E(k, log(p/r̃)) - E(k, log(q/r̃)), of opposite signs (docs: mixtures, M8)."""
    over_p, over_q, pi, w = ratios
    direct = expm1_quotient(k, -over_p, xp) - expm1_quotient(k, -over_q, xp)
    # The same by the weights, where the exponents are large and so is their rounding.
    return xp.where(at.apart, (pi / at.lam - w / (1.0 - at.lam)) / at.k, direct)


def by_alpha(
    k: Array | float, lam: Array | float, at: Shares, ratios: Ratios, xp: Namespace
) -> Array:
    """∂log r̃/∂α = -KL(π‖λ)/(2k²) (docs: mixtures, M9)."""
    # By the weights, where the exponents are large and so is their rounding.
    log_lead = xp.where(at.p_leads, xp.log(at.lam), xp.log1p(-at.lam))
    known = 0.5 * (log_lead + at.short) / at.k / at.k
    return xp.where(at.apart, known, by_alpha_near(k, lam, *ratios[:2], xp))


def by_alpha_near(
    k: Array | float, lam: Array | float, over_p: Array, over_q: Array, xp: Namespace
) -> Array:
    """The same, a sum of two negatives that is right at k = 0 and next to it."""
    k, lam = xp.zeros_like(over_p) + k, xp.zeros_like(over_p) + lam

    def share(weight: Array, over: Array) -> Array:
        rate = kl_rate(k, over, xp)
        # A source without weight has no part, however far it is.
        return weight * xp.where((weight != 0.0) | xp.isfinite(rate), rate, 0.0)

    return -0.5 * (share(lam, over_p) + share(1.0 - lam, over_q))


def by_lam_from(by: Array, at: Shares, there: Callable[[Array], Array], xp: Namespace) -> Array:
    """The derivative by λ less that at one outcome, a share's difference where both are apart."""
    apart, p_leads, minor = _there(at, there, xp)
    away = xp.where(p_leads, minor, -minor) - xp.where(at.p_leads, at.minor, -at.minor)
    zero = xp.zeros_like(away)
    away = away + xp.where(at.p_leads == p_leads, zero, xp.where(p_leads, zero - 1.0, zero + 1.0))
    known = away / (at.k * at.lam * (1.0 - at.lam))
    return xp.where(at.apart & apart, known, _less(by, there, xp))


def by_alpha_from(by: Array, at: Shares, there: Callable[[Array], Array], xp: Namespace) -> Array:
    """The derivative by α less that at one outcome, without the constants that both have."""
    apart, p_leads, _ = _there(at, there, xp)
    leads = xp.where(at.p_leads == p_leads, 0.0, xp.where(p_leads, -at.odds, at.odds))
    known = 0.5 * (leads + (at.short - there(at.short))) / at.k / at.k
    return xp.where(at.apart & apart, known, _less(by, there, xp))


def _there(
    at: Shares, there: Callable[[Array], Array], xp: Namespace
) -> tuple[Array, Array, Array]:
    """Whether the outcome is apart, whether p leads there, and the smaller share."""
    zero = xp.zeros_like(at.minor)
    apart, p_leads = (there(xp.where(a, zero + 1.0, zero)) for a in (at.apart, at.p_leads))
    return apart > 0.0, p_leads > 0.0, there(at.minor)


def _less(by: Array, there: Callable[[Array], Array], xp: Namespace) -> Array:
    level = there(by)
    return by - xp.where(xp.abs(level) < xp.inf, level, 0.0)


def kl_rate(k: Array, over: Array, xp: Namespace) -> Array:
    """(1 - e^{-z}(1 + z))/k² with z = k·over: a source's part of KL(π‖λ)/k² (docs: mixtures, M9).

    ½ over² at k = 0, which is no case of its own, and 0 at k = ±inf.
    """
    sharp = xp.isinf(k)
    k = xp.where(sharp, 1.0, k)
    unbounded = (k == 0.0) & xp.isinf(over)
    z = k * xp.where(unbounded, 0.0, over)
    near = xp.abs(z) <= 1.0
    z_near, over_near = xp.where(near, z, 0.0), xp.where(near, over, 0.0)
    close = over_near * over_near * (xp.exp(-z_near) * phi2(z_near, xp))
    z_far, k_far = xp.where(near, 1.0, z), xp.where(near, 1.0, k)
    far = exp_bregman(xp.zeros_like(z), -z_far, z_far, xp) / k_far / k_far
    return xp.where(sharp, 0.0, xp.where(near, close, far))


def drift(
    log_ratio: Array,
    k: Array,
    lam: Array,
    over_p: Array,
    over_q: Array,
    held_k: Array,
    held_lam: Array,
    xp: Namespace,
) -> Array:
    """Zero, with the derivatives of log r̃ by k and λ, the first and the second.

    For a library that differentiates operations: those that make log r̃ have limits, at k = 0 and
    where λ is 0 or 1, that do not depend on the knobs, and lose all digits of a derivative by a
    small k. Docs: mixtures, M13.

    Args:
        log_ratio: l, finite.
        k: the exponent.
        lam: λ.
        over_p: log(r̃/p) of ``held_k`` and ``held_lam``.
        over_q: log(r̃/q), likewise.
        held_k: k as a constant.
        held_lam: λ as a constant.
        xp: the namespace that computes.
    """
    finite = xp.abs(held_k) < xp.inf
    by_k_of = xp.where(finite, k, 1.0) - xp.where(finite, held_k, 1.0)
    by_lam_of = lam - held_lam

    def along(k: Array, lam: Array, over_p: Array, over_q: Array) -> Array:
        rates = (
            (by_k_of, -2.0 * by_alpha_near(k, lam, over_p, over_q, xp)),
            (by_lam_of, expm1_quotient(k, -over_p, xp) - expm1_quotient(k, -over_q, xp)),
        )
        first, second = (step * xp.where(xp.isfinite(rate), rate, 0.0) for step, rate in rates)
        return first + second

    half = 0.5 * along(held_k, held_lam, over_p, over_q)
    middle = held_k + 0.5 * by_k_of, held_lam + 0.5 * by_lam_of
    return along(*middle, over_p + half, over_q + half)
