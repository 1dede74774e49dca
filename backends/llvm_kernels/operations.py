"""Elementwise operations of row programs as LLVM instructions."""

from typing import Any

from amidmath.backends.llvm_kernels.elementary import Lanes
from amidmath.compiler.graph import Node
from amidmath.compiler.operations import CONST, TOKEN

_ARITHMETIC = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
_FUNCTIONS = ("expm1", "log", "log1p", "log1p_near", "asin")
_COMPARED = {"lt": "<", "le": "<=", "eq": "=="}


def operation(lanes: Lanes, node: Node, args: list[Any]) -> Any:
    """The instructions of an elementwise operation."""
    b, op = lanes.builder, node.op
    if op in _ARITHMETIC:
        return _fused(lanes, node, args) or getattr(b, _ARITHMETIC[op])(*args)
    if op == "exp":
        return lanes.exp(args[0], nonpositive=nonpositive(node.args[0]))
    if op in _FUNCTIONS:
        return getattr(lanes, op)(args[0])
    if op == "neg":
        return b.fneg(args[0])
    if op in ("abs", "sqrt"):
        return lanes.unary("fabs" if op == "abs" else "sqrt", args[0])
    if op == "select":
        return b.select(*args)
    if op in _COMPARED or op == "ne":
        kind = node.args[0].type
        if kind == "real":
            return (
                b.fcmp_unordered("!=", *args)
                if op == "ne"
                else b.fcmp_ordered(_COMPARED[op], *args)
            )
        return b.icmp_signed("!=" if op == "ne" else "==", *args)
    if op in ("and", "or"):
        return getattr(b, f"{op}_")(*args)
    if op == "not":
        return b.not_(args[0])
    raise NotImplementedError(op)


def _fused(lanes: Lanes, node: Node, args: list[Any]) -> Any:
    """A sum with a product, rounded once; None where it is none, or must be rounded twice.

    A logit over the temperature is a product with a number of the loss, and its exact differences
    (``difference_parts``) take it as rounded wherever it occurs.
    """
    if node.op not in ("add", "sub"):
        return None
    b = lanes.builder
    for j in (1, 0):
        product, other = node.args[j], node.args[1 - j]
        factors_vary = all(factor.kind != CONST for factor in product.args)
        if product.op != "mul" or not (other.kind == CONST or factors_vary):
            continue
        if getattr(args[j], "opname", "") == "fmul":
            one, two = args[j].operands
            if node.op == "add":
                return lanes.fma(one, two, args[1 - j])
            return (
                lanes.fma(b.fneg(one), two, args[0]) if j else lanes.fma(one, two, b.fneg(args[1]))
            )
    return None


def nonpositive(node: Node) -> bool:
    """Whether the number is never positive, as far as its form tells."""
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
    """Whether a is -b, which a difference is the other way round."""
    return a.args == (b,) if a.op == "neg" else a.op == b.op == "sub" and a.args == b.args[::-1]


def _is_maximum(number: Node, of: Node) -> bool:
    if number.op == "select":
        return any(_is_maximum(arm, of) for arm in number.args[1:])
    return number.op == "max" and number.args[0] is of
