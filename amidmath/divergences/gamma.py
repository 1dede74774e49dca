"""γ-divergence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from amidmath.arrays.annotations import Array, Namespace
from amidmath.divergences.base import Evaluated
from amidmath.divergences.renyi import renyi
from amidmath.divergences.tangent import Anchored, Tops
from amidmath.formulas.pointwise import absent, exp_difference, ratio_of
from amidmath.formulas.simplex import at, log_softmax_pair, through_normalization


@dataclass(frozen=True)
class Gamma(Anchored):
    """γ-divergence (Fujisawa & Eguchi 2008), for γ > -1, in nats.

    log Σx^{1+γ}/(γ(1+γ)) - log Σxy^γ/γ + log Σy^{1+γ}/(1+γ); γ = 0 is KL. It does not change when
    x or y is multiplied by a number, so it is defined on measures of any total mass. Computed as
    1/(1+γ) times the Rényi divergence of order 1/(1+γ) of the escort distributions ∝ x^{1+γ} and
    ∝ y^{1+γ}, which it equals.

    Source: Fujisawa & Eguchi, J. Multivar. Anal. 99 (2008) 2053; docs: divergences, D19.

    Args:
        gamma: γ > -1.

    Raises:
        TypeError: γ is not a number.
        ValueError: γ is not finite and above -1.

    Example:
        >>> import numpy as np, amidmath as am
        >>> log_x, log_y = np.log([0.5, 0.5]), np.log([0.25, 0.75])
        >>> print(f"{am.Gamma(1.0)(log_x, log_y):.6f}")
        0.111572
    """

    gamma: float

    name: ClassVar[str | None] = "gamma"
    on_measures: ClassVar[bool] = True
    examples: ClassVar[tuple[tuple[Any, ...], ...]] = (
        *((1.0,), (0.5,), (0.0,), (-0.5,), (5.0,), (1e-9,)),
    )

    def __post_init__(self) -> None:
        """Check γ."""
        super().__post_init__()
        if not self.gamma > -1.0:
            raise ValueError(f"gamma must be above -1, got {self.gamma!r}")

    @staticmethod
    def definition(x: Sequence[Any], y: Sequence[Any], params: tuple[Any, ...], mp: Any) -> Any:
        """Log Σx^{1+γ}/(γ(1+γ)) - log Σxy^γ/γ + log Σy^{1+γ}/(1+γ), and KL at γ = 0."""
        g = mp.mpf(params[0])
        pairs = list(zip(x, y, strict=True))
        if g == 0:
            x_total, y_total = mp.fsum(x), mp.fsum(y)
            return mp.fsum(u / x_total * mp.log(u / x_total / (v / y_total)) for u, v in pairs)
        return (
            mp.log(mp.fsum(u ** (1 + g) for u, _ in pairs)) / (g * (1 + g))
            - mp.log(mp.fsum(u * v**g for u, v in pairs)) / g
            + mp.log(mp.fsum(v ** (1 + g) for _, v in pairs)) / (1 + g)
        )

    def evaluate(
        self,
        log_x: Array,
        log_y: Array,
        log_ratio: Array,
        with_partials: bool,
        xp: Namespace,
        anchors: Tops | None = None,
    ) -> Evaluated:
        """Rényi's divergence of the escorts, over 1 + γ."""
        s = 1.0 + self.gamma
        # A token of small mass is of much smaller mass in the escorts, and counts all the same.
        nothing = absent(log_x, log_y, xp)
        if anchors is not None and self.gamma == 0.0:
            # Distributions are their own escorts, with a log ratio that is known better than again.
            return renyi(log_x, log_y, log_ratio, 1.0, 0.0, with_partials, nothing, xp, anchors)
        difference = s * ratio_of(log_x, log_y, log_ratio, xp)
        log_b, log_a, ratio = log_softmax_pair(s * log_y, s * log_x, xp, difference)
        value, partials = renyi(
            log_a, log_b, ratio, 1.0 / s, self.gamma / s, with_partials, nothing, xp, anchors
        )
        if partials is None:
            return value / s, None
        raw_x, raw_y, both = partials
        a, b = xp.exp(log_a), xp.exp(log_b)
        by_x, by_y = through_normalization(raw_x, a, xp), through_normalization(raw_y, b, xp)
        # A Σ∂/∂log A + B Σ∂/∂log B, which leave both of them, as small as their sum.
        of_x, of_y, of_both = (xp.sum(c, axis=-1, keepdims=True) for c in (raw_x, raw_y, both))
        both = both - exp_difference(log_a, log_b, ratio, xp) * of_x - b * of_both
        if anchors is not None:
            far = value[..., None] > 1.0
            less = (
                self._varying(log_x, log_a, anchors[0], xp),
                self._varying(log_y, log_b, anchors[1], xp),
            )
            by_x = xp.where(far, raw_x - less[0] * of_x, by_x)
            by_y = xp.where(far, raw_y - less[1] * of_y, by_y)
            both = xp.where(far, by_x + by_y, both)
        return value / s, (by_x, by_y, both)

    def _varying(self, log_x: Array, log_a: Array, top: Array, xp: Namespace) -> Array:
        """The escort of x less a multiple of x, that at its top: nothing for γ = 0; docs: D19."""
        there = at(top, log_x, xp)
        multiple = log_x + (at(top, log_a, xp) - there)
        return exp_difference(log_a, multiple, self.gamma * (log_x - there), xp)
