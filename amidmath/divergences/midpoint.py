"""The arithmetic mixture m = λx + (1-λ)y that several divergences measure to or from."""

from typing import Any

from amidmath.formulas.assistant import log_mixture, mixture_ratios


def midpoint(
    log_x: Any, log_y: Any, log_ratio: Any, lam: float, xp: Any
) -> tuple[Any, Any, Any, Any, Any]:
    """Log m, log(m/x), log(m/y), and the shares λx/m and (1-λ)y/m; docs: mixtures, M4."""
    ratios = mixture_ratios(log_ratio, 1.0, lam, xp)
    return log_mixture(log_x, log_y, ratios, xp), *ratios
