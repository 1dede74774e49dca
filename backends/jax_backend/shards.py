"""JAX: the devices along an axis of a mesh, each with a part of the vocabulary."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as xp
from jax import lax

from amidmath.arrays.annotations import Array, Partials
from amidmath.backends.jax_backend import rows as jax_rows
from amidmath.backends.jax_backend.derivatives import evaluate, product
from amidmath.pairs.sharded import ShardedRows


def ranks(group: Any) -> "AxisRanks":
    """The devices along a mesh axis that an enclosing ``jax.shard_map`` goes over.

    Raises:
        TypeError: not a name.
        ValueError: no axis of that name here.
    """
    if not isinstance(group, str):
        raise TypeError(
            "ranks must be the name of a mesh axis for JAX arrays, such as 'vocab', "
            f"got {type(group).__name__}: {group!r}"
        )
    try:
        lax.axis_size(group)
    except NameError as error:
        raise ValueError(
            "ranks must name a mesh axis that an enclosing jax.shard_map goes over, "
            f"got {group!r}, which is not bound here"
        ) from error
    return AxisRanks(group)


@dataclass(frozen=True)
class AxisRanks:
    """See :class:`amidmath.pairs.sharded.Ranks`."""

    axis: str

    @property
    def index(self) -> Array:
        """Where this device is along the axis."""
        return lax.axis_index(self.axis)

    def total(self, x: Array) -> Array:
        """Summed over the axis."""
        return lax.psum(x, self.axis)  # type: ignore[no-untyped-call]

    def largest(self, x: Array) -> Array:
        """The maximum over the axis."""
        return lax.pmax(x, self.axis)  # type: ignore[no-untyped-call]

    def gathered(self, x: Array) -> Array:
        """In the order of the axis."""
        return lax.all_gather(x, self.axis)

    def shard(self, name: str, array: Array) -> Array:
        """Within shard_map, arrays are shards."""
        return array

    def replica(self, name: str, array: Array) -> Array:
        """And those that are not are the same on all devices."""
        return array

    def whole(self, shard: Array, like: Array) -> Array:
        """The same."""
        return shard

    def values(self, form: ShardedRows, operands: tuple[Array, ...]) -> Array:
        """With the tangents of all shards."""
        value, _ = evaluate(_Sharded(form, self.axis), (False,) * len(operands), *operands)
        return value

    def partials(
        self, form: ShardedRows, operands: tuple[Array, ...], needs: tuple[bool, ...]
    ) -> tuple[Array, Partials]:
        """As they are."""
        result: tuple[Array, Partials]
        result = evaluate(_Sharded(form, self.axis), needs, *operands)
        return result


@dataclass(frozen=True)
class _Sharded:
    """Rows of which each device along an axis has a part."""

    form: ShardedRows
    axis: str

    def compute(
        self, needs: tuple[bool, ...], operands: tuple[Array, ...]
    ) -> tuple[Array, Partials]:
        """As many rows at a time as on the other devices."""
        found: tuple[Array, Partials]
        found = jax_rows.in_chunks(self.form, needs, self.form.step, xp, *operands)
        return found

    def asks(self, moving: tuple[bool, ...]) -> tuple[bool, ...]:
        """For all."""
        return moving

    def tangent(
        self,
        value: Array,
        partials: Partials,
        operands: tuple[Array, ...],
        tangents: tuple[Array | None, ...],
    ) -> Array:
        """Logits are shards, whose tangents add up over the axis; knobs are the same everywhere."""
        terms = [
            None
            if by is None or tangent is None
            else xp.sum(product(by, tangent, value.dtype), axis=-1)
            for by, tangent in zip(partials, tangents, strict=True)
        ]
        moved = xp.zeros_like(value)
        shards = [term for term in terms[:2] if term is not None]
        if shards:
            total = sum(shards[1:], shards[0])
            moved = moved + lax.psum(total, self.axis)  # type: ignore[no-untyped-call]
        for term in terms[2:]:
            moved = moved if term is None else moved + term
        return moved
