"""A call of a loss whose arguments have been checked, whatever kinds of inputs they are."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from amidmath.arrays.annotations import Array, Namespace
from amidmath.inputs.hidden import Hidden
from amidmath.inputs.shard import Shard
from amidmath.rows import positions
from amidmath.rows.forms import Block


class RowLoss(Protocol):
    """A loss, as far as its calls know it: a value and derivatives of rows of logits."""

    @property
    def block(self) -> Block:
        """Rows of student and teacher logits, then the knobs, to values and gradients."""
        ...

    @property
    def knobs(self) -> dict[str, Array]:
        """The parameters that are arrays, by name, in the order in which the block takes them."""
        ...

    def untempered(self) -> tuple[float, Block]:
        """The one temperature of the loss, and its block at temperature 1."""
        ...


@dataclass(frozen=True)
class Batch:
    """The arguments of a call beside student and teacher; see :meth:`amidmath.Loss.__call__`."""

    mask: Array | None
    reduction: str
    denominator: Any
    labels: Array | None
    label_weight: float
    ignore_index: int
    backend: str | None


@dataclass(frozen=True, eq=False)
class Call(ABC):
    """A loss of a student and a teacher that fit each other.

    Args:
        xp: the namespace of the arrays.
        shape: that of the positions.
        reduction: "mean", "sum" or "none".
        scale: what each value counts in the sum, None for 1.
        inputs: by argument, what can be differentiated by: an array, a Hidden or a Shard.
        knobs: the parameters of the loss that are arrays.
    """

    xp: Namespace
    shape: tuple[int, ...]
    reduction: str
    scale: Array | float | None
    inputs: dict[str, Any]
    knobs: dict[str, Array]

    @abstractmethod
    def value(self) -> Array:
        """The reduced loss, or values in the shape of the positions, differentiable."""

    @abstractmethod
    def partials(self, wanted: Sequence[str]) -> tuple[Array, dict[str, Array]]:
        """Values (N,), and by name the gradients of their sum times the scale, as rows."""

    def value_and_grad(self, wrt: str | tuple[str, ...]) -> tuple[Array, Any]:
        """The reduced loss and its gradients, each in the form of what it is a gradient by."""
        targets = self._targets()
        names = positions.wanted_of(wrt, list(targets))
        wanted = list(dict.fromkeys(leaf for name in names for leaf in targets[name]))
        values, rows = self.partials(wanted)
        value = positions.reduced(values, self.scale, self.reduction, self.shape, self.xp)
        grads = {leaf: self.shaped(leaf, rows[leaf]) for leaf in wanted}
        found = {name: self._assembled(name, grads) for name in names}
        return value, positions.as_asked(wrt, found)

    def _targets(self) -> dict[str, list[str]]:
        """The names that ``wrt`` may have, and the arrays that each of them stands for."""
        targets: dict[str, list[str]] = {}
        for name, value in self.inputs.items():
            leaves = list(leaves_of(name, value))
            targets[name] = leaves
            if isinstance(value, Hidden):
                targets[f"{name}.states"] = leaves[:1]
                targets[f"{name}.head"] = leaves[1:]
        return targets | {name: [name] for name in self.knobs}

    def shaped(self, leaf: str, grad: Array) -> Array:
        """A gradient in the shape and dtype of its array, from that of rows."""
        if leaf in self.knobs:
            return positions.unbroadcast(grad, self.knobs[leaf], self.shape, self.xp)
        array = self.arguments[leaf]
        grad = self.xp.reshape(grad, array.shape)
        return self.xp.astype(grad, array.dtype, copy=False)

    @property
    def arguments(self) -> dict[str, Array]:
        """The arrays that can be differentiated by, as they were given, by name."""
        found: dict[str, Array] = {}
        for name, value in self.inputs.items():
            found |= leaves_of(name, value)
        return found | self.knobs

    def _assembled(self, name: str, grads: dict[str, Array]) -> Any:
        """The gradient by what ``wrt`` names."""
        argument, _, part = name.partition(".")
        value = self.inputs.get(argument)
        if isinstance(value, Shard):
            return Shard(grads[f"{name}.logits"], value.ranks, value.rows_per_chunk)
        if not isinstance(value, Hidden) or part == "states":
            return grads[name]
        head = value.head.holding(
            {field: grads[f"{argument}.head.{field}"] for field in value.head.arrays()}
        )
        if part == "head":
            return head
        return Hidden(grads[f"{name}.states"], head, value.vocab, value.chunk_rows)


def leaves_of(name: str, value: Any) -> dict[str, Array]:
    """The arrays of an input by the names that errors and gradients have for them."""
    if isinstance(value, Hidden):
        return {f"{name}.{field}": array for field, array in value.arrays().items()}
    return {f"{name}.logits": value.logits} if isinstance(value, Shard) else {name: value}
