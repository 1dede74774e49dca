"""How far two distributions overlap, and how a choice of α and λ covers or seeks their modes."""

from typing import NamedTuple

from amidmath.arrays import checks
from amidmath.arrays.annotations import Array, Namespace
from amidmath.formulas.assistant import exponent, exponents, mixture_ratios_of
from amidmath.formulas.pointwise import log_odds
from amidmath.geometry import points


def overlap(log_p: Array, log_q: Array, axis: int = -1) -> Array:
    """The overlap Σ min(p, q) = 1 - TV(p, q) of two distributions.

    A sum of non-negative terms, so that it keeps its relative precision when it is tiny.
    Differentiable by the array library; where p = q, a derivative is shared by both. Temporaries
    have the shape that the inputs broadcast to, outcomes included.

    Source: docs: geometry, I9.

    Args:
        log_p: log-probabilities of p, any shape, real floating dtype.
        log_q: log-probabilities of q, same library and device, as many outcomes; the axes of
            batches broadcast as NumPy's do.
        axis: the axis that runs over the outcomes.

    Returns:
        Values in [0, 1] to rounding, of the shape that the inputs without ``axis`` broadcast to, in
        float32 (float64 if an input is).

    Raises:
        TypeError: not arrays, of different libraries, or not real floating.
        ValueError: shapes do not broadcast, devices differ, or the axis is missing or empty.

    Example:
        >>> import numpy as np
        >>> from amidmath import geometry
        >>> print(geometry.overlap(np.log([0.75, 0.25]), np.log([0.25, 0.75])))
        0.5
    """
    axis, xp, (p, q) = points.checked(axis, {"log_p": log_p, "log_q": log_q})
    return _overlap(p, q, axis, xp)


class ModeReport(NamedTuple):
    """The effect of α and λ on a teacher p and a student q; made by :func:`mode_report`; docs: I10.

    The first two have the shape of the distributions, the others that shape without the outcomes.

    Attributes:
        log_ratio: l = log p - log q, in nats; ±inf where one of them is zero, 0 where both are.
        student_weight: w = ∂log r̃/∂log q in [0, 1], the share of a token's gradient that reaches
            the student through the assistant.
        covering: mean of w under p over the tokens with l > 0, which the teacher has and the
            student lacks; 1-λ where there are none (p = q).
        seeking: mean of w under q over the tokens with l < 0, which the student has and the
            teacher lacks; 1-λ where there are none.
        overlap: Σ min(p, q).
        crossover: the log ratio l* = log((1-λ)/λ)/k at which w = ½; ±inf where w stays on one
            side. For k >= 0, w > ½ below l*; for k < 0, above it.
    """

    log_ratio: Array
    student_weight: Array
    covering: Array
    seeking: Array
    overlap: Array
    crossover: Array


