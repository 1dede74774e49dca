"""Jensen-Shannon divergence, weighted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from amidmath.arrays import checks
from amidmath.divergences.base import Checks, Separable
from amidmath.divergences.midpoint import midpoint
from amidmath.formulas.pointwise import exp_bregman, weighted


@dataclass(frozen=True)
class JensenShannon(Separable):
    """Jensen-Shannon divergence w KL(x‖m) + (1-w) KL(y‖m), m = w x + (1-w) y, in nats.

    GKD's generalised JSD(β) is w = β with the teacher as x. SciPy's ``distance.jensenshannon`` is
    the square root of w = ½; TFP's ``jensen_shannon`` is twice it; dit counts in bits. Zero at
    w = 0 and w = 1, where TRL jumps to KL.

    Source: Lin, IEEE Trans. Inf. Theory 37 (1991) 145; docs: divergences, D7.

    Args:
        weight: w in [0, 1], the weight of x.

    Raises:
        TypeError: the weight is not a number.
        ValueError: the weight lies outside [0, 1].

    Example:
        >>> import numpy as np, amidmath as am
        >>> log_x, log_y = np.log([0.5, 0.5]), np.log([0.25, 0.75])
        >>> print(f"{am.JensenShannon()(log_x, log_y):.6f}")
        0.033822
    """

    weight: float = 0.5

    name: ClassVar[str | None] = "jensen_shannon"
    checks: ClassVar[Checks] = {"weight": checks.number_in_unit_interval}
    examples: ClassVar[tuple[tuple[Any, ...], ...]] = ((0.5,), (0.1,), (0.999,), (1e-9,))

    @staticmethod
    def definition(x: Sequence[Any], y: Sequence[Any], params: tuple[Any, ...], mp: Any) -> Any:
        """W Σ x log(x/m) + (1-w) Σ y log(y/m)."""
        w = mp.mpf(params[0])
        return mp.fsum(
            w * u * mp.log(u / (w * u + (1 - w) * v))
            + (1 - w) * v * mp.log(v / (w * u + (1 - w) * v))
            for u, v in zip(x, y, strict=True)
        )

    @staticmethod
    def term(log_x: Any, log_y: Any, log_ratio: Any, params: tuple[float, ...], xp: Any) -> Any:
        """The weighted terms of KL(x‖m) and KL(y‖m)."""
        (w,) = params
        if w in (0.0, 1.0):
            return xp.zeros_like(log_x)
        log_m, over_x, over_y, _, _ = midpoint(log_x, log_y, log_ratio, w, xp)
        by_x = exp_bregman(log_m, log_x, over_x, xp)
        by_y = exp_bregman(log_m, log_y, over_y, xp)
        return w * by_x + (1.0 - w) * by_y

    @staticmethod
    def partials(
        log_x: Any, log_y: Any, log_ratio: Any, params: tuple[float, ...], xp: Any
    ) -> tuple[Any, Any]:
        """W x log(x/m) and (1-w) y log(y/m)."""
        (w,) = params
        if w in (0.0, 1.0):
            return xp.zeros_like(log_x), xp.zeros_like(log_x)
        _, over_x, over_y, _, _ = midpoint(log_x, log_y, log_ratio, w, xp)
        by_x = -w * weighted(xp.exp(log_x), over_x, xp)
        return by_x, (w - 1.0) * weighted(xp.exp(log_y), over_y, xp)
