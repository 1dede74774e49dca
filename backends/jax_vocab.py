"""JAX: the devices along an axis of a mesh, each with a part of the vocabulary."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as xp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from amidmath._typing import Array, Partials
from amidmath._vocab_parallel import ShardedRows
from amidmath.backends import jax as jax_backend


def ranks(group: Any) -> "AxisRanks":
    """The devices along a mesh axis that an enclosing ``jax.shard_map`` goes over.

    Raises:
        TypeError: not a name.
        ValueError: no axis of that name here.
    """
    if not isinstance(group, str):
        raise TypeError(
            "group must be the name of a mesh axis for JAX arrays, such as 'vocab', "
            f"got {type(group).__name__}: {group!r}"
        )
    try:
        lax.axis_size(group)
    except NameError as error:
        raise ValueError(
            "group must name a mesh axis that an enclosing jax.shard_map goes over, "
            f"got {group!r}, which is not bound here"
        ) from error
    return AxisRanks(group)


@dataclass(frozen=True)
class AxisRanks:
    """See :class:`amidmath._vocab_parallel.Ranks`."""

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
        return _differentiable(form, self.axis, *operands)

    def partials(
        self, form: ShardedRows, operands: tuple[Array, ...], needs: tuple[bool, ...]
    ) -> tuple[Array, Partials]:
        """As they are."""
        return _run(form, operands, needs)


def _run(
    form: ShardedRows, operands: tuple[Array, ...], needs: tuple[bool, ...]
) -> tuple[Array, Partials]:
    if operands[0].shape[0] > form.step:
        value, partials = jax_backend.in_chunks(form, needs, form.step, *operands)
        return value, partials
    return form(*operands, needs=needs, xp=xp)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _differentiable(form: ShardedRows, axis: str, *operands: Array) -> Array:
    return _run(form, operands, (False,) * len(operands))[0]


@partial(_differentiable.defjvp, symbolic_zeros=True)
def _tangent(
    form: ShardedRows, axis: str, primals: tuple[Array, ...], tangents: tuple[Any, ...]
) -> tuple[Array, Array]:
    """Logits are shards, whose tangents add up over the axis; knobs are the same everywhere."""
    needs = tuple(not isinstance(tangent, SymbolicZero) for tangent in tangents)
    value, partials = _run(form, primals, needs)
    terms = [
        None if by is None else xp.sum(by * tangent, axis=-1).astype(value.dtype)
        for by, tangent in zip(partials, tangents, strict=True)
    ]
    total = xp.zeros_like(value)
    shards = [term for term in terms[:2] if term is not None]
    if shards:
        total = total + lax.psum(sum(shards[1:], shards[0]), axis)  # type: ignore[no-untyped-call]
    for term in terms[2:]:
        total = total if term is None else total + term
    return value, total
