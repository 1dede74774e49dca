"""Losses of logits whose vocabulary is spread over ranks: only sums of rows travel.

A closed form uses the vocabulary through reductions along the last axis and nothing else. So the
one definition serves here too, run with a namespace in which those go over all shards.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol

from amidmath.arrays import checks, dispatch, libraries
from amidmath.arrays.annotations import Array, Namespace, Partials
from amidmath.losses.loss import Loss
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
class _ShardedBlock:
    block: Block
    ranks: Ranks

    def __call__(
        self, x: Array, y: Array, *knobs: Array, needs: tuple[bool, ...], xp: Namespace
    ) -> tuple[Array, Partials]:
        return self.block(x, y, *knobs, needs=needs, xp=Sharded(xp, self.ranks))


@dataclass(frozen=True)
class ShardedRows:
    """Rows of shards, in chunks that do not depend on the shard: all ranks' collectives pair up.

    Fields and operands are those of :class:`amidmath.rows.forms.RowForm`, and ``step``, the rows in
    a chunk. It is none, since that is what executors of whole rows look for.
    """

    block: Block
    knobs: int
    masked: bool
    scaled: bool
    step: int

    def chunk(
        self, *operands: Array, needs: tuple[bool, ...], xp: Namespace
    ) -> tuple[Array, Partials]:
        """Values and partial derivatives of one chunk of rows (or of one row)."""
        form = RowForm(self.block, self.knobs, self.masked, self.scaled)
        return form.chunk(*operands, needs=needs, xp=xp)

    def __call__(
        self, *operands: Array, needs: tuple[bool, ...], xp: Namespace
    ) -> tuple[Array, Partials]:
        """Values and partial derivatives of all rows."""
        return in_chunks(self, self.step, *operands, needs=needs, xp=xp)


_APART = (
    "a VocabParallel loss and one of whole rows cannot be parts of one loss; make it of their sum, "
    "am.VocabParallel(a + b, group)"
)


@dataclass(frozen=True, eq=False, repr=False)
class VocabParallel(Loss):
    """A loss of logits that are sharded over the vocabulary: each rank has a part of every row.

    Called with this rank's part of student and teacher logits, the same entries of both. The value
    is that of the whole rows, the same on every rank to the last bit, and the gradients are the
    parts of the whole ones. Ranks exchange numbers a row: maxima, sums, values at the top outcome;
    never logits or gradients.

    **Gradients** are those of one loss that all ranks share, as in Megatron-LM's
    vocabulary-parallel cross-entropy: the backward pass does not communicate, nothing is multiplied
    by the number of ranks, and gradients with respect to arrays of α and λ, which every rank has
    in full, need no reduction over the group.

    **torch**: ``group`` is the ProcessGroup whose ranks have the parts in their order, or a
    one-dimensional DeviceMesh of them. Parts may differ in size, and have at least one entry. All
    ranks make the same calls: as many positions, the same mask, gradients of the same arguments.
    Logits may be DTensors on that mesh with the placement Shard of the last axis, as tensor
    parallelism leaves them; their gradients then are, and the value is an ordinary tensor.

    **JAX**: ``group`` is the name of a mesh axis, within a ``jax.shard_map`` that goes over it.
    ``jax.grad`` within and around that shard_map are right. With ``check_vma=False`` only the one
    around is, for then JAX, within, differentiates the sum over all devices
    (:meth:`value_and_grad` is right anywhere). Rows may be sharded along another axis, whose
    devices then each have the loss of their own; for the mean of all, add up ``reduction="sum"``
    by ``jax.lax.psum`` and divide. Outside of shard_map there is no need for this class:
    the compiler does the same to the plain loss, under ``jax.jit``, of sharded arrays.

    There is one backend, None, and gradients have memory of their own, whatever
    ``overwrite_student_logits`` says. Multiples of it, and sums of those over one group, are again
    VocabParallel.

    Source: Megatron-LM (arXiv 1909.08053), section 3; docs: gradients, G1 to G6, whose sums over
    tokens are what travels.

    Args:
        loss: the loss of whole rows.
        group: the ranks that share the vocabulary; see above.
        rows_per_chunk: how many positions are computed at a time, the same on every rank. More of
            them take fewer messages, and more memory for temporaries: some twenty arrays of
            rows_per_chunk × this rank's entries.

    Raises:
        TypeError: not a loss of whole rows; when called, arrays of other libraries than torch and
            JAX, or a group of the other one.
        ValueError: ``rows_per_chunk`` not positive; when called, a DTensor that is placed
            otherwise, a mesh of more dimensions, or an axis that no enclosing shard_map goes over.

    Example:
        >>> import jax, numpy as np, amidmath as am
        >>> loss = am.VocabParallel(am.AMiD(am.KL(), alpha=-1.0, lam=0.1), "vocab")
        >>> mesh = jax.sharding.Mesh(jax.devices(), "vocab")
        >>> logits, value = jax.P(None, "vocab"), jax.P()
        >>> whole = jax.jit(jax.shard_map(loss, mesh=mesh, in_specs=logits, out_specs=value))
        >>> print(f"{whole(np.zeros((2, 4)), np.eye(2, 4)):.5f}")
        0.09297
    """

    loss: Loss
    group: Any
    rows_per_chunk: int = 256

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not isinstance(self.loss, Loss):
            raise TypeError(f"loss must be a loss such as am.AMiD(), got {self.loss!r}")
        if isinstance(self.loss, VocabParallel):
            raise TypeError(f"loss must be one of whole rows, got {self.loss!r}")
        rows = self.rows_per_chunk
        if isinstance(rows, bool) or not isinstance(rows, int):
            raise TypeError(f"rows_per_chunk must be an integer, got {rows!r}")
        if rows < 1:
            raise ValueError(f"rows_per_chunk must be positive, got {rows!r}")

    @property
    def knobs(self) -> dict[str, Array]:
        """Those of the loss."""
        return self.loss.knobs

    @property
    def block(self) -> Block:
        """There is none without the ranks, and sums of losses cannot know them."""
        raise TypeError(_APART)

    def plus(self, other: Loss) -> "VocabParallel":
        """The sum of two losses over one group."""
        if not isinstance(other, VocabParallel):
            raise TypeError(_APART)
        if other.group != self.group:
            raise TypeError(
                "VocabParallel losses add over one group of ranks, got "
                f"{self.group!r} and {other.group!r}"
            )
        return replace(self, loss=self.loss + other.loss)

    def times(self, factor: float | Array) -> "VocabParallel":
        """The loss times a factor."""
        return replace(self, loss=self.loss * factor)

    def _check_backend(self, backend: str | None) -> None:
        if backend is not None:
            raise ValueError(f"a VocabParallel loss has one backend, None, got {backend!r}")

    def _operands(
        self, student_logits: Array, teacher_logits: Array, mask: Array | None
    ) -> tuple[Namespace, tuple[int, ...], tuple[Array, ...], Array | None]:
        """What those of :class:`Loss` are, of what this rank has."""
        given = {"student_logits": student_logits, "teacher_logits": teacher_logits}
        checks.namespace(**given, **({} if mask is None else {"mask": mask}))
        ranks = self._ranks(student_logits)
        student = ranks.shard("student_logits", student_logits)
        teacher = ranks.shard("teacher_logits", teacher_logits)
        kept = None if mask is None else ranks.replica("mask", mask)
        return super()._operands(student, teacher, kept)

    def _form(self, ranks: Ranks, masked: bool, scaled: bool) -> ShardedRows:
        block = _ShardedBlock(self.loss.block, ranks)
        return ShardedRows(block, len(self.knobs), masked, scaled, self.rows_per_chunk)

    def _values(self, operands: tuple[Array, ...], masked: bool, backend: str | None) -> Array:
        ranks = self._ranks(operands[0])
        return ranks.values(self._form(ranks, masked, scaled=False), operands)

    def _total(
        self,
        operands: tuple[Array, ...],
        masked: bool,
        scale: Array | float | None,
        backend: str | None,
    ) -> Array:
        values = self._values(operands, masked, backend)
        return dispatch.scaled_sum(values, scale, libraries.array_namespace(values))

    def _partials(
        self,
        operands: tuple[Array, ...],
        needs: tuple[bool, ...],
        masked: bool,
        scaled: bool,
        backend: str | None,
        overwrite: bool,
    ) -> tuple[Array, Partials]:
        ranks = self._ranks(operands[0])
        return ranks.partials(self._form(ranks, masked, scaled), operands, needs)

    def _whole(self, grad: Array, argument: Array) -> Array:
        return self._ranks(grad).whole(grad, argument)

    def _ranks(self, logits: Array) -> Ranks:
        """The ranks of the group, by the library of the logits."""
        if libraries.is_torch_array(logits):
            from amidmath.backends.torch_backend import shards as torch_vocab

            return torch_vocab.ranks(self.group)
        if libraries.is_jax_array(logits):
            from amidmath.backends.jax_backend import shards as jax_vocab

            return jax_vocab.ranks(self.group)
        raise TypeError(
            "student_logits of a VocabParallel loss must be a torch tensor or a JAX array, got "
            f"{type(logits).__name__}: {checks.shortened(logits)}"
        )
