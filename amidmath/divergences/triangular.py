"""Triangular discrimination."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from amidmath.divergences.base import Separable
from amidmath.formulas.pointwise import exp_difference


@dataclass(frozen=True)
class Triangular(Separable):
    """Triangular discrimination Σ (x - y)²/(x + y), of Vincze and Le Cam, in [0, 2].

    TFP's ``triangular`` is the same; Le Cam's distance has half of it.

    Source: Topsøe, IEEE Trans. Inf. Theory 46 (2000) 1602; docs: divergences, D11.

    Example:
        >>> import numpy as np, amidmath as am
        >>> log_x, log_y = np.log([0.5, 0.5]), np.log([0.25, 0.75])
        >>> print(f"{am.Triangular()(log_x, log_y):.6f}")
        0.133333
    """

    name: ClassVar[str | None] = "triangular"

    @staticmethod
    def definition(x: Sequence[Any], y: Sequence[Any], params: tuple[Any, ...], mp: Any) -> Any:
        """Σ (x - y)²/(x + y)."""
        return mp.fsum((u - v) ** 2 / (u + v) for u, v in zip(x, y, strict=True))

    @staticmethod
    def term(log_x: Any, log_y: Any, log_ratio: Any, params: tuple[float, ...], xp: Any) -> Any:
        """(x - y) tanh(½ log(x/y))."""
        return exp_difference(log_x, log_y, log_ratio, xp) * _tanh_half(log_ratio, xp)

    @staticmethod
    def partials(
        log_x: Any, log_y: Any, log_ratio: Any, params: tuple[float, ...], xp: Any
    ) -> tuple[Any, Any]:
        """X t(2 - t) and -y t(2 + t), t = (x - y)/(x + y)."""
        t = _tanh_half(log_ratio, xp)
        return xp.exp(log_x) * t * (2.0 - t), -xp.exp(log_y) * t * (2.0 + t)


def _tanh_half(d: Any, xp: Any) -> Any:
    """tanh(d/2) = (x - y)/(x + y)."""
    below = d < 0.0
    shrunk = xp.expm1(xp.where(below, d, -d))  # not -|d|, which has no derivative at 0
    size = -shrunk / (2.0 + shrunk)
    return xp.where(below, -size, size)
