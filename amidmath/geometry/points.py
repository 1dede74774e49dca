"""Points of the simplex and vectors at them: what arguments must be, and centring."""

from collections.abc import Callable

from amidmath.arrays import checks
from amidmath.arrays.annotations import Array, Namespace
from amidmath.rows.batches import batches
from amidmath.rows.distributions import mass

# How far from 1 a sum of probabilities may be: logits are off by far more, logarithms that were
# rounded to half precision and widened again by less.
_TOLERANCE = 1e-2


def checked(
    axis: int, points: dict[str, Array], vectors: dict[str, Array] | None = None
) -> tuple[int, Namespace, tuple[Array, ...]]:
    """The axis from the front, the library, and the named arrays in one shape and dtype.

    Raises:
        TypeError: not arrays, of different libraries, or not real floating.
        ValueError: shapes do not broadcast, devices differ, there is no such axis, or it is empty;
            a point does not sum to 1, where values are at hand.
    """
    arrays = points | (vectors or {})
    xp = checks.namespace(**arrays)
    checks.real_floating(xp, **arrays)
    checks.same_device(**arrays)
    found = batches(axis, **arrays)
    for own, (name, log_p) in zip(found.axes, points.items(), strict=False):
        check_normalized(name, log_p, own, xp)
    dtype = checks.computing_dtype(xp, *arrays.values())
    wide = [xp.astype(a, dtype, copy=False) for a in arrays.values()]
    return found.axis, xp, tuple(found.spread(wide, xp))


def check_normalized(name: str, log_p: Array, axis: int, xp: Namespace) -> None:
    """Raise ValueError unless the probabilities sum to 1, where values are at hand."""
    total, off = mass(log_p, axis, _TOLERANCE, xp)
    wanted = f"log-probabilities, such as log_softmax(logits): with sum 1 along axis {axis}"
    checks.values_hold(name, total, off, wanted)


def centering(log_p: Array, axis: int, xp: Namespace) -> tuple[Array, Callable[[Array], Array]]:
    """P, and what takes from a vector its mean under p (docs: geometry, I4).

    To the rounding of the vector's spread rather than of its size: it takes off the mean twice,
    since the first is rounded in units of the vector and the second in units of what is left.
    Where p is zero the vector is not read.
    """
    p, present = xp.exp(log_p), log_p > -xp.inf

    def centered(u: Array) -> Array:
        u = xp.where(present, u, 0.0)
        u = u - xp.sum(p * u, axis=axis, keepdims=True)
        return u - xp.sum(p * u, axis=axis, keepdims=True)

    return p, centered
