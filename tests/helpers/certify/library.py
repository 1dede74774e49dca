"""Calls of the library at a point, and its results as NumPy arrays."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import mpmath
import numpy as np
import torch
from definitions import log_sum
from mpmath import mp

import amidmath as am
from certify.cases import CASES

if TYPE_CHECKING:
    from certify.subjects import Point

BFLOAT16_EPS = 2.0**-7


@dataclass
class Answer:
    """A call's inputs and results, exactly, as float64.

    ``gradients`` is keyed by what the derivative is taken by. ``eps`` is that of the dtype
    computed in, ``given_eps`` that of the rows and of their gradients.
    """

    rows: tuple[np.ndarray, ...]
    alpha: float
    lam: float
    value: np.ndarray
    eps: float
    given_eps: float
    smallest: float
    gradients: dict[str, np.ndarray] = field(default_factory=dict)


def computed_in(dtype: str) -> str:
    """The dtype that rows of a dtype are computed in."""
    return "float32" if dtype == "bfloat16" else dtype


def _array(values: Any, dtype: str) -> Any:
    if dtype == "bfloat16":
        return torch.from_numpy(np.array(values, dtype=np.float64)).to(torch.bfloat16)
    return np.array(values, dtype=dtype)


def _log_softmax(logits: np.ndarray, size: int) -> np.ndarray:
    """Logarithms of probabilities, correctly rounded, as a divergence's inputs should be."""
    digits = 40 if size > 1000 else 40 + int(min(400.0, np.ptp(logits[np.isfinite(logits)])))
    with mp.workdps(digits):
        exact = [mpmath.mpf(float(v)) for v in logits]
        total = log_sum([v for v in exact if mpmath.isfinite(v)])
        logs = [v - total for v in exact]
        nothing = mpmath.mpf(10) ** (5 - digits)  # the rounding of a probability of 1
        return np.array([0.0 if abs(v) < nothing else float(v) for v in logs])


def _exact(array: Any) -> np.ndarray:
    if isinstance(array, torch.Tensor):
        return array.detach().to(torch.float64).numpy()
    return np.asarray(array, dtype=np.float64)


def call(point: Point) -> Answer:
    """Call the library once."""
    rows = CASES[point.case](np.random.default_rng(point.seed), point.size)
    if point.kind != "loss":
        rows = _log_softmax(rows[0], point.size), _log_softmax(rows[1], point.size)
    if point.name == "falpha_mean":
        rows = np.exp(rows[0]), np.exp(rows[1])
    arrays = [_array(row[None, :], point.dtype) for row in rows]
    info = np.finfo(computed_in(point.dtype))
    given_eps = BFLOAT16_EPS if point.dtype == "bfloat16" else float(info.eps)
    answer = Answer(
        tuple(_exact(a)[0] for a in arrays),
        *(point.alpha, point.lam, np.zeros(0), float(info.eps), given_eps),
        float(info.smallest_normal),
    )
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        {"divergence": _divergence, "loss": _loss, "mean": _mean}[point.kind](point, arrays, answer)
    return answer


def _divergence(point: Point, arrays: list[Any], answer: Answer) -> None:
    value, grads = point.divergence().value_and_grad(*arrays, backend=point.executor)
    answer.value = _exact(value)
    answer.gradients = {n: _exact(g)[0] for n, g in zip("xy", grads, strict=True)}


def _numbers(point: Point, answer: Answer) -> tuple[Any, Any]:
    """α and λ as the library gets them; the answer says what they are then."""
    if not point.as_arrays:
        return point.alpha, point.lam
    alpha, lam = (np.array([v], dtype=computed_in(point.dtype)) for v in (point.alpha, point.lam))
    answer.alpha, answer.lam = float(alpha[0]), float(lam[0])
    if point.dtype == "bfloat16":
        return torch.from_numpy(alpha), torch.from_numpy(lam)
    return alpha, lam


def _loss(point: Point, arrays: list[Any], answer: Answer) -> None:
    alpha, lam = _numbers(point, answer)
    wrt = ["student", "teacher", *(("alpha", "lam") if point.as_arrays else ())]
    loss = am.AMiD(
        point.divergence(),
        order=point.order,
        alpha=alpha,
        lam=lam,
        temperature=point.temperature,
    )
    value, grads = loss.value_and_grad(
        *arrays, reduction="none", wrt=tuple(wrt), backend=point.executor
    )
    answer.value = _exact(value)
    for name, grad in zip(wrt, grads, strict=True):
        answer.gradients[name] = np.atleast_1d(_exact(grad)[0])


def _mean(point: Point, arrays: list[Any], answer: Answer) -> None:
    alpha, lam = _numbers(point, answer)
    if point.name == "alpha_mixture":
        result = am.alpha_mixture(*arrays, alpha=alpha, lam=lam, normalize=point.normalize)
        answer.value = _exact(result)[0]
        return
    stack = torch.stack if point.dtype == "bfloat16" else np.stack
    # Three sources, the third made of the first.
    answer.rows = (answer.rows[0], answer.rows[1], np.roll(answer.rows[0], 1))
    sources = stack([_array(row[None, :], point.dtype) for row in answer.rows])
    result = getattr(am, point.name)(sources, alpha=alpha, weights=mean_weights(answer.lam))
    answer.value = _exact(result)[0]


def mean_weights(lam: float) -> tuple[float, ...]:
    """Weights of three sources."""
    return (lam / 2, 1.0 - lam, lam / 2)
