"""The arithmetic mixture m = λx + (1-λ)y that several divergences measure to or from."""

from typing import Any

from amidmath.formulas.assistant import anchored_ratios, log_mixture


def midpoint(
    log_x: Any, log_y: Any, log_ratio: Any, lam: float, xp: Any, base: Any = 0.0
) -> tuple[Any, Any, Any, Any, Any]:
    """Log m, log(m/x), log(m/y), and the shares λx/m and (1-λ)y/m; docs: mixtures, M4, M11.

    With a base, one a row, m is times what x/m is where log(x/y) is the base.
    """
    ratios = anchored_ratios("p", log_ratio, base, 1.0, lam, xp)
    return log_mixture(log_x, log_y, ratios, xp), *ratios
