"""A teacher by its k most probable tokens: what losses take for it, and how it is made."""

import numbers
from typing import NamedTuple

from amidmath.arrays import checks
from amidmath.arrays.adapters import adapter_of
from amidmath.arrays.annotations import Array, Namespace
from amidmath.formulas.means import log_softmax
from amidmath.rows import positions
from amidmath.rows.distributions import TOLERANCE, mass
from amidmath.rows.forms import rows_per_chunk


class TopK(NamedTuple):
    """A teacher's log-probabilities of k tokens a position; all others are its tail.

    The tail has what is left of the mass, 1 - Σ exp(log_probs). Tokens come in any order and need
    not be the most probable ones. As a named tuple it goes through ``jax.jit``, ``jax.vmap``,
    ``torch.func`` and a DataLoader's collation as it is.

    Source: docs: gradients, G10.

    Args:
        log_probs: shape (..., k), real floating dtype: log-probabilities in nats over the whole
            vocabulary, at the temperature of the loss. -inf is a listed token of probability 0.
        indices: shape (..., k), any integer dtype: the tokens, different ones within a position.
            -1 is no token, for positions with fewer than k; its log-probability is not read.

    Example:
        >>> import numpy as np, amidmath as am
        >>> teacher = am.TopK(np.log([[0.5, 0.25]]), np.array([[3, 0]]))
        >>> value = am.AMiD(am.KL(), lam=0.0)(np.zeros((1, 5)), teacher)
        >>> p, q = np.array([0.5, 0.25, 0.25]), np.array([0.2, 0.2, 0.6])
        >>> bool(abs(value - np.sum(p * np.log(p / q))) < 1e-12)
        True
    """

    log_probs: Array
    indices: Array


def top_k(teacher_logits: Array, k: int, temperature: float = 1.0) -> TopK:
    """The k most probable tokens of every position and their log-probabilities.

    Source: docs: gradients, G10.

    Args:
        teacher_logits: shape (..., V), real floating dtype.
        k: how many tokens, from 1 to V.
        temperature: divides the logits, positive; that of the loss.

    Returns:
        Both of shape (..., k), the most probable first: log-probabilities in float32 (float64 for
        such logits), tokens in the library's default integer dtype.

    Raises:
        TypeError: logits that are no array of a real floating dtype, or k no integer.
        ValueError: no axis over the vocabulary, k outside of 1 to V, or a temperature that is not
            positive.

    Example:
        >>> import numpy as np, amidmath as am
        >>> teacher = am.top_k(np.log([[0.125, 0.5, 0.125, 0.25]]), k=2)
        >>> teacher.indices, np.exp(teacher.log_probs).round(6)
        (array([[1, 3]]), array([[0.5 , 0.25]]))
    """
    xp, shape, (rows,) = positions.logit_rows(teacher_logits=teacher_logits)
    temperature = checks.temperature("temperature", temperature)
    if isinstance(k, bool) or not isinstance(k, numbers.Integral):
        raise TypeError(f"k must be an integer, got {k!r}")
    if not 1 <= k <= rows.shape[-1]:
        raise ValueError(
            f"k must be from 1 to the size of the vocabulary, {int(rows.shape[-1])}, got {k!r} "
            f"and logits of shape {tuple(teacher_logits.shape)}"
        )
    # A compiler would unroll the loop, chunk by chunk.
    count = rows.shape[0]
    step = count if adapter_of(rows).plans_memory else rows_per_chunk(rows)
    found = [
        _top_rows(rows[start : min(start + step, count), ...], int(k), temperature, xp)
        for start in range(0, max(1, count), max(1, step))
    ]
    both = (xp.concat(parts, axis=0) for parts in zip(*found, strict=True))
    return TopK(*(xp.reshape(a, (*shape, int(k))) for a in both))


def _top_rows(logits: Array, k: int, temperature: float, xp: Namespace) -> tuple[Array, Array]:
    wide = xp.astype(logits, checks.computing_dtype(xp, logits), copy=False)
    _, _, logs = log_softmax(wide / temperature, -1, xp)
    return adapter_of(logs).largest(logs, k, xp)


