"""Derivatives of functions of one variable that are written over a namespace, on any library.

A function ``f(u, xp)`` that uses ``xp`` for what it computes can be run on dual numbers, which
carry a derivative along. Forward differentiation in one line a function, where no library that
all arrays share has any. Docs: stable evaluation, S7.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from amidmath.arrays.annotations import Array, Namespace

Function = Callable[[Any, Any], Any]
"""``f(u, xp)``: an elementwise function that computes with the namespace ``xp``."""


def derivative(f: Function) -> Function:
    """The derivative of an elementwise function ``f(u, xp)``, as one.

    f may use arithmetic, comparisons and, from ``xp``: exp, expm1, log, log1p, log2, sqrt, abs,
    square, pow, sin, cos, tan, tanh, asin, acos, atan, sinh, cosh, maximum, minimum and where.

    Source: docs: stable evaluation, S7.

    Args:
        f: the function, over any Array API namespace.

    Returns:
        A function of the same kind, which can be differentiated again.

    Example:
        >>> import math, amidmath as am
        >>> am.derivative(lambda u, xp: u * xp.log(u))(1.0, math)
        1.0
    """

    def slope(u: Any, xp: Any) -> Any:
        result = f(_Dual(u, 1.0, xp), _DualNamespace(xp))
        return result.slope if isinstance(result, _Dual) else 0.0 * u

    return slope


@dataclass(frozen=True)
class _Dual:
    """value + slope·ε with ε² = 0."""

    value: Any
    slope: Any
    xp: Any

    __array_ufunc__ = None  # a NumPy array on the left leaves the operation to us
    __array_priority__ = 1000

    def _of(self, value: Any, slope: Any) -> "_Dual":
        return _Dual(value, slope, self.xp)

    def _lift(self, name: str, x: "_Dual") -> "_Dual":
        lifted: _Dual = getattr(_DualNamespace(self.xp), name)(x)
        return lifted

    def __add__(self, other: Any) -> "_Dual":
        v, s = _parts(other)
        return self._of(self.value + v, self.slope + s)

    __radd__ = __add__

    def __neg__(self) -> "_Dual":
        return self._of(-self.value, -self.slope)

    def __pos__(self) -> "_Dual":
        return self

    def __sub__(self, other: Any) -> "_Dual":
        v, s = _parts(other)
        return self._of(self.value - v, self.slope - s)

    def __rsub__(self, other: Any) -> "_Dual":
        return self.__neg__().__add__(other)

    def __mul__(self, other: Any) -> "_Dual":
        v, s = _parts(other)
        return self._of(self.value * v, self.slope * v + self.value * s)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> "_Dual":
        v, s = _parts(other)
        return self._of(self.value / v, (self.slope - self.value / v * s) / v)

    def __rtruediv__(self, other: Any) -> "_Dual":
        return self._of(other, 0.0) / self

    def __pow__(self, other: Any) -> "_Dual":
        if isinstance(other, _Dual):
            return self._lift("exp", other * self._lift("log", self))
        lower = self.value ** (other - 1) if other != 0 else 0.0 * self.value
        return self._of(self.value**other, other * lower * self.slope)

    def __rpow__(self, other: Any) -> "_Dual":
        return self._lift("exp", self * math.log(other))

    def __abs__(self) -> "_Dual":
        return self._lift("abs", self)

    def __lt__(self, other: Any) -> Any:
        return self.value < _parts(other)[0]

    def __le__(self, other: Any) -> Any:
        return self.value <= _parts(other)[0]

    def __gt__(self, other: Any) -> Any:
        return self.value > _parts(other)[0]

    def __ge__(self, other: Any) -> Any:
        return self.value >= _parts(other)[0]


def _parts(x: Any) -> tuple[Any, Any]:
    return (x.value, x.slope) if isinstance(x, _Dual) else (x, 0.0)


def _sign(u: Any, xp: Any) -> Any:
    if isinstance(u, float):
        return float(u > 0.0) - float(u < 0.0)
    return xp.where(u > 0.0, 1.0, xp.where(u < 0.0, -1.0, 0.0 * u))


# f'(u) from u, f(u) and the namespace (itself dual where derivatives are nested).
_RULES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "exp": lambda u, f, xp: f,
    "expm1": lambda u, f, xp: xp.exp(u),
    "log": lambda u, f, xp: 1.0 / u,
    "log1p": lambda u, f, xp: 1.0 / (1.0 + u),
    "log2": lambda u, f, xp: 1.4426950408889634 / u,
    "sqrt": lambda u, f, xp: 0.5 / f,
    "square": lambda u, f, xp: 2.0 * u,
    "abs": lambda u, f, xp: _sign(u, xp),
    "sin": lambda u, f, xp: xp.cos(u),
    "cos": lambda u, f, xp: -xp.sin(u),
    "tan": lambda u, f, xp: 1.0 + f * f,
    "sinh": lambda u, f, xp: xp.cosh(u),
    "cosh": lambda u, f, xp: xp.sinh(u),
    "tanh": lambda u, f, xp: 1.0 - f * f,
    "asin": lambda u, f, xp: 1.0 / xp.sqrt(1.0 - u * u),
    "acos": lambda u, f, xp: -1.0 / xp.sqrt(1.0 - u * u),
    "atan": lambda u, f, xp: 1.0 / (1.0 + u * u),
}


class _DualNamespace:
    """The functions of a namespace, on dual numbers."""

    def __init__(self, xp: Namespace) -> None:
        self.xp = xp

    def __getattr__(self, name: str) -> Any:
        if name in ("pi", "e", "inf", "nan"):
            return getattr(self.xp, name)
        if name not in _RULES:
            raise AttributeError(
                f"the derivative of {name} is not known; write f with "
                f"{', '.join(sorted([*_RULES, 'maximum', 'minimum', 'pow', 'where']))}, "
                "or give the derivative yourself"
            )
        rule, xp = _RULES[name], self.xp

        def function(u: Any) -> Any:
            if not isinstance(u, _Dual):
                return getattr(xp, name)(u)
            value = getattr(xp, name)(u.value)
            return _Dual(value, rule(u.value, value, xp) * u.slope, xp)

        return function

    def pow(self, u: Any, exponent: Any) -> Any:
        """U to a power."""
        return u**exponent

    def where(self, condition: Any, yes: Any, no: Any) -> Any:
        """Choose values and slopes alike."""
        (v, s), (w, t) = _parts(yes), _parts(no)
        zero = 0.0 * (v if hasattr(v, "shape") else w)
        return _Dual(
            self.xp.where(condition, v + zero, w + zero),
            self.xp.where(condition, s + zero, t + zero),
            self.xp,
        )

    def maximum(self, u: Any, v: Any) -> Any:
        """The larger one."""
        return self.where(_parts(u)[0] >= _parts(v)[0], u, v)

    def minimum(self, u: Any, v: Any) -> Any:
        """The smaller one."""
        return self.where(_parts(u)[0] <= _parts(v)[0], u, v)


def as_array(value: Any, like: Array) -> Array:
    """A result that may not depend on its argument (a constant derivative) as an array."""
    return value + 0.0 * like if not hasattr(value, "shape") else value
