"""f_α-means of K sources, and the α-mixture of a teacher and a student."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import array_api_compat

from amidmath import _checks, _dispatch
from amidmath._assistant import exponent, log_mixture, mixture_ratios
from amidmath._pointwise import log_near_one, shared_support
from amidmath._typing import Array, Namespace, Partials


def log_falpha_mean(
    logs: Array, *, alpha: float, weights: Sequence[float] | None = None, axis: int = 0
) -> Array:
    """Logarithm of the f_α-mean of K positive sources given by their logarithms.

    M = (Σ_j λ_j x_jᵏ)^(1/k) with k = (1-α)/2, elementwise over the other axes. α = -∞ is the
    maximum, -3 the quadratic, -1 the arithmetic, 1 the geometric, 3 the harmonic mean, +∞ the
    minimum. Within a few eps·max(1, |log x_j|) for every α, however close to 1. -inf stands for
    x_j = 0. Differentiable in ``logs`` through its closed form, π_j = λ_j x_jᵏ / Σ λ_i x_iᵏ.

    Source: AMiD (arXiv 2510.15982); Amari (2007), α-integration; docs: mixtures,
    M1 and M2.

    Args:
        logs: log x_j, the K sources along ``axis``, real floating dtype.
        alpha: α, a number in [-∞, ∞].
        weights: the K weights λ_j, non-negative with sum 1; equal weights if None.
        axis: the axis that runs over the sources.

    Returns:
        log M, of the shape without ``axis``; float16 and bfloat16 are computed and returned in
        float32.

    Raises:
        TypeError: ``logs`` is not a real floating array, ``alpha`` or a weight not a number.
        ValueError: α is NaN, the weights do not fit, or there is no such axis.

    Example:
        >>> import numpy as np, amidmath as am
        >>> logs = np.log([[0.2], [0.8]])
        >>> [round(float(np.exp(am.log_falpha_mean(logs, alpha=a))[0]), 4) for a in (-1, 1, 3)]
        [0.5, 0.4, 0.32]
    """
    xp = _checks.namespace(logs=logs)
    _checks.real_floating(xp, logs=logs)
    axis = _checks.axis_in_range(axis, logs.ndim, "logs")
    k = exponent(_checks.number("alpha", alpha, finite=False))
    return _dispatch.apply(_Mean(k, _weights(weights, logs.shape[axis]), axis), axis, logs)


def alpha_mixture(
    log_p: Array,
    log_q: Array,
    *,
    alpha: float,
    lam: float,
    axis: int = -1,
    normalize: bool = True,
) -> Array:
    """Return log r of the α-mixture assistant r ∝ (λpᵏ + (1-λ)qᵏ)^(1/k), k = (1-α)/2.

    α = -1 is the mixture λp + (1-λ)q, α = 1 the geometric one ∝ p^λ q^(1-λ). For λ in (0, 1), r
    lives on the union of the supports for α < 1 and on their intersection for α >= 1; where that
    is empty r does not exist and all of log r is -inf. Differentiable in both arguments through
    its closed form.

    Source: AMiD (arXiv 2510.15982); docs: mixtures, M3 to M7.

    Args:
        log_p: log-probabilities of the teacher, any shape, real floating dtype.
        log_q: log-probabilities of the student, same shape, library and device.
        alpha: α, a number in [-∞, ∞].
        lam: λ in [0, 1], the weight of the teacher.
        axis: the axis that runs over the outcomes.
        normalize: divide by Z = Σ r̃; if False, log r̃ is returned.

    Returns:
        log r, of the inputs' shape, in float32 (float64 if an input is).

    Raises:
        TypeError: not arrays, of different libraries, or not real floating.
        ValueError: shapes or devices differ, α is NaN, or λ lies outside [0, 1].

    Example:
        >>> import numpy as np, amidmath as am
        >>> log_p, log_q = np.log([0.9, 0.1]), np.log([0.1, 0.9])
        >>> r = np.exp(am.alpha_mixture(log_p, log_q, alpha=1.0, lam=0.5))
        >>> print(r.round(3))
        [0.5 0.5]
    """
    xp = _checks.namespace(log_p=log_p, log_q=log_q)
    _checks.real_floating(xp, log_p=log_p, log_q=log_q)
    _checks.same_shape(log_p=log_p, log_q=log_q)
    _checks.same_device(log_p=log_p, log_q=log_q)
    axis = _checks.axis_in_range(axis, log_p.ndim, "log_p and log_q")
    k = exponent(_checks.number("alpha", alpha, finite=False))
    log_r = _dispatch.apply(_Mixture(k, _checks.weight("lam", lam)), None, log_p, log_q)
    if not normalize:
        return log_r
    log_z = xp.expand_dims(_dispatch.apply(_LogTotal(axis), axis, log_r), axis=axis)
    exists = log_z > -xp.inf
    return xp.where(exists, log_r - xp.where(exists, log_z, 0.0), -xp.inf)


def exp_limit(xp: Namespace, x: Array) -> float:
    """The largest number whose exponential and its inverse are both normal in the dtype."""
    return -math.log(float(xp.finfo(x.dtype).smallest_normal)) - 1.0


@dataclass(frozen=True)
class _Mean:
    k: float
    weights: tuple[float, ...]
    axis: int

    def __call__(
        self, logs: Array, *, needs: tuple[bool, ...], xp: Namespace
    ) -> tuple[Array, Partials]:
        k, axis, out_dtype = self.k, self.axis, logs.dtype
        logs = xp.astype(logs, _checks.computing_dtype(xp, logs), copy=False)
        shape = [1] * logs.ndim
        shape[axis] = len(self.weights)
        lam = xp.reshape(
            xp.asarray(self.weights, dtype=logs.dtype, device=array_api_compat.device(logs)),
            tuple(shape),
        )
        dropped = lam == 0.0
        # The source that leads the sum of powers, and every log ratio to it; k >= 0: the largest.
        if k >= 0.0:
            lead = xp.max(xp.where(dropped, -xp.inf, logs), axis=axis, keepdims=True)
        else:
            lead = xp.min(xp.where(dropped, xp.inf, logs), axis=axis, keepdims=True)
        finite = xp.isfinite(lead)
        d = xp.where(finite & ~dropped, logs - xp.where(finite, lead, 0.0), 0.0)
        if k == 0.0:
            pi = lam + xp.zeros_like(d)
            shift = xp.sum(xp.where(dropped, 0.0, lam * d), axis=axis, keepdims=True)
        elif math.isinf(k):
            pi = xp.where(d == 0.0, lam, xp.zeros_like(d))
            pi = pi / xp.sum(pi, axis=axis, keepdims=True)
            shift = xp.zeros_like(lead)
        else:
            power = lam * xp.exp(k * d)
            total = xp.sum(power, axis=axis, keepdims=True)
            excess = xp.sum(lam * xp.expm1(k * d), axis=axis, keepdims=True)
            pi = power / total
            shift = log_near_one(excess, xp.log(total), xp) / k
        value = xp.squeeze(lead + shift, axis=axis)
        return value, (xp.astype(pi, out_dtype, copy=False) if needs[0] else None,)


@dataclass(frozen=True)
class _Mixture:
    k: float
    lam: float

    def __call__(
        self, log_p: Array, log_q: Array, *, needs: tuple[bool, ...], xp: Namespace
    ) -> tuple[Array, Partials]:
        dtype = _checks.computing_dtype(xp, log_p, log_q)
        p, q = (xp.astype(a, dtype, copy=False) for a in (log_p, log_q))
        _, _, ratio = shared_support(p, q, p - q, xp)
        over_p, over_q, pi, w = mixture_ratios(ratio, self.k, self.lam, exp_limit(xp, p), xp)
        value = log_mixture(p, q, over_p, over_q, self.k, self.lam, xp)
        return value, tuple(
            xp.astype(partial, operand.dtype, copy=False) if need else None
            for partial, operand, need in zip((pi, w), (log_p, log_q), needs, strict=True)
        )


@dataclass(frozen=True)
class _LogTotal:
    axis: int

    def __call__(
        self, logs: Array, *, needs: tuple[bool, ...], xp: Namespace
    ) -> tuple[Array, Partials]:
        log_z, shifted = log_sum_exp(logs, self.axis, xp)
        log_z = xp.squeeze(log_z, axis=self.axis)
        return log_z, (xp.exp(shifted) if needs[0] else None,)


def log_sum_exp(logs: Array, axis: int, xp: Namespace) -> tuple[Array, Array]:
    """Return log Σ exp along an axis (kept), and logs less it; -inf and -inf if all are."""
    peak = xp.max(logs, axis=axis, keepdims=True)
    empty = peak == -xp.inf
    below = logs - xp.where(empty, 0.0, peak)
    log_total = xp.log(xp.sum(xp.exp(below), axis=axis, keepdims=True))
    return peak + xp.where(empty, 0.0, log_total), below - xp.where(empty, 0.0, log_total)


def _weights(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    if weights is None:
        return (1.0 / count,) * count
    if not isinstance(weights, Sequence) or isinstance(weights, str):
        raise TypeError(f"weights must be a sequence of numbers, got {type(weights).__name__}")
    checked = tuple(_checks.weight(f"weights[{j}]", w) for j, w in enumerate(weights))
    if len(checked) != count:
        raise ValueError(f"weights must have one entry a source: {count}, got {len(checked)}")
    total = math.fsum(checked)
    if not math.isclose(total, 1.0, abs_tol=1e-6):
        raise ValueError(f"weights must sum to 1, got {total!r}")
    return tuple(w / total for w in checked)  # which the limit α = 1 needs to the last digit
