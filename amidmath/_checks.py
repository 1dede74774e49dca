"""What arguments must be, and the errors that say so.

Shapes, dtypes and libraries of arrays are always looked at. Their values only where they are at
hand, on the CPU and outside of jit: elsewhere that would wait for the device, or cannot be done.
Python numbers are checked in full.
"""

import math
import numbers
from collections.abc import Sequence
from typing import Any, cast

import array_api_compat

from amidmath import _dispatch
from amidmath._typing import Array, Namespace

HALF_BITS = 16


def namespace(**arrays: Array) -> Namespace:
    """The one array library that all of the named arguments belong to.

    Raises:
        TypeError: an argument is not an array, or they belong to different libraries.
    """
    found: Namespace = None
    first = ""
    for name, array in arrays.items():
        if not array_api_compat.is_array_api_obj(array):
            raise TypeError(
                f"{name} must be an array (NumPy, torch, JAX, CuPy or another Array API library), "
                f"got {type(array).__name__}: {shortened(array)}"
            )
        xp = array_api_compat.array_namespace(array, use_compat=None)
        if found is not None and xp is not found:
            raise TypeError(
                f"{first} and {name} must come from one array library, got "
                f"{type(arrays[first]).__module__}.{type(arrays[first]).__name__} and "
                f"{type(array).__module__}.{type(array).__name__}"
            )
        found, first = xp, first or name
    return found


def real_floating(xp: Namespace, **arrays: Array) -> None:
    """Raise TypeError unless every named array has a real floating-point dtype."""
    for name, array in arrays.items():
        if not xp.isdtype(array.dtype, "real floating"):
            raise TypeError(
                f"{name} must have a real floating-point dtype "
                f"(float64, float32, float16 or bfloat16), got {array.dtype}"
            )


def same_shape(**arrays: Array) -> None:
    """Raise ValueError unless the named arrays all have one shape."""
    (first, reference), *others = arrays.items()
    for name, array in others:
        if array.shape != reference.shape:
            raise ValueError(
                f"{first} and {name} must have the same shape, "
                f"got {tuple(reference.shape)} and {tuple(array.shape)}"
            )


def same_device(**arrays: Array) -> None:
    """Raise ValueError unless the named arrays are on one device."""
    (first, reference), *others = arrays.items()
    for name, array in others:
        here, there = array_api_compat.device(reference), array_api_compat.device(array)
        # JAX tracers have no device to compare; JAX itself refuses to mix them.
        if None not in (here, there) and here != there:
            raise ValueError(
                f"{first} and {name} must be on the same device, got {here} and {there}"
            )


def scalar_array(*, student_logits: Array, denominator: Any) -> None:
    """Raise unless the denominator is a scalar array of the library of the logits."""
    if isinstance(denominator, bool) or not array_api_compat.is_array_api_obj(denominator):
        raise TypeError(
            "denominator must be a number or a scalar array, "
            f"got {type(denominator).__name__}: {shortened(denominator)}"
        )
    namespace(student_logits=student_logits, denominator=denominator)
    shape = tuple(cast("Array", denominator).shape)
    if shape != ():
        raise ValueError(
            f"denominator must be a number or a scalar array, got an array of shape {shape}"
        )


def axis_in_range(axis: int, ndim: int, name: str) -> int:
    """The axis counted from the front; raises ValueError when the array has no such axis."""
    if not isinstance(axis, int) or not -ndim <= axis < ndim:
        raise ValueError(
            f"axis must be an integer in [{-ndim}, {ndim - 1}] for {name}, got {axis!r}"
        )
    return axis % ndim


def number(name: str, value: Any, *, finite: bool = True) -> float:
    """The value as a float; raises unless it is a real number (and finite, unless said)."""
    if (
        isinstance(value, bool)
        or not hasattr(value, "__float__")
        or (hasattr(value, "shape") and value.shape)
    ):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}: {shortened(value)}")
    result = float(value)
    if math.isnan(result) or (finite and math.isinf(result)):
        raise ValueError(
            f"{name} must be {'finite' if finite else 'a number or ±inf'}, got {value!r}"
        )
    return result


