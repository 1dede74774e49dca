"""What the tests hold the code against, by textbook formulas over mpmath numbers.

Divergences bring their own, :meth:`amidmath.divergences.Divergence.definition`, which is for
positive numbers: here they are also evaluated where some are zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mpmath

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Number = Any

# Stands for zero; what grows with its logarithm is infinite.
NOTHING = mpmath.mpf(10) ** -(10**30)
INFINITE = mpmath.mpf(10) ** 20
# A weight closer than this to 0 or 1 is there but for a step.
AT_THE_END = mpmath.mpf(10) ** -60


def mean(sources: Sequence[Any], weights: Sequence[Any], alpha: Any) -> Any:
    """The f_α-mean (Σ w xᵏ)^(1/k), k = (1-α)/2, and its limits; a weight may be a step below 0."""
    pairs = list(zip(sources, weights, strict=True))
    if abs(alpha) == mpmath.inf:
        return (min if alpha > 0 else max)(x for x, w in pairs if abs(w) > AT_THE_END)
    k = (1 - mpmath.mpf(alpha)) / 2
    if k <= 0 and any(x == 0 and w != 0 for x, w in pairs):
        return mpmath.mpf(0)
    if k == 0:
        return mpmath.fprod(x**w for x, w in pairs)
    return mpmath.fsum(w * x**k for x, w in pairs if x) ** (1 / k)


def log(x: Any) -> Any:
    return mpmath.log(x) if x else -mpmath.inf


def log_mean(logs: Sequence[Any], weights: Sequence[Any], alpha: Any) -> Any:
    """log of the f_α-mean of exp(logs)."""
    return log(mean([mpmath.exp(u) for u in logs], weights, alpha))


def log_sum(logs: Sequence[Any]) -> Any:
    """log Σ exp(logs), -inf if all of them are."""
    return log(mpmath.fsum(map(mpmath.exp, logs)))


def log_softmax(logits: Sequence[Any]) -> list[Any]:
    total = log_sum(logits)
    return [v - total for v in logits]


def of_tokens(
    definition: Callable[..., Any],
    params: tuple[Any, ...],
    x: Sequence[Any],
    y: Sequence[Any],
    nothing: Any = NOTHING,
    least: Any = 0,
) -> Any:
    """A definition of D(x‖y) on the tokens that x or y has, zeros being ``nothing``.

    A token that neither has as much as ``least`` of is left out.
    """
    tokens = [(u, v) for u, v in zip(x, y, strict=True) if max(u, v) >= least and (u or v)]
    columns = zip(*((u or nothing, v or nothing) for u, v in tokens), strict=True)
    # arccos of what rounding has put above 1 is complex; more digits put that right.
    return mpmath.re(definition(*columns, params, mpmath))


def divergence_of(divergence: Any, x: Sequence[Any], y: Sequence[Any]) -> Any:
    """D(x‖y) by its definition; +inf where a zero makes it so."""
    value = of_tokens(divergence.definition, divergence.params, x, y)
    return mpmath.inf if value > INFINITE else value
