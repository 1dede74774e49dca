"""From a block, as it is written over arrays, to the graph of what it computes on one row.

The block runs once, on stand-ins for a row of student logits, a row of teacher logits and the
knobs of that row, with a namespace that writes down what it is asked for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from amidmath.compiler.builder import Builder
from amidmath.compiler.graph import Node, UnsupportedError
from amidmath.compiler.operations import OPERATIONS, TOKEN


@dataclass(frozen=True)
class DType:
    """A dtype, with the figures of ``finfo`` that blocks ask for."""

    name: str
    bits: int
    eps: float
    max: float
    smallest_normal: float

    @property
    def min(self) -> float:
        """The most negative number."""
        return -self.max


FLOAT32 = DType("float32", 32, 2.0**-23, (2.0 - 2.0**-23) * 2.0**127, 2.0**-126)
FLOAT64 = DType("float64", 64, 2.0**-52, (2.0 - 2.0**-52) * 2.0**1023, 2.0**-1022)


class RowArray:
    """The stand-in for an array whose last axis is the vocabulary, or that has one number a row."""

    __array_ufunc__ = None
    device = "row program"

    def __init__(self, node: Node, xp: "Tracing") -> None:
        """Wrap a node."""
        self.node = node
        self.xp = xp

    @property
    def dtype(self) -> DType:
        """The computing dtype."""
        return self.xp.dtype

    @property
    def shape(self) -> tuple[Any, ...]:
        """The last axis stands for the vocabulary; its length is known when the program runs."""
        return (self.xp.vocabulary,)

    def __getitem__(self, key: Any) -> "RowArray":
        """Only ``[..., 0]`` and ``[..., None]`` of one number a row, which change nothing."""
        if not (isinstance(key, tuple) and len(key) == 2 and key[0] is Ellipsis):
            raise UnsupportedError(f"the index {key!r}")
        if self.node.kind == TOKEN:
            return self.xp.wrap(self.xp.builder.at(self.xp.builder.const(0), self.node))
        return self

    def __bool__(self) -> bool:
        """There is no value yet."""
        raise UnsupportedError("a decision in Python that depends on an array")

    __float__ = __int__ = __index__ = __bool__


def _operator(op: str, swapped: bool = False) -> Callable[..., RowArray]:
    def apply(self: RowArray, *other: Any) -> RowArray:
        operands = (*other, self) if swapped else (self, *other)
        return self.xp.elementwise(op, *operands)

    return apply


for _operation in OPERATIONS.values():
    if _operation.method is not None:
        setattr(RowArray, f"__{_operation.method}__", _operator(_operation.name))
    if _operation.reflected is not None:
        swapped = _operator(_operation.name, swapped=True)
        setattr(RowArray, f"__{_operation.reflected}__", swapped)
RowArray.__hash__ = object.__hash__  # type: ignore[method-assign]


def _power(self: RowArray, exponent: Any) -> RowArray:
    if exponent not in range(5):
        raise UnsupportedError(f"the power {exponent!r}")
    result = self.xp.ones_like(self)
    for _ in range(int(exponent)):
        result = self.xp.elementwise("mul", result, self)
    return result


setattr(RowArray, "__pow__", _power)  # noqa: B010  # as the operators above


class Tracing:
    """The namespace ``xp`` of a row program: the part of the Array API standard blocks use."""

    inf = float("inf")
    nan = float("nan")

    def __init__(self, dtype: DType) -> None:
        """Start an empty graph."""
        self.builder = Builder()
        self.dtype = dtype
        self.vocabulary = object()

    def wrap(self, node: Node) -> RowArray:
        """A stand-in for the node."""
        return RowArray(node, self)

    def node(self, x: Any) -> Node:
        """The node of a stand-in or of a number."""
        if isinstance(x, RowArray):
            return x.node
        if isinstance(x, bool | int | float):
            return self.builder.const(x)
        raise UnsupportedError(f"an operand of type {type(x).__name__}")

    def elementwise(self, op: str, *operands: Any) -> RowArray:
        """An operation on every token, or every row."""
        return self.wrap(self.builder.apply(op, *(self.node(x) for x in operands)))

    def __getattr__(self, name: str) -> Any:
        """Functions and reductions by their names."""
        operation = OPERATIONS.get(name)
        if operation is None or not operation.function:
            raise UnsupportedError(f"the function {name}")
        if operation.reduces:
            return lambda x, *, axis, keepdims=False: self._reduce(name, x, axis)
        return lambda *x: self.elementwise(name, *x)

    def _reduce(self, op: str, x: Any, axis: int) -> RowArray:
        if axis != -1:
            raise UnsupportedError(f"a reduction over axis {axis}")
        return self.wrap(self.builder.reduce(op, self.node(x)))

    def where(self, condition: Any, a: Any, b: Any) -> RowArray:
        """Choose by a condition."""
        return self.elementwise("select", condition, a, b)

    def isinf(self, x: Any) -> RowArray:
        """Tell ±inf."""
        return self.elementwise("eq", self.abs(x), self.inf)

    def isfinite(self, x: Any) -> RowArray:
        """Tell what is neither ±inf nor NaN."""
        return self.elementwise("lt", self.abs(x), self.inf)

    def isnan(self, x: Any) -> RowArray:
        """Tell NaN."""
        return self.elementwise("ne", x, x)

    def zeros_like(self, x: RowArray, *, dtype: Any = None) -> RowArray:
        """Zero, which is the same for all tokens."""
        return self.wrap(self.builder.const(0.0))

    def ones_like(self, x: RowArray, *, dtype: Any = None) -> RowArray:
        """One."""
        return self.wrap(self.builder.const(1.0))

    def arange(self, stop: Any, *, device: Any = None) -> RowArray:
        """The positions of the tokens."""
        if stop is not self.vocabulary:
            raise UnsupportedError("positions of anything but the vocabulary")
        return self.wrap(self.builder.leaf("iota"))

    def astype(self, x: RowArray, dtype: Any, *, copy: bool = True) -> RowArray:
        """There is one dtype."""
        return x

    def finfo(self, dtype: Any) -> DType:
        """Of the computing dtype."""
        return self.dtype


@dataclass(frozen=True)
class Traced:
    """The computation of a block on one row.

    Args:
        builder: what builds further nodes of the graph.
        value: one number a row.
        partials: one number a token for the logits, one a row for the knobs, None if not wanted.
    """

    builder: Builder
    value: Node
    partials: tuple[Node | None, ...]

    @property
    def roots(self) -> list[Node]:
        """The value and the partials that are wanted."""
        return [self.value, *(p for p in self.partials if p is not None)]

    def of(self, builder: Builder, roots: Sequence[Node]) -> "Traced":
        """The same with other nodes for the roots."""
        value, *rest = roots
        new = iter(rest)
        return Traced(
            builder, value, tuple(None if p is None else next(new) for p in self.partials)
        )


def trace(
    block: Callable[..., Any], needs: tuple[bool, ...], dtype: DType, scaled: bool = False
) -> Traced:
    """The graph of a block; raises :class:`UnsupportedError` where there is none.

    Args:
        block: see :data:`amidmath.rows.forms.Block`.
        needs: which operands' partial derivatives are wanted; how many operands there are.
        dtype: the computing dtype.
        scaled: whether the partial derivatives are multiplied by one number a row.
    """
    xp = Tracing(dtype)
    logits = [xp.wrap(xp.builder.leaf("input", j)) for j in (0, 1)]
    knobs = [xp.wrap(xp.builder.leaf("knob", j)) for j in range(len(needs) - 2)]
    value, partials = block(*logits, *knobs, needs=needs, xp=xp)
    wanted: list[Node | None] = []
    for partial, need in zip(partials, needs, strict=True):
        if partial is None or not need:
            wanted.append(None)
            continue
        node = xp.node(partial)
        if scaled:
            node = xp.builder.apply("mul", node, xp.builder.leaf("scale"))
        wanted.append(node)
    return Traced(xp.builder, xp.node(value), tuple(wanted))
