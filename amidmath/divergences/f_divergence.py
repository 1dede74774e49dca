"""The f-divergence of a user's own f."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from amidmath.arrays.annotations import Array, Namespace
from amidmath.divergences.base import Divergence, Evaluated
from amidmath.divergences.generator import Generator, check_functions
from amidmath.formulas.dual import Function
from amidmath.formulas.pointwise import shared_support, weighted


@dataclass(frozen=True)
class FDivergence(Divergence):
    """f-divergence Σ y f(x/y) of a convex f, in nats if f is.

    f is written over a namespace, ``lambda u, xp: u * xp.log(u)``, so that it runs on any library.
    f(u) - f(1) - f'(1)(u - 1) is what is summed: on distributions the same, less f(1), with terms
    that are non-negative. As u = x/y is formed, ratios beyond the range of the dtype count as 0
    or ∞. TFP's csiszar functions give the same values, but for f(1), from functions of log u.

    Near x = y the sum is a small difference of large numbers. ``smooth=True`` says that f has two
    continuous derivatives, and then it is computed from the second one, to full precision.

    Source: Csiszár (1967); docs: divergences, D20.

    Args:
        f: f(u, xp), convex on u > 0.
        first: f'(u, xp); taken from f if None (see :func:`amidmath.derivative`).
        second: f''(u, xp); given, or taken if None and ``smooth``.
        smooth: whether to use f''.

    Raises:
        TypeError: f or a derivative cannot be called.
        AttributeError: on use, if f calls a function whose derivative is not known.

    Example:
        >>> import numpy as np, amidmath as am
        >>> log_x, log_y = np.log([0.5, 0.5]), np.log([0.25, 0.75])
        >>> hellinger = am.FDivergence(lambda u, xp: (xp.sqrt(u) - 1) ** 2, smooth=True)
        >>> print(f"{hellinger(log_x, log_y):.6f}")
        0.068148
    """

    f: Function
    first: Function | None = None
    second: Function | None = None
    smooth: bool = False

    def __post_init__(self) -> None:
        """Check that the functions are functions."""
        check_functions(f=self.f, first=self.first, second=self.second)

    @staticmethod
    def definition(x: Sequence[Any], y: Sequence[Any], params: tuple[Any, ...], mp: Any) -> Any:
        """Σ y f(x/y) - f(1), where mp must supply what f calls."""
        f = params[0]
        return mp.fsum(v * f(u / v, mp) for u, v in zip(x, y, strict=True)) - f(mp.mpf(1), mp)

    def evaluate(
        self, log_x: Array, log_y: Array, log_ratio: Array, with_partials: bool, xp: Namespace
    ) -> Evaluated:
        """Σ y g(u) with g(u) = f(u) - f(1) - f'(1)(u - 1), and x g', y(g - u g')."""
        log_x, log_y, d = shared_support(log_x, log_y, log_ratio, xp)
        generator = Generator(self.f, self.first, self.second)
        x, y, u, one = xp.exp(log_x), xp.exp(log_y), xp.exp(d), xp.ones_like(d)
        f_one, slope_one = generator.value(one, xp), generator.slope(one, xp)
        infinite = u == xp.inf
        inside = xp.where(infinite, 1.0, u)
        gap = xp.where(infinite, 0.0, xp.expm1(d))
        g = generator.value(inside, xp) - f_one - slope_one * gap
        g_slope = generator.slope(u, xp) - slope_one
        tilt = g - weighted(inside, g_slope, xp)
        if self.smooth or self.second is not None:
            near = (xp.abs(gap) < 0.5) & ~infinite
            step = xp.where(near, gap, 0.0)
            late, early = generator.integrals(one, step, xp)
            g = xp.where(near, step * step * late, g)
            g_slope = xp.where(near, step * early, g_slope)
            # f - u f' falls by ∫ v f''(v) dv
            tilt = xp.where(near, -step * ((1.0 + step) * early - step * late), tilt)
        g = xp.where(g < 0.0, 0.0 * g, g)  # below zero by rounding alone: f is convex
        term = xp.where(infinite, weighted(x, g_slope, xp), weighted(y, g, xp))
        value = xp.sum(term, axis=-1)
        if not with_partials:
            return value, None
        by_y = weighted(xp.where(infinite, 0.0, y), tilt, xp)
        return value, (weighted(x, g_slope, xp), by_y, term)
