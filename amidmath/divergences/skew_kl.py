"""Skew Kullback-Leibler divergences."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from amidmath.arrays import checks
from amidmath.divergences.base import Checks
from amidmath.divergences.midpoint import midpoint
from amidmath.divergences.tangent import ORIGIN, Bases, Tangent
from amidmath.formulas.pointwise import exp_bregman, exp_difference, weighted


class _Skew(Tangent):
    checks: ClassVar[Checks] = {"lam": checks.number_in_unit_interval}
    examples: ClassVar[tuple[tuple[Any, ...], ...]] = ((0.1,), (0.5,), (0.999,), (1e-9,))

    @staticmethod
    def orders(params: tuple[float, ...]) -> tuple[float, float]:
        """1 and 1: x/m and y/m grow no faster than the ratio, or its inverse."""
        return 1.0, 1.0


@dataclass(frozen=True)
class SkewKL(_Skew):
    """Skew KL divergence KL(x‖λx + (1-λ)y), in nats.

    λ weighs x. 0 is KL; at 1 it vanishes. Lee's α-skew divergence s_α(r, q) is KL(r‖αq + (1-α)r),
    with the weight on the other side. DistiLLM's SKL, with the teacher as x.

    Source: Lee (2001); DistiLLM (arXiv 2402.03898); docs: divergences, D8.

    Args:
        lam: λ in [0, 1], the weight of x in the mixture.

    Raises:
        TypeError: λ is not a number.
        ValueError: λ lies outside [0, 1].

    Example:
        >>> import numpy as np, amidmath as am
        >>> log_x, log_y = np.log([0.5, 0.5]), np.log([0.25, 0.75])
        >>> print(f"{am.SkewKL(0.1)(log_x, log_y):.6f}")
        0.113137
    """

    lam: float = 0.1

    name: ClassVar[str | None] = "skew_kl"

    @staticmethod
    def definition(x: Sequence[Any], y: Sequence[Any], params: tuple[Any, ...], mp: Any) -> Any:
        """Σ x log(x/(λx + (1-λ)y))."""
        lam = mp.mpf(params[0])
        return mp.fsum(u * mp.log(u / (lam * u + (1 - lam) * v)) for u, v in zip(x, y, strict=True))

    @staticmethod
    def term(
        log_x: Any,
        log_y: Any,
        log_ratio: Any,
        params: tuple[float, ...],
        xp: Any,
        base: Any = 0.0,
    ) -> Any:
        """X log(x/m) - x + m."""
        log_m, over_x, _, _, _ = midpoint(log_x, log_y, log_ratio, params[0], xp, base)
        return exp_bregman(log_m, log_x, over_x, xp)

    @staticmethod
    def partials(
        log_x: Any,
        log_y: Any,
        log_ratio: Any,
        params: tuple[float, ...],
        xp: Any,
        bases: Bases = ORIGIN,
    ) -> tuple[Any, Any]:
        """X log(x/m) + (λx/m)(m - x) and ((1-λ)y/m)(m - x), with m times x/m at a base; docs: D24.

        Where x leads, the first is the term less the second, of one base.
        """
        lam, base_x, base_y = params[0], *bases
        log_m, over_x, _, share_x, share_y = midpoint(log_x, log_y, log_ratio, lam, xp, base_x)
        gap = exp_difference(log_m, log_x, over_x, xp)
        direct = share_x * gap - weighted(xp.exp(log_x), over_x, xp)
        less = exp_bregman(log_m, log_x, over_x, xp) - share_y * gap
        by_x = xp.where(share_x > 0.5, less, direct)
        log_m, over_x, _, _, share_y = midpoint(log_x, log_y, log_ratio, lam, xp, base_y)
        return by_x, share_y * exp_difference(log_m, log_x, over_x, xp)


@dataclass(frozen=True)
class SkewReverseKL(_Skew):
    """Skew reverse KL divergence KL(y‖λy + (1-λ)x), as a divergence D(x‖y), in nats.

    λ weighs y. DistiLLM's SRKL, KL(q‖(1-λ)p + λq), with the teacher as x and the student as y.

    Source: DistiLLM (arXiv 2402.03898); docs: divergences, D8.

    Args:
        lam: λ in [0, 1], the weight of y in the mixture.

    Raises:
        TypeError: λ is not a number.
        ValueError: λ lies outside [0, 1].

    Example:
        >>> import numpy as np, amidmath as am
        >>> log_x, log_y = np.log([0.5, 0.5]), np.log([0.25, 0.75])
        >>> bool(am.SkewReverseKL(0.1)(log_x, log_y) == am.SkewKL(0.1)(log_y, log_x))
        True
    """

    lam: float = 0.1

    name: ClassVar[str | None] = "skew_reverse_kl"

    @staticmethod
    def definition(x: Sequence[Any], y: Sequence[Any], params: tuple[Any, ...], mp: Any) -> Any:
        """Σ y log(y/(λy + (1-λ)x))."""
        return SkewKL.definition(y, x, params, mp)

    @staticmethod
    def term(
        log_x: Any,
        log_y: Any,
        log_ratio: Any,
        params: tuple[float, ...],
        xp: Any,
        base: Any = 0.0,
    ) -> Any:
        """Y log(y/m) - y + m."""
        return SkewKL.term(log_y, log_x, -log_ratio, params, xp, -base)

    @staticmethod
    def partials(
        log_x: Any,
        log_y: Any,
        log_ratio: Any,
        params: tuple[float, ...],
        xp: Any,
        bases: Bases = ORIGIN,
    ) -> tuple[Any, Any]:
        """Those of SkewKL, exchanged."""
        back = -bases[1], -bases[0]
        by_y, by_x = SkewKL.partials(log_y, log_x, -log_ratio, params, xp, back)
        return by_x, by_y


@dataclass(frozen=True)
class SkewJensenShannon(_Skew):
    """Skew Jensen-Shannon divergence ½ KL(x‖λx + (1-λ)y) + ½ KL(y‖λy + (1-λ)x), in nats.

    Half the sum of the two skew KL divergences: λ = ½ is the Jensen-Shannon divergence, λ = 0
    half of Jeffreys'.

    Source: Nielsen, Entropy 22 (2020) 221; docs: divergences, D8.

    Args:
        lam: λ in [0, 1], the weight of each argument in its own mixture.

    Raises:
        TypeError: λ is not a number.
        ValueError: λ lies outside [0, 1].

    Example:
        >>> import numpy as np, amidmath as am
        >>> log_x, log_y = np.log([0.5, 0.5]), np.log([0.25, 0.75])
        >>> print(f"{am.SkewJensenShannon(0.5)(log_x, log_y):.6f}")
        0.033822
    """

    lam: float = 0.5

    name: ClassVar[str | None] = "skew_jensen_shannon"

    @staticmethod
    def definition(x: Sequence[Any], y: Sequence[Any], params: tuple[Any, ...], mp: Any) -> Any:
        """Half the sum of both skew KL divergences."""
        both = (SkewKL.definition(x, y, params, mp), SkewKL.definition(y, x, params, mp))
        return mp.fsum(both) / 2

    @staticmethod
    def term(
        log_x: Any,
        log_y: Any,
        log_ratio: Any,
        params: tuple[float, ...],
        xp: Any,
        base: Any = 0.0,
    ) -> Any:
        """Half the terms of both."""
        there = SkewKL.term(log_x, log_y, log_ratio, params, xp, base)
        return 0.5 * there + 0.5 * SkewKL.term(log_y, log_x, -log_ratio, params, xp, -base)

    @staticmethod
    def partials(
        log_x: Any,
        log_y: Any,
        log_ratio: Any,
        params: tuple[float, ...],
        xp: Any,
        bases: Bases = ORIGIN,
    ) -> tuple[Any, Any]:
        """Half the partials of both."""
        by_x, by_y = SkewKL.partials(log_x, log_y, log_ratio, params, xp, bases)
        back = -bases[1], -bases[0]
        back_y, back_x = SkewKL.partials(log_y, log_x, -log_ratio, params, xp, back)
        return 0.5 * (by_x + back_x), 0.5 * (by_y + back_y)
