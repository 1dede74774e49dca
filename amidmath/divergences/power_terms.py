"""The power divergence of an order: its term, partials and definition, and multiples of it."""

from collections.abc import Sequence
from typing import Any

from amidmath.divergences.alpha_beta import divided_term
from amidmath.divergences.tangent import ORIGIN, Bases, Tangent
from amidmath.formulas.pointwise import NEGLIGIBLE, exp_quotient


def power_term(
    log_x: Any, log_y: Any, log_ratio: Any, a: float, b: float, xp: Any, base: Any = 0.0
) -> Any:
    """(xᵃyᵇ - ax - by)/(-ab) for a + b = 1: the power divergence of order a; docs: D14.

    With y and x times eᵃᵇᵃˢᵉ and e⁻ᵇᵇᵃˢᵉ in the sum, which is the tangent at a base; docs: D24.
    """
    low, high = log_y + a * base, log_x - b * base
    mid = power_mean(log_x, log_y, a, b, xp)
    return divided_term(low, mid, high, a, b, 1.0, log_ratio - base, xp)


def power_partials(
    log_x: Any,
    log_y: Any,
    log_ratio: Any,
    a: float,
    b: float,
    xp: Any,
    bases: Bases = ORIGIN,
) -> tuple[Any, Any]:
    """(x - xᵃyᵇ)/b and (y - xᵃyᵇ)/a, with multiples of x and y that vanish at bases; docs: D24."""
    mid = power_mean(log_x, log_y, a, b, xp)
    base_x, base_y = bases
    by_x = exp_quotient(mid, log_x - b * base_x, -b, log_ratio - base_x, xp)
    return by_x, -exp_quotient(mid, log_y + a * base_y, a, log_ratio - base_y, xp)


def power_mean(log_x: Any, log_y: Any, a: float, b: float, xp: Any) -> Any:
    """Log xᵃyᵇ, where 0·(-inf) is 0."""
    zero = xp.zeros_like(log_x)
    a_x = zero if abs(a) < NEGLIGIBLE else a * log_x
    return a_x + (zero if abs(b) < NEGLIGIBLE else b * log_y)


def power_definition(x: Sequence[Any], y: Sequence[Any], order: Any, mp: Any) -> Any:
    """(Σ x^c y^{1-c} - 1)/(c(c-1)), and the two KL divergences that it tends to."""
    if order == 1:
        return mp.fsum(u * mp.log(u / v) for u, v in zip(x, y, strict=True))
    if order == 0:
        return mp.fsum(v * mp.log(v / u) for u, v in zip(x, y, strict=True))
    total = mp.fsum(u**order * v ** (1 - order) for u, v in zip(x, y, strict=True))
    return (total - 1) / (order * (order - 1))


class PowerMultiple(Tangent):
    """A multiple of the power divergence of an order; docs: divergences, D14."""

    @staticmethod
    def factor(params: tuple[float, ...]) -> float:
        """The multiple; nothing is computed where it is 0."""
        return 1.0

    @classmethod
    def term(  # pyright: ignore[reportIncompatibleMethodOverride]  # called alike
        cls,
        log_x: Any,
        log_y: Any,
        log_ratio: Any,
        params: tuple[float, ...],
        xp: Any,
        base: Any = 0.0,
    ) -> Any:
        """The factor times the power divergence's, of the first of the orders."""
        factor = cls.factor(params)
        if factor == 0.0:
            return xp.zeros_like(log_x)
        found = power_term(log_x, log_y, log_ratio, *cls.orders(params), xp, base)
        return found if factor == 1.0 else factor * found

    @classmethod
    def partials(  # pyright: ignore[reportIncompatibleMethodOverride]  # called alike
        cls,
        log_x: Any,
        log_y: Any,
        log_ratio: Any,
        params: tuple[float, ...],
        xp: Any,
        bases: Bases = ORIGIN,
    ) -> tuple[Any, Any]:
        """The factor times the power divergence's."""
        factor = cls.factor(params)
        if factor == 0.0:
            return xp.zeros_like(log_x), xp.zeros_like(log_x)
        by_x, by_y = power_partials(log_x, log_y, log_ratio, *cls.orders(params), xp, bases)
        return (by_x, by_y) if factor == 1.0 else (factor * by_x, factor * by_y)
