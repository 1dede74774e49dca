"""Arrays of any library: which are taken, what their dtypes are, and what to pass instead.

An array type whose numbers mean something else than they say (masked arrays, units), or do not lie
in memory as they say (sparse, quantised and negated tensors), is refused by :func:`check`, which
everything that takes an array goes through. The kernels read memory by address and strides, and
would not notice.
"""

from typing import Any, cast

from amidmath.arrays import libraries
from amidmath.arrays.adapters import adapter_of
from amidmath.arrays.annotations import Array, Namespace

HALF_BITS = 16


def shortened(value: Any) -> str:
    """The value as an error message shows it: its repr, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def check(name: str, array: Array) -> None:
    """Raise unless the numbers of the array are what they seem to be, and lie where they seem to.

    Raises:
        TypeError: not an array, or one of a kind that is not taken.
        ValueError: a view or a buffer that has to be turned into numbers first.
    """
    if not libraries.is_array(array):
        raise TypeError(
            f"{name} must be an array (NumPy, torch, JAX, CuPy or another Array API library), "
            f"got {type(array).__name__}: {shortened(array)}{remedy(array)}"
        )
    adapter_of(array).check(name, array)


def remedy(value: Any) -> str:
    """How an array is made of what is none, as the end of a message."""
    root = type(value).__module__.partition(".")[0]
    if root == "pandas":
        return "; pass its .to_numpy()"
    if root in ("scipy", "cupyx"):
        return "; pass its .toarray()"
    if hasattr(value, "todense"):
        return "; pass its .todense()"
    if isinstance(value, (list, tuple)) or root == "numpy":
        return "; numpy.asarray makes one"
    return ""


def is_fake(array: Array) -> bool:
    """Whether it is one of torch's tensors without numbers, which do not mix with others."""
    return type(array).__name__ == "FakeTensor"


def is_of(array: Array, kind: str, xp: Namespace) -> bool:
    """Whether its dtype is of a kind of the standard's: "bool", "integral", "real floating".

    Of floating-point numbers, those of 8 bits and fewer are none here: they are storage, and what
    is computed of them would not be worth its name.
    """
    if _is_bfloat16(array):
        return kind == "real floating"
    try:
        known = bool(xp.isdtype(array.dtype, kind))
    except TypeError:  # NumPy, of another dtype that it does not know by itself
        return False
    return known and (kind != "real floating" or float_bits(array, xp) >= HALF_BITS)


def float_bits(array: Array, xp: Namespace) -> int:
    """How many bits its floating-point numbers have."""
    return HALF_BITS if _is_bfloat16(array) else int(xp.finfo(array.dtype).bits)


def eps(array: Array, xp: Namespace) -> float:
    """The distance from 1 to the next of its floating-point numbers."""
    return 2.0**-7 if _is_bfloat16(array) else float(xp.finfo(array.dtype).eps)


def _is_bfloat16(array: Array) -> bool:
    """Whether it is of the package ml_dtypes, whose dtypes NumPy tells nothing of."""
    # Their kind is that of structures; asking every dtype for its name would take longer.
    return getattr(array.dtype, "kind", "") == "V" and bool(array.dtype.name == "bfloat16")


def described(value: Any) -> str:
    """An array in few words, whatever its size: its number, or its dtype and shape."""
    array = cast("Array", value)
    library = type(array).__module__.partition(".")[0].removesuffix("lib")
    return f"<{library} {str(array.dtype).removeprefix('torch.')} {tuple(array.shape)}>"
