"""Expressions over one row: a graph whose nodes are numbers a token, numbers a row, or constants.

Nodes that compute the same are the same node, and what needs no computing is left out, as they are
built. A node says what is computed, not where or when: :mod:`amidmath.compiler.schedule` does.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

CONST, ROW, TOKEN = 0, 1, 2
"""How often a node's value is computed: once, once a row, once a token."""

REDUCTIONS = ("sum", "max", "argmax")
COMPARISONS = ("lt", "le", "eq", "ne")
COMMUTATIVE = ("add", "mul", "eq", "ne", "and", "or")


class UnsupportedError(Exception):
    """The computation has no row program, and runs as it is written instead."""


@dataclass(frozen=True, eq=False, slots=True)
class Node:
    """One operation.

    Args:
        op: "input" (student, teacher), "knob", "scale", "const", "iota" (a token's position),
            "at" (the value of a token expression at a position), one of ``REDUCTIONS``, or an
            elementwise operation.
        args: the nodes it works on.
        value: the constant, or which input or knob.
        kind: ``CONST``, ``ROW`` or ``TOKEN``.
        type: "real", "bool" or "index".
        order: when it was built; after its arguments.
    """

    op: str
    args: tuple["Node", ...]
    value: Any
    kind: int
    type: str
    order: int


def _safe(function: Callable[..., float]) -> Callable[..., float]:
    """A function of numbers as floating-point hardware has it: infinities, not exceptions."""

    def computed(*args: float) -> float:
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


FOLDED: dict[str, Callable[..., Any]] = {
    "neg": lambda a: -a,
    "abs": abs,
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": _divided,
    "exp": _safe(math.exp),
    "expm1": _safe(math.expm1),
    "log": _safe(_log),
    "log1p": _safe(_log1p),
    "log1p_near": _safe(_log1p),
    "sqrt": _safe(math.sqrt),
    "asin": _safe(math.asin),
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "and": lambda a, b: a and b,
    "or": lambda a, b: a or b,
    "not": lambda a: not a,
}


