"""Pearson's and Neyman's χ² divergences."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from amidmath.divergences.power_terms import PowerMultiple


@dataclass(frozen=True)
class PearsonChi2(PowerMultiple):
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
    def factor(params: tuple[float, ...]) -> float:
        """Twice."""
        return 2.0


@dataclass(frozen=True)
class NeymanChi2(PowerMultiple):
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
    def factor(params: tuple[float, ...]) -> float:
        """Twice."""
        return 2.0
