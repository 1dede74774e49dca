"""What a function of two rows of logits is, with derivatives and what rounding forces on them."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import mpmath
from definitions import log_mean, log_sum, of_tokens
from mpmath import mp

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from definitions import Number


STEP = mpmath.mpf(10) ** -25
STEP_DIGITS = 25
AGREEMENT = mpmath.mpf(10) ** -20
LARGEST_DIGITS = 6000
# Up to here the second derivatives are taken one by one; beyond, two random nudges stand for them.
LARGEST_HESSIAN = 18
NUDGES, NUDGE_FACTOR = 2, 3

Row = tuple[Any, ...]


@functools.lru_cache(maxsize=64)
def _log_softmax(logits: Row, digits: int) -> tuple[Row, Row]:
    """Log-probabilities and probabilities; -inf stays and is 0."""
    total = log_sum(logits)
    logs = tuple(v - total for v in logits)
    return logs, tuple(mp.exp(v) for v in logs)


@dataclass(frozen=True)
class Loss:
    """A divergence, or with ``order`` the AMiD loss, as a function of rows of exact numbers.

    The variables are (x, y) for a divergence and (student, teacher, α, λ) for the loss. Tokens of
    which both sides have less than ``least`` take no part.
    """

    definition: Callable[..., Number]
    params: tuple[float, ...]
    size: int
    order: str = ""
    temperature: float = 1.0
    least: Number = 0

    def __call__(self, point: Row, zero: int) -> Number:
        """The value at a point, zero probabilities being 10^-zero."""
        t = mpmath.mpf(self.temperature)
        first, second = point[: self.size], point[self.size : 2 * self.size]
        if t != 1:
            first, second = (tuple(v / t for v in row) for row in (first, second))
        sides = _log_softmax(first, mp.dps), _log_softmax(second, mp.dps)
        if not self.order:
            return self._divergence(sides[0][1], sides[1][1], zero)
        alpha, lam = point[2 * self.size :]
        (log_q, q), (log_p, p) = sides
        log_r = [log_mean(pair, (lam, 1 - lam), alpha) for pair in zip(log_p, log_q, strict=True)]
        log_z = log_sum(log_r)
        named = {"p": p, "q": q, "r": tuple(mp.exp(v - log_z) for v in log_r)}
        return self._divergence(named[self.order[0]], named[self.order[1]], zero)

    def _divergence(self, x: Row, y: Row, zero: int) -> Number:
        """D(x‖y) by its definition, of tokens that either has."""
        return of_tokens(self.definition, self.params, x, y, mpmath.mpf(10) ** -zero, self.least)

    def unsupported(self, point: Row) -> bool:
        """Whether the assistant does not exist: no common token at α >= 1."""
        if not self.order:
            return False
        alpha, lam = point[2 * self.size :]
        first, second = point[: self.size], point[self.size : 2 * self.size]
        common = any(min(u, v) > -mpmath.inf for u, v in zip(first, second, strict=True))
        return alpha >= 1 and 0 < lam < 1 and not common


@dataclass
class Truth:
    """The value, derivatives by variable, and the part of their errors that rounding forces.

    ``value`` is +inf where it grows without end as zeros get smaller. ``gradient`` lacks a
    variable that is -inf, and all of them at a kink or an infinite value.
    """

    value: Number
    forced_value: Number
    gradient: dict[int, Number] = field(default_factory=dict)
    forced_gradient: dict[int, Number] = field(default_factory=dict)
    digits: int = 0


def small_digits(values: Sequence[Any]) -> int:
    """Digits that cancel because a number, or its distance from 1, or a sum of two is tiny."""
    numbers = [float(v) for v in values if not isinstance(v, str)]
    close = {abs(c) for c in numbers} | {abs(1 - mpmath.mpf(c)) for c in numbers}
    close |= {abs(mpmath.mpf(a) + b) for a in numbers for b in numbers}
    lost = (float(-mpmath.log10(c)) for c in close if 0 < c < 1)
    return int(2 * sum(lost))


def truth(
    loss: Loss,
    point: Row,
    deltas: Sequence[float],
    wanted: Sequence[int],
    smallest: float,
    rng: Any,
) -> Truth:
    """Evaluate a loss and its derivatives by the ``wanted`` variables.

    Args:
        loss: the function.
        point: its variables, mpmath numbers that may be -inf.
        deltas: how far rounding moves each variable.
        wanted: the variables to differentiate by.
        smallest: the smallest normal number, below which nothing needs to be right.
        rng: draws the signs of the nudges.
    """
    if loss.unsupported(point):
        return Truth(mpmath.inf, mpmath.mpf(0))
    logits = [v for v in point[: 2 * loss.size] if v > -mpmath.inf]
    range_digits = int(min(0.9 * float(max(logits) - min(logits)), -math.log10(smallest)))
    extra = [v for v in point[2 * loss.size :] if mpmath.isfinite(v)]
    digits = 40 + range_digits + small_digits(loss.params) + small_digits(extra) // 2
    zero = 10**30
    has_zeros = len(logits) < 2 * loss.size
    value, digits = _settled(lambda: loss(point, zero), digits, smallest)
    if has_zeros:
        with mp.workdps(2 * digits):
            further = loss(point, zero**2)
        if abs(further) > 1.5 * abs(value) and abs(further) > smallest:
            return Truth(mpmath.inf, mpmath.mpf(0), digits=digits)
    with mp.workdps(digits + 3 * STEP_DIGITS + range_digits):
        return _derivatives(_Stepper(loss, point, zero), value, deltas, wanted, digits, rng)


def _settled(f: Callable[[], Number], digits: int, smallest: float) -> tuple[Number, int]:
    """The value at twice a number of digits, once that agrees with it."""
    with mp.workdps(digits):
        before = f()
    while digits <= LARGEST_DIGITS:
        with mp.workdps(2 * digits):
            after = f()
        if abs(after - before) <= AGREEMENT * max(abs(after), smallest):
            return after, digits
        before, digits = after, 2 * digits
    raise ArithmeticError(f"no agreement up to {digits} digits")


class _Stepper:
    """A loss at a point that has moved along some of its variables."""

    def __init__(self, loss: Loss, point: Row, zero: int) -> None:
        self.loss, self.point, self.zero = loss, point, zero

    def __call__(self, *moves: tuple[int, Number], base: Row | None = None) -> Number:
        moved = list(base or self.point)
        for index, by in moves:
            moved[index] += by
        return self.loss(tuple(moved), self.zero)


def _derivatives(
    f: _Stepper,
    value: Number,
    deltas: Sequence[float],
    wanted: Sequence[int],
    digits: int,
    rng: Any,
) -> Truth:
    here = f()
    numbers = range(2 * f.loss.size, len(f.point))  # α and λ, which may stand at an end of theirs
    free = [
        i for i, v in enumerate(f.point) if mpmath.isfinite(v) and (i not in numbers or i in wanted)
    ]
    result = Truth(value, mpmath.mpf(0), digits=digits)
    if len(f.point) > LARGEST_HESSIAN:
        _by_nudges(f, here, deltas, [i for i in wanted if i in free], rng, result)
        return result
    up, down = {i: f((i, STEP)) for i in free}, {i: f((i, -STEP)) for i in free}
    # Where an α that is a limit makes the loss jump, there is no slope, and no error to allow for.
    slopes = {i: max(abs(up[i] - here), abs(here - down[i])) / STEP for i in free}
    forced = [deltas[i] * slopes[i] for i in free]
    free = [i for i in free if not _is_kink(up[i], here, down[i])]
    gradient = {i: (up[i] - down[i]) / (2 * STEP) for i in free}
    second = {(i, i): (up[i] + down[i] - 2 * here) / STEP**2 for i in free}
    for n, i in enumerate(free):
        for j in free[:n]:
            both = f((i, STEP), (j, STEP))
            second[i, j] = second[j, i] = (both - up[i] - up[j] + here) / STEP**2
    if _crosses_kink(f, here, deltas, gradient, second):
        gradient = {}
    spread = {i: mp.fsum(abs(second[i, j]) * deltas[j] for j in free) for i in free}
    result.forced_value = mp.fsum((*forced, *(deltas[i] * spread[i] / 2 for i in free)))
    result.gradient = {i: gradient[i] for i in wanted if i in gradient}
    result.forced_gradient = {i: spread[i] for i in result.gradient}
    return result


def _crosses_kink(
    f: _Stepper,
    here: Number,
    deltas: Sequence[float],
    gradient: dict[int, Number],
    second: dict[tuple[int, int], Number],
) -> bool:
    """Whether a kink is so near that rounding decides the side: no parabola over the deltas."""
    largest = max((abs(v) for v in gradient.values()), default=0)
    for i in gradient:
        delta = mpmath.mpf(deltas[i])
        bend = abs(f((i, delta)) + f((i, -delta)) - 2 * here)
        parabola = abs(second[i, i]) * delta**2
        matters = max(bend, parabola) > delta * largest / 1000
        if matters and not parabola / 2 < bend < 2 * parabola:
            return True
    return False


def _is_kink(up: Number, here: Number, down: Number) -> bool:
    """Whether the slopes on the two sides differ by more than curvature explains."""
    return bool(abs(up + down - 2 * here) > STEP * mp.sqrt(STEP) * max(1, abs(here)))


def _by_nudges(
    f: _Stepper,
    here: Number,
    deltas: Sequence[float],
    wanted: Sequence[int],
    rng: Any,
    result: Truth,
) -> None:
    """Derivatives by some variables only, and the forced parts by random nudges of all."""
    sides = {i: (f((i, STEP)), f((i, -STEP))) for i in wanted}
    if any(_is_kink(up, here, down) for up, down in sides.values()):
        return
    result.gradient = {i: (up - down) / (2 * STEP) for i, (up, down) in sides.items()}
    result.forced_gradient = dict.fromkeys(wanted, mpmath.mpf(0))
    for _ in range(NUDGES):
        signs = rng.choice((-1.0, 1.0), size=len(f.point))
        base = tuple(v + float(s) * d for v, s, d in zip(f.point, signs, deltas, strict=True))
        change = NUDGE_FACTOR * abs(f(base=base) - here)
        result.forced_value = max(result.forced_value, change)
        for i in wanted:
            slope = (f((i, STEP), base=base) - f((i, -STEP), base=base)) / (2 * STEP)
            change = NUDGE_FACTOR * abs(slope - result.gradient[i])
            result.forced_gradient[i] = max(result.forced_gradient[i], change)