class Builder:
    """Builds nodes, each once."""

    def __init__(self) -> None:
        """Start with no nodes."""
        self._known: dict[tuple[Any, ...], Node] = {}

    def const(self, value: float | bool) -> Node:
        """A constant."""
        if isinstance(value, bool):
            return self._node("const", (), value, CONST, "bool")
        number = float(value)
        return self._node("const", (), number, CONST, "real")

    def leaf(self, op: str, value: Any, kind: int, type_: str = "real") -> Node:
        """An input, a knob, the scale or the token's position."""
        return self._node(op, (), value, kind, type_)

    def apply(self, op: str, *args: Node) -> Node:
        """An elementwise operation, or something equal that costs less."""
        if op in FOLDED and all(a.op == "const" for a in args):
            return self.const(FOLDED[op](*(a.value for a in args)))
        simpler = getattr(self, f"_{op}", lambda *_: None)(*args)
        if simpler is not None:
            return simpler  # type: ignore[no-any-return]
        if op in COMMUTATIVE and args[0].order > args[1].order:
            args = (args[1], args[0])
        kind = max(a.kind for a in args)
        is_bool = op in COMPARISONS or op in ("and", "or", "not")
        type_ = "bool" if is_bool else args[1].type if op == "select" else "real"
        return self._node(op, args, None, kind, type_)

    def reduce(self, op: str, arg: Node) -> Node:
        """A sum, maximum or position of the maximum over the tokens."""
        if op == "argmax":
            arg = _monotone_core(arg)
        if op == "sum" and arg.op == "select" and _is_number(arg.args[2], 0.0):
            index = _place(arg.args[0])
            if index is not None:
                return self.at(index, arg.args[1])
        if arg.kind != TOKEN and op == "sum":
            if _is_number(arg, 0.0):
                return arg
            raise UnsupportedError("a sum of what is not one number a token")
        return self._node(op, (arg,), None, ROW, "index" if op == "argmax" else "real")

    def at(self, index: Node, arg: Node) -> Node:
        """The value of a token expression at one token."""
        if arg.kind != TOKEN:
            return arg
        return self._node("at", (index, arg), None, ROW, arg.type)

    def _node(self, op: str, args: tuple[Node, ...], value: Any, kind: int, type_: str) -> Node:
        # repr tells 0.0 from -0.0 and knows nan; True from 1.0
        key = (op, tuple(id(a) for a in args), repr(value))
        known = self._known.get(key)
        if known is None:
            known = Node(op, args, value, kind, type_, len(self._known))
            self._known[key] = known
        return known

    # What an operation comes to without computing it; None where it must be computed.

    def _neg(self, a: Node) -> Node | None:
        if a.op == "neg":
            return a.args[0]
        return self.apply("sub", a.args[1], a.args[0]) if a.op == "sub" else None

    def _abs(self, a: Node) -> Node | None:
        if a.op == "neg":
            return self.apply("abs", a.args[0])
        return a if a.op in ("abs", "exp") else None

    def _add(self, a: Node, b: Node) -> Node | None:
        for one, other in ((a, b), (b, a)):
            if _is_number(one, 0.0):
                return other
            if other.op == "neg":
                return self.apply("sub", one, other.args[0])
        return None

    def _sub(self, a: Node, b: Node) -> Node | None:
        if _is_number(b, 0.0):
            return a
        if b.op == "neg":
            return self.apply("add", a, b.args[0])
        return self.apply("neg", b) if _is_number(a, 0.0) and b.op != "sub" else None

    def _mul(self, a: Node, b: Node) -> Node | None:
        for one, other in ((a, b), (b, a)):
            if _is_number(one, 1.0):
                return other
            if _is_number(one, -1.0):
                return self.apply("neg", other)
            if one.op == "neg" and other.op == "neg":
                return self.apply("mul", one.args[0], other.args[0])
            if one.op == "const" and other.op == "neg":
                return self.apply("mul", self.const(-one.value), other.args[0])
        return None

    def _div(self, a: Node, b: Node) -> Node | None:
        if b.op == "const" and b.value != 0.0:
            inverse = 1.0 / b.value
            if 1e-30 < abs(inverse) < 1e30:
                return self.apply("mul", a, self.const(inverse))
        return None

    def _select(self, condition: Node, a: Node, b: Node) -> Node | None:
        if condition.op == "const":
            return a if condition.value else b
        if a is b:
            return a
        if condition.op == "not":
            return self.apply("select", condition.args[0], b, a)
        if a.op == "select" and a.args[0] is condition:
            return self.apply("select", condition, a.args[1], b)
        if b.op == "select" and b.args[0] is condition:
            return self.apply("select", condition, a, b.args[2])
        if condition.kind != TOKEN and a.op == b.op == "eq":
            here, there = _place(a), _place(b)
            if here is not None and there is not None:
                place = self.apply("select", condition, here, there)
                return self.apply("eq", self._iota(), place)
        if a.type == "bool":
            if a.op == "const":
                return self._choice(condition, b, a.value, arm=True)
            if b.op == "const":
                return self._choice(condition, a, b.value, arm=False)
        return None

    def _iota(self) -> Node:
        return self.leaf("iota", None, TOKEN, "index")

    def _choice(self, condition: Node, other: Node, value: bool, arm: bool) -> Node:
        """A select of truth values with one arm known, as and, or."""
        held = condition if arm == value else self.apply("not", condition)
        return self.apply("or" if value else "and", held, other)

    def _not(self, a: Node) -> Node | None:
        return a.args[0] if a.op == "not" else None

    def _and(self, a: Node, b: Node) -> Node | None:
        for one, other in ((a, b), (b, a)):
            if one.op == "const":
                return other if one.value else one
        return a if a is b else None

    def _or(self, a: Node, b: Node) -> Node | None:
        for one, other in ((a, b), (b, a)):
            if one.op == "const":
                return one if one.value else other
        return a if a is b else None

    def _eq(self, a: Node, b: Node) -> Node | None:
        if a.type != "bool":
            return None
        for one, other in ((a, b), (b, a)):
            if one.op == "const":
                return other if one.value else self.apply("not", other)
        return None


def _place(node: Node) -> Node | None:
    """The position at which alone the node is true, None where it is not of that form."""
    if node.op != "eq" or "iota" not in (a.op for a in node.args):
        return None
    index = next((a for a in node.args if a.op != "iota"), None)
    return index if index is not None and index.kind != TOKEN else None


def _is_number(node: Node, value: float) -> bool:
    return node.op == "const" and node.type == "real" and node.value == value


def _monotone_core(node: Node) -> Node:
    """What is largest where the node is: without what is the same for all tokens."""
    while True:
        if node.op in ("sub", "add") and node.args[1].kind != TOKEN:
            node = node.args[0]
        elif node.op == "add" and node.args[0].kind != TOKEN:
            node = node.args[1]
        elif node.op == "exp":
            node = node.args[0]
        elif node.op == "mul" and any(a.op == "const" and a.value > 0.0 for a in node.args):
            node = next(a for a in node.args if a.op != "const")
        else:
            return node


def reachable(roots: Sequence[Node]) -> list[Node]:
    """All nodes that the roots need, arguments first."""
    seen: set[Node] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack.extend(node.args)
    return sorted(seen, key=lambda node: node.order)
