"""The α-divergence barycentre of K distributions, and their mean divergence to it."""

from collections.abc import Sequence
from typing import cast

from amidmath.arrays import checks
from amidmath.arrays.annotations import Array, Namespace
from amidmath.divergences import AlphaBeta
from amidmath.formulas.assistant import exponent
from amidmath.formulas.means import along, log_normalized
from amidmath.geometry import points
from amidmath.means import log_falpha_mean


def barycenter(
    logs: Array,
    *,
    alpha: float,
    weights: Sequence[float] | Array | None = None,
    axis: int = 0,
    outcomes: int = -1,
) -> Array:
    """Log of the α-divergence barycentre argmin_r Σ_j λ_j D_α(p_j‖r) of K distributions.

    D_α(x‖y) = 4/(1-α²) (1 - Σ x^((1-α)/2) y^((1+α)/2)), with D_{-1} = KL(x‖y) and
    D_1 = KL(y‖x). The barycentre is the normalised f_α-mean: α = -1 is the mixture Σ λ_j p_j,
    α = 1 the normalised geometric mean; α = ±∞ give the normalised maximum and minimum, which
    the barycentres tend to. At α >= 1 it lives on the common support of the sources with positive
    weight; where that is empty there is no barycentre and all of log r is -inf.

    Differentiable in ``logs``, and in weights that are an array, through closed forms, once.

    Source: Amari (2007), Integration of stochastic models by minimizing α-divergence, Neural
    Computation 19; docs: geometry, I1.

    Args:
        logs: log p_j, the K sources along ``axis`` and the outcomes along ``outcomes``, real
            floating dtype; each source sums to 1; -inf is probability zero.
        alpha: α, a number in [-∞, ∞].
        weights: the K weights λ_j, non-negative with sum 1, numbers or an array; equal weights if
            None.
        axis: the axis of ``logs`` that runs over the sources.
        outcomes: the axis of ``logs`` that runs over the outcomes.

    Returns:
        log r, of the shape without ``axis``, in float32 (float64 if ``logs`` is).

    Raises:
        TypeError: ``logs`` is not a real floating array, ``alpha`` or a weight not a number.
        ValueError: α is NaN, the weights do not fit, or the two axes are missing, empty or one.

    Example:
        >>> import numpy as np
        >>> from amidmath import geometry
        >>> logs = np.log([[0.9, 0.1], [0.5, 0.5]])
        >>> for alpha in (-1.0, 1.0):
        ...     print(np.exp(geometry.barycenter(logs, alpha=alpha)).round(4))
        [0.7 0.3]
        [0.75 0.25]
    """
    xp, axis, outcomes = _sources(logs, axis, outcomes, weights)
    alpha = checks.number("alpha", alpha, finite=False)
    return _normalized_mean(logs, alpha, weights, axis, outcomes, xp)


