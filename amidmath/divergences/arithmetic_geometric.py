"""Arithmetic-geometric divergence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from amidmath.arrays import checks
from amidmath.divergences.base import Checks, Separable
from amidmath.divergences.midpoint import midpoint
from amidmath.formulas.pointwise import exp_bregman, exp_difference, weighted


@dataclass(frozen=True)
class ArithmeticGeometric(Separable):
    """Arithmetic-geometric divergence w KL(m‖x) + (1-w) KL(m‖y), m = w x + (1-w) y, in nats.

    At w = ½ it is Σ m log(m/√(xy)), Taneja's, and half of TFP's ``arithmetic_geometric``. The
    Jensen-Shannon divergence with every argument exchanged.

    Source: Taneja (1995); docs: divergences, D9.

    Args:
        weight: w in [0, 1], the weight of x.

    Raises:
        TypeError: the weight is not a number.
        ValueError: the weight lies outside [0, 1].

    Example:
        >>> import numpy as np, amidmath as am
        >>> log_x, log_y = np.log([0.5, 0.5]), np.log([0.25, 0.75])
        >>> print(f"{am.ArithmeticGeometric()(log_x, log_y):.6f}")
        0.034841
    """

    weight: float = 0.5

    name: ClassVar[str | None] = "arithmetic_geometric"
    checks: ClassVar[Checks] = {"weight": checks.number_in_unit_interval}
    examples: ClassVar[tuple[tuple[Any, ...], ...]] = ((0.5,), (0.1,), (0.999,), (1e-9,))

    @staticmethod
    def definition(x: Sequence[Any], y: Sequence[Any], params: tuple[Any, ...], mp: Any) -> Any:
        """Σ m (log m - w log x - (1-w) log y)."""
        w = mp.mpf(params[0])
        return mp.fsum(
            (w * u + (1 - w) * v)
            * (mp.log(w * u + (1 - w) * v) - w * mp.log(u) - (1 - w) * mp.log(v))
            for u, v in zip(x, y, strict=True)
        )

    @staticmethod
    def term(log_x: Any, log_y: Any, log_ratio: Any, params: tuple[float, ...], xp: Any) -> Any:
        """The weighted terms of KL(m‖x) and KL(m‖y)."""
        (w,) = params
        log_m, over_x, over_y, _, _ = midpoint(log_x, log_y, log_ratio, w, xp)
        by_x = exp_bregman(log_x, log_m, -over_x, xp)
        by_y = exp_bregman(log_y, log_m, -over_y, xp)
        if w == 0.0:
            return by_y
        return by_x if w == 1.0 else w * by_x + (1.0 - w) * by_y

    @staticmethod
    def partials(
        log_x: Any, log_y: Any, log_ratio: Any, params: tuple[float, ...], xp: Any
    ) -> tuple[Any, Any]:
        """W x h + w(x - m) and (1-w) y h + (1-w)(y - m), h = w log(m/x) + (1-w) log(m/y)."""
        (w,) = params
        log_m, over_x, over_y, _, _ = midpoint(log_x, log_y, log_ratio, w, xp)
        h = over_y if w == 0.0 else over_x if w == 1.0 else w * over_x + (1.0 - w) * over_y
        by_x = weighted(xp.exp(log_x), h, xp) + exp_difference(log_x, log_m, -over_x, xp)
        by_y = weighted(xp.exp(log_y), h, xp) + exp_difference(log_y, log_m, -over_y, xp)
        return w * by_x, (1.0 - w) * by_y
