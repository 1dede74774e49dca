"""Total variation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from amidmath.divergences.base import Separable
from amidmath.formulas.pointwise import exp_difference


@dataclass(frozen=True)
class TotalVariation(Separable):
    """Total variation ½ Σ |x - y|, in [0, 1].

    With the ½, as a probability (TFP's ``total_variation`` has it too); the TVD losses of some
    trainers leave it out. Where x = y the derivative is taken as 0, a subgradient.

    Source: docs: divergences, D10.

    Example:
        >>> import numpy as np, amidmath as am
        >>> log_x, log_y = np.log([0.5, 0.5]), np.log([0.25, 0.75])
        >>> print(f"{am.TotalVariation()(log_x, log_y):.6f}")
        0.250000
    """

    name: ClassVar[str | None] = "total_variation"

    @staticmethod
    def definition(x: Sequence[Any], y: Sequence[Any], params: tuple[Any, ...], mp: Any) -> Any:
        """½ Σ |x - y|."""
        return mp.fsum(abs(u - v) for u, v in zip(x, y, strict=True)) / 2

    @staticmethod
    def term(log_x: Any, log_y: Any, log_ratio: Any, params: tuple[float, ...], xp: Any) -> Any:
        """½ |x - y|."""
        return _half_sign(log_ratio, xp) * exp_difference(log_x, log_y, log_ratio, xp)

    @staticmethod
    def partials(
        log_x: Any, log_y: Any, log_ratio: Any, params: tuple[float, ...], xp: Any
    ) -> tuple[Any, Any]:
        """½ sgn(x - y) x and -½ sgn(x - y) y."""
        half = _half_sign(log_ratio, xp)
        return half * xp.exp(log_x), -half * xp.exp(log_y)


def _half_sign(d: Any, xp: Any) -> Any:
    """±½, 0 at 0; libraries that differentiate an abs do not agree on that."""
    zero = xp.zeros_like(d)
    return xp.where(d > 0.0, zero + 0.5, xp.where(d < 0.0, zero - 0.5, zero))
