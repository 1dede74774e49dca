"""Concrete score matching: squared differences of log ratios between pairs of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from amidmath.arrays import checks
from amidmath.arrays.annotations import Array, Namespace
from amidmath.divergences.base import Divergence, Evaluated
from amidmath.formulas.differentiated import held
from amidmath.formulas.pointwise import absent, weighted

WEIGHTS = ("x", "y", "uniform")


@dataclass(frozen=True)
class ConcreteScore(Divergence):
    """Concrete score matching ½ Σᵢⱼ w¹ᵢ w²ⱼ (lᵢ - lⱼ)², l = log(x/y).

    How far the differences of logits of y are from those of x, over all pairs of tokens, in O(V):
    it does not see normalisers, so that any measures will do. w¹ and w² are x, y or uniform over
    the tokens that x or y has, and **constant in the derivatives**, as CSD trains it; equal weights
    give the variance of l.

    Source: CSD, concrete score distillation; docs: divergences, D23.

    Args:
        first: w¹: "x", "y" or "uniform".
        second: w², likewise.

    Raises:
        ValueError: an unknown weight.

    Example:
        >>> import numpy as np, amidmath as am
        >>> log_x, log_y = np.log([0.5, 0.5]), np.log([0.25, 0.75])
        >>> print(f"{am.ConcreteScore('x', 'x')(log_x, log_y):.6f}")
        0.301737
    """

    first: str = "y"
    second: str = "y"

    name: ClassVar[str | None] = "concrete_score"
    on_measures: ClassVar[bool] = True
    examples: ClassVar[tuple[tuple[Any, ...], ...]] = (
        *(("y", "y"), ("x", "y"), ("uniform", "x"), ("uniform", "uniform")),
    )

    def __post_init__(self) -> None:
        """Check the names of the weights."""
        checks.choice("first", self.first, WEIGHTS)
        checks.choice("second", self.second, WEIGHTS)

    @staticmethod
    def definition(x: Sequence[Any], y: Sequence[Any], params: tuple[Any, ...], mp: Any) -> Any:
        """½ Σᵢⱼ w¹ᵢ w²ⱼ (lᵢ - lⱼ)²."""
        logs = [mp.log(u / v) for u, v in zip(x, y, strict=True)]
        weights = {
            "x": [u / mp.fsum(x) for u in x],
            "y": [v / mp.fsum(y) for v in y],
            "uniform": [mp.mpf(1) / len(x) for _ in x],
        }
        w1, w2 = (weights[name] for name in params)
        return (
            mp.fsum(
                a * b * (u - v) ** 2
                for a, u in zip(w1, logs, strict=True)
                for b, v in zip(w2, logs, strict=True)
            )
            / 2
        )

    def evaluate(
        self, log_x: Array, log_y: Array, log_ratio: Array, with_partials: bool, xp: Namespace
    ) -> Evaluated:
        """Half of both variances and of the squared difference of the means."""
        nothing = absent(log_x, log_y, xp)
        ratio = xp.where(nothing, 0.0, log_ratio)
        each = {"x": xp.exp(log_x), "y": xp.exp(log_y), "uniform": xp.ones_like(log_x)}
        masses = {name: xp.where(nothing, 0.0, mass) for name, mass in each.items()}

        def total(a: Array) -> Array:
            return xp.sum(a, axis=-1, keepdims=True)

        w1, w2 = (
            held(masses[name] / total(masses[name]), xp) for name in (self.first, self.second)
        )
        infinite = xp.abs(ratio) == xp.inf
        apart = total(xp.where(infinite, w1 + w2, 0.0)) > 0.0
        ratio = xp.where(infinite, 0.0, ratio)
        mean1, mean2 = total(w1 * ratio), total(w2 * ratio)
        mean2 = mean1 if self.first == self.second else mean2
        off1, off2 = ratio - mean1, ratio - mean2
        spread = weighted(w1, off1 * off1, xp) + weighted(w2, off2 * off2, xp)
        value = 0.5 * (total(spread) + (mean1 - mean2) ** 2)
        value = xp.where(apart, xp.inf, value)[..., 0]
        if not with_partials:
            return value, None
        by_x = weighted(w1, off2, xp) + weighted(w2, off1, xp)
        return value, (by_x, -by_x, xp.zeros_like(by_x))
