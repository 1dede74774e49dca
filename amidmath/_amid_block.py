"""Rows of logits to rows of losses and gradients, through the assistant."""

import math
from dataclasses import dataclass, replace

from amidmath._assistant import anchored_ratios, exponents, log_mixture, mixture_ratios_of
from amidmath._differentiated import held, held_but_for
from amidmath._knobs import by_alpha, by_alpha_from, by_lam, by_lam_from, shares
from amidmath._pointwise import expm1_near, weighted
from amidmath._simplex import (
    anchored,
    at,
    log_softmax_pair,
    normalize,
    project,
    through_normalization,
    top_outcome,
)
from amidmath._typing import Array, Namespace, Partials
from amidmath.divergences import Divergence
from amidmath.divergences._base import Evaluated
from amidmath.divergences._tangent import Anchored, tops

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
    """What the source "p" or "q" sees; docs: mixtures, M11, M12."""
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


def seen_across(a: Seen, pair: Pair, xp: Namespace) -> Seen:
    """What the other source sees, from what this one does; docs: mixtures, M11."""
    side, log_v = ("q", pair.log_q) if a.side == "p" else ("p", pair.log_p)
    top = top_outcome(log_v, xp)
    there = at(top, a.across, xp)
    shared = xp.abs(there) < xp.inf
    there = xp.where(shared, there, 0.0)
    rise, across = _by_weights(a, a.across - there, top, pair.k, xp), a.rise - there
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
    known = xp.log1p(-xp.where(small, there, 0.0)) - xp.log1p(-xp.where(small, a.share, 0.0))
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


@dataclass(frozen=True)
class Derivatives:
    """A divergence's derivatives by log r and, where it names a source, by that; and their sum."""

    r: Array
    by_r: Array
    by_source: Array
    by_both: Array


def by_source_logits(a: Seen, d: Derivatives, k: Array | float, xp: Namespace) -> Array:
    """To the logits of the source that the loss names; docs: gradients, G2, G5.

    Its own part H and share·(G - rΣG) nearly cancel where r is close to u; the sum G + H does
    not, and leaves the share of the other source. Whichever has the smaller terms is taken.
    """
    u, total = xp.exp(a.log_u), xp.sum(d.by_r, axis=-1, keepdims=True)
    varying, level = varying_share(a, u, d.r, k, xp)
    moving, multiple = varying * total, u * level * total
    near = d.by_both - a.rest * d.by_r - moving
    near_size = xp.abs(d.by_both) + a.rest * xp.abs(d.by_r) + xp.abs(moving)
    through_r = through_normalization(d.by_r, d.r, xp)
    far = d.by_source + a.share * through_r + multiple
    far_size = xp.abs(d.by_source) + a.share * xp.abs(through_r) + xp.abs(multiple)
    return through_normalization(xp.where(near_size < far_size, near, far), u, xp)


def anchor(a: Seen, r: Array, xp: Namespace) -> tuple[Array, Array]:
    """The top of u, if r is there too; otherwise that of r, as in G1; and which, one a row."""
    there = a.shared & (at(a.top, r, xp) > 0.25)
    return there, xp.where(there, a.top, top_outcome(r, xp))


def by_other_logits(a: Seen, d: Derivatives, k: Array | float, xp: Namespace) -> Array:
    """To the logits of the other source, through r alone; docs: gradients, G2, G5."""
    there, top = anchor(a, d.r, xp)
    relative = anchored(d.by_r, d.r, top, xp)
    total = xp.sum(relative, axis=-1, keepdims=True)
    relative = relative - d.r * xp.where(there, 0.0, total)
    drift = xp.where(there, total, 0.0)
    u = xp.exp(a.log_u)
    varying, _ = varying_share(a, u, d.r, k, xp)
    return project(anchored(a.share * relative - varying * drift, u, a.top, xp), u, xp)


def varying_share(
    a: Seen, u: Array, r: Array, k: Array | float, xp: Namespace
) -> tuple[Array, Array]:
    """share·r as a varying part and a multiple of u, that at the top; docs: gradients, G5.

    share·r/u grows as (r̃/u)^{1-k}: it is one number at k = 1, and wherever r̃ is a multiple of u.
    """
    mass = a.share * r
    u_top = at(a.top, u, xp)
    level = at(a.top, mass, xp) / xp.where(u_top > 0.0, u_top, 1.0)
    level = xp.where(a.shared, level, 0.0)
    if isinstance(k, float) and k == 1.0:
        return xp.where(a.shared, 0.0, mass), level
    plain = xp.where(a.top & a.shared, 0.0, mass - u * level)
    near, grown = _growth(a, k, xp)
    close = u * level * expm1_near(xp.where(near, grown, 0.0), xp)
    return xp.where(a.shared & near, close, plain), level


