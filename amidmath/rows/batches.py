"""Batch axes, which broadcast as NumPy's do, around an axis of outcomes, which does not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from amidmath.arrays import checks
from amidmath.arrays.annotations import Array, Namespace


@dataclass(frozen=True)
class Batches:
    """The axis of the outcomes of several arrays, and the batch axes that they have in common.

    Args:
        axes: the axis of the outcomes in each array, from the front.
        axis: where it is in a result that has it.
        shape: what the batch axes broadcast to, as NumPy's do.
    """

    axes: tuple[int, ...]
    axis: int
    shape: tuple[int, ...]

    def last(self, arrays: Sequence[Array], xp: Namespace) -> list[Array]:
        """The arrays with the outcomes along their last axes."""
        pairs = zip(arrays, self.axes, strict=True)
        return [_moved(a, axis, a.ndim - 1, xp) for a, axis in pairs]

    def back(self, rows: Sequence[Array], arrays: Sequence[Array], xp: Namespace) -> list[Array]:
        """Rows (N, V) of what :meth:`last` gives, in the shapes of the arrays themselves."""
        found = []
        for of, a, axis in zip(rows, arrays, self.axes, strict=True):
            apart = xp.reshape(of, (*_without(a, axis), a.shape[axis]))
            found.append(_moved(apart, a.ndim - 1, axis, xp))
        return found

    def spread(self, arrays: Sequence[Array], xp: Namespace) -> list[Array]:
        """The arrays in the shape of the result, as views where their library makes such.

        What is repeated is in the dtype that is computed in: half precision would round gradients
        before they are summed.
        """
        dtype = checks.computing_dtype(xp, *arrays)
        return [
            a if self._fits(a) else self._spread(xp.astype(a, dtype, copy=False), axis, xp)
            for a, axis in zip(arrays, self.axes, strict=True)
        ]

    def placed(self, values: Array, keepdims: bool, xp: Namespace) -> Array:
        """One value a position in the batch axes' shape, with the axis of outcomes if it is kept.

        Args:
            values: in the order of the positions.
            keepdims: whether it is.
            xp: their namespace.
        """
        values = xp.reshape(values, self.shape)
        return xp.expand_dims(values, axis=self.axis) if keepdims else values

    def _fits(self, a: Array) -> bool:
        """Whether it has the shape of the result; the number of outcomes is the same anyway."""
        return a.ndim == len(self.shape) + 1 and _without(a, self.axis) == tuple(self.shape)

    def _spread(self, a: Array, axis: int, xp: Namespace) -> Array:
        a = _moved(a, axis, a.ndim - 1, xp)
        a = xp.reshape(a, padded(a.shape, len(self.shape) + 1))
        wide = xp.broadcast_to(a, (*self.shape, a.shape[-1]))
        return _moved(wide, len(self.shape), self.axis, xp)


def batches(axis: Any, **arrays: Array) -> Batches:
    """The batch axes of arrays that have an axis of as many outcomes each.

    Args:
        axis: which it is, counted in each array by itself: an integer.
        **arrays: by their names in messages.

    Raises:
        TypeError: no integer as the axis.
        ValueError: an array without such an axis, or with nothing along it; different numbers of
            outcomes; batch axes that do not broadcast.
    """
    names = " and ".join(arrays)
    (first, reference), *others = arrays.items()
    if all(a.shape == reference.shape for _, a in others):
        own = checks.axis_in_range(axis, reference.ndim, names)
        checks.nonempty(first, reference, own, "an outcome")
        return Batches((own,) * len(arrays), own, _without(reference, own))
    alike = len({a.ndim for a in arrays.values()}) == 1
    axes = tuple(
        checks.axis_in_range(axis, a.ndim, names if alike else name) for name, a in arrays.items()
    )
    outcomes, shape = reference.shape[axes[0]], _without(reference, axes[0])
    found = axes[0]
    for (name, a), own in zip(others, axes[1:], strict=True):
        got = f"got shapes {tuple(reference.shape)} and {tuple(a.shape)}"
        if a.shape[own] != outcomes:
            raise ValueError(
                f"{first} and {name} must have the same number of outcomes along axis {axis}, "
                f"which does not broadcast, {got}"
            )
        both = _broadcast(shape, _without(a, own))
        if both is None:
            raise ValueError(
                f"{first} and {name} must have batch axes that broadcast (all but axis {axis}), "
                f"{got}"
            )
        if len(both) > len(shape):
            found = own
        shape = both
    checks.nonempty(first, reference, axes[0], "an outcome")
    return Batches(axes, found, shape)


def _without(a: Array, axis: int) -> tuple[int, ...]:
    return (*a.shape[:axis], *a.shape[axis + 1 :])


def _broadcast(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape that two shapes broadcast to, None where they do not."""
    count = max(len(one), len(other))
    sizes = zip(padded(one, count), padded(other, count), strict=True)
    found: list[int] = []
    for here, there in sizes:
        if here != there and 1 not in (here, there):
            return None
        found.append(there if here == 1 else here)
    return tuple(found)


def padded(shape: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The shape with ones in front, for so many axes."""
    return (*(1 for _ in range(count - len(shape))), *shape)


def _moved(x: Array, source: int, target: int, xp: Namespace) -> Array:
    """The array with an axis moved; torch's vmap knows permutations, but not moveaxis."""
    if source == target:
        return x
    axes = [axis for axis in range(x.ndim) if axis != source]
    axes.insert(target, source)
    return xp.permute_dims(x, tuple(axes))
