"""Types that the signatures share."""

from collections.abc import Callable
from typing import Any, TypeAlias

Array: TypeAlias = Any
"""An array of any library that follows the Array API standard; Python has no type for that yet."""

Namespace: TypeAlias = Any
"""The functions of an array library, or of a kernel language, under their Array API names."""

Partials: TypeAlias = tuple[Array | None, ...]
"""One derivative an operand, None where it was not asked for."""

ClosedForm: TypeAlias = Callable[..., tuple[Array, Partials]]
"""``f(*operands, needs=…, xp=…) -> (value, partials)``; see :mod:`amidmath.arrays.dispatch`."""
