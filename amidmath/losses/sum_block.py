"""Rows of a weighted sum of losses: the blocks of its parts, added up."""

from dataclasses import dataclass
from typing import Any

from amidmath.arrays.annotations import Array, Namespace, Partials
from amidmath.formulas.pointwise import weighted


@dataclass(frozen=True)
class SumBlock:
    """The weighted sum of blocks.

    Args:
        parts: of each its weight, or None where that is the first of the part's knobs; its block;
            and how many knobs the block has.
    """

    parts: tuple[tuple[float | None, Any, int], ...]

    def __call__(
        self, x: Array, y: Array, *knobs: Array, needs: tuple[bool, ...], xp: Namespace
    ) -> tuple[Array, Partials]:
        """Values, and partial derivatives by both sides, then by the knobs of every part."""
        total: Array = 0.0
        sums: list[Array | None] = [None, None]
        knob_grads: list[Array | None] = []
        rest, wanted = list(knobs), list(needs[2:])
        for weight, block, count in self.parts:
            factor = rest.pop(0) if weight is None else weight
            wants_value = weight is None and wanted.pop(0)
            own, rest = rest[:count], rest[count:]
            asked, wanted = (*needs[:2], *wanted[:count]), wanted[count:]
            value, partials = block(x, y, *own, needs=asked, xp=xp)
            if weight is None:
                knob_grads.append(value[..., None] if wants_value else None)
            total = total + _times(factor, value[..., None], xp)[..., 0]
            scaled = [None if g is None else _times(factor, g, xp) for g in partials]
            for i in (0, 1):
                here, grad = sums[i], scaled[i]
                sums[i] = grad if here is None else here if grad is None else here + grad
            knob_grads += scaled[2:]
        return total, (*sums, *knob_grads)


def _times(weight: float | Array, array: Array, xp: Namespace) -> Array:
    """Their product, and 0 where the weight is, though the array be infinite."""
    if isinstance(weight, float):
        return weight * array if weight != 0.0 else xp.zeros_like(array)
    return weighted(weight, array, xp)
