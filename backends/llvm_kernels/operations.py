"""Elementwise operations of row programs as LLVM instructions."""

from collections.abc import Callable
from typing import Any

from amidmath.backends.llvm_kernels.elementary import Lanes
from amidmath.compiler.graph import Node
from amidmath.compiler.operations import CONST, TOKEN


def operation(lanes: Lanes, node: Node, args: list[Any]) -> Any:
    """The instructions of an elementwise operation."""
    return OPERATIONS[node.op](lanes, node, *args)


def _equal(lanes: Lanes, node: Node, a: Any, b: Any) -> Any:
    if node.args[0].type == "real":
        return lanes.builder.fcmp_ordered("==", a, b)
    return lanes.builder.icmp_signed("==", a, b)


def _unequal(lanes: Lanes, node: Node, a: Any, b: Any) -> Any:
    if node.args[0].type == "real":
        return lanes.builder.fcmp_unordered("!=", a, b)
    return lanes.builder.icmp_signed("!=", a, b)


def _added(lanes: Lanes, node: Node, a: Any, b: Any) -> Any:
    """A sum; one with a product is rounded once, where it may be."""
    for which, product, other in ((1, b, a), (0, a, b)):
        if _fuses(node, which, product):
            one, two = product.operands
            return lanes.fma(one, two, other)
    return lanes.builder.fadd(a, b)


def _subtracted(lanes: Lanes, node: Node, a: Any, b: Any) -> Any:
    """A difference, likewise."""
    negated = lanes.builder.fneg
    if _fuses(node, 1, b):
        one, two = b.operands
        return lanes.fma(negated(one), two, a)
    if _fuses(node, 0, a):
        one, two = a.operands
        return lanes.fma(one, two, negated(b))
    return lanes.builder.fsub(a, b)


def _fuses(node: Node, which: int, value: Any) -> bool:
    """Tell an operand that is a product and need not be rounded before it is added to the other.

    A logit over the temperature is a product with a number of the loss, and its exact differences
    (``difference_parts``) take it as rounded wherever it occurs.
    """
    product, other = node.args[which], node.args[1 - which]
    factors_vary = all(factor.kind != CONST for factor in product.args)
    may = product.op == "mul" and (other.kind == CONST or factors_vary)
    return may and getattr(value, "opname", "") == "fmul"


OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": _added,
    "sub": _subtracted,
    "mul": lambda lanes, node, a, b: lanes.builder.fmul(a, b),
    "div": lambda lanes, node, a, b: lanes.builder.fdiv(a, b),
    "neg": lambda lanes, node, a: lanes.builder.fneg(a),
    "abs": lambda lanes, node, a: lanes.unary("fabs", a),
    "exp": lambda lanes, node, a: lanes.exp(a, nonpositive=nonpositive(node.args[0])),
    "expm1": lambda lanes, node, a: lanes.expm1(a),
    "log": lambda lanes, node, a: lanes.log(a),
    "log1p": lambda lanes, node, a: lanes.log1p(a),
    "log1p_near": lambda lanes, node, a: lanes.log1p_near(a),
    "sqrt": lambda lanes, node, a: lanes.unary("sqrt", a),
    "asin": lambda lanes, node, a: lanes.asin(a),
    "lt": lambda lanes, node, a, b: lanes.builder.fcmp_ordered("<", a, b),
    "le": lambda lanes, node, a, b: lanes.builder.fcmp_ordered("<=", a, b),
    "eq": _equal,
    "ne": _unequal,
    "and": lambda lanes, node, a, b: lanes.builder.and_(a, b),
    "or": lambda lanes, node, a, b: lanes.builder.or_(a, b),
    "not": lambda lanes, node, a: lanes.builder.not_(a),
    "select": lambda lanes, node, condition, a, b: lanes.builder.select(condition, a, b),
}
"""The spelling of each operation: of lanes, the node and its operands."""


def nonpositive(node: Node) -> bool:
    """Tell a number that is never positive, by its form."""
    if node.op == "neg":
        return node.args[0].op in ("abs", "exp")
    if node.op == "select":
        condition, a, b = node.args
        positive = condition.op == "lt" and condition.args[0].value == 0.0
        return positive and condition.args[1] is b and _is_opposite(a, b)
    if node.op == "sub" and node.args[1].kind != TOKEN:
        return _is_maximum(node.args[1], node.args[0])
    return False


def _is_opposite(a: Node, b: Node) -> bool:
    """Tell whether a is -b, which a difference is the other way round."""
    return a.args == (b,) if a.op == "neg" else a.op == b.op == "sub" and a.args == b.args[::-1]


def _is_maximum(number: Node, of: Node) -> bool:
    if number.op == "select":
        return any(_is_maximum(arm, of) for arm in number.args[1:])
    return number.op == "max" and number.args[0] is of
