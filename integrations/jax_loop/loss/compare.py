"""A loss over the positions of a batch: whole vocabularies, parts of one, a mesh of devices."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import amidmath as am
from amidmath.integrations.common.rows.marks import NO_LABEL
from amidmath.integrations.jax_loop.devices.mesh import ROWS
from amidmath.integrations.jax_loop.loss.states import Array, Positions, Reference, held


class Comparer(Protocol):
    """The taking of one loss over the positions of a mask; see :class:`Whole`."""

    def __call__(
        self,
        loss: am.Loss,
        student: am.Hidden,
        reference: Reference,
        mask: Array,
        reduction: str = "sum",
        *,
        labels: Array | None = None,
        label_weight: float = 0.0,
    ) -> Array:
        """The sum over the positions, or every position's value for "none"."""
        ...


@dataclass(frozen=True)
class Whole:
    """One device has the whole vocabulary.

    Args:
        vocab: "common" where a side's further tokens are one more token.
        tokens: how many first tokens are compared, where all others are left out.
    """

    vocab: str = "strict"
    tokens: int | None = None

    def __call__(
        self,
        loss: am.Loss,
        student: am.Hidden,
        reference: Reference,
        mask: Array,
        reduction: str = "sum",
        *,
        labels: Array | None = None,
        label_weight: float = 0.0,
    ) -> Array:
        """See :class:`Comparer`."""
        others: dict[str, Any] = {"mask": mask, "reduction": reduction}
        if label_weight and labels is not None:
            if self.tokens is not None:
                labels = jnp.where(labels < self.tokens, labels, NO_LABEL)
            others |= {"labels": labels, "label_weight": label_weight}
        teacher: Any = reference
        if isinstance(reference, am.Hidden):
            vocab = "common" if self.vocab == "common" and self.tokens is None else "strict"
            constant = held(reference)
            teacher = am.Hidden(constant.states, constant.head.first(self.tokens), vocab)
        student = am.Hidden(student.states, student.head.first(self.tokens))
        value: Array = loss(student, teacher, **others)
        return value


def in_chunks(function: Callable[[Any], Any], rows: Any, step: int) -> Any:
    """The results of a function of every ``step`` positions, stacked.

    Args:
        function: of a tree of rows (step, …).
        rows: a tree of arrays (B, L, …). What fills up the last chunk is zeros, a mask of which
            counts nothing.
        step: how many positions at a time.
    """

    def cut(array: Array) -> Array:
        flat = array.reshape(-1, *array.shape[2:])
        filled = jnp.pad(flat, ((0, -len(flat) % step), *((0, 0),) * (flat.ndim - 1)))
        return filled.reshape(-1, step, *flat.shape[1:])

    return jax.lax.map(function, jax.tree.map(cut, rows))


# Rows of logits at a time, of all devices' parts of the vocabulary together.
_CHUNK_BYTES = 2**28


def comparer(mesh: Mesh, vocab: str, tokens: int | None = None) -> Comparer:
    """How a device takes losses of its rows; of the first ``tokens`` alone, or of all."""
    return Whole(vocab, tokens) if mesh.shape["tensor"] == 1 else ByVocabulary("tensor")


def spread(
    mesh: Mesh, function: Callable[..., Any], by_vocabulary: bool = True
) -> Callable[..., Any]:
    """A function of (values, student, reference, positions) to sums, over all devices' rows.

    Each device runs it on its rows. On one device the function is as it was, so that the CPU's
    row kernels compute it.

    Args:
        mesh: of devices.
        function: what to run.
        by_vocabulary: with a tensor axis, each device gets its part of both heads; else whole ones.
    """
    if mesh.size == 1:
        return function
    vocabulary = "tensor" if by_vocabulary and mesh.shape["tensor"] > 1 else None

    def on_devices(
        values: Mapping[str, Any], student: am.Hidden, reference: Reference, positions: Positions
    ) -> Any:
        def local(*parts: Any) -> Any:
            return jax.tree.map(lambda total: jax.lax.psum(total, ROWS), function(*parts))

        operands = (values, student, reference, positions)
        specs = (
            P(),
            _specs(student, vocabulary),
            _specs(reference, vocabulary) if isinstance(reference, am.Hidden) else P(ROWS),
            P(ROWS),
        )
        shared = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P())
        return shared(*operands)

    return on_devices


def _specs(states: am.Hidden, vocabulary: str | None) -> Any:
    """Where states lie while their loss is taken: a tree of the same leaves."""
    leaves, tree = jax.tree.flatten(states)
    return jax.tree.unflatten(tree, [P(ROWS), *(P(vocabulary) for _ in leaves[1:])])


@dataclass(frozen=True)
class ByVocabulary:
    """Each device along an axis has a part of the vocabulary; only sums of rows travel.

    Logits are multiplied out a chunk of positions at a time, and again in the backward pass.
    Where a parameter of the loss differs from position to position there is one chunk.

    Args:
        axis: of the mesh.
    """

    axis: str

    def __call__(
        self,
        loss: am.Loss,
        student: am.Hidden,
        reference: Reference,
        mask: Array,
        reduction: str = "sum",
        *,
        labels: Array | None = None,
        label_weight: float = 0.0,
    ) -> Array:
        """See :class:`amidmath.integrations.jax_loop.loss.compare.Comparer`."""
        if not isinstance(reference, am.Hidden):
            raise TypeError("a teacher's lists cannot be compared with a part of the vocabulary")
        teacher = held(reference)

        def values_of(rows: tuple[Array, ...]) -> Any:
            hidden, theirs, keep, wanted = rows
            values: Array = loss(
                am.Shard(student.head.logits(hidden), self.axis),
                am.Shard(teacher.head.logits(theirs), self.axis),
                keep,
                reduction="none",
                labels=wanted if label_weight else None,
                label_weight=label_weight,
                ignore_index=NO_LABEL,
            )
            return values

        targets = jnp.full(mask.shape, NO_LABEL) if labels is None else labels
        rows = (student.states, teacher.states, mask, targets)
        if any(knob.ndim for knob in loss.knobs.values()):
            values = values_of(rows)
        else:
            step = max(1, _CHUNK_BYTES // (8 * student.head.weight.shape[0]))
            chunks = in_chunks(jax.checkpoint(values_of), rows, min(step, mask.size))
            values = chunks.reshape(-1)[: mask.size]
        return jnp.sum(values) if reduction == "sum" else values.reshape(mask.shape)
