"""Adaptive KL: forward and reverse KL, weighed for every position by where the models differ."""

from dataclasses import dataclass
from typing import Any

from amidmath.arrays import checks
from amidmath.arrays.annotations import Array, Namespace, Partials
from amidmath.divergences import KL
from amidmath.formulas.differentiated import held
from amidmath.formulas.means import log_softmax
from amidmath.formulas.pointwise import exp_difference, weighted
from amidmath.formulas.simplex import log_softmax_pair, through_normalization
from amidmath.losses.loss import Loss
from amidmath.rows.forms import Block


@dataclass(frozen=True, eq=False, repr=False)
class AdaptiveKL(Loss):
    """Adaptive KL of teacher p and student q: w KL(p‖q) + (1-w) KL(q‖p), in nats.

    The head are the teacher's most probable tokens, as few as have the mass μ; tokens as probable
    as the last of them belong to it too, so that the order of the vocabulary does not matter. Of
    Σ |p - q|, w is the share that lies in the head, ½ where p = q, **constant in the
    derivatives**.

    The head takes a sort of the vocabulary, which no row kernel has: the array core computes it,
    on every library. Which token is the head's last is decided by sums of probabilities in the
    computing dtype.

    Source: AKL (arXiv 2404.02657); docs: methods, N5.

    Args:
        mu: the teacher's mass in the head, in [0, 1]: a number, or an array that broadcasts to the
            positions. Nothing is differentiated by it: the head changes by whole tokens.
        temperature: divides both logits, positive.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: ``mu`` outside [0, 1], or a temperature that is not positive.
    """

    mu: float | Array = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Check the arguments."""
        object.__setattr__(self, "mu", checks.weight("mu", self.mu))
        temperature = checks.temperature("temperature", self.temperature)
        object.__setattr__(self, "temperature", temperature)

    @property
    def block(self) -> Block:
        """Rows of logits to rows of values and gradients."""
        return _Weighed(None if self.knobs else self.mu, self.temperature)

    @property
    def knobs(self) -> dict[str, Array]:
        """μ, where it is an array."""
        return {"mu": self.mu} if checks.is_array(self.mu) else {}


@dataclass(frozen=True)
class _Weighed:
    mu: float | None
    temperature: float

    def __call__(
        self, student: Array, teacher: Array, *knobs: Array, needs: tuple[bool, ...], xp: Namespace
    ) -> tuple[Array, Partials]:
        """Docs: methods, N5."""
        student, teacher = student / self.temperature, teacher / self.temperature
        (mu,) = knobs or (self.mu,)
        head = most_probable(teacher, mu, xp)
        log_q, log_p, ratio = log_softmax_pair(student, teacher, xp)
        gap = xp.abs(exp_difference(log_p, log_q, ratio, xp))
        in_head = xp.sum(xp.where(head, gap, 0.0), axis=-1, keepdims=True)
        in_tail = xp.sum(xp.where(head, 0.0, gap), axis=-1, keepdims=True)
        apart = in_head + in_tail > 0.0
        whole = xp.where(apart, in_head + in_tail, 1.0)
        w_head = held(xp.where(apart, in_head / whole, 0.5), xp)
        w_tail = held(xp.where(apart, in_tail / whole, 0.5), xp)

        forward, by_forward = KL().evaluate(log_p, log_q, ratio, any(needs), xp)
        reverse, by_reverse = KL().evaluate(log_q, log_p, -ratio, any(needs), xp)
        value = weighted(w_head[..., 0], forward, xp) + weighted(w_tail[..., 0], reverse, xp)
        if by_forward is None or by_reverse is None:
            return value, tuple(None for _ in needs)
        grads: list[Array | None] = []
        for need, log_u, argument in zip(needs[:2], (log_q, log_p), (1, 0), strict=True):
            if not need:
                grads.append(None)
                continue
            by_log = weighted(w_head, by_forward[argument], xp) + weighted(
                w_tail, by_reverse[1 - argument], xp
            )
            grads.append(through_normalization(by_log, xp.exp(log_u), xp) / self.temperature)
        return value, (*grads, *(xp.zeros_like(mu) for mu in knobs))


def most_probable(logits: Array, mass: Any, xp: Namespace) -> Array:
    """Whether a token is in the head: the fewest that have the mass, and their equals.

    Sums of probabilities may reach a mass of 1 before the last token, or not at all: all tokens
    that have a probability are the head then.
    """
    some = logits > -xp.inf
    if not checks.is_array(mass) and mass == 1.0:
        return some
    ordered = xp.sort(logits, axis=-1, descending=True)
    p = xp.exp(log_softmax(ordered, -1, xp)[2])
    before = xp.cumulative_sum(p, axis=-1, include_initial=True)[..., :-1]
    last = xp.min(xp.where(before < mass, ordered, xp.inf), axis=-1, keepdims=True)
    head = logits >= last
    return xp.where(mass == 1.0, some, head) if checks.is_array(mass) else head
