"""The building of graphs: equal nodes are one, and what needs no computing is left out."""

from collections.abc import Callable
from typing import Any

from amidmath.compiler.graph import Node, UnsupportedError
from amidmath.compiler.operations import OPERATIONS, TOKEN


class Builder:
    """A graph as it is built, each node once."""

    def __init__(self) -> None:
        """Start with no nodes."""
        self._known: dict[tuple[Any, ...], Node] = {}

    def const(self, value: float | bool) -> Node:
        """A constant."""
        return self._node("const", value=value if isinstance(value, bool) else float(value))

    def leaf(self, op: str, value: Any = None) -> Node:
        """An input, a knob, the scale, a number of the loss or the token's position."""
        return self._node(op, value=value)

    def apply(self, op: str, *args: Node) -> Node:
        """An elementwise operation, or something equal that costs less."""
        operation = OPERATIONS[op]
        if operation.fold is not None and all(a.op == "const" for a in args):
            return self.const(operation.fold(*(a.value for a in args)))
        simpler = _SIMPLER[op](self, *args) if op in _SIMPLER else None
        if simpler is not None:
            return simpler
        if operation.commutes and args[0].order > args[1].order:
            args = (args[1], args[0])
        return self._node(op, *args)

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
        return self._node(op, arg)

    def at(self, index: Node, arg: Node) -> Node:
        """The value of a token expression at one token."""
        return self._node("at", index, arg) if arg.kind == TOKEN else arg

    def _node(self, op: str, *args: Node, value: Any = None) -> Node:
        # repr tells 0.0 from -0.0 and knows nan; True from 1.0
        key = (op, tuple(id(a) for a in args), repr(value))
        known = self._known.get(key)
        if known is None:
            kind, type_ = _kind(op, args), _type(op, args, value)
            known = Node(op, args, value, kind, type_, len(self._known))
            self._known[key] = known
        return known


def _kind(op: str, args: tuple[Node, ...]) -> int:
    operation = OPERATIONS[op]
    if operation.kind is not None:
        return operation.kind
    kind = max(a.kind for a in args)
    if operation.per_row and kind == TOKEN:
        raise UnsupportedError(f"{op} of one number a token")
    return kind


def _type(op: str, args: tuple[Node, ...], value: Any) -> str:
    if op == "const":
        return "bool" if isinstance(value, bool) else "real"
    result = OPERATIONS[op].result
    return args[-1].type if result == "any" else result


# What an operation comes to without computing it; None where it must be computed.


def _neg(g: Builder, a: Node) -> Node | None:
    if a.op == "neg":
        return a.args[0]
    return g.apply("sub", a.args[1], a.args[0]) if a.op == "sub" else None


def _abs(g: Builder, a: Node) -> Node | None:
    if a.op == "neg":
        return g.apply("abs", a.args[0])
    return a if a.op in ("abs", "exp") else None


def _add(g: Builder, a: Node, b: Node) -> Node | None:
    for one, other in ((a, b), (b, a)):
        if _is_number(one, 0.0):
            return other
        if other.op == "neg":
            return g.apply("sub", one, other.args[0])
    return None


def _sub(g: Builder, a: Node, b: Node) -> Node | None:
    if _is_number(b, 0.0):
        return a
    if b.op == "neg":
        return g.apply("add", a, b.args[0])
    return g.apply("neg", b) if _is_number(a, 0.0) and b.op != "sub" else None


def _mul(g: Builder, a: Node, b: Node) -> Node | None:
    for one, other in ((a, b), (b, a)):
        if _is_number(one, 1.0):
            return other
        if _is_number(one, -1.0):
            return g.apply("neg", other)
        if one.op == "neg" and other.op == "neg":
            return g.apply("mul", one.args[0], other.args[0])
        if one.op == "const" and other.op == "neg":
            return g.apply("mul", g.const(-one.value), other.args[0])
    return None


def _div(g: Builder, a: Node, b: Node) -> Node | None:
    if b.op == "const" and b.value != 0.0:
        inverse = 1.0 / b.value
        if 1e-30 < abs(inverse) < 1e30:
            return g.apply("mul", a, g.const(inverse))
    return None


def _select(g: Builder, condition: Node, a: Node, b: Node) -> Node | None:
    if condition.op == "const":
        return a if condition.value else b
    if a is b:
        return a
    if condition.op == "not":
        return g.apply("select", condition.args[0], b, a)
    if a.op == "select" and a.args[0] is condition:
        return g.apply("select", condition, a.args[1], b)
    if b.op == "select" and b.args[0] is condition:
        return g.apply("select", condition, a, b.args[2])
    if condition.kind != TOKEN and a.op == b.op == "eq":
        here, there = _place(a), _place(b)
        if here is not None and there is not None:
            place = g.apply("select", condition, here, there)
            return g.apply("eq", g.leaf("iota"), place)
    if a.type == "bool":
        if a.op == "const":
            return _choice(g, condition, b, a.value, arm=True)
        if b.op == "const":
            return _choice(g, condition, a, b.value, arm=False)
    return None


def _choice(g: Builder, condition: Node, other: Node, value: bool, arm: bool) -> Node:
    """A select of truth values with one arm known, as and, or."""
    held = condition if arm == value else g.apply("not", condition)
    return g.apply("or" if value else "and", held, other)


def _not(g: Builder, a: Node) -> Node | None:
    return a.args[0] if a.op == "not" else None


def _and(g: Builder, a: Node, b: Node) -> Node | None:
    for one, other in ((a, b), (b, a)):
        if one.op == "const":
            return other if one.value else one
    return a if a is b else None


def _or(g: Builder, a: Node, b: Node) -> Node | None:
    for one, other in ((a, b), (b, a)):
        if one.op == "const":
            return one if one.value else other
    return a if a is b else None


def _eq(g: Builder, a: Node, b: Node) -> Node | None:
    if a.type != "bool":
        return None
    for one, other in ((a, b), (b, a)):
        if one.op == "const":
            return other if one.value else g.apply("not", other)
    return None


_SIMPLER: dict[str, Callable[..., Node | None]] = {
    "neg": _neg,
    "abs": _abs,
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "select": _select,
    "not": _not,
    "and": _and,
    "or": _or,
    "eq": _eq,
}


def _place(node: Node) -> Node | None:
    """The position at which alone the node is true, None where it is not of that form."""
    if node.op != "eq" or "iota" not in (a.op for a in node.args):
        return None
    index = next((a for a in node.args if a.op != "iota"), None)
    return index if index is not None and index.kind != TOKEN else None


def _is_number(node: Node, value: float) -> bool:
    return node.op == "const" and node.type == "real" and node.value == value


def _monotone_core(node: Node) -> Node:
    """The node without what is the same for all tokens: it is largest at the same one."""
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
