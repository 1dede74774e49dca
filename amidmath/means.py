"""f_α-means of K sources, and the α-mixture of a teacher and a student."""

import math
from collections.abc import Sequence

from amidmath.arrays import checks, dispatch, kinds
from amidmath.arrays.annotations import Array, Namespace
from amidmath.formulas.assistant import exponent
from amidmath.formulas.means import Mean, Mixture, log_normalized
from amidmath.rows.batches import batches


def log_falpha_mean(
    logs: Array,
    *,
    alpha: float | Array,
    weights: Sequence[float] | Array | None = None,
    axis: int = 0,
    keepdims: bool = False,
    backend: str | None = None,
) -> Array:
    """Logarithm of the f_α-mean of K positive sources given by their logarithms.

    M = (Σ_j λ_j x_jᵏ)^(1/k) with k = (1-α)/2, elementwise over the other axes. α = -∞ is the
    maximum, -3 the quadratic, -1 the arithmetic, 1 the geometric, 3 the harmonic mean, +∞ the
    minimum. Within a few eps·max(1, |log x_j|) for every α, however close to 1. -inf stands for
    x_j = 0. Differentiable through closed forms with respect to ``logs``, and to α and the
    weights where they are arrays; weights count as divided by their sum.

    Source: AMiD (arXiv 2510.15982); Amari (2007), α-integration; docs: mixtures,
    M1, M2, M8 and M9.

    Args:
        logs: log x_j, the K sources along ``axis``, real floating dtype.
        alpha: α in [-∞, ∞], a number or an array that broadcasts to the result.
        weights: the weights λ_j, non-negative with sum 1: K numbers, or an array of K or one
            that broadcasts to ``logs``; equal weights if None.
        axis: the axis that runs over the sources, an integer.
        keepdims: keep that axis, with one entry.
        backend: None, or "reference" for operations that torch and JAX differentiate as often as
            asked.

    Returns:
        log M, of the shape without ``axis``; float16 and bfloat16 are computed and returned in
        float32.

    Raises:
        TypeError: ``logs`` is not a real floating array, ``alpha`` or a weight not a number.
        ValueError: α is NaN, the weights do not fit, or there is no such axis. The values of
            arrays are looked at on the CPU outside of jit, not elsewhere.

    Example:
        >>> import numpy as np, amidmath as am
        >>> logs = np.log([[0.2], [0.8]])
        >>> [round(float(np.exp(am.log_falpha_mean(logs, alpha=a))[0]), 4) for a in (-1, 1, 3)]
        [0.5, 0.4, 0.32]
    """
    return _mean(logs, "logs", alpha, weights, axis, keepdims, backend, linear=False)


def falpha_mean(
    values: Array,
    *,
    alpha: float | Array,
    weights: Sequence[float] | Array | None = None,
    axis: int = 0,
    keepdims: bool = False,
    backend: str | None = None,
) -> Array:
    """f_α-mean of K non-negative sources, M = (Σ_j λ_j x_jᵏ)^(1/k) with k = (1-α)/2.

    As :func:`log_falpha_mean`, from and to the numbers themselves: right to a few
    eps·(1 + |log(M/x)|) of M, x being the source that leads the mean.

    Source: AMiD (arXiv 2510.15982); Amari (2007), α-integration; docs: mixtures, M1 and M10.

    Args:
        values: x_j >= 0, the K sources along ``axis``, real floating dtype.
        alpha: α in [-∞, ∞], a number or an array that broadcasts to the result.
        weights: as for :func:`log_falpha_mean`.
        axis: the axis that runs over the sources.
        keepdims: as for :func:`log_falpha_mean`.
        backend: as for :func:`log_falpha_mean`.

    Returns:
        M, of the shape without ``axis``; float16 and bfloat16 are computed and returned in
        float32.

    Raises:
        TypeError: as for :func:`log_falpha_mean`.
        ValueError: as for :func:`log_falpha_mean`; also a negative source.

    Example:
        >>> import numpy as np, amidmath as am
        >>> [float(am.falpha_mean(np.asarray([0.2, 0.8]), alpha=a).round(4)) for a in (-1, 1, 3)]
        [0.5, 0.4, 0.32]
    """
    return _mean(values, "values", alpha, weights, axis, keepdims, backend, linear=True)


