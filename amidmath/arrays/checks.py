"""Checks of arguments, and the errors that say what they must be.

Shapes, dtypes and libraries of arrays are always looked at. Their values only where they are at
hand, on the CPU and outside of jit: elsewhere that would wait for the device, or cannot be done.
Python numbers are checked in full.
"""

import operator
from collections.abc import Sequence
from typing import Any

from amidmath.arrays import dispatch, kinds, libraries
from amidmath.arrays.annotations import Array, Namespace
from amidmath.arrays.kinds import shortened as shortened
from amidmath.arrays.scalars import flag as flag
from amidmath.arrays.scalars import is_array as is_array
from amidmath.arrays.scalars import number as number
from amidmath.arrays.scalars import number_in_unit_interval as number_in_unit_interval
from amidmath.arrays.scalars import number_up_to
from amidmath.arrays.scalars import positive as positive
from amidmath.arrays.scalars import temperature as temperature

FLOATS = "float64, float32, float16 or bfloat16"

HALF_BITS = 16


def namespace(**arrays: Array) -> Namespace:
    """The one array library that all of the named arguments belong to.

    Raises:
        TypeError: an argument is not an array, or one that is not taken (see
            :func:`amidmath.arrays.kinds.check`), or they belong to different libraries.
        ValueError: an array that has to be turned into numbers first.
    """
    found: Namespace = None
    first = ""
    for name, array in arrays.items():
        kinds.check(name, array)
        xp = libraries.array_namespace(array)
        if found is not None and xp is not found:
            raise TypeError(
                f"{first} and {name} must come from one array library, got "
                f"{type(arrays[first]).__module__}.{type(arrays[first]).__name__} and "
                f"{type(array).__module__}.{type(array).__name__}"
            )
        if found is not None and kinds.is_fake(array) != kinds.is_fake(arrays[first]):
            raise TypeError(
                f"{first} and {name} must both have numbers, or both be torch's fake tensors, got "
                f"a {type(arrays[first]).__name__} and a {type(array).__name__}"
            )
        found, first = xp, first or name
    return found


def real_floating(xp: Namespace, **arrays: Array) -> None:
    """Raise TypeError unless every named array has a real floating-point dtype that is taken."""
    for name, array in arrays.items():
        if not kinds.is_of(array, "real floating", xp):
            raise TypeError(
                f"{name} must have a real floating-point dtype ({FLOATS}), got {array.dtype}; "
                "convert it to one of them"
            )


def integral(xp: Namespace, **arrays: Array) -> None:
    """Raise TypeError unless every named array has an integer dtype."""
    for name, array in arrays.items():
        if not kinds.is_of(array, "integral", xp):
            raise TypeError(f"{name} must be integers, got dtype {array.dtype}")


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
        here, there = libraries.device(reference), libraries.device(array)
        # JAX tracers have no device to compare; JAX itself refuses to mix them.
        if None not in (here, there) and here != there:
            raise ValueError(
                f"{first} and {name} must be on the same device, got {here} and {there}"
            )


def denominator(name: str, logits: Array, value: Any) -> None:
    """Raise unless the value is a positive number, or a scalar array beside the named logits."""
    if not is_array(value):
        if number("denominator", value, finite=False, wanted="a number or a scalar array") <= 0.0:
            raise ValueError(f"denominator must be positive, got {value!r}")
        return
    xp = namespace(**{name: logits, "denominator": value})
    if tuple(value.shape) != ():
        raise ValueError(
            "denominator must be a number or a scalar array, got an array of shape "
            f"{tuple(value.shape)}"
        )
    if not any(kinds.is_of(value, kind, xp) for kind in ("integral", "real floating")):
        raise TypeError(
            f"denominator must be a number or a scalar array of numbers, got dtype {value.dtype}"
        )
    # torch takes a scalar of the CPU beside tensors of any device.
    if not libraries.is_torch_array(value) or str(value.device) != "cpu":
        same_device(**{name: logits, "denominator": value})
    values_hold("denominator", value, ~(xp.astype(value, xp.float32) > 0.0), "positive")


