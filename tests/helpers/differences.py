"""Definitions evaluated and differentiated by differences, at 200 digits with steps of 1e-70.

Next to α = 1 a mean loses as many digits as k has zeros, and at λ = 0 what changes with λ is
(p/q)ᵏ, which may be huge: hence so many digits, and so small a step.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import mpmath
from definitions import log_mean, log_softmax

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

DIGITS = 200
STEP = mpmath.mpf(10) ** -70
Point = tuple[Any, ...]


def at_200_digits(f: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its digits; what it gave before, where it was asked before."""

    @functools.wraps(f)
    def wrapped(*args: Any) -> Any:
        with mpmath.workdps(DIGITS):
            return f(*args)

    return functools.cache(wrapped)


def slope(f: Callable[[Point], Any], point: Point, i: int) -> Any:
    """∂f/∂point[i]; 0 at ±inf, for logits that are never and for α where the mean is a source."""
    if abs(point[i]) == mpmath.inf:
        return mpmath.mpf(0)
    up, down = ((*point[:i], point[i] + h, *point[i + 1 :]) for h in (STEP, -STEP))
    return (f(up) - f(down)) / (2 * STEP)


def log_r_tilde(log_p: Sequence[Any], log_q: Sequence[Any], alpha: Any, lam: Any) -> list[Any]:
    return [log_mean(pair, (lam, 1 - lam), alpha) for pair in zip(log_p, log_q, strict=True)]


@at_200_digits
def states(point: Point, temperature: float = 1.0) -> tuple[dict[str, list[Any]], list[Any]]:
    """log p, log q and log r at (*student, *teacher, α, λ), and log r̃."""
    *logits, alpha, lam = point
    logits = [v / mpmath.mpf(temperature) for v in logits]
    n = len(logits) // 2
    log_q, log_p = log_softmax(logits[:n]), log_softmax(logits[n:])
    unnormalised = log_r_tilde(log_p, log_q, alpha, lam)
    return {"p": log_p, "q": log_q, "r": log_softmax(unnormalised)}, unnormalised


class Truth(NamedTuple):
    """A loss at a point, and the scales that rounding works on.

    Attributes:
        value: the loss.
        slopes: its derivatives by every student logit, every teacher logit, α and λ.
        terms: the largest partial derivative of D by log x and log y; a gradient is made of
            differences of those, so it cannot be more precise than eps·terms.
        moved: the largest change of a log r̃ with α, and with λ.
        span: the largest |log p| or |log q|.
    """

    value: Any
    slopes: Point
    terms: Any
    moved: tuple[Any, Any]
    span: Any


@at_200_digits
def loss_and_slopes(divergence: Any, order: str, point: Point, temperature: float = 1.0) -> Truth:
    """D(first‖second) at (*student, *teacher, α, λ), from the textbook definition of D."""

    def value(point: Point) -> Any:
        named = states(point, temperature)[0]
        x, y = ([mpmath.exp(v) for v in named[side]] for side in order)
        return mpmath.re(divergence.definition(x, y, divergence.params, mpmath))

    named, _ = states(point, temperature)
    pair = [[mpmath.exp(v) for v in named[side]] for side in order]
    n = len(point) - 2
    moved = tuple(
        max(
            abs(slope(lambda v, j=j: states(v, temperature)[1][j], point, n + i))
            for j in range(n // 2)
        )
        for i in (0, 1)
    )
    return Truth(
        value(point),
        tuple(slope(value, point, i) for i in range(len(point))),
        max(abs(c) for side in free_partials(divergence, *pair) for c in side),
        moved,
        max(-v for side in "pq" for v in named[side]),
    )


def free_partials(divergence: Any, x: list[Any], y: list[Any]) -> Iterator[list[Any]]:
    """∂D/∂log x and ∂D/∂log y, projected to the simplex for what is defined only there."""
    for side, mass in enumerate((x, y)):
        partials = []
        for i in range(len(x)):
            ends = []
            for step in (STEP, -STEP):
                pair = [list(x), list(y)]
                pair[side][i] *= mpmath.exp(step)
                ends.append(mpmath.re(divergence.definition(*pair, divergence.params, mpmath)))
            partials.append((ends[0] - ends[1]) / (2 * STEP))
        if not divergence.on_measures:
            total = mpmath.fsum(partials)
            partials = [c - v * total for c, v in zip(partials, mass, strict=True)]
        yield partials
