"""Labels of a batch as rows."""

import numbers
from typing import Any

from amidmath.arrays import checks, libraries
from amidmath.arrays.annotations import Array, Namespace


def label_rows(
    labels: Array,
    beside: tuple[str, Array],
    keep: Array | None,
    vocabulary: Any,
    ignore_index: int,
    xp: Namespace,
) -> Array:
    """The labels (N,), ignored where positions are left out.

    Args:
        labels: as they were given.
        beside: the name and the array (..., any) whose positions, library and device they share.
        keep: shape (N,), None for all.
        vocabulary: how many tokens there are.
        ignore_index: marks positions without a label.
        xp: their namespace.

    Raises:
        TypeError: not integers of the same library.
        ValueError: another shape or device; a label that is no token, where values are at hand.
    """
    name, array = beside
    named = {name: array, "labels": labels}
    checks.namespace(**named)
    checks.same_device(**named)
    if labels.shape != array.shape[:-1]:
        raise ValueError(
            f"labels must have the shape of the positions, {tuple(array.shape[:-1])}, "
            f"got {tuple(labels.shape)}"
        )
    checks.integral(xp, labels=labels)
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, numbers.Integral):
        raise TypeError(f"ignore_index must be an integer, got {ignore_index!r}")
    index = xp.arange(1, device=libraries.device(labels))  # the library's own kind of index
    labels = xp.reshape(xp.astype(labels, index.dtype), (-1,))
    if keep is not None:
        labels = xp.where(keep, labels, int(ignore_index))
    outside = (labels != ignore_index) & ((labels < 0) | (labels >= vocabulary))
    wanted = f"tokens in [0, {vocabulary}) or ignore_index {ignore_index}"
    checks.values_hold("labels", labels, outside, wanted)
    return labels
