"""Python's operators for what adds up: sums, differences and multiples of losses."""

import numbers
from collections.abc import Sequence
from typing import Any, NoReturn

from amidmath.arrays import checks, kinds, libraries
from amidmath.arrays.annotations import Array


class Algebra:
    """The operators of losses: each makes one of :meth:`plus` and :meth:`times`, or says why not.

    Losses add and subtract, and are multiplied and divided by numbers and by arrays that broadcast
    to the positions. A number 0 is the loss that is nothing, so that ``sum`` of a list works. With
    a negative weight the whole is no divergence: it can be negative, and where two infinite parts
    meet with opposite signs it is NaN.
    """

    __array_ufunc__ = None  # an array times a loss is a loss, not an array of losses
    __pandas_priority__ = 5000  # nor is a table

    def plus(self, other: Any) -> Any:
        """The sum of two losses."""
        raise NotImplementedError

    def times(self, factor: float | Array) -> Any:
        """The loss times a number, or times an array, which are checked already."""
        raise NotImplementedError

    def __add__(self, other: Any) -> Any:
        """The sum of two losses; that of a loss and 0 is the loss."""
        if isinstance(other, Algebra):
            return self.plus(other)
        if _is_zero(other):
            return self
        return _refused(
            other,
            f"{_name(self)} and {_shown(other)} cannot be added: only losses can, and 0, as sum() "
            "starts with; a constant has no gradient, and is added to the loss's value",
        )

    __radd__ = __add__

    def __neg__(self) -> Any:
        """The loss times -1, which is no divergence any more."""
        return self.times(-1.0)

    def __sub__(self, other: Any) -> Any:
        """The loss plus -1 times the other."""
        return self + (-other if isinstance(other, Algebra) else other)

    def __rsub__(self, other: int) -> Any:
        """0 less the loss."""
        return -self + other

    def __mul__(self, factor: float | Array) -> Any:
        """The loss times a number, or times an array that broadcasts to the positions.

        The loss first: a strict array library refuses a loss as its array's other factor.
        """
        if _is_factor(factor):
            return self.times(checks.factor("factor", factor))
        if isinstance(factor, Algebra):
            _fail(f"{_name(self)} and {_name(factor)} cannot be multiplied: multiply their values")
        return _refused(
            factor,
            f"the factor of {_name(self)} must be a number, or an array that broadcasts to the "
            f"positions, got {_shown(factor)}{kinds.remedy(factor)}",
        )

    __rmul__ = __mul__

    def __truediv__(self, divisor: float | Array) -> Any:
        """The loss divided by a number, or by an array that broadcasts to the positions."""
        if _is_factor(divisor):
            divisor = checks.factor("divisor", divisor)
            if checks.is_array(divisor):
                checks.values_hold("divisor", divisor, divisor == 0.0, "other than 0")
            elif divisor == 0.0:
                raise ValueError(f"divisor must be other than 0, got {divisor!r}")
            return self.times(_array_as(divisor, 1.0 / divisor))
        if isinstance(divisor, Algebra):
            _fail(_UNDIVIDED.format(_name(divisor)))
        return _refused(
            divisor,
            f"the divisor of {_name(self)} must be a number, or an array that broadcasts to the "
            f"positions, got {_shown(divisor)}{kinds.remedy(divisor)}",
        )

    def __rtruediv__(self, other: Any) -> NoReturn:
        """Refuse."""
        _fail(_UNDIVIDED.format(_name(self)))

    def __pow__(self, power: Any) -> NoReturn:
        """Refuse."""
        _fail(f"{_name(self)} has no powers: raise its value to one, loss(…) ** {_shown(power)}")


_UNDIVIDED = "nothing can be divided by {}: divide by its value"


def no_algebra(self: Any, *_: Any) -> NoReturn:
    """Refuse an operator of a divergence, with what to write instead."""
    _fail(
        f"{_name(self)} is a divergence, which does not add and multiply: do so with its values, "
        f"or with losses of it, such as 0.5 * am.AMiD(am.{_name(self)}(…))"
    )


def _is_zero(value: Any) -> bool:
    """Whether the value is the number 0, which is the sum of no losses."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and value == 0


def _is_factor(value: Any) -> bool:
    return checks.is_array(value) or isinstance(value, numbers.Real)


def product(factor: float | Array, weight: float | Array) -> float | Array:
    """The product of a factor and a weight, an array where one of them is."""
    if not (checks.is_array(factor) and checks.is_array(weight)):
        return _array_as(weight if checks.is_array(weight) else factor, factor * weight)
    checks.namespace(factor=factor, weight=weight)
    return _array_as(factor, factor * weight)


def _array_as(like: float | Array, value: Any) -> Any:
    """The value, an array where it is made of one: NumPy makes numbers of those without axes."""
    if not checks.is_array(like) or checks.is_array(value):
        return value
    return libraries.array_namespace(like).asarray(value)


def _name(value: Any) -> str:
    return type(value).__name__


def _shown(value: Any) -> str:
    return f"{_name(value)} {checks.shortened(value)}"


def _refused(other: Any, message: str) -> Any:
    """Raise for what would otherwise make something of its own of the loss; others may."""
    if hasattr(other, "shape") or isinstance(other, (numbers.Number, str, Sequence)):
        _fail(message)
    return NotImplemented


def _fail(message: str) -> NoReturn:
    raise TypeError(message)
