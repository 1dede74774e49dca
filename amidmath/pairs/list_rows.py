"""Rows of student logits against a teacher's top-k list, by way of k + 1 outcomes."""

from dataclasses import dataclass
from typing import Any

from amidmath.arrays.adapters import adapter_of
from amidmath.arrays.annotations import Array, Namespace, Partials
from amidmath.arrays.checks import computing_dtype
from amidmath.formulas.means import log_sum_exp
from amidmath.formulas.pointwise import log_near_one
from amidmath.formulas.simplex import top_outcome
from amidmath.inputs.top_k import TopK, listed_logs, mass_above_one, outside, repeated
from amidmath.rows.forms import Block, in_chunks, rows_per_chunk

CONSTANT = (
    "{} are constant in a sparse loss, and were asked for a gradient: detach them (torch), or use "
    "jax.lax.stop_gradient"
)


@dataclass(frozen=True)
class SparseForm:
    """The closed form of a loss against top-k lists; see :mod:`amidmath.arrays.dispatch`.

    Operands: student logits (N, V), the teacher's log-probabilities (N, k) and tokens (N, k), the
    knobs of the block (N, 1), then ``keep`` and ``scale`` as for
    :class:`amidmath.rows.forms.RowForm`. Rows whose lists cannot be are NaN: there is not always
    someone to raise an error to.

    Args:
        block: the loss by rows of k + 1 logits, at temperature 1.
        temperature: divides the student's logits.
        knobs: how many knobs the block takes.
        masked: whether there is ``keep``.
        scaled: whether there is ``scale``.
    """

    block: Block
    temperature: float
    knobs: int = 0
    masked: bool = False
    scaled: bool = False

    def __call__(
        self, *operands: Array, needs: tuple[bool, ...], xp: Namespace
    ) -> tuple[Array, Partials]:
        """Values (N,) and partial derivatives of all rows, a chunk at a time."""
        return in_chunks(self, rows_per_chunk(operands[0]), *operands, needs=needs, xp=xp)

    def chunk(
        self, *operands: Array, needs: tuple[bool, ...], xp: Namespace
    ) -> tuple[Array, Partials]:
        """The same for one chunk of rows (or for one row); docs: gradients, G10."""
        if needs[1]:
            raise ValueError(CONSTANT.format("teacher.log_probs"))
        student, log_probs, indices = operands[:3]
        knobs, extras = operands[3 : 3 + self.knobs], list(operands[3 + self.knobs :])
        keep = extras.pop(0)[..., None] if self.masked else None
        scale = extras.pop(0)[..., None] if self.scaled else None
        dtype = computing_dtype(xp, student, log_probs)
        wide, *rows = (xp.astype(a, dtype, copy=False) for a in (student, *knobs))
        if keep is not None:
            wide, *rows = (xp.where(keep, a, 0.0) for a in (wide, *rows))
            indices = xp.where(keep, indices, -1)
        top = TopK(log_probs, indices)
        logits = wide if self.temperature == 1.0 else wide / self.temperature
        student_side = Bucketed.of(logits, indices, xp)
        value, partials = self.block(
            student_side.logits,
            with_tail(top, student_side.has_others, dtype, xp),
            *rows,
            needs=(needs[0], False, *needs[3 : 3 + self.knobs]),
            xp=xp,
        )
        wrong = wrong_lists(top, logits.shape[-1], xp)
        factor = xp.ones_like(value)[..., None] if scale is None else scale
        factor = xp.astype(xp.where(wrong[..., None], xp.nan, factor), dtype, copy=False)
        value = xp.where(wrong, xp.nan, value)
        if keep is not None:
            value = xp.where(keep[..., 0], value, 0.0)

        grads: list[Array | None] = [None for _ in needs]
        places = (0, *range(3, 3 + self.knobs))
        for i, grad in zip(places, (partials[0], *partials[2:]), strict=True):
            if grad is None or not needs[i]:  # a block may give more than it was asked for
                continue
            grad = grad * factor if keep is None else xp.where(keep, grad * factor, 0.0)
            if i == 0:
                grad = student_side.spread(grad / self.temperature, xp)
            grads[i] = xp.astype(grad, operands[i].dtype, copy=False)
        return value, tuple(grads)


