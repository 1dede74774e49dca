"""The α-β divergence family."""

from dataclasses import dataclass
from typing import Any

from amidmath import _checks
from amidmath._pointwise import exp_bregman, exp_difference
from amidmath.divergences._base import Divergence

# An exponent below this acts as zero to the last bit, and its square would underflow.
_NEGLIGIBLE = 1e-20


@dataclass(frozen=True)
class AlphaBeta(Divergence):
    """α-β divergence (Cichocki, Cruces & Amari 2011), for all real α and β, in nats.

    With a = α, b = β: D(x‖y) = -1/(ab) Σ [xᵃyᵇ - a/(a+b) xᵃ⁺ᵇ - b/(a+b) yᵃ⁺ᵇ], and its limits
    where a, b or a + b is 0. (1, 0) is KL, (0, 1) reverse KL, (1, β) the β-divergence,
    (c, 1-c) the power (Amari α) divergences, (0, 0) half the squared log ratio.

    Each term is the second divided difference of exp at (a+b) log y, a log x + b log y and
    (a+b) log x, times log(x/y)²: non-negative, and smooth in a and b through all the limits.

    Source: Entropy 13 (2011) 134; AMiD (arXiv 2510.15982); docs:
    divergences, D3.

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

    def __post_init__(self) -> None:
        """Check the parameters."""
        object.__setattr__(self, "alpha", _checks.number("alpha", self.alpha))
        object.__setattr__(self, "beta", _checks.number("beta", self.beta))

    @property
    def params(self) -> tuple[float, float]:
        """(α, β)."""
        return (self.alpha, self.beta)

    @staticmethod
    def term(log_x: Any, log_y: Any, log_ratio: Any, params: tuple[float, ...], xp: Any) -> Any:
        """log(x/y)² exp[(a+b) log y, a log x + b log y, (a+b) log x], around the middle point."""
        a, b = params
        low, mid, high = _exponents(log_x, log_y, a, b, xp)
        if a * b >= 0.0:
            return _divided(mid, low, -a, high, b, log_ratio, xp)
        if a * (a + b) <= 0.0:
            return _divided(low, mid, a, high, a + b, log_ratio, xp)
        return _divided(high, low, -(a + b), mid, -b, log_ratio, xp)

    @staticmethod
    def partials(
        log_x: Any, log_y: Any, log_ratio: Any, params: tuple[float, ...], xp: Any
    ) -> tuple[Any, Any]:
        """(xᵃ⁺ᵇ - xᵃyᵇ)/b and (yᵃ⁺ᵇ - xᵃyᵇ)/a."""
        a, b = params
        low, mid, high = _exponents(log_x, log_y, a, b, xp)
        over_y = _quotient(mid, low, a, log_ratio, xp)
        return _quotient(mid, high, -b, log_ratio, xp), -over_y


def _exponents(log_x: Any, log_y: Any, a: float, b: float, xp: Any) -> tuple[Any, Any, Any]:
    """(a+b) log y, a log x + b log y and (a+b) log x, where 0·(-inf) is 0."""
    zero = xp.zeros_like(log_x)
    a_x = zero if abs(a) < _NEGLIGIBLE else a * log_x
    b_y = zero if abs(b) < _NEGLIGIBLE else b * log_y
    if abs(a + b) < _NEGLIGIBLE:
        return zero, a_x + b_y, zero
    return (a + b) * log_y, a_x + b_y, (a + b) * log_x


def _divided(m: Any, n1: Any, g1: float, n2: Any, g2: float, d: Any, xp: Any) -> Any:
    """d² exp[n1, m, n2] for m between n1 = m + g1 d and n2 = m + g2 d: a sum of two gaps."""
    spread = abs(g1) + abs(g2)
    if spread < _NEGLIGIBLE:
        return 0.5 * xp.exp(m) * d * d
    if abs(g1) < _NEGLIGIBLE:
        return exp_bregman(n2, m, g2 * d, xp) / (abs(g2) * spread)
    if abs(g2) < _NEGLIGIBLE:
        return exp_bregman(n1, m, g1 * d, xp) / (abs(g1) * spread)
    first = exp_bregman(n1, m, g1 * d, xp) / (abs(g1) * spread)
    return first + exp_bregman(n2, m, g2 * d, xp) / (abs(g2) * spread)


def _quotient(n: Any, m: Any, g: float, d: Any, xp: Any) -> Any:
    """(eⁿ - eᵐ)/g for n = m + g d, and its limit eᵐ d at g = 0."""
    if abs(g) < _NEGLIGIBLE:
        e_m = xp.exp(m)
        return xp.where(e_m > 0.0, e_m * d, 0.0)
    return exp_difference(n, m, g * d, xp) / g
