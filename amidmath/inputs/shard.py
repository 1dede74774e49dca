"""A part of the vocabulary's logits, of which every rank has one, as an input of a loss."""

from dataclasses import dataclass
from typing import Any

from amidmath.arrays import checks
from amidmath.arrays.annotations import Array
from amidmath.values.value import Value


@dataclass(frozen=True, eq=False, repr=False)
class Shard(Value):
    """Logits whose vocabulary is spread over ranks: this rank's part of every row.

    A loss of two shards, the same entries of student and teacher, has the value of the whole rows,
    the same on every rank to the last bit, and its gradients are the parts of the whole ones, in a
    Shard. Ranks exchange numbers a row: maxima, sums, values at the top outcome; never logits or
    gradients.

    **Gradients** are those of one loss that all ranks share, as in Megatron-LM's
    vocabulary-parallel cross-entropy: the backward pass does not communicate, nothing is multiplied
    by the number of ranks, and gradients with respect to arrays of α and λ, which every rank has
    in full, need no reduction over the group.

    **torch**: ``ranks`` is the ProcessGroup whose ranks have the parts in their order, or a
    one-dimensional DeviceMesh of them. Parts may differ in size, and have at least one entry. All
    ranks make the same calls: as many positions, the same mask, gradients of the same arguments.
    Logits may be DTensors on that mesh with the placement Shard of the last axis, as tensor
    parallelism leaves them; their gradients then are, and the value is an ordinary tensor.

    **JAX**: ``ranks`` is the name of a mesh axis, within a ``jax.shard_map`` that goes over it.
    ``jax.grad`` within and around that shard_map are right. With ``check_vma=False`` only the one
    around is, for then JAX, within, differentiates the sum over all devices
    (``value_and_grad`` is right anywhere). Rows may be sharded along another axis, whose
    devices then each have the loss of their own; for the mean of all, add up ``reduction="sum"``
    by ``jax.lax.psum`` and divide. Outside of shard_map there is no need for this class:
    the compiler does the same to the loss of plain arrays, under ``jax.jit``, of sharded arrays.

    Gradients have memory of their own, whatever ``overwrite_student`` says.

    Source: Megatron-LM (arXiv 1909.08053), section 3; docs: gradients, G1 to G6, whose sums over
    tokens are what travels.

    Args:
        logits: shape (..., this rank's part of V), real floating dtype.
        ranks: who share the vocabulary; see above.
        rows_per_chunk: how many positions are computed at a time, the same on every rank and for
            both sides. More of them take fewer messages, and more memory for temporaries: some
            twenty arrays of rows_per_chunk × this rank's entries.

    Raises:
        TypeError: not an array of a real floating dtype; in a loss, arrays of other libraries than
            torch and JAX, or ranks of the other one.
        ValueError: ``rows_per_chunk`` not positive; in a loss, a DTensor that is placed
            otherwise, a mesh of more dimensions, or an axis that no enclosing shard_map goes over.

    Example:
        >>> import jax, numpy as np, amidmath as am
        >>> loss = am.AMiD(am.KL(), alpha=-1.0, lam=0.1)
        >>> def sharded(student, teacher):
        ...     return loss(am.Shard(student, "vocab"), am.Shard(teacher, "vocab"))
        >>> mesh = jax.sharding.Mesh(jax.devices(), "vocab")
        >>> logits, value = jax.P(None, "vocab"), jax.P()
        >>> whole = jax.jit(jax.shard_map(sharded, mesh=mesh, in_specs=logits, out_specs=value))
        >>> print(f"{whole(np.zeros((2, 4)), np.eye(2, 4)):.5f}")
        0.09297
    """

    logits: Array
    ranks: Any
    rows_per_chunk: int = 256

    def __post_init__(self) -> None:
        """Check what can be checked without the ranks."""
        checks.real_floating(checks.namespace(logits=self.logits), logits=self.logits)
        rows = self.rows_per_chunk
        if isinstance(rows, bool) or not isinstance(rows, int):
            raise TypeError(f"rows_per_chunk must be an integer, got {rows!r}")
        if rows < 1:
            raise ValueError(f"rows_per_chunk must be positive, got {rows!r}")
