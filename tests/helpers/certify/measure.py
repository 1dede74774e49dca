"""One comparison of the library with the oracle."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import mpmath
import numpy as np
from definitions import log_mean, log_sum
from mpmath import mp

from certify import GRADIENT_BOUND, MEAN_BOUND, VALUE_BOUND
from certify.library import call, mean_weights
from certify.oracle import Loss, Truth, truth

if TYPE_CHECKING:
    from collections.abc import Iterable

    from definitions import Number

    from certify.library import Answer
    from certify.subjects import Point

COORDINATES = 3  # of a wide row, as many of the largest entries and as many at random
DIGITS = 400  # of comparisons; a float64 minus its neighbour in probability takes 300
QUANTITIES = {"x": "gradients", "y": "gradients", "student": "gradients"}
QUANTITIES |= {"teacher": "gradients", "alpha": "by α, λ", "lam": "by α, λ"}


@dataclass(frozen=True)
class Record:
    """How one result compares.

    Attributes:
        point: where.
        quantity: "value", "gradients" or "by α, λ".
        by: what a gradient is taken by.
        raw: the error in eps of the result's size; infinite for a wrong or missing infinity.
        error: the same less what rounding forces.
        bound: what the error should not exceed.
        non_finite: NaN, or infinite where the truth is a number of the dtype.
        negative: a divergence below zero.
        size: of the true result, which errors are relative to.
        loss: the true value of the function, of a gradient.
        note: what went wrong, for a call that raised, or why nothing was compared.
    """

    point: Point
    quantity: str
    by: str
    raw: float
    error: float
    bound: float
    non_finite: bool = False
    negative: bool = False
    size: float = 0.0
    loss: float = 0.0
    note: str = ""

    @property
    def reached(self) -> bool:
        """Whether the bound is met, with nothing else amiss."""
        return self.error <= self.bound and not self.non_finite and not self.negative


def measure(point: Point) -> list[Record]:
    """Call the library at a point and compare all it returns."""
    bound = MEAN_BOUND if point.kind == "mean" else VALUE_BOUND
    try:
        answer = call(point)
    except Exception as raised:
        said = f"{type(raised).__name__}: {raised}"
        return [Record(point, "value", "", np.inf, np.inf, bound, non_finite=True, note=said)]
    with mp.workdps(DIGITS if point.size <= 1000 else DIGITS // 4):
        return [_mean(point, answer)] if point.kind == "mean" else _compare(point, answer)


def _compare(point: Point, answer: Answer) -> list[Record]:
    try:
        expected, softmaxes = _truth(point, answer)
    except ArithmeticError as undecided:
        return [Record(point, "value", "", 0.0, 0.0, VALUE_BOUND, note=f"no oracle: {undecided}")]
    records = [_value(point, answer, expected)]
    if expected.value > _largest(answer):
        return records
    start = 0
    for by, got in answer.gradients.items():
        wanted = {i - start: v for i, v in expected.gradient.items() if 0 <= i - start < len(got)}
        forced = {i: expected.forced_gradient[i + start] for i in wanted}
        start += len(got)
        if wanted and point.gradients:
            record = _gradient(point, answer, by, got, wanted, forced, softmaxes.get(by))
            records.append(replace(record, loss=float(expected.value)))
    return records


def _exact(values: Iterable[float]) -> tuple[Number, ...]:
    return tuple(mpmath.mpf(float(v)) for v in values)


def _truth(point: Point, answer: Answer) -> tuple[Truth, dict[str, list[Number]]]:
    """What the results should be, and the softmax that a divergence's derivative projects with."""
    first, second = (_exact(row) for row in answer.rows)
    loss = Loss(
        type(point.divergence()).definition,
        *(point.params, point.size, point.order, point.temperature, answer.smallest),
    )
    numbers = _exact((answer.alpha, answer.lam)) if point.order else ()
    deltas: list[float] = []
    softmaxes = {}
    mass_off = mpmath.mpf(0)
    for name, row in (("x", first), ("y", second)):
        scaled = [v / mpmath.mpf(point.temperature) for v in row]
        log_z = log_sum(scaled)
        logs = [float(v - log_z) for v in scaled]
        if not point.order:
            softmaxes[name] = [mp.exp(v - log_z) for v in scaled]
            mass_off += abs(mp.expm1(log_z))
        deltas += _deltas(point, answer, row, logs)
    deltas += [0.0] * len(numbers)
    variables = (*first, *second, *numbers)
    expected = truth(
        *(loss, variables, deltas, _coordinates(point, answer), answer.smallest),
        np.random.default_rng((*point.seed, 1)),
    )
    if not mpmath.isfinite(expected.value) or point.order:
        return expected, softmaxes
    expected.forced_value += mass_off * abs(expected.value)
    for by in (range(point.size), range(point.size, 2 * point.size)):
        largest = max((abs(v) for i, v in expected.gradient.items() if i in by), default=0)
        for i in by:
            if i in expected.forced_gradient:
                expected.forced_gradient[i] += mass_off * largest
    return expected, softmaxes


