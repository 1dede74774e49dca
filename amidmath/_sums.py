"""Weighted sums of losses, as one loss that goes through the rows once."""

from dataclasses import dataclass
from typing import Any

from amidmath import _checks
from amidmath._loss import Loss
from amidmath._rows import Block
from amidmath._typing import Array, Namespace, Partials


@dataclass(frozen=True)
class WeightedSum(Loss):
    """A weighted sum of losses, itself a loss; what ``+`` and ``*`` of losses make.

    GKD's loss, for one, is ``beta * am.AMiD(order="pr", lam=beta) + (1 - beta) *
    am.AMiD(order="qr", lam=beta)``.

    Source: docs: gradients, G8.

    Args:
        parts: weights and losses.

    Raises:
        TypeError: a part that is not a number and a loss.
        ValueError: no part, or a weight that is not finite.

    Example:
        >>> import numpy as np, amidmath as am
        >>> loss = 0.5 * am.AMiD(order="pr", lam=0.5) + 0.5 * am.AMiD(order="qr", lam=0.5)
        >>> value, _ = loss.value_and_grad(np.zeros((1, 4)), np.eye(1, 4))
        >>> print(f"{value:.6f}")
        0.027812
    """

    parts: tuple[tuple[float, Loss], ...]

    def __post_init__(self) -> None:
        """Check the parts."""
        if not self.parts:
            raise ValueError("parts must have at least one weight and loss, got ()")
        checked = []
        for j, (weight, loss) in enumerate(self.parts):
            if not isinstance(loss, Loss):
                raise TypeError(f"parts[{j}] must be a number and a loss, got {loss!r}")
            checked.append((_checks.number(f"parts[{j}]", weight), loss))
        object.__setattr__(self, "parts", tuple(checked))

    @property
    def block(self) -> Block:
        """The parts' blocks, added up."""
        return _Blocks(tuple((w, loss.block, len(loss.knobs)) for w, loss in self.parts))

    @property
    def knobs(self) -> dict[str, Array]:
        """The parts' array parameters, named ``parts[j].alpha`` and so on."""
        return {
            f"parts[{j}].{name}": knob
            for j, (_, loss) in enumerate(self.parts)
            for name, knob in loss.knobs.items()
        }


@dataclass(frozen=True)
class _Blocks:
    parts: tuple[tuple[float, Any, int], ...]

    def __call__(
        self, x: Array, y: Array, *knobs: Array, needs: tuple[bool, ...], xp: Namespace
    ) -> tuple[Array, Partials]:
        total: Array = 0.0
        sums: list[Array | None] = [None, None]
        knob_grads: list[Array | None] = []
        start = 0
        for weight, block, count in self.parts:
            stop = start + count
            asked = (*needs[:2], *needs[2 + start : 2 + stop])
            value, partials = block(x, y, *knobs[start:stop], needs=asked, xp=xp)
            total = total + (weight * value if weight != 0.0 else xp.zeros_like(value))
            scaled = [None if g is None or weight == 0.0 else weight * g for g in partials]
            for i in (0, 1):
                here, grad = sums[i], scaled[i]
                sums[i] = grad if here is None else here if grad is None else here + grad
            knob_grads += scaled[2:]
            start = stop
        for i, operand in enumerate((x, y)):
            if needs[i] and sums[i] is None:
                sums[i] = xp.zeros_like(operand)
        for i, knob in enumerate(knobs):
            if needs[2 + i] and knob_grads[i] is None:
                knob_grads[i] = xp.zeros_like(knob)
        return total, (*sums, *knob_grads)