def axis_in_range(axis: Any, ndim: int, name: str, argument: str = "axis") -> int:
    """The axis counted from the front; raises where it is no integer, or the array has no such.

    Args:
        axis: an integer, of NumPy's too.
        ndim: how many axes there are.
        name: the array's.
        argument: the name of the axis.
    """
    try:
        if isinstance(axis, bool):
            raise TypeError
        index = operator.index(axis)
    except TypeError:
        raise TypeError(
            f"{argument} must be one axis of {name}, an integer, got {shortened(axis)}"
        ) from None
    if ndim == 0:
        raise ValueError(
            f"{argument} must be one of the axes of {name}, of shape () without any, got {axis!r}"
        )
    if not -ndim <= index < ndim:
        raise ValueError(
            f"{argument} must be an integer in [{-ndim}, {ndim - 1}] for {name}, got {axis!r}"
        )
    return index % ndim


def nonempty(name: str, array: Array, axis: int, what: str) -> None:
    """Raise ValueError where there is nothing along an axis that must have something."""
    if array.shape[axis] == 0:
        raise ValueError(
            f"{name} must have {what} along axis {axis}, got shape {tuple(array.shape)}"
        )


def alpha(name: str, value: Any, *, like: tuple[str, Array] | None = None) -> Any:
    """α: a float in [-∞, ∞], or an array of them (of the library of ``like``)."""
    if not is_array(value):
        return number(name, value, finite=False, wanted=_EITHER)
    xp = _knob(name, value, like)
    values_hold(name, value, xp.isnan(value), "a number or ±inf")
    return value


def weight(
    name: str, value: Any, *, high: float = 1.0, like: tuple[str, Array] | None = None
) -> Any:
    """λ: a float in [0, high], or an array of them (of the library of ``like``)."""
    if not is_array(value):
        return number_up_to(name, value, high, _EITHER)
    _knob(name, value, like)
    values_hold(name, value, ~((value >= 0.0) & (value <= high)), f"in [0, {high:g}]")
    return value


def factor(name: str, value: Any) -> Any:
    """A finite float, or an array of them."""
    if not is_array(value):
        return number(name, value, wanted=_EITHER)
    xp = _knob(name, value, None)
    values_hold(name, value, ~xp.isfinite(value), "finite")
    return value


def real(name: str, value: Any, *, like: tuple[str, Array] | None = None) -> Any:
    """A float, ±inf among them, or an array of a real floating dtype."""
    if not is_array(value):
        return number(name, value, finite=False, wanted=_EITHER)
    _knob(name, value, like)
    return value


_EITHER = "a number or an array"


def _knob(name: str, value: Array, like: tuple[str, Array] | None) -> Namespace:
    arrays = {name: value} if like is None else {like[0]: like[1], name: value}
    xp = namespace(**arrays)
    real_floating(xp, **{name: value})
    if like is not None:
        same_device(**arrays)
    return xp


def broadcast(name: str, value: Array, shape: tuple[int, ...], xp: Namespace) -> Array:
    """The array broadcast to a shape; raises ValueError where it does not fit."""
    if tuple(value.shape) == tuple(shape):
        return value
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
    if not dispatch.at_hand(broken):
        return
    xp = libraries.array_namespace(broken)
    count = int(xp.sum(xp.astype(broken, xp.int32)))
    if count:
        where = int(xp.argmax(xp.astype(xp.reshape(broken, (-1,)), xp.int32)))
        shown = ""
        if tuple(broken.shape) == tuple(value.shape):
            shown = f"; the first is {float(xp.reshape(value, (-1,))[where])!r}"
        raise ValueError(f"{name} must be {wanted}, but {count} of them are not{shown}")


def choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    """The value if it is one of the allowed words; raises ValueError listing them otherwise."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, allowed))}, got {shortened(value)}"
        )
    return str(value)


def computing_dtype(xp: Namespace, *arrays: Array) -> Any:
    """float64 if any array has it, else float32: half precision goes up before the first step."""
    wide = any(kinds.float_bits(a, xp) > 2 * kinds.HALF_BITS for a in arrays)
    return xp.float64 if wide else xp.float32


BACKENDS = ("reference", "compiled")


def backend(value: str | None) -> None:
    """Raise ValueError for a backend that there is not."""
    if value is not None:
        choice("backend", value, BACKENDS)
