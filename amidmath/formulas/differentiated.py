"""Array libraries that differentiate the core's own operations, and what is constant in that."""

from collections.abc import Callable
from typing import Any

from amidmath.arrays.annotations import Array, Namespace


class Differentiated:
    """The functions of a library that differentiates whatever they compute.

    A formula whose derivatives its operations do not have, or that holds a part of itself
    constant, asks for :func:`held` and :func:`differentiates`.

    Args:
        xp: the library's namespace.
        held: gives an array back as a constant.
    """

    def __init__(self, xp: Namespace, held: Callable[[Array], Array]) -> None:
        """Keep both."""
        self.plain = xp
        self.held = held

    def __getattr__(self, name: str) -> Any:
        """A function of the library."""
        return getattr(self.plain, name)


def differentiates(xp: Namespace) -> bool:
    """Whether derivatives of what is computed are taken operation by operation."""
    return isinstance(xp, Differentiated)


def held(array: Array, xp: Namespace) -> Array:
    """The array as a constant in such derivatives."""
    return xp.held(array) if differentiates(xp) else array


def held_but_for(part: Array, array: Array, xp: Namespace) -> Array:
    """The array as what only a part of it varies, likewise, and that only where it is finite."""
    if not differentiates(xp):
        return array
    still = xp.held(part)
    return xp.held(array) + xp.where(xp.abs(still) < xp.inf, part - still, 0.0)


def undifferentiated(xp: Namespace) -> Namespace:
    """The library's namespace alone."""
    return xp.plain if differentiates(xp) else xp
