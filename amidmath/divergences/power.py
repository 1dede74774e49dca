"""Power divergences under their names: Amari's α, Cressie-Read, Tsallis, t-power."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from amidmath.arrays import checks
from amidmath.divergences.base import Checks
from amidmath.divergences.power_terms import PowerMultiple, power_definition


@dataclass(frozen=True)
class AmariAlpha(PowerMultiple):
    """Amari's α-divergence 4/(1-α²) (1 - Σ x^((1-α)/2) y^((1+α)/2)), in nats.

    α = -1 is KL(x‖y), α = 1 is KL(y‖x), α = 0 twice the squared Hellinger distance. The mixture of
    :func:`amidmath.alpha_mixture` minimises its weighted sum at the same α. Amari's own sign of α
    is kept, as dit does (in bits); TFP's ``amari_alpha`` takes the order c = (1-α)/2 instead.

    Source: Amari (2016), Information Geometry, 3.4; docs: divergences, D14.

    Args:
        alpha: α, any real number.

    Raises:
        TypeError: α is not a number.
        ValueError: α is not finite.

    Example:
        >>> import numpy as np, amidmath as am
        >>> log_x, log_y = np.log([0.5, 0.5]), np.log([0.25, 0.75])
        >>> print(f"{am.AmariAlpha(0.0)(log_x, log_y):.6f}")
        0.136297
    """

    alpha: float

    name: ClassVar[str | None] = "amari_alpha"
    examples: ClassVar[tuple[tuple[Any, ...], ...]] = (
        *((0.0,), (-1.0,), (1.0,), (3.0,), (-5.0,), (0.5,)),
        *((-1.0 + 1e-9,), (1.0 - 1e-9,)),
    )

    @staticmethod
    def definition(x: Sequence[Any], y: Sequence[Any], params: tuple[Any, ...], mp: Any) -> Any:
        """4/(1-α²) (1 - Σ x^((1-α)/2) y^((1+α)/2)), and its limits."""
        return power_definition(x, y, (1 - mp.mpf(params[0])) / 2, mp)

    @staticmethod
    def orders(params: tuple[float, ...]) -> tuple[float, float]:
        """(1-α)/2 and (1+α)/2."""
        return (1.0 - params[0]) / 2.0, (1.0 + params[0]) / 2.0


@dataclass(frozen=True)
class CressieRead(PowerMultiple):
    """Cressie-Read power divergence 1/(λ(λ+1)) Σ x((x/y)^λ - 1), in nats.

    λ = 0 is KL(x‖y), λ = -1 its reverse, λ = 1 half of Pearson's χ². The statistic of
    ``scipy.stats.power_divergence`` is 2n times it, x the observed frequencies.

    Source: Cressie & Read, J. R. Stat. Soc. B 46 (1984) 440; docs: divergences, D14.

    Args:
        lam: λ, any real number.

    Raises:
        TypeError: λ is not a number.
        ValueError: λ is not finite.

    Example:
        >>> import numpy as np, amidmath as am
        >>> log_x, log_y = np.log([0.5, 0.5]), np.log([0.25, 0.75])
        >>> print(f"{am.CressieRead(2 / 3)(log_x, log_y):.6f}")
        0.157745
    """

    lam: float

    name: ClassVar[str | None] = "cressie_read"
    examples: ClassVar[tuple[tuple[Any, ...], ...]] = (
        *((2 / 3,), (0.0,), (-1.0,), (1.0,), (-0.5,), (-2.0,)),
        *((1e-9,), (-1.0 + 1e-9,)),
    )

    @staticmethod
    def definition(x: Sequence[Any], y: Sequence[Any], params: tuple[Any, ...], mp: Any) -> Any:
        """1/(λ(λ+1)) Σ x((x/y)^λ - 1), and its limits."""
        return power_definition(x, y, mp.mpf(params[0]) + 1, mp)

    @staticmethod
    def orders(params: tuple[float, ...]) -> tuple[float, float]:
        """λ + 1 and -λ."""
        return params[0] + 1.0, -params[0]


@dataclass(frozen=True)
class Tsallis(PowerMultiple):
    """Tsallis relative entropy (Σ x^ρ y^{1-ρ} - 1)/(ρ - 1), in nats.

    ρ = 1 is KL(x‖y). ρ times the power divergence of order ρ: it vanishes as ρ → 0, where it has
    nothing to say, and is negative below; so ρ must be positive.

    Source: Tsallis, Phys. Rev. E 58 (1998) 1442; docs: divergences, D14.

    Args:
        rho: the order ρ > 0.

    Raises:
        TypeError: ρ is not a number.
        ValueError: ρ is not positive and finite.

    Example:
        >>> import numpy as np, amidmath as am
        >>> log_x, log_y = np.log([0.5, 0.5]), np.log([0.25, 0.75])
        >>> print(f"{am.Tsallis(2.0)(log_x, log_y):.6f}")
        0.333333
    """

    rho: float

    name: ClassVar[str | None] = "tsallis"
    checks: ClassVar[Checks] = {"rho": checks.positive}
    examples: ClassVar[tuple[tuple[Any, ...], ...]] = (
        *((0.5,), (1.0,), (2.0,), (1e-3,), (1.0 + 1e-9,)),
    )

    @staticmethod
    def definition(x: Sequence[Any], y: Sequence[Any], params: tuple[Any, ...], mp: Any) -> Any:
        """(Σ x^ρ y^{1-ρ} - 1)/(ρ - 1), and KL at ρ = 1."""
        rho = mp.mpf(params[0])
        return rho * power_definition(x, y, rho, mp)

    @staticmethod
    def orders(params: tuple[float, ...]) -> tuple[float, float]:
        """ρ and 1 - ρ."""
        return params[0], 1.0 - params[0]

    @staticmethod
    def factor(params: tuple[float, ...]) -> float:
        """The order ρ."""
        return params[0]


@dataclass(frozen=True)
class TPower(PowerMultiple):
    """t-power divergence ±(Σ x^t y^{1-t} - 1), with the sign that makes it non-negative, in nats.

    |t(t-1)| times the power divergence of order t; zero at t = 0 and t = 1. TFP's ``t_power``.

    Source: docs: divergences, D14.

    Args:
        t: the order, any real number.

    Raises:
        TypeError: t is not a number.
        ValueError: t is not finite.

    Example:
        >>> import numpy as np, amidmath as am
        >>> log_x, log_y = np.log([0.5, 0.5]), np.log([0.25, 0.75])
        >>> print(f"{am.TPower(2.0)(log_x, log_y):.6f}")
        0.333333
    """

    t: float

    name: ClassVar[str | None] = "t_power"
    examples: ClassVar[tuple[tuple[Any, ...], ...]] = ((0.5,), (2.0,), (-1.0,), (1.0 + 1e-9,))

    @staticmethod
    def definition(x: Sequence[Any], y: Sequence[Any], params: tuple[Any, ...], mp: Any) -> Any:
        """±(Σ x^t y^{1-t} - 1)."""
        t = mp.mpf(params[0])
        total = mp.fsum(u**t * v ** (1 - t) for u, v in zip(x, y, strict=True)) - 1
        return -total if 0 < t < 1 else total

    @staticmethod
    def orders(params: tuple[float, ...]) -> tuple[float, float]:
        """The orders t and 1 - t."""
        return params[0], 1.0 - params[0]

    @staticmethod
    def factor(params: tuple[float, ...]) -> float:
        """|t(t-1)|."""
        (t,) = params
        return abs(t * (t - 1.0))
