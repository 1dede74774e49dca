"""Jeffreys divergence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from amidmath.divergences.base import Separable
from amidmath.formulas.pointwise import exp_difference, weighted


@dataclass(frozen=True)
class Jeffreys(Separable):
    """Jeffreys divergence KL(x‖y) + KL(y‖x) = Σ (x - y) log(x/y), in nats.

    The sum, as in Jeffreys (1946); TFP's ``jeffreys`` is half of it.

    Source: Jeffreys, Proc. R. Soc. A 186 (1946) 453; docs: divergences, D6.

    Example:
        >>> import numpy as np, amidmath as am
        >>> log_x, log_y = np.log([0.5, 0.5]), np.log([0.25, 0.75])
        >>> print(f"{am.Jeffreys()(log_x, log_y):.6f}")
        0.274653
    """

    name: ClassVar[str | None] = "jeffreys"

    @staticmethod
    def definition(x: Sequence[Any], y: Sequence[Any], params: tuple[Any, ...], mp: Any) -> Any:
        """Σ (x - y) log(x/y)."""
        return mp.fsum((u - v) * mp.log(u / v) for u, v in zip(x, y, strict=True))

    @staticmethod
    def term(log_x: Any, log_y: Any, log_ratio: Any, params: tuple[float, ...], xp: Any) -> Any:
        """(x - y) log(x/y), a product of two numbers of one sign."""
        gap = exp_difference(log_x, log_y, log_ratio, xp)
        # Masses below the smallest number count as none; at x = y the gap moves, though it is 0.
        none = (gap == 0.0) & (xp.abs(log_ratio) == xp.inf)
        return gap * xp.where(none, 0.0, log_ratio)

    @staticmethod
    def partials(
        log_x: Any, log_y: Any, log_ratio: Any, params: tuple[float, ...], xp: Any
    ) -> tuple[Any, Any]:
        """X log(x/y) + x - y and -y log(x/y) - x + y."""
        gap = exp_difference(log_x, log_y, log_ratio, xp)
        by_x = weighted(xp.exp(log_x), log_ratio, xp) + gap
        return by_x, -weighted(xp.exp(log_y), log_ratio, xp) - gap
