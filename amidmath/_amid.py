"""The AMiD distillation loss: a divergence to or from the α-mixture assistant."""

import math
from dataclasses import dataclass, field

from amidmath import _checks
from amidmath._assistant import (
    by_alpha,
    by_lam,
    exponent,
    exponents,
    from_the_other,
    mixture_ratios_of,
    reweighted,
)
from amidmath._loss import Loss
from amidmath._pointwise import weighted
from amidmath._rows import Block
from amidmath._simplex import (
    anchored,
    at,
    log_normalizer,
    log_softmax_pair,
    project,
    through_normalization,
    top_outcome,
)
from amidmath._typing import Array, Namespace, Partials
from amidmath.divergences import KL, Divergence

ORDERS = ("pr", "rp", "qr", "rq")
"""The four losses D(p‖r), D(r‖p), D(q‖r), D(r‖q): teacher p, student q, assistant r."""


@dataclass(frozen=True)
class AMiD(Loss):
    """Distillation loss with the α-mixture assistant distribution.

    Teacher p and student q are softmaxes of logits over a temperature, the assistant is
    r ∝ (λpᵏ + (1-λ)qᵏ)^(1/k), k = (1-α)/2, and the loss is a divergence between r and one of
    them, per position, in nats. It is not multiplied by the temperature squared.

    torch's autograd and JAX's transformations see the closed-form gradient for student and
    teacher logits, and for α and λ where they are arrays; :meth:`value_and_grad` gives it on any
    library. float16 and bfloat16 logits are computed in float32 and get their gradient in their
    own dtype. A vocabulary entry at -inf has probability zero; at -inf on both sides it takes no
    part.

    First derivatives only: torch's autograd raises on a second one.

    At α >= 1 the assistant lives only where teacher and student both do: D(p‖r) = 0 then says
    that they agree on that common support, and nothing about the rest.

    Source: AMiD (arXiv 2510.15982); docs: gradients, G1 to G7.

    Args:
        divergence: the divergence D.
        order: "pr" for D(p‖r), "rp" for D(r‖p), "qr" for D(q‖r), "rq" for D(r‖q).
        alpha: α in [-∞, ∞]: -1 arithmetic mixture (GKD, DistiLLM), 1 geometric (TAID). A number,
            or an array that broadcasts to the positions (one α a token).
        lam: λ in [0, 1], the weight of the teacher in the assistant; likewise.
        temperature: divides both logits, positive.
        detach_assistant: hold r constant in the gradient, as TAID does; with "qr" or "rq" only.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an unknown order, α NaN, λ outside [0, 1], a temperature that is not positive,
            or a detached assistant in an order where nothing else depends on the student.

    Example:
        >>> import numpy as np, amidmath as am
        >>> loss = am.AMiD(am.KL(), order="pr", alpha=-1.0, lam=0.1)
        >>> student, teacher = np.zeros((2, 4)), np.eye(2, 4)
        >>> value, grad = loss.value_and_grad(student, teacher)
        >>> print(f"{value:.5f}", grad[0].round(4))
        0.09297 [-0.0863  0.0288  0.0288  0.0288]
    """

    divergence: Divergence = field(default_factory=KL)
    order: str = "pr"
    alpha: float | Array = -1.0
    lam: float | Array = 0.1
    temperature: float = 1.0
    detach_assistant: bool = False

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not isinstance(self.divergence, Divergence):
            raise TypeError(
                "divergence must be a Divergence such as am.KL() or am.AlphaBeta(0.2, 0.7), "
                f"got {self.divergence!r}"
            )
        _checks.choice("order", self.order, ORDERS)
        set_field = object.__setattr__
        set_field(self, "alpha", _checks.order("alpha", self.alpha))
        set_field(self, "lam", _checks.weight("lam", self.lam))
        set_field(self, "temperature", _checks.positive("temperature", self.temperature))
        if self.detach_assistant and self.order in ("pr", "rp"):
            raise ValueError(
                f"detach_assistant=True leaves order {self.order!r} without a gradient: only the "
                "assistant depends on the student there; use order 'qr' or 'rq'"
            )

    @property
    def block(self) -> Block:
        """Rows of logits to rows of values and gradients."""
        return AssistantBlock(
            None if "alpha" in self.knobs else exponent(self.alpha),
            None if "lam" in self.knobs else self.lam,
            self.temperature,
            self.divergence,
            self.order,
            self.detach_assistant,
        )

    @property
    def knobs(self) -> dict[str, Array]:
        """α and λ, where they are arrays."""
        both = {"alpha": self.alpha, "lam": self.lam}
        return {name: value for name, value in both.items() if _checks.is_array(value)}


