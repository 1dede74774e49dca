"""Kullback-Leibler divergence, its reverse, and its form on unnormalised measures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from amidmath.divergences.base import Separable
from amidmath.formulas.pointwise import exp_bregman, exp_difference, weighted


@dataclass(frozen=True)
class KL(Separable):
    """Kullback-Leibler divergence KL(x‖y) = Σ x log(x/y), in nats.

    Computed as Σ x log(x/y) - x + y, whose terms are non-negative: rounding in the normalisation
    then enters squared, and nothing cancels near x = y. ``scipy.special.kl_div`` has the same
    terms; ``scipy.special.rel_entr``, TFP's ``kl_forward`` and
    ``torch.nn.functional.kl_div(log_y, log_x, log_target=True)`` leave out ``- x + y``, and torch
    puts the arguments the other way. dit counts in bits.

    Source: AMiD (arXiv 2510.15982); docs: divergences, D1.

    Example:
        >>> import numpy as np, amidmath as am
        >>> log_x, log_y = np.log([0.5, 0.5]), np.log([0.25, 0.75])
        >>> print(f"{am.KL()(log_x, log_y):.6f}")
        0.143841
    """

    name: ClassVar[str | None] = "kl"

    @staticmethod
    def definition(x: Sequence[Any], y: Sequence[Any], params: tuple[Any, ...], mp: Any) -> Any:
        """Σ x log(x/y)."""
        return mp.fsum(u * mp.log(u / v) for u, v in zip(x, y, strict=True))

    @staticmethod
    def term(log_x: Any, log_y: Any, log_ratio: Any, params: tuple[float, ...], xp: Any) -> Any:
        """X log(x/y) - x + y."""
        return exp_bregman(log_y, log_x, -log_ratio, xp)

    @staticmethod
    def partials(
        log_x: Any, log_y: Any, log_ratio: Any, params: tuple[float, ...], xp: Any
    ) -> tuple[Any, Any]:
        """X log(x/y) and y - x."""
        by_x = weighted(xp.exp(log_x), log_ratio, xp)
        return by_x, exp_difference(log_y, log_x, -log_ratio, xp)


@dataclass(frozen=True)
class ReverseKL(Separable):
    """Reverse Kullback-Leibler divergence KL(y‖x), as a divergence D(x‖y), in nats.

    TFP's ``kl_reverse``; the Burg entropy's f-divergence.

    Source: AMiD (arXiv 2510.15982); docs: divergences, D2.

    Example:
        >>> import numpy as np, amidmath as am
        >>> log_x, log_y = np.log([0.5, 0.5]), np.log([0.25, 0.75])
        >>> bool(am.ReverseKL()(log_x, log_y) == am.KL()(log_y, log_x))
        True
    """

    name: ClassVar[str | None] = "reverse_kl"

    @staticmethod
    def definition(x: Sequence[Any], y: Sequence[Any], params: tuple[Any, ...], mp: Any) -> Any:
        """Σ y log(y/x)."""
        return mp.fsum(v * mp.log(v / u) for u, v in zip(x, y, strict=True))

    @staticmethod
    def term(log_x: Any, log_y: Any, log_ratio: Any, params: tuple[float, ...], xp: Any) -> Any:
        """Y log(y/x) - y + x."""
        return KL.term(log_y, log_x, -log_ratio, params, xp)

    @staticmethod
    def partials(
        log_x: Any, log_y: Any, log_ratio: Any, params: tuple[float, ...], xp: Any
    ) -> tuple[Any, Any]:
        """X - y and y log(y/x)."""
        over_y, over_x = KL.partials(log_y, log_x, -log_ratio, params, xp)
        return over_x, over_y


@dataclass(frozen=True)
class GeneralizedKL(KL):
    """Generalised Kullback-Leibler divergence Σ x log(x/y) - x + y of positive measures, in nats.

    The same terms as :class:`KL`, for x and y of any total mass (the I-divergence).
    ``scipy.special.kl_div``, summed.

    Source: Csiszár (1991), I-divergence; docs: divergences, D1.

    Example:
        >>> import numpy as np, amidmath as am
        >>> print(f"{am.GeneralizedKL()(np.log([2.0, 1.0]), np.log([1.0, 1.0])):.6f}")
        0.386294
    """

    name: ClassVar[str | None] = "generalized_kl"
    on_measures: ClassVar[bool] = True

    @staticmethod
    def definition(x: Sequence[Any], y: Sequence[Any], params: tuple[Any, ...], mp: Any) -> Any:
        """Σ x log(x/y) - x + y."""
        return mp.fsum(u * mp.log(u / v) - u + v for u, v in zip(x, y, strict=True))
