"""Rows of logits and of probabilities: log-softmax of a pair, and derivatives on the simplex."""

from amidmath.arrays import libraries
from amidmath.arrays.annotations import Array, Namespace
from amidmath.formulas.means import log_softmax
from amidmath.formulas.pointwise import (
    difference_parts,
    exp_difference,
    is_near_one,
    log_near_one,
    ratio_of,
)


def log_softmax_pair(
    student: Array, teacher: Array, xp: Namespace, difference: Array | None = None
) -> tuple[Array, Array, Array]:
    """Return log q, log p, and log(p/q) to the precision of the difference of the logits.

    The difference is that of teacher less student, for callers who know it better; otherwise it
    is taken exactly, wherever the logits lie. The constant in the log ratio comes from two
    normalisers, each rounded; that it makes Σ(q - p) vanish gives it back to full relative
    precision. Docs: stable evaluation, S5.
    """
    (peak_s, log_zq, log_q), (peak_t, log_zp, log_p) = (
        log_softmax(logits, -1, xp) for logits in (student, teacher)
    )
    peaks, lost_of_peaks = difference_parts(peak_t, peak_s, xp)
    lost: Array = 0.0
    if difference is None:
        difference, lost = difference_parts(teacher, student, xp)
    centred = (difference - peaks) + (lost - lost_of_peaks)
    ratio = ratio_of(student, teacher, centred - (log_zp - log_zq), xp)
    off = xp.sum(exp_difference(log_q, log_p, -ratio, xp), axis=-1, keepdims=True)
    return log_q, log_p, ratio + xp.log1p(off)


def normalize(
    log_r: Array, log_source: Array, over_source: Array, xp: Namespace
) -> tuple[Array, Array]:
    """Return log r of an unnormalised mixture, from its differences to a source, and log Z.

    Docs: mixtures, M7.
    """
    excess = xp.sum(exp_difference(log_r, log_source, over_source, xp), axis=-1, keepdims=True)
    # Z itself may underflow, where teacher and student have almost nothing in common.
    peak, log_total, _ = log_softmax(log_r, -1, xp)
    log_z = log_near_one(excess, peak + log_total, xp)
    near = is_near_one(excess)
    first, second = xp.where(near, 0.0, peak), xp.where(near, log_z, log_total)
    second = xp.where(log_z == -xp.inf, 0.0, second)
    return (log_r - first) - second, log_z


def through_normalization(by_log: Array, mass: Array, xp: Namespace) -> Array:
    """Derivatives by unnormalised logarithms: c - x Σc, from those by log x, c.

    Where one outcome has most of the mass, its own entry c(1 - x) - xΣ'c would cancel; taking the
    multiple of x off c that makes that entry zero changes nothing and leaves sums of the others.
    Docs: gradients, G5.
    """
    return project(anchored(by_log, mass, top_outcome(mass, xp), xp), mass, xp)


def project(by_log: Array, mass: Array, xp: Namespace) -> Array:
    """C - x Σc."""
    return by_log - mass * xp.sum(by_log, axis=-1, keepdims=True)


def top_outcome(logs: Array, xp: Namespace) -> Array:
    """True at the first of the largest entries of every row, and nowhere else."""
    index = xp.arange(logs.shape[-1], device=libraries.device(logs))
    return index == xp.argmax(logs, axis=-1, keepdims=True)


def at(top: Array, values: Array, xp: Namespace) -> Array:
    """The values where ``top`` is true, one a row, kept as a column."""
    return xp.sum(xp.where(top, values, 0.0), axis=-1, keepdims=True)


def anchored(by_log: Array, mass: Array, top: Array, xp: Namespace) -> Array:
    """C - x c_t/x_t for derivatives c by log x: without the multiple of x that t has."""
    mass_top = at(top, mass, xp)
    level = xp.where(mass_top > 0.0, at(top, by_log, xp) / mass_top, 0.0)
    return xp.where(top & (mass_top > 0.0), 0.0, by_log - mass * level)