@dataclass(frozen=True)
class Assistant:
    """The assistant of rows of logits, as seen from one of its sources u.

    Args:
        log_u: log-probabilities of the source.
        log_r: those of the assistant.
        over: log(r/u).
        rise: log(r̃/u) less what it is at the source's top outcome.
        share: ∂log r̃/∂log u.
        rest: that of the other source, 1 - share.
        top: where that outcome is.
        anchored: whether the other source has it too, so that there is something to compare to.
        exists: whether there is an assistant, one a row.
    """

    log_u: Array
    log_r: Array
    over: Array
    rise: Array
    share: Array
    rest: Array
    top: Array
    anchored: Array
    exists: Array


def assistant(
    side: str,
    log_p: Array,
    log_q: Array,
    ratio: Array,
    k: Array | float,
    lam: Array | float,
    xp: Namespace,
) -> Assistant:
    """The α-mixture as seen from p or q, from log p, log q and log(p/q); docs: gradients, G1.

    Everything is relative to the top outcome t of the source u: r̃ᵏ/r̃ₜᵏ = π(p/pₜ)ᵏ + w(q/qₜ)ᵏ with
    the weights that p and q have there, again a mixture. So log(r/u) keeps its precision also where
    r is nearly a multiple of u wherever u is. Docs: mixtures, M11.
    """
    log_u = log_p if side == "p" else log_q
    top = top_outcome(log_u, xp)
    base = at(top, ratio, xp)
    usable = xp.abs(base) < xp.inf
    base = xp.where(usable, base, 0.0)
    over_p, over_q, pi, w = ratios = reweighted(ratio, base, k, lam, xp)
    across = from_the_other(side, base, k, lam, ratios, xp)
    log_v = log_q if side == "p" else log_p
    over, share, rest = (over_p, pi, w) if side == "p" else (over_q, w, pi)
    # Added up from the source that leads the mean, so that no infinities cancel.
    leads = ((share >= rest) & (over < xp.inf)) | (across == xp.inf)
    log_mixed = xp.where(leads, log_u + over, log_v + across)
    log_z = log_normalizer(log_mixed, log_u, over, xp)
    exists = log_z > -xp.inf
    log_z = xp.where(exists, log_z, 0.0)
    return Assistant(
        log_u, log_mixed - log_z, over - log_z, over, share, rest, top, usable, exists[..., 0]
    )


