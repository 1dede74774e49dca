"""Derivatives of the α-mixture by its knobs, α and λ, pointwise."""

from amidmath._pointwise import exp_bregman, expm1_quotient, phi2
from amidmath._typing import Array, Namespace


def by_lam(
    k: Array | float,
    lam: Array | float,
    log_ratio: Array,
    ratios: tuple[Array, Array, Array, Array],
    xp: Namespace,
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
    k: Array | float, lam: Array | float, over_p: Array, over_q: Array, xp: Namespace
) -> Array:
    """∂log r̃/∂α = -KL(π‖λ)/(2k²), a sum of two negatives (docs: mixtures, M9)."""
    k, lam = xp.zeros_like(over_p) + k, xp.zeros_like(over_p) + lam

    def share(weight: Array, over: Array) -> Array:
        rate = kl_rate(k, over, xp)
        # A source without weight has no part, however far it is.
        return weight * xp.where((weight != 0.0) | xp.isfinite(rate), rate, 0.0)

    return -0.5 * (share(lam, over_p) + share(1.0 - lam, over_q))


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
            (by_k_of, -2.0 * by_alpha(k, lam, over_p, over_q, xp)),
            (by_lam_of, expm1_quotient(k, -over_p, xp) - expm1_quotient(k, -over_q, xp)),
        )
        first, second = (step * xp.where(xp.isfinite(rate), rate, 0.0) for step, rate in rates)
        return first + second

    half = 0.5 * along(held_k, held_lam, over_p, over_q)
    middle = held_k + 0.5 * by_k_of, held_lam + 0.5 * by_lam_of
    return along(*middle, over_p + half, over_q + half)
