"""Rényi divergence, and those that are multiples of it."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from amidmath.arrays import checks
from amidmath.arrays.annotations import Array, Namespace
from amidmath.divergences.alpha_beta import divided_term
from amidmath.divergences.base import Checks, Evaluated
from amidmath.divergences.power_terms import power_definition, power_mean, power_term
from amidmath.divergences.tangent import Anchored, Tops, limited, tops
from amidmath.formulas.means import log_softmax
from amidmath.formulas.pointwise import (
    NEGLIGIBLE,
    absent,
    exp_difference,
    exp_quotient,
    is_near_one,
    log_near_one,
    without,
)
from amidmath.formulas.simplex import at


def renyi(
    log_x: Array,
    log_y: Array,
    log_ratio: Array,
    rho: float,
    one_minus: float,
    with_partials: bool,
    nothing: Array,
    xp: Namespace,
    anchors: Tops | None = None,
) -> Evaluated:
    """Rows of the Rényi divergence of order ρ and its partials; docs: divergences, D16, D17.

    Σ x^ρ y^{1-ρ} = 1 + ρ(ρ-1) Σ term, the terms of the power divergence, which keep their
    precision near x = y; far from there its logarithm is summed directly, and cannot underflow.
    ``nothing`` says which tokens take no part. The partials are ρ/S times those of the power
    divergence, relative to where the mass is: D24.
    """
    anchors = anchors or (tops(log_x, log_y, xp) if with_partials else None)
    log_x, log_y, log_ratio = without(nothing, log_x, log_y, log_ratio, xp)
    mid = power_mean(log_x, log_y, rho, one_minus, xp)
    beyond = mid > math.log(xp.finfo(mid.dtype).max)
    x, y, d = (xp.where(beyond, 0.0, a) for a in (log_x, log_y, log_ratio))
    terms = xp.where(beyond, xp.inf, power_term(x, y, d, rho, one_minus, xp))
    power = xp.sum(terms, axis=-1, keepdims=True)
    if abs(one_minus) < NEGLIGIBLE:
        log_total, value = xp.zeros_like(power), power
        share, over_x, over_y = mid, log_ratio - value, rho * log_ratio
    else:
        present = xp.where(nothing, -xp.inf, mid)
        infinite = xp.max(present, axis=-1, keepdims=True) == xp.inf
        peak, direct, _ = log_softmax(xp.where(infinite, 0.0, present), -1, xp)
        excess = -rho * one_minus * power
        near = is_near_one(excess)
        log_total = log_near_one(excess, xp.where(infinite, xp.inf, peak + direct), xp)
        value = log_total / -one_minus
        share = (mid - xp.where(near, 0.0, peak)) - xp.where(near, log_total, direct)
        over_x = xp.where(near, log_ratio - value, (share - log_x) / -one_minus)
        over_y = xp.where(near, rho * log_ratio - log_total, share - log_y)
    if not with_partials or anchors is None:
        return value[..., 0], None
    top_x, top_y = anchors
    there_x, there_y = at(top_x, over_x, xp), at(top_y, over_y, xp)
    base_x, base_y = limited(there_x, one_minus, xp), limited(there_y, 1.0, xp)
    high, low = log_x - one_minus * base_x, log_y + base_y
    ratio_x, ratio_y = (limited(at(top, log_ratio, xp), 0.0, xp) for top in (top_x, top_y))
    # What both have, as D, is not in the difference of two log ratios.
    whole_x, whole_y = base_x == there_x, base_y == there_y
    rise_x = xp.where(whole_x, log_ratio - ratio_x, over_x - base_x)
    rise_y = xp.where(whole_y, rho * (log_ratio - ratio_y), over_y - base_y)
    by_x = rho * exp_quotient(share, high, -one_minus, rise_x, xp)
    by_y = -exp_difference(share, low, rise_y, xp)
    above = rho * divided_term(low, share, high, rho, one_minus, 1.0, log_ratio - ratio_x, xp)
    both = xp.where(whole_x & whole_y & (ratio_x == ratio_y), above, by_x + by_y)
    return value[..., 0], tuple(xp.where(nothing, 0.0, a) for a in (by_x, by_y, both))


class RenyiMultiple(Anchored):
    """A multiple of the Rényi divergence of an order; docs: divergences, D16, D18."""

    @property
    @abstractmethod
    def orders(self) -> tuple[float, float]:
        """The order, and 1 less it."""

    @property
    def factor(self) -> float:
        """The multiple."""
        return 1.0

    def evaluate(
        self,
        log_x: Array,
        log_y: Array,
        log_ratio: Array,
        with_partials: bool,
        xp: Namespace,
        anchors: Tops | None = None,
    ) -> Evaluated:
        """See :func:`renyi`."""
        nothing, factor = absent(log_x, log_y, xp), self.factor
        value, partials = renyi(
            log_x, log_y, log_ratio, *self.orders, with_partials, nothing, xp, anchors
        )
        if factor == 1.0:
            return value, partials
        if partials is None:
            return factor * value, None
        by_x, by_y, both = partials
        return factor * value, (factor * by_x, factor * by_y, factor * both)


@dataclass(frozen=True)
class Renyi(RenyiMultiple):
    """Rényi divergence log(Σ x^ρ y^{1-ρ})/(ρ - 1) of order ρ > 0, in nats.

    ρ = 1 is KL(x‖y), ρ = ½ is symmetric (twice Bhattacharyya's). dit's
    ``renyi_divergence`` counts in bits.

    Source: van Erven & Harremoës, IEEE Trans. Inf. Theory 60 (2014) 3797; docs: divergences,
    D16 and D17.

    Args:
        rho: the order ρ > 0.

    Raises:
        TypeError: ρ is not a number.
        ValueError: ρ is not positive and finite.

    Example:
        >>> import numpy as np, amidmath as am
        >>> log_x, log_y = np.log([0.5, 0.5]), np.log([0.25, 0.75])
        >>> print(f"{am.Renyi(2.0)(log_x, log_y):.6f}")
        0.287682
    """

    rho: float

    name: ClassVar[str | None] = "renyi"
    checks: ClassVar[Checks] = {"rho": checks.positive}
    examples: ClassVar[tuple[tuple[Any, ...], ...]] = (
        *((0.5,), (2.0,), (1.0,), (10.0,), (1e-3,), (1.0 + 1e-9,), (1.0 - 1e-6,)),
    )

    @staticmethod
    def definition(x: Sequence[Any], y: Sequence[Any], params: tuple[Any, ...], mp: Any) -> Any:
        """log(Σ x^ρ y^{1-ρ})/(ρ - 1), and KL at ρ = 1."""
        rho = mp.mpf(params[0])
        if rho == 1:
            return power_definition(x, y, rho, mp)
        total = mp.fsum(u**rho * v ** (1 - rho) for u, v in zip(x, y, strict=True))
        return mp.log(total) / (rho - 1)

    @property
    def orders(self) -> tuple[float, float]:
        """The orders ρ and 1 - ρ."""
        return self.rho, 1.0 - self.rho


@dataclass(frozen=True)
class Bhattacharyya(RenyiMultiple):
    """Bhattacharyya distance -log Σ √(xy), in nats: half the Rényi divergence of order ½.

    Source: Bhattacharyya (1943); docs: divergences, D18.

    Example:
        >>> import numpy as np, amidmath as am
        >>> log_x, log_y = np.log([0.5, 0.5]), np.log([0.25, 0.75])
        >>> print(f"{am.Bhattacharyya()(log_x, log_y):.6f}")
        0.034668
    """

    name: ClassVar[str | None] = "bhattacharyya"

    @staticmethod
    def definition(x: Sequence[Any], y: Sequence[Any], params: tuple[Any, ...], mp: Any) -> Any:
        """-log Σ √(xy)."""
        return -mp.log(mp.fsum(mp.sqrt(u * v) for u, v in zip(x, y, strict=True)))

    @property
    def orders(self) -> tuple[float, float]:
        """½ and ½."""
        return 0.5, 0.5

    @property
    def factor(self) -> float:
        """Half."""
        return 0.5


@dataclass(frozen=True)
class Chernoff(RenyiMultiple):
    """Chernoff ρ-divergence -log Σ x^ρ y^{1-ρ}, in nats: (1-ρ) times Rényi's of order ρ.

    The skew Bhattacharyya distance. Its maximum over ρ is the Chernoff information.

    Source: Chernoff, Ann. Math. Stat. 23 (1952) 493; docs: divergences, D18.

    Args:
        rho: ρ in (0, 1).

    Raises:
        TypeError: ρ is not a number.
        ValueError: ρ lies outside (0, 1).

    Example:
        >>> import numpy as np, amidmath as am
        >>> log_x, log_y = np.log([0.5, 0.5]), np.log([0.25, 0.75])
        >>> print(f"{am.Chernoff(0.5)(log_x, log_y):.6f}")
        0.034668
    """

    rho: float = 0.5

    name: ClassVar[str | None] = "chernoff"
    examples: ClassVar[tuple[tuple[Any, ...], ...]] = ((0.5,), (0.1,), (0.999,), (1e-9,))

    def __post_init__(self) -> None:
        """Check the exponent."""
        super().__post_init__()
        if not 0.0 < self.rho < 1.0:
            raise ValueError(f"rho must lie in (0, 1), got {self.rho!r}")

    @staticmethod
    def definition(x: Sequence[Any], y: Sequence[Any], params: tuple[Any, ...], mp: Any) -> Any:
        """-log Σ x^ρ y^{1-ρ}."""
        rho = mp.mpf(params[0])
        return -mp.log(mp.fsum(u**rho * v ** (1 - rho) for u, v in zip(x, y, strict=True)))

    @property
    def orders(self) -> tuple[float, float]:
        """The orders ρ and 1 - ρ."""
        return self.rho, 1.0 - self.rho

    @property
    def factor(self) -> float:
        """1 - ρ."""
        return 1.0 - self.rho
