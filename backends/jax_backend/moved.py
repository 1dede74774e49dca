"""JAX: values of a loop that move with their arrays, and the transpose of that."""

from typing import Any

import jax.numpy as xp

from amidmath.arrays.annotations import Array, Partials
from amidmath.backends.jax_backend.derivatives import (
    Several,
    Transposed,
    evaluate,
    mapped,
    refused,
)


class MovedValues:
    """How values move with the arrays that do, of a computation in a loop.

    The transpose is a rule itself, of the cotangent and the arrays: the gradients of the sum of the
    values, each of which counts as much as its cotangent. It is linear in the one, and has no
    derivatives by the others. Subclasses are frozen dataclasses, with :meth:`LinearMap.push` and
    the gradients as :meth:`Rule.compute`.
    """

    def pull(self, known: Several, cotangents: Several) -> Several:
        """The gradients, of those that move."""
        rule: Any = self
        grads, _ = evaluate(rule, (False,) * (1 + len(known)), *cotangents, *known)
        return tuple(grads)

    def asks(self, moving: tuple[bool, ...]) -> tuple[bool, ...]:
        """For none."""
        return (False,) * len(moving)

    def tangent(
        self,
        value: Several,
        partials: Partials,
        operands: Several,
        tangents: tuple[Array | None, ...],
    ) -> Several:
        """Along the cotangent."""
        along, *others = tangents
        back: Any = self
        moved: Several = tuple(xp.zeros_like(grad) for grad in value)
        if along is not None:
            moved = mapped(value, Transposed(back), operands[1:], (along,))
        directions = [t for t in others if t is not None]
        if not directions:
            return moved
        return tuple(m + refused(grad, directions) for m, grad in zip(moved, value, strict=True))