def positive(name: str, value: Any) -> float:
    """The value as a positive, finite float; raises ValueError otherwise."""
    result = number(name, value)
    if result <= 0.0:
        raise ValueError(f"{name} must be positive, got {value!r}")
    return result


def number_in_unit_interval(name: str, value: Any) -> float:
    """The value as a float in [0, 1]; raises ValueError otherwise."""
    return _number_up_to(name, value, 1.0)


def _number_up_to(name: str, value: Any, high: float) -> float:
    result = number(name, value)
    if not 0.0 <= result <= high:
        raise ValueError(f"{name} is a weight and must lie in [0, {high:g}], got {value!r}")
    return result


def is_array(value: Any) -> bool:
    """Whether the value is an array, where numbers are accepted too (NumPy's scalars are)."""
    return not isinstance(value, numbers.Real) and array_api_compat.is_array_api_obj(value)


def alpha(name: str, value: Any, *, like: tuple[str, Array] | None = None) -> Any:
    """α: a float in [-∞, ∞], or an array of them (of the library of ``like``)."""
    if not is_array(value):
        return number(name, value, finite=False)
    xp = _knob(name, value, like)
    values_hold(name, value, xp.isnan(value), "a number or ±inf")
    return value


def weight(
    name: str, value: Any, *, high: float = 1.0, like: tuple[str, Array] | None = None
) -> Any:
    """λ: a float in [0, high], or an array of them (of the library of ``like``)."""
    if not is_array(value):
        return _number_up_to(name, value, high)
    _knob(name, value, like)
    values_hold(name, value, ~((value >= 0.0) & (value <= high)), f"in [0, {high:g}]")
    return value


def factor(name: str, value: Any) -> Any:
    """A finite float, or an array of them."""
    if not is_array(value):
        return number(name, value)
    xp = _knob(name, value, None)
    values_hold(name, value, ~xp.isfinite(value), "finite")
    return value


def _knob(name: str, value: Array, like: tuple[str, Array] | None) -> Namespace:
    arrays = {name: value} if like is None else {like[0]: like[1], name: value}
    xp = namespace(**arrays)
    real_floating(xp, **{name: value})
    if like is not None:
        same_device(**arrays)
    return xp


def broadcast(name: str, value: Array, shape: tuple[int, ...], xp: Namespace) -> Array:
    """The array broadcast to a shape; raises ValueError where it does not fit."""
    missing = len(shape) - value.ndim
    fits = missing >= 0 and all(
        here in (1, there) for here, there in zip(value.shape, shape[missing:], strict=True)
    )
    if not fits:
        raise ValueError(
            f"{name} must broadcast to shape {tuple(shape)}, got shape {tuple(value.shape)}"
        )
    return xp.broadcast_to(value, shape)


def values_hold(name: str, value: Array, broken: Array, wanted: str) -> None:
    """Raise ValueError where ``broken`` is true anywhere; only where values are at hand.

    That is on the CPU and outside of jit, compile and vmap: elsewhere looking at them would wait
    for the device, or cannot be done.
    """
    if not _dispatch.at_hand(broken):
        return
    xp = array_api_compat.array_namespace(broken)
    count = int(xp.sum(xp.astype(broken, xp.int32)))
    if count:
        where = int(xp.argmax(xp.astype(xp.reshape(broken, (-1,)), xp.int32)))
        shown = ""
        if tuple(broken.shape) == tuple(value.shape):
            shown = f"; the first is {float(xp.reshape(value, (-1,))[where])!r}"
        raise ValueError(f"{name} must be {wanted}, but {count} of them are not{shown}")


def choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    """The value if it is one of the allowed words; raises ValueError listing them otherwise."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return str(value)


def computing_dtype(xp: Namespace, *arrays: Array) -> Any:
    """float64 if any array has it, else float32: half precision goes up before the first step."""
    wide = any(xp.finfo(a.dtype).bits > 2 * HALF_BITS for a in arrays)
    return xp.float64 if wide else xp.float32


def shortened(value: Any) -> str:
    """The value as an error message shows it: its repr, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


BACKENDS = ("reference", "compiled")


def backend(value: str | None) -> None:
    """Raise ValueError for an executor that there is not."""
    if value is not None:
        choice("backend", value, BACKENDS)
