"""γ-divergence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from amidmath._pointwise import absent, exp_difference, ratio_of
from amidmath._simplex import log_softmax_pair, through_normalization
from amidmath._typing import Array, Namespace
from amidmath.divergences._base import Divergence, Evaluated
from amidmath.divergences._renyi import renyi


@dataclass(frozen=True)
class Gamma(Divergence):
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
        self, log_x: Array, log_y: Array, log_ratio: Array, with_partials: bool, xp: Namespace
    ) -> Evaluated:
        """Rényi's divergence of the escorts, over 1 + γ."""
        s = 1.0 + self.gamma
        # A token of small mass is of much smaller mass in the escorts, and counts all the same.
        nothing = absent(log_x, log_y, xp)
        difference = s * ratio_of(log_x, log_y, log_ratio, xp)
        log_y, log_x, log_ratio = log_softmax_pair(s * log_y, s * log_x, xp, difference)
        value, partials = renyi(
            log_x, log_y, log_ratio, 1.0 / s, self.gamma / s, with_partials, nothing, xp
        )
        if partials is None:
            return value / s, None
        raw_x, raw_y, both = partials
        x, y = xp.exp(log_x), xp.exp(log_y)
        by_x = through_normalization(raw_x, x, xp)
        by_y = through_normalization(raw_y, y, xp)
        # X Σ∂/∂log X + Y Σ∂/∂log Y, which leave both of them, as small as their sum.
        moved, total = (xp.sum(a, axis=-1, keepdims=True) for a in (raw_x, both))
        both = both - exp_difference(log_x, log_y, log_ratio, xp) * moved - y * total
        return value / s, (by_x, by_y, both)
