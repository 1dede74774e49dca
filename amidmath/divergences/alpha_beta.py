"""The α-β divergence family."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from amidmath.divergences.base import Separable
from amidmath.formulas.pointwise import NEGLIGIBLE, exp_bregman, exp_quotient


@dataclass(frozen=True)
class AlphaBeta(Separable):
    """α-β divergence (Cichocki, Cruces & Amari 2011), for all real α and β, in nats.

    With a = α, b = β: D(x‖y) = -1/(ab) Σ [xᵃyᵇ - a/(a+b) xᵃ⁺ᵇ - b/(a+b) yᵃ⁺ᵇ], and its limits
    where a, b or a + b is 0. (1, 0) is KL, (0, 1) reverse KL, (1, β) the β-divergence,
    (c, 1-c) the power (Amari α) divergences, (0, 0) half the squared log ratio. Defined on
    measures of any total mass.

    Each term is the second divided difference of exp at (a+b) log y, a log x + b log y and
    (a+b) log x, times log(x/y)²: non-negative, and smooth in a and b through all the limits.

    Source: Entropy 13 (2011) 134; AMiD (arXiv 2510.15982); docs:
    divergences, D3 to D5.

    Args:
        alpha: exponent of x, any real number.
        beta: exponent of y, any real number.

    Raises:
        TypeError: a parameter is not a number.
        ValueError: a parameter is not finite.

    Example:
        >>> import numpy as np, amidmath as am
        >>> log_x, log_y = np.log([0.5, 0.5]), np.log([0.25, 0.75])
        >>> print(f"{am.AlphaBeta(0.2, 0.7)(log_x, log_y):.6f}")
        0.144614
    """

    alpha: float
    beta: float

    name: ClassVar[str | None] = "alpha_beta"
    on_measures: ClassVar[bool] = True
    examples: ClassVar[tuple[tuple[Any, ...], ...]] = (
        *((0.2, 0.7), (1.0, 1.0), (0.4, 0.0), (0.0, -0.3), (1.0, -1.0), (0.0, 0.0)),
        *((2.0, -0.5), (-0.5, 2.0), (0.7, 1e-9), (0.5, -0.5 + 1e-9), (1e-9, 1e-9)),
    )

    @property
    def degree(self) -> float:
        """α + β."""
        return self.alpha + self.beta

    @staticmethod
    def definition(x: Sequence[Any], y: Sequence[Any], params: tuple[Any, ...], mp: Any) -> Any:
        """Cichocki, Cruces & Amari (2011), equations 19 to 24."""
        a, b = (mp.mpf(value) for value in params)
        pairs = list(zip(x, y, strict=True))
        if a == b == 0:
            return mp.fsum(mp.log(u / v) ** 2 for u, v in pairs) / 2
        if b == 0:
            return mp.fsum(u**a * mp.log((u / v) ** a) - u**a + v**a for u, v in pairs) / a**2
        if a == 0:
            return mp.fsum(v**b * mp.log((v / u) ** b) - v**b + u**b for u, v in pairs) / b**2
        if a + b == 0:
            return mp.fsum(mp.log((v / u) ** a) + (u / v) ** a - 1 for u, v in pairs) / a**2
        s = a + b
        return -mp.fsum(u**a * v**b - a / s * u**s - b / s * v**s for u, v in pairs) / (a * b)

    @staticmethod
    def term(log_x: Any, log_y: Any, log_ratio: Any, params: tuple[float, ...], xp: Any) -> Any:
        """log(x/y)² exp[(a+b) log y, a log x + b log y, (a+b) log x]."""
        a, b = params
        points = _exponents(log_x, log_y, a, b, xp)
        return divided_term(*points, a, b, a + b, log_ratio, xp)

    @staticmethod
    def partials(
        log_x: Any, log_y: Any, log_ratio: Any, params: tuple[float, ...], xp: Any
    ) -> tuple[Any, Any]:
        """(xᵃ⁺ᵇ - xᵃyᵇ)/b and (yᵃ⁺ᵇ - xᵃyᵇ)/a."""
        a, b = params
        return divided_partials(*_exponents(log_x, log_y, a, b, xp), a, b, log_ratio, xp)


@dataclass(frozen=True)
class Beta(Separable):
    """β-divergence, AlphaBeta(1, β): Σ [x(x^β - y^β)/β - (x^{β+1} - y^{β+1})/(β+1)], in nats.

    The density power divergence of Basu et al. (1998), divided by 1 + β: β = 0 is KL, 1 is half the
    squared Euclidean distance, -1 is Itakura-Saito. In the convention of audio and NMF
    (scikit-learn, torch-nmf) β is one larger. Defined on measures of any total mass.

    Source: Cichocki, Cruces & Amari, Entropy 13 (2011) 134; docs: divergences, D3.

    Args:
        beta: β, any real number.

    Raises:
        TypeError: β is not a number.
        ValueError: β is not finite.

    Example:
        >>> import numpy as np, amidmath as am
        >>> log_x, log_y = np.log([0.5, 0.5]), np.log([0.25, 0.75])
        >>> print(f"{am.Beta(1.0)(log_x, log_y):.6f}")
        0.062500
    """

    beta: float

    name: ClassVar[str | None] = "beta"
    on_measures: ClassVar[bool] = True
    examples: ClassVar[tuple[tuple[Any, ...], ...]] = (
        *((1.0,), (0.5,), (0.0,), (-1.0,), (1e-9,), (-1.0 + 1e-9,)),
    )

    @property
    def degree(self) -> float:
        """1 + β."""
        return 1.0 + self.beta

    @staticmethod
    def definition(x: Sequence[Any], y: Sequence[Any], params: tuple[Any, ...], mp: Any) -> Any:
        """Σ [x(x^β - y^β)/β - (x^{β+1} - y^{β+1})/(β+1)], and its limits."""
        beta = mp.mpf(params[0])
        pairs = list(zip(x, y, strict=True))
        if beta == 0:
            return mp.fsum(u * mp.log(u / v) - u + v for u, v in pairs)
        if beta == -1:
            return mp.fsum(u / v - mp.log(u / v) - 1 for u, v in pairs)
        s = beta + 1
        return mp.fsum(u * (u**beta - v**beta) / beta - (u**s - v**s) / s for u, v in pairs)

    @staticmethod
    def term(log_x: Any, log_y: Any, log_ratio: Any, params: tuple[float, ...], xp: Any) -> Any:
        """The term of AlphaBeta(1, β)."""
        return AlphaBeta.term(log_x, log_y, log_ratio, (1.0, params[0]), xp)

    @staticmethod
    def partials(
        log_x: Any, log_y: Any, log_ratio: Any, params: tuple[float, ...], xp: Any
    ) -> tuple[Any, Any]:
        """Those of AlphaBeta(1, β)."""
        return AlphaBeta.partials(log_x, log_y, log_ratio, (1.0, params[0]), xp)


def _exponents(log_x: Any, log_y: Any, a: float, b: float, xp: Any) -> tuple[Any, Any, Any]:
    """(a+b) log y, a log x + b log y and (a+b) log x, where 0·(-inf) is 0."""
    zero = xp.zeros_like(log_x)
    a_x = zero if abs(a) < NEGLIGIBLE else a * log_x
    b_y = zero if abs(b) < NEGLIGIBLE else b * log_y
    if abs(a + b) < NEGLIGIBLE:
        return zero, a_x + b_y, zero
    return (a + b) * log_y, a_x + b_y, (a + b) * log_x


def divided_term(
    low: Any, mid: Any, high: Any, a: float, b: float, total: float, d: Any, xp: Any
) -> Any:
    """d² exp[low, mid, high] for mid = low + a d, high = mid + b d; docs: divergences, D4."""
    if a * b >= 0.0:
        return _around(mid, low, -a, high, b, d, xp)
    if a * total <= 0.0:
        return _around(low, mid, a, high, total, d, xp)
    return _around(high, low, -total, mid, -b, d, xp)


def divided_partials(
    low: Any, mid: Any, high: Any, a: float, b: float, d: Any, xp: Any
) -> tuple[Any, Any]:
    """(e^high - e^mid)/b and (e^low - e^mid)/a, and their limits; docs: divergences, D5."""
    return exp_quotient(mid, high, -b, d, xp), -exp_quotient(mid, low, a, d, xp)


def _around(m: Any, n1: Any, g1: float, n2: Any, g2: float, d: Any, xp: Any) -> Any:
    """d² exp[n1, m, n2] for m between n1 = m + g1 d and n2 = m + g2 d: a sum of two gaps."""
    spread = abs(g1) + abs(g2)
    if spread < NEGLIGIBLE:
        return 0.5 * xp.exp(m) * d * d
    if abs(g1) < NEGLIGIBLE:
        return exp_bregman(n2, m, g2 * d, xp) / (abs(g2) * spread)
    if abs(g2) < NEGLIGIBLE:
        return exp_bregman(n1, m, g1 * d, xp) / (abs(g1) * spread)
    first = exp_bregman(n1, m, g1 * d, xp) / (abs(g1) * spread)
    return first + exp_bregman(n2, m, g2 * d, xp) / (abs(g2) * spread)
