"""The operations of row programs, one row each: what every part of the compiler knows of them.

A target spells the elementwise ones, each by its name; that is all it adds. Costs and latencies are
those of a CPU with vectors, and only their proportions matter: by costs programs are simplified and
kept in buffers, by both sweeps are cut into stages.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CONST, ROW, TOKEN = 0, 1, 2
"""The times that a number is computed: once, once a row, once a token."""

Fold = Callable[..., Any]


@dataclass(frozen=True)
class Operation:
    """One operation.

    Args:
        name: what graphs call it.
        operands: the types of what it works on: "real", "bool", "index", or "any", which is the
            same type wherever it stands.
        result: the type of what it gives, likewise.
        fold: what it gives for numbers, as floating-point hardware has it; None unless elementwise.
        cost: about how many vector instructions it takes.
        latency: cycles until its result is there, once its operands are.
        kind: how often it is computed; None for as often as the most frequent of its operands.
        commutes: whether its two operands may change places.
        reduces: whether it makes one number of the row out of one a token.
        per_row: whether it is for numbers of the row alone.
        function: whether blocks call it as a function of their namespace.
        method: the operator of Python's that it is, as in ``__add__``.
        reflected: the one by which Python asks the right operand.
    """

    name: str
    operands: tuple[str, ...]
    result: str
    fold: Fold | None = None
    cost: int = 1
    latency: int = 3
    kind: int | None = None
    commutes: bool = False
    reduces: bool = False
    per_row: bool = False
    function: bool = False
    method: str | None = None
    reflected: str | None = None


def _safe(function: Fold) -> Fold:
    """Make infinities and NaN of a function's exceptions, as hardware does."""

    def computed(*args: float) -> Any:
        try:
            return function(*args)
        except OverflowError:
            return math.inf
        except ValueError:
            return math.nan

    return computed


def _divided(a: float, b: float) -> float:
    if b != 0.0:
        return a / b
    if a == 0.0 or math.isnan(a):
        return math.nan
    return math.copysign(math.inf, a) * math.copysign(1.0, b)


def _log(x: float) -> float:
    return -math.inf if x == 0.0 else math.log(x)


def _log1p(x: float) -> float:
    return -math.inf if x == -1.0 else math.log1p(x)


def _chosen(condition: bool, a: Any, b: Any) -> Any:
    return a if condition else b


_REAL, _REALS, _SAME, _TRUTHS = ("real",), ("real", "real"), ("any", "any"), ("bool", "bool")

_ROWS = (
    # What is given: logits, positions, numbers a row, numbers of the loss.
    Operation("input", (), "real", latency=8, kind=TOKEN),
    Operation("iota", (), "index", latency=0, kind=TOKEN),
    Operation("knob", (), "real", cost=0, kind=ROW),
    Operation("scale", (), "real", cost=0, kind=ROW),
    Operation("param", (), "real", cost=0, kind=CONST),
    Operation("const", (), "any", cost=0, kind=CONST),
    # The value of a token expression at a position.
    Operation("at", ("index", "any"), "any", cost=0, kind=ROW),
    # Arithmetic.
    Operation("add", _REALS, "real", operator.add, commutes=True, method="add", reflected="radd"),
    Operation("sub", _REALS, "real", operator.sub, method="sub", reflected="rsub"),
    Operation("mul", _REALS, "real", operator.mul, commutes=True, method="mul", reflected="rmul"),
    Operation("div", _REALS, "real", _divided, 6, 13, method="truediv", reflected="rtruediv"),
    Operation("neg", _REAL, "real", operator.neg, method="neg"),
    Operation("abs", _REAL, "real", abs, function=True, method="abs"),
    # Functions; log1p_near is for what lies between -0.29 and 1.
    Operation("exp", _REAL, "real", _safe(math.exp), 18, 38, function=True),
    Operation("expm1", _REAL, "real", _safe(math.expm1), 22, 45, function=True),
    Operation("log", _REAL, "real", _safe(_log), 26, 60, function=True),
    Operation("log1p", _REAL, "real", _safe(_log1p), 28, 60, function=True),
    Operation("log1p_near", _REAL, "real", _safe(_log1p), 18, 42, function=True),
    Operation("sqrt", _REAL, "real", _safe(math.sqrt), 8, 20, function=True),
    Operation("asin", _REAL, "real", _safe(math.asin), per_row=True, function=True),
    # Comparisons and truth values.
    Operation("lt", _REALS, "bool", operator.lt, latency=5, method="lt", reflected="gt"),
    Operation("le", _REALS, "bool", operator.le, latency=5, method="le", reflected="ge"),
    Operation("eq", _SAME, "bool", operator.eq, latency=5, commutes=True, method="eq"),
    Operation("ne", _SAME, "bool", operator.ne, latency=5, commutes=True, method="ne"),
    Operation("and", _TRUTHS, "bool", operator.and_, commutes=True, method="and", reflected="rand"),
    Operation("or", _TRUTHS, "bool", operator.or_, commutes=True, method="or", reflected="ror"),
    Operation("not", ("bool",), "bool", operator.not_, method="invert"),
    Operation("select", ("bool", *_SAME), "any", _chosen),
    # Reductions.
    Operation("sum", _REAL, "real", kind=ROW, reduces=True, function=True),
    Operation("max", _REAL, "real", kind=ROW, reduces=True, function=True),
    Operation("argmax", _REAL, "index", cost=3, kind=ROW, reduces=True, function=True),
)

OPERATIONS = {operation.name: operation for operation in _ROWS}
"""All operations by their names."""

ELEMENTWISE = frozenset(operation.name for operation in _ROWS if operation.fold is not None)
"""The operations that targets spell: on the numbers of one token, or on numbers of one row."""

REDUCTIONS = frozenset(operation.name for operation in _ROWS if operation.reduces)
"""The operations that make one number of the row out of one a token."""