def _deltas(
    point: Point, answer: Answer, row: tuple[Number, ...], logs: list[float]
) -> list[float]:
    deltas = []
    for v, log_v in zip(row, logs, strict=True):
        if not mpmath.isfinite(v):
            deltas.append(0.0)
        elif not point.order:
            deltas.append(answer.given_eps * abs(float(v)) / 2)
        else:
            divided = abs(float(v)) / 2 if point.temperature not in (1.0, 2.0) else 0.0
            deltas.append(answer.eps * (point.temperature * abs(log_v) + divided))
    return deltas


def _coordinates(point: Point, answer: Answer) -> list[int]:
    """The variables to differentiate by: all of a narrow row, some of a wide one."""
    if not point.gradients:
        return []
    numbers = [2 * point.size] if point.as_arrays else []
    numbers += [2 * point.size + 1] if point.as_arrays and 0.0 < answer.lam < 1.0 else []
    if point.size <= 8:
        return [*range(2 * point.size), *numbers]
    rng = np.random.default_rng((*point.seed, 2))
    count = COORDINATES if point.size <= 1000 else 1
    chosen: set[int] = set()
    for start, got in zip((0, point.size), answer.gradients.values(), strict=False):
        largest = np.argsort(-np.abs(np.nan_to_num(got)))[:count]
        chosen |= {start + int(i) for i in (*largest, *rng.integers(point.size, size=count))}
    return [*sorted(chosen), *numbers]


def _value(point: Point, answer: Answer, expected: Truth) -> Record:
    got = float(answer.value[0])
    wanted = expected.value
    infinite = bool(wanted > _largest(answer))
    kept: dict[str, Any] = {"point": point, "quantity": "value", "by": "", "bound": VALUE_BOUND}
    if infinite or not np.isfinite(got):
        overflown = wanted != mpmath.inf and got > 0.99 * _largest(answer)
        right = infinite and got > 0 and (np.isinf(got) or overflown)
        error = 0.0 if right else np.inf
        wrong = not right and not np.isfinite(got)
        note = "" if right else f"{got} instead of {mpmath.nstr(wanted, 6)}"
        return Record(**kept, raw=error, error=error, non_finite=wrong, note=note)
    off = abs(mpmath.mpf(got) - wanted)
    forced = expected.forced_value + point.size * answer.smallest
    scale = answer.eps * max(abs(wanted), answer.smallest)
    note = f"{got:.6g} instead of {mpmath.nstr(wanted, 6)}"
    # What is below zero by no more than an underflow is still below zero.
    return Record(
        **kept,
        raw=float(off / scale),
        error=float(max(0, off - forced) / scale),
        negative=got < 0.0,
        size=float(abs(wanted)),
        note=note,
    )


def _largest(answer: Answer) -> float:
    return 3.4e38 if answer.smallest > 1e-100 else 1.79e308


