"""Pearson's and Neyman's χ² divergences."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from amidmath.divergences.power_terms import power_partials, power_term
from amidmath.divergences.tangent import ORIGIN, Bases, Tangent


@dataclass(frozen=True)
class PearsonChi2(Tangent):
    """Pearson's χ² divergence Σ (x - y)²/y.

    y is the reference, in the denominator. TFP's ``pearson`` and ``chi_square`` are the same on
    distributions; ``scipy.stats.chisquare`` of frequencies x against y is n times it.

    Source: Pearson (1900); docs: divergences, D15.

    Example:
        >>> import numpy as np, amidmath as am
        >>> log_x, log_y = np.log([0.5, 0.5]), np.log([0.25, 0.75])
        >>> print(f"{am.PearsonChi2()(log_x, log_y):.6f}")
        0.333333
    """

    name: ClassVar[str | None] = "pearson_chi2"

    @staticmethod
    def definition(x: Sequence[Any], y: Sequence[Any], params: tuple[Any, ...], mp: Any) -> Any:
        """Σ (x - y)²/y."""
        return mp.fsum((u - v) ** 2 / v for u, v in zip(x, y, strict=True))

    @staticmethod
    def orders(params: tuple[float, ...]) -> tuple[float, float]:
        """2 and -1."""
        return 2.0, -1.0

    @staticmethod
    def term(
        log_x: Any,
        log_y: Any,
        log_ratio: Any,
        params: tuple[float, ...],
        xp: Any,
        base: Any = 0.0,
    ) -> Any:
        """Twice the power divergence's of order 2."""
        return 2.0 * power_term(log_x, log_y, log_ratio, 2.0, -1.0, xp, base)

    @staticmethod
    def partials(
        log_x: Any,
        log_y: Any,
        log_ratio: Any,
        params: tuple[float, ...],
        xp: Any,
        bases: Bases = ORIGIN,
    ) -> tuple[Any, Any]:
        """2(x²/y - x) and y - x²/y."""
        by_x, by_y = power_partials(log_x, log_y, log_ratio, 2.0, -1.0, xp, bases)
        return 2.0 * by_x, 2.0 * by_y


@dataclass(frozen=True)
class NeymanChi2(Tangent):
    """Neyman's χ² divergence Σ (x - y)²/x: Pearson's with the arguments exchanged.

    Source: Neyman (1949); docs: divergences, D15.

    Example:
        >>> import numpy as np, amidmath as am
        >>> log_x, log_y = np.log([0.5, 0.5]), np.log([0.25, 0.75])
        >>> print(f"{am.NeymanChi2()(log_x, log_y):.6f}")
        0.250000
    """

    name: ClassVar[str | None] = "neyman_chi2"

    @staticmethod
    def definition(x: Sequence[Any], y: Sequence[Any], params: tuple[Any, ...], mp: Any) -> Any:
        """Σ (x - y)²/x."""
        return mp.fsum((u - v) ** 2 / u for u, v in zip(x, y, strict=True))

    @staticmethod
    def orders(params: tuple[float, ...]) -> tuple[float, float]:
        """-1 and 2."""
        return -1.0, 2.0

    @staticmethod
    def term(
        log_x: Any,
        log_y: Any,
        log_ratio: Any,
        params: tuple[float, ...],
        xp: Any,
        base: Any = 0.0,
    ) -> Any:
        """Twice the power divergence's of order -1."""
        return 2.0 * power_term(log_x, log_y, log_ratio, -1.0, 2.0, xp, base)

    @staticmethod
    def partials(
        log_x: Any,
        log_y: Any,
        log_ratio: Any,
        params: tuple[float, ...],
        xp: Any,
        bases: Bases = ORIGIN,
    ) -> tuple[Any, Any]:
        """X - y²/x and 2(y²/x - y)."""
        by_x, by_y = power_partials(log_x, log_y, log_ratio, -1.0, 2.0, xp, bases)
        return 2.0 * by_x, 2.0 * by_y
