"""The AMiD distillation loss: a divergence to or from the α-mixture assistant."""

from dataclasses import dataclass, field

from amidmath import _checks
from amidmath._assistant import (
    by_alpha,
    by_lam,
    exponent,
    exponents,
    log_mixture_of,
    mixture_ratios_of,
)
from amidmath._loss import Loss
from amidmath._pointwise import weighted
from amidmath._rows import Block
from amidmath._simplex import log_normalizer, log_softmax_pair, through_normalization
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
    """The assistant of rows of logits: what every loss that uses it needs."""

    k: Array | float
    lam: Array | float
    log_p: Array
    log_q: Array
    log_r: Array
    ratio: Array
    over_p: Array
    over_q: Array
    normalizer: tuple[Array, Array] | None
    pi: Array
    w: Array


def assistant(
    student: Array, teacher: Array, k: Array | float, lam: Array | float, xp: Namespace
) -> Assistant:
    """Log p, log q, log r, the log ratios r/p and r/q, and the weights; docs: gradients, G1."""
    log_q, log_p, ratio = log_softmax_pair(student, teacher, xp)
    over_p, over_q, pi, w = mixture_ratios_of(ratio, k, lam, xp)
    mixed = log_mixture_of(log_p, log_q, over_p, over_q, k, lam, xp)
    if isinstance(k, float) and isinstance(lam, float) and (k == 1.0 or lam in (0.0, 1.0)):
        return Assistant(k, lam, log_p, log_q, mixed, ratio, over_p, over_q, None, pi, w)
    if isinstance(lam, float):
        near = (log_q, over_q) if lam < 0.5 else (log_p, over_p)
    else:
        near = tuple(xp.where(lam < 0.5, a, b) for a, b in ((log_q, log_p), (over_q, over_p)))
    log_z = log_normalizer(mixed, *near, xp)
    exists = log_z > -xp.inf
    log_z = xp.where(exists, log_z, 0.0)
    return Assistant(
        k,
        lam,
        log_p,
        log_q,
        mixed - log_z,
        ratio,
        over_p - log_z,
        over_q - log_z,
        (exists, log_z),
        pi,
        w,
    )


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
        a = assistant(student / self.temperature, teacher / self.temperature, k, lam, xp)
        source, over = (a.log_p, a.over_p) if "p" in self.order else (a.log_q, a.over_q)
        assistant_first = self.order[0] == "r"
        arguments = (a.log_r, source, over) if assistant_first else (source, a.log_r, -over)
        value, partials = self.divergence.evaluate(*arguments, any(needs), xp)
        if a.normalizer is not None:
            value = xp.where(a.normalizer[0][..., 0], value, xp.inf)
        if partials is None:
            return value, tuple(None for _ in needs)
        by_r, by_source = partials if assistant_first else partials[::-1]
        if self.detached:
            through_r = xp.zeros_like(by_r)
        else:
            through_r = through_normalization(by_r, xp.exp(a.log_r), xp)
        grads: list[Array | None] = []
        for need, side, log_side, share in zip(
            needs[:2], "qp", (a.log_q, a.log_p), (a.w, a.pi), strict=True
        ):
            if not need:
                grads.append(None)
                continue
            c = share * through_r
            if side in self.order:
                c = c + by_source
            grads.append(through_normalization(c, xp.exp(log_side), xp) / self.temperature)
        return value, (*grads, *self._knob_grads(a, through_r, needs[2:], xp))

    def _knob_grads(
        self, a: Assistant, through_r: Array, needs: tuple[bool, ...], xp: Namespace
    ) -> list[Array | None]:
        """∂D/∂α and ∂D/∂λ, one a row; docs: gradients, G7."""
        log_z = 0.0 if a.normalizer is None else a.normalizer[1]
        over_p, over_q = a.over_p + log_z, a.over_q + log_z
        grads: list[Array | None] = []
        asked = list(needs)
        if self.k is None:
            by = by_alpha(a.k, a.lam, a.ratio, over_p, over_q, xp) if asked.pop(0) else None
            grads.append(by)
        if self.lam is None:
            grads.append(by_lam(a.k, over_p, over_q, xp) if asked.pop(0) else None)
        return [
            None if by is None else xp.sum(weighted(through_r, by, xp), axis=-1, keepdims=True)
            for by in grads
        ]