def alpha_mixture(
    log_p: Array,
    log_q: Array,
    *,
    alpha: float | Array,
    lam: float | Array,
    axis: int = -1,
    normalize: bool = True,
    backend: str | None = None,
) -> Array:
    """Return log r of the α-mixture assistant r ∝ (λpᵏ + (1-λ)qᵏ)^(1/k), k = (1-α)/2.

    α = -1 is the mixture λp + (1-λ)q, α = 1 the geometric one ∝ p^λ q^(1-λ). For λ in (0, 1), r
    lives on the union of the supports for α < 1 and on their intersection for α >= 1; where that
    is empty r does not exist and all of log r is -inf. Differentiable in every array argument
    through its closed form.

    Source: AMiD (arXiv 2510.15982); docs: mixtures, M3 to M9.

    Args:
        log_p: log-probabilities of the teacher, any shape, real floating dtype.
        log_q: log-probabilities of the student, same library and device, as many outcomes along
            ``axis``; the other axes, of batches, broadcast as NumPy's do.
        alpha: α in [-∞, ∞], a number or an array that broadcasts to the batch shape that results
            (one α a token).
        lam: λ in [0, 1], the weight of the teacher; likewise.
        axis: the axis that runs over the outcomes, counted in each argument by itself.
        normalize: divide by Z = Σ r̃; if False, log r̃ is returned.
        backend: as for :func:`log_falpha_mean`.

    Returns:
        log r, of the shape that the inputs broadcast to, in float32 (float64 if an input is).

    Raises:
        TypeError: not arrays, of different libraries, or not real floating.
        ValueError: shapes do not broadcast, devices differ, α is NaN, or λ lies outside [0, 1].
            The values of arrays are looked at on the CPU outside of jit, not elsewhere.

    Example:
        >>> import numpy as np, amidmath as am
        >>> log_p, log_q = np.log([0.9, 0.1]), np.log([0.1, 0.9])
        >>> r = np.exp(am.alpha_mixture(log_p, log_q, alpha=1.0, lam=0.5))
        >>> print(r.round(3))
        [0.5 0.5]
    """
    _check_backend(backend)
    xp = checks.namespace(log_p=log_p, log_q=log_q)
    checks.real_floating(xp, log_p=log_p, log_q=log_q)
    checks.same_device(log_p=log_p, log_q=log_q)
    found = batches(axis, log_p=log_p, log_q=log_q)
    alpha = checks.alpha("alpha", alpha, like=("log_p", log_p))
    lam = checks.weight("lam", lam, like=("log_p", log_p))
    sources, knobs = found.spread((log_p, log_q), xp), []
    for name, value in (("alpha", alpha), ("lam", lam)):
        if not isinstance(value, float):
            rows = xp.expand_dims(checks.broadcast(name, value, found.shape, xp), axis=found.axis)
            knobs.append(xp.broadcast_to(rows, sources[0].shape))
    form = Mixture(
        exponent(alpha) if isinstance(alpha, float) else None,
        lam if isinstance(lam, float) else None,
    )
    log_r = dispatch.apply(form, None, *sources, *knobs, backend=backend)
    return log_normalized(log_r, found.axis, xp, backend) if normalize else log_r


def _mean(
    sources: Array,
    name: str,
    alpha: float | Array,
    weights: Sequence[float] | Array | None,
    axis: int,
    keepdims: bool,
    backend: str | None,
    *,
    linear: bool,
) -> Array:
    _check_backend(backend)
    xp = checks.namespace(**{name: sources})
    checks.real_floating(xp, **{name: sources})
    axis = checks.axis_in_range(axis, sources.ndim, name)
    checks.nonempty(name, sources, axis, "a source")
    if linear:
        checks.values_hold(name, sources, sources < 0.0, "non-negative")
    operands = [sources]
    fixed: tuple[float, ...] | None = None
    if checks.is_array(weights):
        operands.append(_weight_array(weights, name, sources, axis, xp))
    else:
        fixed = _weights(weights, sources.shape[axis])
    k: float | None = None
    checked = checks.alpha("alpha", alpha, like=(name, sources))
    if isinstance(checked, float):
        k = exponent(checked)
    else:
        shape = sources.shape[:axis] + sources.shape[axis + 1 :]
        checked = checks.broadcast("alpha", checked, shape, xp)
        operands.append(xp.expand_dims(checked, axis=axis))
    mean = dispatch.apply(Mean(k, fixed, axis, linear), axis, *operands, backend=backend)
    return xp.expand_dims(mean, axis=axis) if keepdims else mean


def _check_backend(backend: str | None) -> None:
    checks.backend(backend)
    if backend == "compiled":
        raise ValueError(
            "backend 'compiled' computes losses and divergences, not means; leave it out"
        )


def _weight_array(weights: Array, name: str, sources: Array, axis: int, xp: Namespace) -> Array:
    """The weights in the shape of the sources."""
    weights = checks.weight("weights", weights, like=(name, sources))
    count = sources.shape[axis]
    if weights.ndim == 1:
        if weights.shape[0] != count:
            raise ValueError(
                f"weights must have one entry a source: {count}, got {weights.shape[0]}"
            )
        shape = [1] * sources.ndim
        shape[axis] = count
        weights = xp.reshape(weights, tuple(shape))
    weights = checks.broadcast("weights", weights, sources.shape, xp)
    off = xp.abs(xp.sum(weights, axis=axis) - 1.0) > 1e-5
    checks.values_hold("weights", weights, off, "of sum 1 over the sources")
    return weights


def _weights(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    if weights is None:
        return (1.0 / count,) * count
    if not isinstance(weights, Sequence) or isinstance(weights, str):
        raise TypeError(
            f"weights must be a sequence of numbers or an array, got {type(weights).__name__}"
            + kinds.remedy(weights)
        )
    checked = [checks.number_in_unit_interval(f"weights[{j}]", w) for j, w in enumerate(weights)]
    if len(checked) != count:
        raise ValueError(f"weights must have one entry a source: {count}, got {len(checked)}")
    total = math.fsum(checked)
    if not math.isclose(total, 1.0, abs_tol=1e-6):
        raise ValueError(f"weights must sum to 1, got {total!r}")
    return tuple(w / total for w in checked)  # which the limit α = 1 needs to the last digit
