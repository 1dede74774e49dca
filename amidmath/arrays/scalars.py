"""Checks of arguments that are numbers, and the errors that say what is wrong with them."""

import math
import numbers
from typing import Any

from amidmath.arrays import kinds, libraries
from amidmath.arrays.kinds import shortened


def is_array(value: Any) -> bool:
    """Whether the value is an array, where numbers are accepted too (NumPy's scalars are)."""
    return not isinstance(value, numbers.Real) and libraries.is_array(value)


def number(
    name: str, value: Any, *, finite: bool = True, wanted: str = "a number", instead: str = ""
) -> float:
    """The value as a float; raises unless it is a real number (and finite, unless said).

    Args:
        name: the argument's.
        value: a number, of NumPy's and others' too, or a scalar array of which it is known.
        finite: whether it must be.
        wanted: what is taken, for the message.
        instead: what to do where an array is meant, for the message.
    """
    array = is_array(value)
    if array:
        kinds.check(name, value)
    if not (_is_number_array(value) if array else _is_number(value)):
        hint = (f"; {instead}" if instead else "") if array else kinds.remedy(value)
        raise TypeError(
            f"{name} must be {wanted}, got {type(value).__name__}: {shortened(value)}{hint}"
        )
    if array and getattr(value, "requires_grad", False):
        raise ValueError(
            f"{name} must be a constant, got a tensor that requires a gradient: pass "
            f"{name}.detach()" + (f", or {instead}" if instead else "")
        )
    try:
        result = float(value)
    except (TypeError, RuntimeError) as error:  # traced by JAX or torch, or without numbers
        raise TypeError(
            f"{name} must be {wanted} that is known by now, got a {type(value).__name__} whose "
            "value is not" + (f": {instead}" if instead else "")
        ) from error
    except OverflowError:
        result = math.inf
    # Comparisons, which torch.compile takes of numbers that it does not know yet.
    if not (-math.inf < result < math.inf if finite else -math.inf <= result <= math.inf):
        raise ValueError(
            f"{name} must be {'finite' if finite else 'a number or ±inf'}, got {shortened(value)}"
        )
    return result


def _is_number(value: Any) -> bool:
    if isinstance(value, numbers.Real):
        return not isinstance(value, bool)
    return hasattr(value, "__float__") and not hasattr(value, "shape")


def _is_number_array(value: Any) -> bool:
    xp = libraries.array_namespace(value)
    allowed = ("integral", "real floating")
    return tuple(value.shape) == () and any(kinds.is_of(value, kind, xp) for kind in allowed)


def positive(name: str, value: Any, *, instead: str = "") -> float:
    """The value as a positive, finite float; raises otherwise."""
    result = number(name, value, instead=instead)
    if result <= 0.0:
        raise ValueError(f"{name} must be positive, got {shortened(value)}")
    return result


def temperature(name: str, value: Any) -> float:
    """The value as a temperature: a positive, finite float, constant in derivatives."""
    return positive(name, value, instead="divide both logits by it, and leave temperature at 1")


def number_in_unit_interval(name: str, value: Any) -> float:
    """The value as a float in [0, 1]; raises ValueError otherwise."""
    return number_up_to(name, value, 1.0)


def number_up_to(name: str, value: Any, high: float, wanted: str = "a number") -> float:
    """The value as a float in [0, high]; raises otherwise."""
    result = number(name, value, wanted=wanted)
    if not 0.0 <= result <= high:
        raise ValueError(
            f"{name} is a weight and must lie in [0, {high:g}], got {shortened(value)}"
        )
    return result


def flag(name: str, value: Any) -> bool:
    """The value if it is True or False; raises TypeError otherwise."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {shortened(value)}")
    return value