def listed_logs(top: TopK, xp: Namespace) -> Array:
    """The log-probabilities, -inf where there is no token."""
    logs = xp.where(top.indices >= 0, top.log_probs, -xp.inf)
    return xp.astype(logs, top.log_probs.dtype, copy=False)  # NumPy widens ml_dtypes' bfloat16


def outside(indices: Array, vocabulary: int) -> Array:
    """Where an index is neither a token nor -1."""
    return (indices < -1) | (indices >= vocabulary)


def repeated(indices: Array, xp: Namespace) -> Array:
    """Whether a position lists a token twice; without the last axis."""
    ordered = xp.sort(indices, axis=-1)
    same = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)
    return xp.any(same, axis=-1)


def mass_above_one(logs: Array, xp: Namespace) -> tuple[Array, Array]:
    """The mass of every list, and where it is above 1 by more than rounding, or NaN."""
    total, off = mass(logs, -1, TOLERANCE, xp)
    return total, off & ~(total < 1.0)


def checked(
    name: str,
    top: TopK,
    student: tuple[str, Array],
    vocabulary: int,
    keep: Array | None,
    xp: Namespace,
) -> TopK:
    """The lists as rows (N, k), the tokens as signed integers that can hold any vocabulary.

    Args:
        name: the argument's.
        top: as it was given.
        student: the name and the array, of shape (..., any), of what the lists belong to.
        vocabulary: how many tokens there are.
        keep: shape (N,), None for all; other positions list nothing.
        xp: the namespace of the student's array.

    Raises:
        TypeError: not a TopK, not of arrays of one library, or of wrong dtypes.
        ValueError: shapes or devices that do not fit; where values are at hand, a token outside
            the vocabulary or listed twice, a NaN, or probabilities that sum to more than 1.
    """
    if not isinstance(top, TopK):
        raise TypeError(
            f"{name} must be am.TopK(log_probs, indices), such as am.top_k(teacher_logits, 64), "
            f"got {type(top).__name__}: {checks.shortened(top)}"
        )
    beside, array = student
    named = {f"{name}.log_probs": top.log_probs, f"{name}.indices": top.indices}
    checks.namespace(**{beside: array}, **named)
    checks.real_floating(xp, **{f"{name}.log_probs": top.log_probs})
    checks.integral(xp, **{f"{name}.indices": top.indices})
    checks.same_shape(**named)
    checks.same_device(**{beside: array}, **named)
    shape = tuple(top.indices.shape)
    if shape[:-1] != tuple(array.shape[:-1]) or not shape or shape[-1] == 0:
        raise ValueError(
            f"{name}.indices must have the positions of {beside} and a last axis of k >= 1 "
            f"tokens, got {shape} and {tuple(array.shape)}"
        )
    flat = (-1, shape[-1])
    # Signed, since -1 means something. What does not fit comes out negative, and is refused.
    signed = xp.int64 if xp.iinfo(top.indices.dtype).bits == 64 else xp.int32
    indices = xp.reshape(xp.astype(top.indices, signed, copy=False), flat)
    if keep is not None:
        indices = xp.where(keep[:, None], indices, -1)
    rows = TopK(xp.reshape(top.log_probs, flat), indices)
    checks.values_hold(
        f"{name}.indices",
        indices,
        outside(indices, vocabulary),
        f"tokens in [0, {vocabulary}), or -1 for no token",
    )
    checks.values_hold(
        f"{name}.indices of every position",
        indices,
        repeated(indices, xp),
        "different tokens (pad with -1)",
    )
    logs = listed_logs(rows, xp)
    checks.values_hold(f"{name}.log_probs", logs, xp.isnan(logs), "numbers or -inf")
    total, above = mass_above_one(logs, xp)
    checks.values_hold(f"the sums of exp({name}.log_probs)", total, above, "at most 1")
    return rows