def others_share(a: Assistant, k: Array | float, xp: Namespace) -> Array:
    """w̄ r for w̄ = share, less the multiple of u that it is at the top; docs: gradients, G2.

    share·r/u grows as (r̃/u)^{1-k}, which is one number wherever r̃ is a multiple of u.
    """
    mass = a.share * xp.exp(a.log_r)
    if isinstance(k, float) and k == 1.0:
        return xp.where(a.anchored, 0.0, mass)
    grown = (1.0 - k) * a.rise if not isinstance(k, float) or math.isfinite(k) else a.rise
    if isinstance(k, float) and math.isinf(k):
        return anchored(mass, xp.exp(a.log_u), a.top, xp)
    at_top = at(a.top, mass, xp)
    u_top = at(a.top, xp.exp(a.log_u), xp)
    level = xp.where(a.anchored, at_top / xp.where(u_top > 0.0, u_top, 1.0), 0.0)
    near = xp.abs(grown) < 1.0
    close = xp.exp(a.log_u) * level * xp.expm1(xp.where(near, grown, 0.0))
    far = mass - xp.exp(a.log_u) * level
    return xp.where(a.anchored, xp.where(near, close, far), mass)


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
        mixed = (log_p, log_q, ratio, k, lam, xp)
        source = "p" if "p" in self.order else "q"
        a = assistant(source, *mixed)
        assistant_first = self.order[0] == "r"
        arguments = (a.log_r, a.log_u, a.over) if assistant_first else (a.log_u, a.log_r, -a.over)
        value, partials = self.divergence.evaluate(*arguments, any(needs), xp)
        value = xp.where(a.exists, value, xp.inf)
        if partials is None:
            return value, tuple(None for _ in needs)
        by_r, by_both = partials[0 if assistant_first else 1], partials[2]
        r = xp.exp(a.log_r)
        through_r = through_normalization(by_r, r, xp)
        grads: list[Array | None] = []
        for need, side in zip(needs[:2], "qp", strict=True):
            if not need:
                grads.append(None)
            elif side == source:
                by_source = partials[1 if assistant_first else 0]
                grads.append(self._by_source(a, by_source, by_both, by_r, through_r, r, xp))
            else:
                grads.append(self._by_other(assistant(side, *mixed), by_r, through_r, r, k, xp))
        scaled = [None if g is None else g / self.temperature for g in grads]
        return value, (*scaled, *self._knob_grads(k, lam, ratio, through_r, needs[2:], xp))

    def _by_source(
        self,
        a: Assistant,
        by_source: Array,
        by_both: Array,
        by_r: Array,
        through_r: Array,
        r: Array,
        xp: Namespace,
    ) -> Array:
        """To the logits of the source u that the loss names; docs: gradients, G2, G5.

        Its own part H and share·(G - rΣG) nearly cancel where r is close to u; the sum G + H does
        not, and leaves the share of the other source. Whichever has the smaller terms is taken.
        """
        if self.detached:
            return through_normalization(by_source, xp.exp(a.log_u), xp)
        total = r * xp.sum(by_r, axis=-1, keepdims=True)
        near = by_both - a.rest * by_r - a.share * total
        near_size = xp.abs(by_both) + a.rest * xp.abs(by_r) + a.share * xp.abs(total)
        far = by_source + a.share * through_r
        far_size = xp.abs(by_source) + a.share * xp.abs(through_r)
        c = xp.where(near_size < far_size, near, far)
        return through_normalization(c, xp.exp(a.log_u), xp)

    def _by_other(
        self,
        a: Assistant,
        by_r: Array,
        through_r: Array,
        r: Array,
        k: Array | float,
        xp: Namespace,
    ) -> Array:
        """To the logits of the other source, through r alone; docs: gradients, G2, G5."""
        # Anchored at the top of u, if r is there too; otherwise at the top of r.
        shared = a.anchored & (at(a.top, r, xp) > 0.25)
        by_shape = anchored(by_r, r, a.top, xp)
        relative = xp.where(shared, by_shape, through_r)
        drift = xp.where(shared, xp.sum(by_shape, axis=-1, keepdims=True), 0.0)
        c = a.share * relative - others_share(a, k, xp) * drift
        return project(anchored(c, xp.exp(a.log_u), a.top, xp), xp.exp(a.log_u), xp)

    def _knob_grads(
        self,
        k: Array | float,
        lam: Array | float,
        ratio: Array,
        through_r: Array,
        needs: tuple[bool, ...],
        xp: Namespace,
    ) -> list[Array | None]:
        """∂D/∂α and ∂D/∂λ, one a row; docs: gradients, G7."""
        if not any(needs):
            return [None for _ in needs]
        ratios = mixture_ratios_of(ratio, k, lam, xp)
        grads: list[Array | None] = []
        asked = list(needs)
        if self.k is None:
            by = by_alpha(k, lam, ratio, *ratios[:2], xp) if asked.pop(0) else None
            grads.append(by)
        if self.lam is None:
            grads.append(by_lam(k, lam, ratio, ratios, xp) if asked.pop(0) else None)
        return [
            None if by is None else xp.sum(weighted(through_r, by, xp), axis=-1, keepdims=True)
            for by in grads
        ]
