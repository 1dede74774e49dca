"""Squared Hellinger distance, and the Fisher-Rao distance that it determines."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from amidmath.arrays.annotations import Array, Namespace
from amidmath.divergences.base import Divergence, Evaluated, Separable
from amidmath.formulas.pointwise import exp_difference, shared_support


@dataclass(frozen=True)
class SquaredHellinger(Separable):
    """Squared Hellinger distance Σ (√x - √y)², in [0, 2].

    Without the factor ½ that makes it 1 for disjoint supports; TFP's ``squared_hellinger`` is the
    same.

    Source: docs: divergences, D12.

    Example:
        >>> import numpy as np, amidmath as am
        >>> log_x, log_y = np.log([0.5, 0.5]), np.log([0.25, 0.75])
        >>> print(f"{am.SquaredHellinger()(log_x, log_y):.6f}")
        0.068148
    """

    name: ClassVar[str | None] = "squared_hellinger"

    @staticmethod
    def definition(x: Sequence[Any], y: Sequence[Any], params: tuple[Any, ...], mp: Any) -> Any:
        """Σ (√x - √y)²."""
        return mp.fsum((mp.sqrt(u) - mp.sqrt(v)) ** 2 for u, v in zip(x, y, strict=True))

    @staticmethod
    def term(log_x: Any, log_y: Any, log_ratio: Any, params: tuple[float, ...], xp: Any) -> Any:
        """(√x - √y)²."""
        gap = exp_difference(0.5 * log_x, 0.5 * log_y, 0.5 * log_ratio, xp)
        return gap * gap

    @staticmethod
    def partials(
        log_x: Any, log_y: Any, log_ratio: Any, params: tuple[float, ...], xp: Any
    ) -> tuple[Any, Any]:
        """√x(√x - √y) and -√y(√x - √y)."""
        gap = exp_difference(0.5 * log_x, 0.5 * log_y, 0.5 * log_ratio, xp)
        return xp.exp(0.5 * log_x) * gap, -xp.exp(0.5 * log_y) * gap


@dataclass(frozen=True)
class FisherRao(Divergence):
    """Fisher-Rao distance 2 arccos Σ √(xy): the geodesic distance on the simplex, in [0, π].

    An angle on the sphere of radius 2, in radians, not nats. Computed as 4 arcsin(H/2) from the
    Hellinger distance H = √Σ(√x - √y)², which keeps its precision near x = y. At x = y it has a
    kink, and its derivative is taken as 0.

    Source: Rao (1945); docs: divergences, D13.

    Example:
        >>> import numpy as np, amidmath as am
        >>> log_x, log_y = np.log([0.5, 0.5]), np.log([0.25, 0.75])
        >>> print(f"{am.FisherRao()(log_x, log_y):.6f}")
        0.523599
    """

    name: ClassVar[str | None] = "fisher_rao"

    @staticmethod
    def definition(x: Sequence[Any], y: Sequence[Any], params: tuple[Any, ...], mp: Any) -> Any:
        """2 arccos Σ √(xy)."""
        return 2 * mp.acos(mp.fsum(mp.sqrt(u * v) for u, v in zip(x, y, strict=True)))

    def evaluate(
        self, log_x: Array, log_y: Array, log_ratio: Array, with_partials: bool, xp: Namespace
    ) -> Evaluated:
        """4 arcsin(H/2), and the partials of H² times 1/(H √(1 - H²/4))."""
        squared, partials = SquaredHellinger().evaluate(log_x, log_y, log_ratio, with_partials, xp)
        # Near x = y the rounded masses of x and y may be as far apart as their shapes.
        tokens = shared_support(log_x, log_y, log_ratio, xp)
        gap = 0.5 * xp.sum(exp_difference(*tokens, xp), axis=-1)
        squared = squared - gap * gap
        same = squared <= 0.0
        inside = xp.where(same, 1.0, squared)
        value = xp.where(same, 0.0, 4.0 * xp.asin(0.5 * xp.sqrt(inside)))
        if partials is None:
            return value, None
        slope = xp.where(same, 0.0, 1.0 / xp.sqrt(inside * (1.0 - 0.25 * inside)))[..., None]
        by_x, by_y, both = partials
        return value, (slope * by_x, slope * by_y, slope * both)
