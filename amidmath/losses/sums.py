"""Weighted sums of losses, as one loss that goes through the rows once."""

from dataclasses import dataclass
from typing import Any

from amidmath.arrays import checks
from amidmath.arrays.annotations import Array, Namespace, Partials
from amidmath.formulas.pointwise import weighted
from amidmath.losses.loss import Loss
from amidmath.rows.forms import Block


@dataclass(frozen=True, eq=False, repr=False)
class WeightedSum(Loss):
    """A weighted sum of losses, itself a loss; what ``+``, ``-``, ``*`` and ``/`` of losses make.

    GKD's loss, for one, is ``beta * am.AMiD(order="pr", lam=beta) + (1 - beta) *
    am.AMiD(order="qr", lam=beta)``.

    Weights that are arrays are parameters of the loss, as α and λ are: they can change without
    compiling anew, and the derivative by one is its part's value.

    Source: docs: gradients, G8.

    Args:
        parts: weights and losses; a weight is a number, or an array that broadcasts to the
            positions.

    Raises:
        TypeError: a part that is not a weight and a loss.
        ValueError: no part, or a weight that is not finite.

    Example:
        >>> import numpy as np, amidmath as am
        >>> loss = 0.5 * am.AMiD(order="pr", lam=0.5) + 0.5 * am.AMiD(order="qr", lam=0.5)
        >>> value, _ = loss.value_and_grad(np.zeros((1, 4)), np.eye(1, 4))
        >>> print(f"{value:.6f}")
        0.027812
    """

    parts: tuple[tuple[float | Array, Loss], ...]

    def __post_init__(self) -> None:
        """Check the parts."""
        if not self.parts:
            raise ValueError("parts must have at least one weight and loss, got ()")
        checked = []
        for j, (weight, loss) in enumerate(self.parts):
            if not isinstance(loss, Loss):
                raise TypeError(f"parts[{j}] must be a weight and a loss, got {loss!r}")
            checked.append((checks.factor(f"parts[{j}]", weight), loss))
        object.__setattr__(self, "parts", tuple(checked))

    @property
    def weighted_parts(self) -> tuple[tuple[float | Array, Loss], ...]:
        """The parts."""
        return self.parts

    @property
    def block(self) -> Block:
        """The parts' blocks, added up."""
        return _Blocks(
            tuple(
                (None if checks.is_array(weight) else weight, loss.block, len(loss.knobs))
                for weight, loss in self.parts
            )
        )

    @property
    def knobs(self) -> dict[str, Array]:
        """The array parameters of each part: ``parts[j].weight``, ``parts[j].alpha`` and so on."""
        found: dict[str, Array] = {}
        for j, (weight, loss) in enumerate(self.parts):
            own = {"weight": weight} if checks.is_array(weight) else {}
            found |= {f"parts[{j}].{name}": knob for name, knob in (own | loss.knobs).items()}
        return found


@dataclass(frozen=True)
class _Blocks:
    """Of each part its weight, or None where it is the first of the part's knobs."""

    parts: tuple[tuple[float | None, Any, int], ...]

    def __call__(
        self, x: Array, y: Array, *knobs: Array, needs: tuple[bool, ...], xp: Namespace
    ) -> tuple[Array, Partials]:
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
