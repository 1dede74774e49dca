"""Kullback-Leibler divergence and its reverse."""

from dataclasses import dataclass
from typing import Any

from amidmath._pointwise import exp_bregman, exp_difference
from amidmath.divergences._base import Divergence


@dataclass(frozen=True)
class KL(Divergence):
    """Kullback-Leibler divergence KL(x‖y) = Σ x log(x/y) - x + y, in nats.

    For distributions the last two sums cancel; with them every term is non-negative, rounding in
    the normalisation enters squared, and nothing cancels near x = y. ``scipy.special.kl_div`` has
    the same terms; ``torch.nn.functional.kl_div(log_y, log_x, log_target=True)`` and
    ``scipy.special.rel_entr`` leave out ``- x + y``, and torch puts the arguments the other way.

    Source: AMiD (arXiv 2510.15982); docs: divergences, D1.

    Example:
        >>> import numpy as np, amidmath as am
        >>> log_x, log_y = np.log([0.5, 0.5]), np.log([0.25, 0.75])
        >>> print(f"{am.KL()(log_x, log_y):.6f}")
        0.143841
    """

    @staticmethod
    def term(log_x: Any, log_y: Any, log_ratio: Any, params: tuple[float, ...], xp: Any) -> Any:
        """X log(x/y) - x + y."""
        return exp_bregman(log_y, log_x, -log_ratio, xp)

    @staticmethod
    def partials(
        log_x: Any, log_y: Any, log_ratio: Any, params: tuple[float, ...], xp: Any
    ) -> tuple[Any, Any]:
        """X log(x/y) and y - x."""
        x = xp.exp(log_x)
        return xp.where(x > 0.0, x * log_ratio, 0.0), exp_difference(log_y, log_x, -log_ratio, xp)


@dataclass(frozen=True)
class ReverseKL(Divergence):
    """Reverse Kullback-Leibler divergence KL(y‖x), as a divergence D(x‖y), in nats.

    Source: AMiD (arXiv 2510.15982); docs: divergences, D2.

    Example:
        >>> import numpy as np, amidmath as am
        >>> log_x, log_y = np.log([0.5, 0.5]), np.log([0.25, 0.75])
        >>> bool(am.ReverseKL()(log_x, log_y) == am.KL()(log_y, log_x))
        True
    """

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
