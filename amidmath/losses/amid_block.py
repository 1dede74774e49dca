"""Rows of logits to rows of losses and gradients, through the assistant."""

import math
from dataclasses import dataclass, replace

from amidmath.arrays.annotations import Array, Namespace, Partials
from amidmath.divergences import Divergence
from amidmath.divergences.base import Evaluated
from amidmath.divergences.tangent import Anchored, tops
from amidmath.formulas.assistant import exponents, mixture_ratios_of
from amidmath.formulas.assistant_derivatives import (
    by_alpha,
    by_alpha_from,
    by_lam,
    by_lam_from,
    shares,
)
from amidmath.formulas.differentiated import held, held_but_for
from amidmath.formulas.pointwise import expm1_near, weighted
from amidmath.formulas.simplex import (
    anchored,
    at,
    log_softmax_pair,
    project,
    through_normalization,
    top_outcome,
)
from amidmath.losses.seen import Pair, Seen, normalized, seen_across, seen_from


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
                b = seen_across(a, pair, isinstance(self.divergence, Anchored), xp)
                grad = by_other_logits(b, self._seen_by(b, d, arguments, xp), k, xp)
            grads.append(grad / self.temperature)
        return value, (*grads, *self._knob_grads(pair, d, needs[2:], xp))

    def _evaluated(
        self, arguments: tuple[Array, Array, Array], with_partials: bool, xp: Namespace
    ) -> Evaluated:
        """Values and derivatives, up to multiples of r and of u where the divergence has those."""
        if isinstance(self.divergence, Anchored):
            at_tops = tops(*arguments[:2], xp)
            return self.divergence.evaluate(*arguments, with_partials, xp, at_tops)
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
