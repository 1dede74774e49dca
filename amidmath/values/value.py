"""Values: equality, hash, and how they are shown, where parameters may be arrays."""

from dataclasses import fields, is_dataclass
from typing import Any, Self

from amidmath.arrays import checks, dispatch, kinds, libraries
from amidmath.arrays.annotations import Array
from amidmath.values import trees


class Value:
    """A value: the same as another of its class with the same parameters, a dataclass's fields.

    Parameters that are arrays are equal where they are one array, or where their numbers are at
    hand (on the CPU, outside of jit) and equal. Such a value has no hash, since its arrays can
    change.
    """

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Make one that JAX can take apart."""
        trees.register(cls)
        return super().__new__(cls)

    def __eq__(self, other: object) -> bool:
        """Whether class and parameters are the same."""
        if self is other:
            return True
        if type(other) is not type(self) or not is_dataclass(self):
            return NotImplemented
        return _same(trees.parameters(self), trees.parameters(other))

    def __hash__(self) -> int:
        """Hash the class and the parameters; raises TypeError where one is an array."""
        if not is_dataclass(self):
            return object.__hash__(self)
        parameters = trees.parameters(self)
        if trees.has_arrays(parameters):
            raise TypeError(
                f"what has parameters that are arrays has no hash, got {self!r}: pass it to jit "
                "as an argument like any array, jax.jit(lambda loss, *logits: loss(*logits))"
            )
        return hash((type(self), parameters))

    def __repr__(self) -> str:
        """Show the parameters by name, and of arrays their dtype and shape."""
        if not is_dataclass(self):
            return object.__repr__(self)
        names = [f.name for f in fields(self)]
        shown = (f"{n}={_shown(v)}" for n, v in zip(names, trees.parameters(self), strict=True))
        return f"{type(self).__qualname__}({', '.join(shown)})"


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(_same(u, v) for u, v in zip(a, b, strict=True))
    if not (checks.is_array(a) or checks.is_array(b)):
        return bool(a == b)
    if a is b or not (checks.is_array(a) and checks.is_array(b)):
        return a is b
    return _equal(a, b)


def _equal(a: Array, b: Array) -> bool:
    """Whether the numbers of two arrays of one kind are at hand and equal."""
    if type(a) is not type(b) or a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not (dispatch.at_hand(a) and dispatch.at_hand(b)):
        return False
    return bool(libraries.array_namespace(a).all(a == b))


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        inside = ", ".join(map(_shown, value))
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    return kinds.described(value) if checks.is_array(value) else repr(value)
