"""Differences of a convex function and its derivative, from its second derivative where near.

f(v) - f(u) - f'(u)(v - u) = (v - u)² ∫₀¹ (1-t) f''(u + t(v - u)) dt, a product of non-negative
factors, where the left side is a small difference of large numbers. Docs: divergences, D20.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from amidmath.arrays.annotations import Array, Namespace
from amidmath.formulas.dual import Function, as_array, derivative

# Gauss-Legendre on [0, 1]: exact to rounding for f'' analytic in u > 0 and v within u/2 of u.
_NODES = (
    (0.013046735741414128, 0.033335672154344034),
    (0.06746831665550773, 0.0747256745752903),
    (0.16029521585048778, 0.10954318125799088),
    (0.2833023029353764, 0.13463335965499826),
    (0.4255628305091844, 0.14776211235737646),
    (0.5744371694908156, 0.14776211235737646),
    (0.7166976970646236, 0.13463335965499826),
    (0.8397047841495122, 0.10954318125799088),
    (0.9325316833444923, 0.0747256745752903),
    (0.9869532642585859, 0.033335672154344034),
)


def check_functions(**functions: Function | None) -> None:
    """Raise TypeError for what is no function; the first must be one, the others may be None."""
    (first, _), *_ = functions.items()
    for name, function in functions.items():
        if not (callable(function) or (function is None and name != first)):
            raise TypeError(f"{name} must be a function of (u, xp), got {function!r}")


@dataclass(frozen=True)
class Generator:
    """A convex function with its derivatives, each given or taken.

    Args:
        f: f(u, xp).
        first: f', or None to take it.
        second: f'', or None to take it.
    """

    f: Function
    first: Function | None = None
    second: Function | None = None

    def value(self, u: Array, xp: Namespace) -> Array:
        """f(u), and at u = 0 its limit."""
        return _or_limit(self.f, u, xp)

    def slope(self, u: Array, xp: Namespace) -> Array:
        """f'(u), and at u = ∞ its limit."""
        return _or_limit(self.first or derivative(self.f), u, xp)

    def integrals(self, u: Array, gap: Array, xp: Namespace) -> tuple[Array, Array]:
        """∫₀¹ (1-t) f''(u + t·gap) dt and ∫₀¹ f''(u + t·gap) dt."""
        second = self.second or derivative(self.first or derivative(self.f))
        late = early = xp.zeros_like(u)
        for t, weight in _NODES:
            bend = as_array(second(u + t * gap, xp), u)
            late = late + weight * (1.0 - t) * bend
            early = early + weight * bend
        return late, early

    def curvature(self, u: Array, xp: Namespace) -> Array:
        """f''(u)."""
        second = self.second or derivative(self.first or derivative(self.f))
        return as_array(second(u, xp), u)


def _or_limit(f: Callable[[Any, Any], Any], u: Array, xp: Namespace) -> Array:
    """f(u), and its limit where 0·∞ or the like has no value at u = 0 or u = ∞.

    The limit is f close by, or infinite where f still changes as much there as it did before.
    """
    exact, zero = as_array(f(u, xp), u), xp.zeros_like(u)
    info = xp.finfo(u.dtype)
    high, low = float(info.max), float(info.smallest_normal)
    at_infinity = u > 1.0
    far, nearer, nearest = (
        as_array(f(xp.where(at_infinity, zero + high**power, zero + low**power), xp), u)
        for power in (0.5, 0.25, 0.125)
    )
    diverges = xp.abs(far - nearer) > xp.abs(nearer - nearest)
    limit = xp.where(diverges, xp.where(far > nearer, zero + xp.inf, zero - xp.inf), far)
    return xp.where(xp.isnan(exact), limit, exact)