def _gradient(
    point: Point,
    answer: Answer,
    by: str,
    got: np.ndarray,
    wanted: dict[int, Number],
    forced: dict[int, Number],
    softmax: list[Number] | None,
) -> Record:
    kept: dict[str, Any] = {
        "point": point,
        "quantity": QUANTITIES[by],
        "by": by,
        "bound": GRADIENT_BOUND,
    }
    largest = max(abs(v) for v in wanted.values())
    if largest > _largest(answer):
        return Record(**kept, raw=0.0, error=0.0, note="beyond the largest number")
    if not np.isfinite(got).all():
        note = f"{np.flatnonzero(~np.isfinite(got))[:4]} not finite"
        return Record(**kept, raw=np.inf, error=np.inf, non_finite=True, note=note)
    compared = _exact(got)
    returned = answer.eps if by in ("alpha", "lam") else answer.given_eps
    rounding = [returned / 2 * abs(v) for v in compared]
    if softmax is not None:
        total, uncertain = mp.fsum(compared), mp.fsum(rounding)
        compared = tuple(v - s * total for v, s in zip(compared, softmax, strict=True))
        rounding = [v + s * uncertain for v, s in zip(rounding, softmax, strict=True)]
    scale = answer.eps * max(largest, answer.smallest)
    tiny = point.size * answer.smallest * (1 + point.temperature)
    worst_raw = worst = mpmath.mpf(0)
    note = ""
    for i, v in wanted.items():
        off = abs(compared[i] - v)
        worst_raw = max(worst_raw, off)
        left = off - forced[i] - rounding[i] - tiny
        if left > worst:
            note = f"entry {i}: {mpmath.nstr(compared[i], 6)} instead of {mpmath.nstr(v, 6)}"
        worst = max(worst, left)
    return Record(
        **kept,
        raw=float(worst_raw / scale),
        error=float(worst / scale),
        size=float(largest),
        note=note,
    )


def _mean(point: Point, answer: Answer) -> Record:
    """A mean in units of eps max(1, |log p|, |log q|), the worst of its entries."""
    logs = [[mpmath.mpf(float(v)) for v in row] for row in answer.rows]
    if point.name == "falpha_mean":
        logs = [[mp.log(v) if v > 0 else -mpmath.inf for v in row] for row in logs]
    if point.name == "alpha_mixture":
        weights = [mpmath.mpf(answer.lam), 1 - mpmath.mpf(answer.lam)]
    else:
        given = _exact(mean_weights(answer.lam))
        weights = [w / mp.fsum(given) for w in given]
    wanted = [
        log_mean(column, weights, mpmath.mpf(answer.alpha)) for column in zip(*logs, strict=True)
    ]
    forced = mpmath.mpf(0)
    if point.normalize:
        log_z = log_sum(wanted)
        if mpmath.isfinite(log_z):
            forced = mp.fsum(mp.exp(v - log_z) * abs(v) for v in wanted if mpmath.isfinite(v))
            wanted = [v - log_z for v in wanted]
    return _worst_entry(point, answer, logs, wanted, float(forced) * answer.eps)


def _worst_entry(
    point: Point, answer: Answer, logs: Any, wanted: list[Number], forced: float
) -> Record:
    raw = worst = 0.0
    note, non_finite = "", False
    linear = point.name == "falpha_mean"
    for got, log_m, column in zip(answer.value, wanted, zip(*logs, strict=True), strict=True):
        target = mp.exp(log_m) if linear else log_m
        here = mpmath.mpf(float(got))
        if here == target:
            continue
        if not (mpmath.isfinite(here) and mpmath.isfinite(target)):
            raw = worst = np.inf
            non_finite, note = True, f"{got} instead of {mpmath.nstr(target, 6)}"
            break
        size = max([1.0, *(abs(float(v)) for v in column if mpmath.isfinite(v))])
        unit = answer.eps * size * (float(target) if linear else 1.0)
        unit = max(unit, answer.smallest)
        off = float(abs(here - target))
        raw = max(raw, off / unit)
        # Far from both sources, as λ^(1/k) is, a result is rounded when computed and when kept.
        rounding = answer.eps * float(abs(target)) * (0.5 if linear else 1.0)
        rounding += answer.smallest if linear else 0.0
        left = max(0.0, off - forced - rounding) / unit
        if left > worst:
            worst, note = left, f"{float(got):.9g} instead of {mpmath.nstr(target, 9)}"
    size = max((float(abs(v)) for v in wanted if mpmath.isfinite(v)), default=0.0)
    return Record(
        *(point, "value", "", raw, worst, MEAN_BOUND), non_finite=non_finite, size=size, note=note
    )