def mode_report(
    log_p: Array,
    log_q: Array,
    *,
    alpha: float | Array,
    lam: float | Array,
    axis: int = -1,
) -> ModeReport:
    """How the α-mixture assistant weighs what only one of teacher and student has.

    The assistant r̃ = (λpᵏ + (1-λ)qᵏ)^(1/k), k = (1-α)/2, passes each token's gradient on to the
    student with the weight w = sigmoid(log((1-λ)/λ) - k l), l = log p - log q. As α grows, w grows
    where l > 0 and falls where l < 0, so ``covering`` rises and ``seeking`` falls. What that means
    for the loss depends on its order:

    - D(p‖r) and D(r‖p) reach the student through w alone: a larger α covers modes, a smaller one
      seeks them.
    - D(q‖r) and D(r‖q) measure the student against the assistant, which is nearer to the student
      where w is large: there is less to learn there, and α works the other way.

    Source: AMiD (arXiv 2510.15982); docs: geometry, I10.

    Args:
        log_p: log-probabilities of the teacher, any shape, real floating dtype.
        log_q: log-probabilities of the student, same library and device, as many outcomes; the
            axes of batches broadcast as NumPy's do.
        alpha: α in [-∞, ∞], a number or an array that broadcasts to the shape of the batches.
        lam: λ in [0, 1], the weight of the teacher; likewise.
        axis: the axis that runs over the outcomes.

    Returns:
        A :class:`ModeReport`, in float32 (float64 if an input is).

    Raises:
        TypeError: not arrays, of different libraries, or not real floating; α or λ not a number.
        ValueError: shapes do not broadcast, devices differ, the axis is missing or empty, α is NaN,
            or λ lies outside [0, 1].

    Example:
        >>> import numpy as np
        >>> from amidmath import geometry
        >>> log_p, log_q = np.log([0.7, 0.2, 0.1]), np.log([0.2, 0.2, 0.6])
        >>> for alpha in (-3.0, 1.0, 5.0):
        ...     report = geometry.mode_report(log_p, log_q, alpha=alpha, lam=0.5)
        ...     print(f"{report.covering:.3f} {report.seeking:.3f} {report.overlap:.1f}")
        0.075 0.973 0.5
        0.500 0.500 0.5
        0.925 0.027 0.5
    """
    axis, xp, (p, q) = points.checked(axis, {"log_p": log_p, "log_q": log_q})
    shared = _overlap(p, q, axis, xp)
    alpha = checks.alpha("alpha", alpha, like=("log_p", log_p))
    lam = checks.weight("lam", lam, like=("log_p", log_p))
    alpha, lam = (_each(name, a, shared, xp) for name, a in (("alpha", alpha), ("lam", lam)))
    k = exponent(alpha) if isinstance(alpha, float) else exponents(alpha, xp)
    k_wide, lam_wide = (
        a if isinstance(a, float) else xp.expand_dims(a, axis=axis) for a in (k, lam)
    )
    absent = (p == -xp.inf) & (q == -xp.inf)
    log_ratio = xp.where(absent, 0.0, p) - xp.where(absent, 0.0, q)
    *_, w = mixture_ratios_of(log_ratio, k_wide, lam_wide, xp)
    zero = xp.zeros_like(shared)
    return ModeReport(
        log_ratio=log_ratio,
        student_weight=w,
        covering=_mean(w, xp.where(log_ratio > 0.0, xp.exp(p), 0.0), 1.0 - lam, axis, xp),
        seeking=_mean(w, xp.where(log_ratio < 0.0, xp.exp(q), 0.0), 1.0 - lam, axis, xp),
        overlap=shared,
        crossover=_crossover(zero + k, zero - log_odds(lam, xp), xp),
    )


def _overlap(log_p: Array, log_q: Array, axis: int, xp: Namespace) -> Array:
    return xp.sum(xp.exp(xp.minimum(log_p, log_q)), axis=axis)


def _mean(w: Array, mass: Array, otherwise: Array | float, axis: int, xp: Namespace) -> Array:
    """The mean of w under the mass, and another value where there is no mass."""
    total = xp.sum(mass, axis=axis)
    some = total > 0.0
    return xp.where(some, xp.sum(mass * w, axis=axis) / xp.where(some, total, 1.0), otherwise)


def _each(name: str, value: float | Array, like: Array, xp: Namespace) -> float | Array:
    """A number as it is, an array in the shape and dtype of the positions."""
    if isinstance(value, float):
        return value
    wide = checks.broadcast(name, value, tuple(like.shape), xp)
    return xp.astype(wide, like.dtype, copy=False)


def _crossover(k: Array, log_odds: Array, xp: Namespace) -> Array:
    """log((1-λ)/λ)/k, with the sign of the limit k → 0⁺ at k = 0, and 0 for λ = ½."""
    never = (k == 0.0) | xp.isinf(log_odds)
    finite = xp.where(never, 0.0, log_odds) / xp.where(never, 1.0, k)
    beyond = xp.where((log_odds > 0.0) == (k >= 0.0), xp.inf, xp.full_like(k, -xp.inf))
    # λ = ½ and k = 0: w = ½ everywhere, and 0 is the limit from either side.
    return xp.where(log_odds == 0.0, 0.0, xp.where(never, beyond, finite))
