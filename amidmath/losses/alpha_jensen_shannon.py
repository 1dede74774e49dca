"""The α-Jensen-Shannon objective: what the assistant itself minimises."""

from dataclasses import dataclass

from amidmath.arrays import checks
from amidmath.arrays.annotations import Array, Namespace, Partials
from amidmath.divergences import AmariAlpha
from amidmath.formulas.assistant import exponent
from amidmath.formulas.simplex import log_softmax_pair, through_normalization
from amidmath.losses.loss import Loss
from amidmath.losses.seen import Pair, normalized, seen_from
from amidmath.rows.forms import Block


@dataclass(frozen=True, eq=False, repr=False)
class AlphaJensenShannon(Loss):
    """α-Jensen-Shannon objective min_r λ D_α(p‖r) + (1-λ) D_α(q‖r), in nats.

    D_α is :class:`AmariAlpha`, and the minimum is at the α-mixture r, so that the objective is the
    spread of teacher and student around their assistant: (1 - Zᵏ)/(k(1-k)), k = (1-α)/2. α = -1 is
    the weighted Jensen-Shannon divergence of GKD, α = 1 is -log Z, a Chernoff divergence.

    Source: AMiD (arXiv 2510.15982), internal division; docs: gradients, G9.

    Args:
        alpha: α, a finite number.
        lam: λ in [0, 1], the weight of the teacher.
        temperature: divides both logits, positive.

    Raises:
        TypeError: an argument that is not a number.
        ValueError: α not finite, λ outside [0, 1], or a temperature that is not positive.

    Example:
        >>> import numpy as np, amidmath as am
        >>> loss = am.AlphaJensenShannon(alpha=-1.0, lam=0.5)
        >>> value, _ = loss.value_and_grad(np.zeros((1, 4)), np.eye(1, 4))
        >>> print(f"{value:.6f}")
        0.027812
    """

    alpha: float = -1.0
    lam: float = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Check the arguments."""
        set_field = object.__setattr__
        set_field(self, "alpha", checks.number("alpha", self.alpha))
        set_field(self, "lam", checks.number_in_unit_interval("lam", self.lam))
        set_field(self, "temperature", checks.temperature("temperature", self.temperature))

    @property
    def block(self) -> Block:
        """Rows of logits to rows of values and gradients."""
        return _Spread(self.alpha, self.lam, self.temperature)


@dataclass(frozen=True)
class _Spread:
    alpha: float
    lam: float
    temperature: float

    def __call__(
        self, student: Array, teacher: Array, *, needs: tuple[bool, ...], xp: Namespace
    ) -> tuple[Array, Partials]:
        """Both divergences, and their direct gradients: r is where they do not change with it."""
        if self.lam in (0.0, 1.0):
            operands = zip((student, teacher), needs, strict=True)
            nothing = tuple(xp.zeros_like(x) if need else None for x, need in operands)
            return xp.zeros_like(student[..., 0]), nothing
        log_q, log_p, ratio = log_softmax_pair(
            student / self.temperature, teacher / self.temperature, xp
        )
        pair = Pair(log_p, log_q, ratio, exponent(self.alpha), self.lam)
        total: Array = 0.0
        grads: list[Array | None] = []
        for weight, need, side in ((1.0 - self.lam, needs[0], "q"), (self.lam, needs[1], "p")):
            a = seen_from(side, pair, xp)
            log_r, over, exists = normalized(a, pair, xp)
            value, partials = AmariAlpha(self.alpha).evaluate(a.log_u, log_r, -over, need, xp)
            total = total + weight * xp.where(exists, value, xp.inf)
            if partials is None:
                grads.append(None)
                continue
            direct = through_normalization(partials[0], xp.exp(a.log_u), xp)
            grads.append(direct * (weight / self.temperature))
        return total, tuple(grads)
