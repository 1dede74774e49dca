"""The Bregman divergence of a user's own generator."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from amidmath.arrays.annotations import Array, Namespace
from amidmath.divergences.base import Divergence, Evaluated
from amidmath.divergences.generator import Generator, check_functions
from amidmath.formulas.dual import Function
from amidmath.formulas.pointwise import exp_difference, shared_support, weighted


@dataclass(frozen=True)
class Bregman(Divergence):
    """Bregman divergence Σ F(x) - F(y) - F'(y)(x - y) of a convex generator F.

    F is written over a namespace, ``lambda u, xp: u * xp.log(u)`` (which gives generalised KL),
    and has two continuous derivatives. Near x = y the value comes from the second one, so that
    nothing cancels. Defined on measures of any total mass.

    Source: Bregman (1967); docs: divergences, D22.

    Args:
        f: F(u, xp), convex on u > 0.
        first: F'(u, xp); taken from F if None (see :func:`amidmath.derivative`).
        second: F''(u, xp); taken if None.

    Raises:
        TypeError: F or a derivative cannot be called.
        AttributeError: on use, if F calls a function whose derivative is not known.

    Example:
        >>> import numpy as np, amidmath as am
        >>> log_x, log_y = np.log([0.5, 0.5]), np.log([0.25, 0.75])
        >>> print(f"{am.Bregman(lambda u, xp: u * u)(log_x, log_y):.6f}")
        0.125000
    """

    f: Function
    first: Function | None = None
    second: Function | None = None

    on_measures: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check that the functions are functions."""
        check_functions(f=self.f, first=self.first, second=self.second)

    @staticmethod
    def definition(x: Sequence[Any], y: Sequence[Any], params: tuple[Any, ...], mp: Any) -> Any:
        """Σ F(x) - F(y) - F'(y)(x - y), with F' by mpmath."""
        f = params[0]
        return mp.fsum(
            f(u, mp) - f(v, mp) - mp.diff(lambda t, v=v: f(v + v * t, mp), 0) * (u / v - 1)
            for u, v in zip(x, y, strict=True)
        )

    def evaluate(
        self, log_x: Array, log_y: Array, log_ratio: Array, with_partials: bool, xp: Namespace
    ) -> Evaluated:
        """The gaps and, for the partials, x(F'(x) - F'(y)) and -y F''(y)(x - y)."""
        log_x, log_y, d = shared_support(log_x, log_y, log_ratio, xp)
        generator = Generator(self.f, self.first, self.second)
        x, y = xp.exp(log_x), xp.exp(log_y)
        gap = exp_difference(log_x, log_y, d, xp)
        near = (xp.abs(d) < 0.4) & (y > 0.0)
        base, step = xp.where(near, y, 1.0), xp.where(near, gap, 0.0)
        late, early = generator.integrals(base, step, xp)
        slope_y = generator.slope(y, xp)
        far = generator.value(x, xp) - generator.value(y, xp) - weighted(gap, slope_y, xp)
        term = xp.where(near, step * step * late, xp.where(far > 0.0, far, 0.0 * far))
        value = xp.sum(term, axis=-1)
        if not with_partials:
            return value, None
        steep = xp.where(near, step * early, generator.slope(x, xp) - slope_y)
        by_x = weighted(x, steep, xp)
        by_y = -weighted(y * gap, generator.curvature(y, xp), xp)
        return value, (by_x, by_y, by_x + by_y)