def _growth(a: Seen, k: Array | float, xp: Namespace) -> tuple[Array, Array]:
    """log(share·r/u) less that at the top, and whether it is small; docs: gradients, G5."""
    rise = xp.where(xp.abs(a.rise) < xp.inf, a.rise, xp.inf)
    if isinstance(k, float) and not math.isinf(k):
        grown = (1.0 - k) * rise
        return xp.abs(grown) < 1.0, grown
    # A maximum and a minimum are a multiple of u where they have u's share, and nowhere else.
    multiple = (a.rise == 0.0) & (a.share == at(a.top, a.share, xp))
    if isinstance(k, float):
        return multiple, xp.zeros_like(rise)
    sharp = xp.isinf(k)
    grown = xp.where(sharp, 0.0, (1.0 - xp.where(sharp, 1.0, k)) * rise)
    return xp.where(sharp, multiple, xp.abs(grown) < 1.0), grown


@dataclass(frozen=True)
class AssistantBlock:
    """Rows of logits, then α where ``k`` is None, λ where ``lam`` is, to values and gradients."""

    k: float | None
    lam: float | None
    temperature: float
    divergence: Divergence
    order: str
    detached: bool

    def __call__(
        self, student: Array, teacher: Array, *knobs: Array, needs: tuple[bool, ...], xp: Namespace
    ) -> tuple[Array, Partials]:
        """Docs: gradients, G1 to G6."""
        remaining = list(knobs)
        k = exponents(remaining.pop(0), xp) if self.k is None else self.k
        lam = remaining.pop(0) if self.lam is None else self.lam
        log_q, log_p, ratio = log_softmax_pair(
            student / self.temperature, teacher / self.temperature, xp
        )
        pair = Pair(log_p, log_q, ratio, k, lam)
        source = "p" if "p" in self.order else "q"
        a = seen_from(source, pair, xp)
        log_r, over, exists = normalized(a, pair, xp)
        if self.detached:
            log_r, over = held(log_r, xp), held_but_for(-a.log_u, over, xp)
        assistant_first = self.order[0] == "r"
        arguments = (log_r, a.log_u, over) if assistant_first else (a.log_u, log_r, -over)
        value, partials = self._evaluated(arguments, any(needs), xp)
        value = xp.where(exists, value, xp.inf)
        if partials is None:
            return value, tuple(None for _ in needs)
        by_x, by_y, by_both = partials
        by_r, by_source = (by_x, by_y) if assistant_first else (by_y, by_x)
        if self.detached:
            by_r, by_both = xp.zeros_like(by_r), by_source
        r = xp.exp(log_r)
        d = Derivatives(r, by_r, by_source, by_both)
        grads: list[Array | None] = []
        for need, side in zip(needs[:2], "qp", strict=True):
            if not need:
                grads.append(None)
                continue
            if side == source:
                grad = by_source_logits(a, d, k, xp)
            else:
                b = seen_across(a, pair, xp)
                grad = by_other_logits(b, self._seen_by(b, d, arguments, xp), k, xp)
            grads.append(grad / self.temperature)
        return value, (*grads, *self._knob_grads(pair, d, needs[2:], xp))

    def _evaluated(
        self, arguments: tuple[Array, Array, Array], with_partials: bool, xp: Namespace
    ) -> Evaluated:
        """Values and derivatives, up to multiples of r and of u where the divergence has those."""
        if with_partials and isinstance(self.divergence, Anchored):
            return self.divergence.evaluate(*arguments, True, xp, tops(*arguments[:2], xp))
        return self.divergence.evaluate(*arguments, with_partials, xp)

    def _seen_by(
        self, b: Seen, d: Derivatives, arguments: tuple[Array, Array, Array], xp: Namespace
    ) -> Derivatives:
        """The derivatives relative to the anchor of a source; docs: gradients, G5."""
        if self.detached or not isinstance(self.divergence, Anchored):
            return d
        _, top = anchor(b, d.r, xp)
        _, partials = self.divergence.evaluate(*arguments, True, xp, (top, top))
        return d if partials is None else replace(d, by_r=partials[self.order[0] != "r"])

    def _knob_grads(
        self, pair: Pair, d: Derivatives, needs: tuple[bool, ...], xp: Namespace
    ) -> list[Array | None]:
        """∂D/∂α and ∂D/∂λ, one a row; docs: gradients, G7."""
        if not any(needs):
            return [None for _ in needs]
        k, lam, ratio = pair.k, pair.lam, pair.ratio
        ratios, at_each = mixture_ratios_of(ratio, k, lam, xp), shares(k, lam, ratio, xp)
        through_r = through_normalization(d.by_r, d.r, xp)
        # What all outcomes share drops out, as Σ through_r = 0; without it rounding does too.
        top = top_outcome(xp.abs(through_r), xp)

        def there(values: Array) -> Array:
            return at(top, values, xp)

        grads: list[Array | None] = []
        asked = list(needs)
        if self.k is None:
            by = by_alpha(k, lam, at_each, ratios, xp)
            grads.append(by_alpha_from(by, at_each, there, xp) if asked.pop(0) else None)
        if self.lam is None:
            by = by_lam(k, at_each, ratios, xp)
            grads.append(by_lam_from(by, at_each, there, xp) if asked.pop(0) else None)
        return [
            None if by is None else xp.sum(weighted(through_r, by, xp), axis=-1, keepdims=True)
            for by in grads
        ]