@dataclass(frozen=True, eq=False)
class Bucketed:
    """Rows of logits whose entries that are not listed have become one; docs: gradients, G10.

    Args:
        logits: shape (..., k + 1), those listed, -inf for what is no token, then log Σ exp of the
            others.
        entries: which are listed.
        has_others: shape (..., 1), whether there are others.
        within: shape (..., V), the logits of the others less log Σ exp.
    """

    logits: Array
    entries: "Entries"
    has_others: Array
    within: Array

    @staticmethod
    def of(logits: Array, indices: Array, xp: Namespace) -> "Bucketed":
        """Rows of logits (..., V) with the indices (..., k) taken out, not subtracted."""
        entries = Entries.of(indices, logits.shape[-1], xp)
        listed, others = entries.split(logits, xp)
        tail, within = log_sum_exp(others, -1, xp)
        rows = xp.concat((listed, tail), axis=-1)
        return Bucketed(rows, entries, entries.count(xp) < logits.shape[-1], within)

    def spread(self, grad: Array, xp: Namespace) -> Array:
        """The gradient by the logits (..., V) from that by the k + 1."""
        by_tail = xp.where(self.logits[..., -1:] > -xp.inf, grad[..., -1:], 0.0)
        return self.entries.put(xp.exp(self.within) * by_tail, grad[..., :-1], xp)


def with_tail(top: TopK, others: Array, dtype: Any, xp: Namespace) -> Array:
    """The teacher's log-probabilities and the logarithm of what they leave; docs: gradients, G10.

    Args:
        top: shape (..., k).
        others: shape (..., 1), whether there are other tokens that could have it.
        dtype: to compute in.
        xp: the namespace that computes.

    Returns:
        Shape (..., k + 1). Rounding that makes the list's mass more than 1 leaves nothing.
    """
    logs = xp.astype(listed_logs(top, xp), dtype, copy=False)
    largest = xp.max(logs, axis=-1, keepdims=True)
    beside = xp.where(top_outcome(logs, xp), 0.0, xp.exp(logs))
    excess = xp.sum(beside, axis=-1, keepdims=True) + xp.expm1(largest)
    some = others & (excess < 0.0)
    left = xp.where(some, -excess, 1.0)
    tail = log_near_one(left - 1.0, xp.log(left), xp)
    return xp.concat((logs, xp.where(some, tail, -xp.inf)), axis=-1)


def wrong_lists(top: TopK, vocabulary: int, xp: Namespace) -> Array:
    """Which positions list what is no token, or one twice, or more mass than there is."""
    _, above = mass_above_one(listed_logs(top, xp), xp)
    no_token = xp.any(outside(top.indices, vocabulary), axis=-1)
    return no_token | repeated(top.indices, xp) | above


@dataclass(frozen=True, eq=False)
class Entries:
    """Some entries of every row, to be taken out and put back.

    What is no entry (-1) stands in for the first that is one, and for entry 0, as it is, in rows
    that have none: so nothing depends on how a library treats an index that it does not know.

    Args:
        valid: shape (..., k), whether there is one.
        at: shape (..., k), where; in range, and of the dtype in which the library counts.
        first: shape (..., 1), which of the k is the first valid one.
    """

    valid: Array
    at: Array
    first: Array

    @staticmethod
    def of(indices: Array, size: int, xp: Namespace) -> "Entries":
        """Those of rows of a size; others than -1 that are out of range count as none, too."""
        valid = (indices >= 0) & (indices < size)
        first = xp.argmax(xp.astype(valid, xp.int32), axis=-1, keepdims=True)
        inside = xp.astype(xp.where(valid, indices, 0), first.dtype, copy=False)
        at = xp.where(valid, inside, xp.take_along_axis(inside, first, axis=-1))
        return Entries(valid, at, first)

    def count(self, xp: Namespace) -> Array:
        """How many there are, (..., 1)."""
        return xp.sum(xp.astype(self.valid, xp.int32), axis=-1, keepdims=True)

    def split(self, rows: Array, xp: Namespace) -> tuple[Array, Array]:
        """The entries, -inf where there is none, and the rows with -inf in their place."""
        taken = xp.take_along_axis(rows, self.at, axis=-1)
        taken = xp.where(self.valid, taken, -xp.inf)
        return taken, self.put(rows, xp.full_like(taken, -xp.inf), xp)

    def put(self, rows: Array, values: Array, xp: Namespace) -> Array:
        """The rows with values in place of the entries."""
        any_valid = xp.any(self.valid, axis=-1, keepdims=True)
        spare = xp.where(any_valid, xp.take_along_axis(values, self.first, axis=-1), rows[..., :1])
        return adapter_of(rows).put(rows, self.at, xp.where(self.valid, values, spare), xp)
