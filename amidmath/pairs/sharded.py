"""Rows whose vocabulary is spread over ranks: only sums of rows travel.

A closed form uses the vocabulary through reductions along the last axis and nothing else. So the
one definition serves here too, run with a namespace in which those go over all shards.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol

from amidmath.arrays.annotations import Array, Namespace, Partials
from amidmath.arrays.checks import computing_dtype
from amidmath.formulas.cross_entropy import cross_entropy
from amidmath.rows.forms import Block, RowForm, in_chunks

# What would quietly see one shard only.
_ALONG_AN_AXIS = (
    *("all", "argmin", "argsort", "count_nonzero", "cumulative_prod", "cumulative_sum", "diff"),
    *("mean", "min", "prod", "searchsorted", "sort", "std", "take", "take_along_axis", "var"),
    "vecdot",
)


class Ranks(Protocol):
    """Those who hold a shard each: a process group of torch, an axis of a mesh of JAX."""

    @property
    def index(self) -> Any:
        """Which of them this one is, from 0."""

    def total(self, x: Array) -> Array:
        """The sum of every rank's array; may be written into ``x``."""

    def largest(self, x: Array) -> Array:
        """The elementwise maximum of every rank's array; may be written into ``x``."""

    def gathered(self, x: Array) -> Array:
        """Every rank's array, along a new first axis."""

    def shard(self, name: str, array: Array) -> Array:
        """This rank's part of an argument, as a plain array."""

    def replica(self, name: str, array: Array) -> Array:
        """An argument that all ranks have, as a plain array."""

    def whole(self, shard: Array, like: Array) -> Array:
        """The inverse: a shard as what the argument ``like`` was."""

    def values(self, form: "ShardedRows", operands: tuple[Array, ...]) -> Array:
        """The values of all rows, differentiable."""

    def partials(
        self, form: "ShardedRows", operands: tuple[Array, ...], needs: tuple[bool, ...]
    ) -> tuple[Array, Partials]:
        """The value and the partial derivatives that ``needs`` marks."""
        ...


class Sharded:
    """An array namespace whose reductions along the last axis go over the shards of all ranks.

    Args:
        xp: the namespace that computes.
        ranks: who holds the shards.
    """

    def __init__(self, xp: Namespace, ranks: Ranks) -> None:
        self._xp, self._ranks = xp, ranks

    def __getattr__(self, name: str) -> Any:
        """The functions that work element by element, as they are."""
        if name in _ALONG_AN_AXIS:
            raise NotImplementedError(
                "a vocabulary over several ranks is reduced by sum, max, any and argmax along the "
                f"last axis; {name} would see one shard"
            )
        return getattr(self._xp, name)

    def sum(self, x: Array, *, axis: int, keepdims: bool = False) -> Array:
        """The sum over the vocabulary."""
        return self._ranks.total(self._xp.sum(x, axis=_last(axis), keepdims=keepdims))

    def max(self, x: Array, *, axis: int, keepdims: bool = False) -> Array:
        """The maximum over the vocabulary."""
        return self._ranks.largest(self._xp.max(x, axis=_last(axis), keepdims=keepdims))

    def any(self, x: Array, *, axis: int, keepdims: bool = False) -> Array:
        """Whether there is one in the vocabulary."""
        return self.sum(self._xp.astype(x, self._xp.int32), axis=axis, keepdims=keepdims) > 0

    def argmax(self, x: Array, *, axis: int, keepdims: bool = False) -> Array:
        """The index in this shard of the first maximum over the vocabulary, -1 if elsewhere."""
        xp = self._xp
        here = xp.argmax(x, axis=_last(axis), keepdims=keepdims)
        peaks = self._ranks.gathered(xp.max(x, axis=axis, keepdims=keepdims))
        return xp.where(xp.argmax(peaks, axis=0) == self._ranks.index, here, -1)


def _last(axis: int) -> int:
    if axis != -1:
        raise NotImplementedError(f"the vocabulary is the last axis, got axis {axis!r}")
    return axis


@dataclass(frozen=True)
class Labels:
    """The addition to the loss of rows that have a label: their cross-entropy, so many times.

    Args:
        weight: what the cross-entropy counts.
        ignore_index: the label of rows without one.
    """

    weight: float
    ignore_index: int


@dataclass(frozen=True)
class ShardedRows:
    """Rows of shards, in chunks that do not depend on the shard: all ranks' collectives pair up.

    Operands are those of :class:`amidmath.rows.forms.RowForm`; then, where there are labels, those
    (N,), and the token of the shard's first entry and the size of the whole vocabulary, (N,) each.
    It is no RowForm, since that is what kernels of whole rows look for.

    Args:
        rows: what is computed of whole rows.
        ranks: who hold the shards.
        step: the rows in a chunk.
        labels: None where there are none.
    """

    rows: RowForm
    ranks: Ranks
    step: int
    labels: Labels | None = None

    def chunk(
        self, *operands: Array, needs: tuple[bool, ...], xp: Namespace
    ) -> tuple[Array, Partials]:
        """Values and partial derivatives of one chunk of rows (or of one row)."""
        sharded = Sharded(xp, self.ranks)
        if self.labels is None:
            return self._divergence(operands, needs, sharded, xp)
        *others, labels, first, vocabulary = operands
        value, partials = self._divergence(tuple(others), needs[:-3], sharded, xp)
        added, by_label = self._cross_entropy(others, labels, first, vocabulary, needs[0], sharded)
        grads = list(partials)
        if by_label is not None and grads[0] is not None:
            grads[0] = grads[0] + xp.astype(by_label, grads[0].dtype, copy=False)
        return value + added, (*grads, None, None, None)

    def __call__(
        self, *operands: Array, needs: tuple[bool, ...], xp: Namespace
    ) -> tuple[Array, Partials]:
        """Values and partial derivatives of all rows."""
        return in_chunks(self, self.step, *operands, needs=needs, xp=xp)

    def _divergence(
        self, operands: tuple[Array, ...], needs: tuple[bool, ...], sharded: Any, xp: Namespace
    ) -> tuple[Array, Partials]:
        form = replace(self.rows, block=_ShardedBlock(self.rows.block, sharded))
        return form.chunk(*operands, needs=needs, xp=xp)

    def _cross_entropy(
        self,
        operands: list[Array],
        labels: Array,
        first: Array,
        vocabulary: Array,
        need: bool,
        sharded: Any,
    ) -> tuple[Array, Array | None]:
        """The labels' part of values and of the gradient by the student's logits."""
        assert self.labels is not None
        student, extras = operands[0], operands[2 + self.rows.knobs :]
        keep = extras[0] if self.rows.masked else None
        scale = extras[-1] if self.rows.scaled else None
        logits = sharded.astype(student, computing_dtype(sharded, *operands[:2]), copy=False)
        if keep is not None:
            logits = sharded.where(keep[..., None], logits, 0.0)
        value, grad = cross_entropy(
            logits,
            labels,
            self.labels.ignore_index,
            need=need,
            xp=sharded,
            first=first[..., None],
            vocabulary=vocabulary,
        )
        if grad is not None:
            factor = self.labels.weight if scale is None else self.labels.weight * scale[..., None]
            grad = factor * grad
        return self.labels.weight * value, grad


@dataclass(frozen=True)
class _ShardedBlock:
    """A block, computed in a namespace of all ranks whatever it is told."""

    block: Block
    sharded: Any

    def __call__(
        self, x: Array, y: Array, *knobs: Array, needs: tuple[bool, ...], xp: Namespace
    ) -> tuple[Array, Partials]:
        return self.block(x, y, *knobs, needs=needs, xp=self.sharded)
