"""The unnormalised assistant as its sources see it: ratios and weights, from an anchor."""

import math
from dataclasses import dataclass

from amidmath.arrays.annotations import Array, Namespace
from amidmath.formulas.assistant import anchored_ratios, log_mixture, mixture_ratios_of
from amidmath.formulas.pointwise import log1p_near
from amidmath.formulas.simplex import at, normalize, top_outcome

# How far, in nats, r̃/u at the anchor may lie below what teacher and student have in common.
# Docs: mixtures, M12.
FALL = 10.0
LARGE = 1e30


@dataclass(frozen=True)
class Pair:
    """log p, log q, log(p/q), and what mixes p and q."""

    log_p: Array
    log_q: Array
    ratio: Array
    k: Array | float
    lam: Array | float


@dataclass(frozen=True)
class Seen:
    """The unnormalised assistant r̃ as one of its sources, u, sees it; v is the other one.

    Everything is relative to an anchor, the top outcome t of u: r̃ᵏ/r̃ₜᵏ = π(p/pₜ)ᵏ + w(q/qₜ)ᵏ with
    the weights that p and q have there, again a mixture. So log(r̃/u) keeps its precision also where
    r̃ is nearly a multiple of u wherever u is. Where r̃ has lost t there is no anchor, and the ratios
    are those of r̃ itself. Docs: mixtures, M11, M12.

    Args:
        side: which source, "p" or "q".
        log_u: log-probabilities of the source.
        rise: log(r̃/u), less what it is at the anchor.
        across: log(r̃/v), less the same.
        share: ∂log r̃/∂log u.
        rest: that of the other source, 1 - share.
        top: where t is.
        shared: whether r̃ and v have t too, so that there is something to compare to; one a row.
    """

    side: str
    log_u: Array
    rise: Array
    across: Array
    share: Array
    rest: Array
    top: Array
    shared: Array


def seen_from(side: str, pair: Pair, xp: Namespace) -> Seen:
    """The view of the source "p" or "q"; docs: mixtures, M11, M12."""
    log_u = pair.log_p if side == "p" else pair.log_q
    top = top_outcome(log_u, xp)
    base, shared = _anchor(side, at(top, pair.ratio, xp), pair, xp)
    over_p, over_q, pi, w = anchored_ratios(side, pair.ratio, base, pair.k, pair.lam, xp)
    if side == "p":
        return Seen(side, log_u, over_p, over_q, pi, w, top, shared)
    return Seen(side, log_u, over_q, over_p, w, pi, top, shared)


def _anchor(side: str, there: Array, pair: Pair, xp: Namespace) -> tuple[Array, Array]:
    """The base of the ratios, from that at the top, and whether r̃ has it; docs: mixtures, M12."""
    k, lam = pair.k, pair.lam
    finite = xp.abs(there) < xp.inf
    if isinstance(k, float) and isinstance(lam, float):
        if lam in (0.0, 1.0):
            return xp.zeros_like(there), finite
        if k > 0.0:
            base = _bounded(there, xp)
            if -math.log(min(lam, 1.0 - lam)) / k <= FALL:
                return base, base == base
        else:
            base = xp.where(finite, there, 0.0)
        kept = _kept(side, base, pair, xp) & (finite if k <= 0.0 else base == base)
        return xp.where(kept, base, 0.0), kept
    lam = xp.zeros_like(there) + lam
    mixed = (lam > 0.0) & (lam < 1.0)
    base = xp.where((k > 0.0) & mixed, _bounded(there, xp), xp.where(finite, there, 0.0))
    kept = _kept(side, base, pair, xp) & (finite | (k > 0.0))
    return xp.where(kept & mixed, base, 0.0), xp.where(mixed, kept, finite)


def _bounded(ratio: Array, xp: Namespace) -> Array:
    """The ratio, and what is as good as ±inf in a positive power; NaN stays."""
    return xp.where(ratio > LARGE, LARGE, xp.where(ratio < -LARGE, -LARGE, ratio))


def _kept(side: str, base: Array, pair: Pair, xp: Namespace) -> Array:
    """Whether r̃/u is at the base not far below what its sources have in common."""
    over = mixture_ratios_of(base, pair.k, pair.lam, xp)[0 if side == "p" else 1]
    # r̃ is at least the smaller of its sources, so its largest at least the largest of these.
    lower = xp.where(pair.log_p < pair.log_q, pair.log_p, pair.log_q)
    return over >= xp.max(lower, axis=-1, keepdims=True) - FALL


def seen_across(a: Seen, pair: Pair, by_weights: bool, xp: Namespace) -> Seen:
    """The other source's view, from that of this one; docs: mixtures, M11.

    Args:
        a: the view of this source.
        pair: what is mixed.
        by_weights: whether log(r̃/v) is to keep its digits where r̃ is nearly a multiple of v, for
            derivatives that vanish there.
        xp: the namespace that computes.
    """
    side, log_v = ("q", pair.log_q) if a.side == "p" else ("p", pair.log_p)
    top = top_outcome(log_v, xp)
    there = at(top, a.across, xp)
    shared = xp.abs(there) < xp.inf
    there = xp.where(shared, there, 0.0)
    rise, across = a.across - there, a.rise - there
    if by_weights:
        rise = _by_weights(a, rise, top, pair.k, xp)
    return Seen(side, log_v, rise, across, a.rest, a.share, top, shared)


def _by_weights(a: Seen, rise: Array, top: Array, k: Array | float, xp: Namespace) -> Array:
    """log(r̃/v) less that at the top, by the weight of u where it is small; docs: mixtures, M11."""
    if isinstance(k, float) and (k in (0.0, 1.0) or math.isinf(k)):
        return rise
    there = at(top, a.share, xp)
    small = (a.share < 0.25) & (there < 0.25)
    if not isinstance(k, float):
        limit = (k == 0.0) | xp.isinf(k)
        small, k = small & ~limit, xp.where(limit, 1.0, k)
    # Rounding, of a difference of weights over k or of ratios: whichever is of smaller terms.
    small = small & (a.share + there < abs(k) * xp.abs(a.across))
    here = log1p_near(-xp.where(small, a.share, 0.0), xp)
    known = log1p_near(-xp.where(small, there, 0.0), xp) - here
    return xp.where(small, known / k, rise)


def normalized(a: Seen, pair: Pair, xp: Namespace) -> tuple[Array, Array, Array]:
    """Log r, log(r/u), and whether r exists, one a row; docs: mixtures, M6, M7."""
    relative = (
        (a.rise, a.across, a.share, a.rest)
        if a.side == "p"
        else (a.across, a.rise, a.rest, a.share)
    )
    log_mixed = log_mixture(pair.log_p, pair.log_q, relative, xp)
    log_r, log_z = normalize(log_mixed, a.log_u, a.rise, xp)
    exists = log_z != -xp.inf  # so that a NaN goes on to the value
    return log_r, a.rise - xp.where(exists, log_z, 0.0), exists[..., 0]