def jensen_divergence(
    logs: Array,
    *,
    alpha: float,
    weights: Sequence[float] | Array | None = None,
    axis: int = 0,
    outcomes: int = -1,
) -> Array:
    """J_α = min_r Σ_j λ_j D_α(p_j‖r), the mean α-divergence of K distributions to their barycentre.

    J = (1 - Zᵏ)/(k(1-k)) with k = (1-α)/2 and Z the sum of the f_α-mean; α = -1 is the generalised
    Jensen-Shannon divergence, α = 1 is -log Z (for two equal weights, the Bhattacharyya distance).
    It is summed from non-negative terms, so it keeps its precision for sources that nearly agree
    and for α near its limits. For a teacher's and a student's logits,
    :class:`amidmath.AlphaJensenShannon` is the same as a loss.

    Differentiable in ``logs``, and in weights that are an array, through closed forms, once.

    Source: Amari (2007), Neural Computation 19; Lin (1991), IEEE Transactions on Information
    Theory 37; docs: geometry, I2.

    Args:
        logs: log p_j, as for :func:`barycenter`.
        alpha: α, a finite number.
        weights: the K weights λ_j, non-negative with sum 1, numbers or an array; equal weights if
            None.
        axis: the axis of ``logs`` that runs over the sources.
        outcomes: the axis of ``logs`` that runs over the outcomes.

    Returns:
        J >= 0 in nats, of the shape without both axes, in float32 (float64 if ``logs`` is);
        +inf where there is no barycentre.

    Raises:
        TypeError: ``logs`` is not a real floating array, ``alpha`` or a weight not a number.
        ValueError: α is not finite, the weights do not fit, or the axes are missing, empty or one.

    Example:
        >>> import numpy as np
        >>> from amidmath import geometry
        >>> logs = np.log([[0.9, 0.1], [0.5, 0.5]])
        >>> print(f"{geometry.jensen_divergence(logs, alpha=-1.0):.6f}")
        0.101749
    """
    xp, axis, outcomes = _sources(logs, axis, outcomes, weights)
    k = exponent(checks.number("alpha", alpha))
    log_r = xp.expand_dims(_normalized_mean(logs, alpha, weights, axis, outcomes, xp), axis=axis)
    count = logs.shape[axis]
    if checks.is_array(weights):
        shape = [1] * logs.ndim
        shape[axis] = count
        lam = xp.astype(xp.reshape(weights, tuple(shape)), log_r.dtype, copy=False)
    else:
        numbers = (1.0,) * count if weights is None else tuple(float(w) for w in weights)
        lam = along(numbers, log_r, axis, xp)
    exists = xp.max(log_r, axis=outcomes, keepdims=True) > -xp.inf
    # A source without weight may be infinitely far, and where there is no barycentre all are:
    # a zero in their place keeps 0·inf out of the value and of the gradient.
    counts = exists & (lam > 0.0)
    x = xp.where(counts, xp.astype(logs, log_r.dtype, copy=False), 0.0)
    y = xp.where(counts, log_r, 0.0)
    each = AlphaBeta(k, 1.0 - k)(x, y, axis=outcomes)
    lam, exists = xp.squeeze(lam, axis=outcomes), xp.squeeze(exists, axis=outcomes)
    axis -= axis > outcomes
    mean = xp.sum(lam * each, axis=axis) / xp.sum(lam)
    return xp.where(xp.squeeze(exists, axis=axis), mean, xp.inf)


def _sources(
    logs: Array, axis: int, outcomes: int, weights: Sequence[float] | Array | None
) -> tuple[Namespace, int, int]:
    xp = checks.namespace(logs=logs)
    checks.real_floating(xp, logs=logs)
    source_axis = checks.axis_in_range(axis, logs.ndim, "logs")
    outcome_axis = checks.axis_in_range(outcomes, logs.ndim, "logs", "outcomes")
    if source_axis == outcome_axis:
        raise ValueError(
            "axis and outcomes must be two axes of logs, "
            f"got axis={axis!r} and outcomes={outcomes!r} for shape {tuple(logs.shape)}"
        )
    checks.nonempty("logs", logs, source_axis, "a source")
    checks.nonempty("logs", logs, outcome_axis, "an outcome")
    if checks.is_array(weights):
        checks.namespace(logs=logs, weights=weights)
        shape = tuple(cast("Array", weights).shape)
        if len(shape) != 1:
            raise ValueError(f"weights must be one number a source, got an array of shape {shape}")
    points.check_normalized("logs", logs, outcome_axis, xp)
    return xp, source_axis, outcome_axis


def _normalized_mean(
    logs: Array,
    alpha: float,
    weights: Sequence[float] | Array | None,
    axis: int,
    outcomes: int,
    xp: Namespace,
) -> Array:
    log_r = log_falpha_mean(logs, alpha=alpha, weights=weights, axis=axis)
    outcomes -= outcomes > axis
    return log_normalized(log_r, outcomes, xp)
