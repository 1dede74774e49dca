"""The AMiD distillation loss: a divergence to or from the α-mixture assistant."""

from dataclasses import dataclass, field

from amidmath.arrays import checks
from amidmath.arrays.annotations import Array
from amidmath.divergences import KL, Divergence
from amidmath.formulas.assistant import exponent
from amidmath.losses.amid_block import AssistantBlock
from amidmath.losses.loss import Loss
from amidmath.rows.forms import Block

ORDERS = ("pr", "rp", "qr", "rq")
"""The four losses D(p‖r), D(r‖p), D(q‖r), D(r‖q): teacher p, student q, assistant r."""


def _default() -> Divergence:
    """KL, by a function, since torch.compile does not call a class that is a default."""
    return KL()


@dataclass(frozen=True, eq=False, repr=False)
class AMiD(Loss):
    """Distillation loss with the α-mixture assistant distribution.

    Teacher p and student q are softmaxes of logits over a temperature, the assistant is
    r ∝ (λpᵏ + (1-λ)qᵏ)^(1/k), k = (1-α)/2, and the loss is a divergence between r and one of
    them, per position, in nats. It is not multiplied by the temperature squared.

    torch's autograd and JAX's transformations see the closed-form gradient for student and
    teacher logits, and for α and λ where they are arrays; :meth:`value_and_grad` gives it on any
    library. float16 and bfloat16 logits are computed in float32 and get their gradient in their
    own dtype. A vocabulary entry at -inf has probability zero, and a large negative number in its
    place gives what -inf gives, wherever that is finite. An entry to which both sides give less
    than the smallest normal number takes no part (docs: stable-evaluation, S8).

    First derivatives only, but for ``backend="reference"``: torch's autograd and JAX raise on a
    second one.

    At α >= 1 the assistant lives only where teacher and student both do: D(p‖r) = 0 then says
    that they agree on that common support, and nothing about the rest.

    Source: AMiD (arXiv 2510.15982); docs: gradients, G1 to G7.

    Args:
        divergence: the divergence D.
        order: "pr" for D(p‖r), "rp" for D(r‖p), "qr" for D(q‖r), "rq" for D(r‖q).
        alpha: α in [-∞, ∞]: -1 arithmetic mixture (GKD, DistiLLM), 1 geometric (TAID). A number,
            or an array that broadcasts to the positions (one α a token).
        lam: λ in [0, 1], the weight of the teacher in the assistant; likewise.
        temperature: divides both logits, a positive number; one a position, or one to learn, is to
            divide the logits before.
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

    divergence: Divergence = field(default_factory=_default)
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
        checks.choice("order", self.order, ORDERS)
        set_field = object.__setattr__
        set_field(self, "alpha", checks.alpha("alpha", self.alpha))
        set_field(self, "lam", checks.weight("lam", self.lam))
        set_field(self, "temperature", checks.temperature("temperature", self.temperature))
        checks.flag("detach_assistant", self.detach_assistant)
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
        return {name: value for name, value in both.items() if checks.is_array(value)}
