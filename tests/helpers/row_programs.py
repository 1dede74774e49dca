"""Row programs for tests: losses of every divergence, rows, and graphs evaluated node by node.

The interpreter works in double precision; it is what the compiler's own passes are held against.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np

import amidmath as am
from amidmath.compiler.graph import Node, reachable
from amidmath.compiler.operations import ELEMENTWISE, OPERATIONS, REDUCTIONS
from amidmath.divergences import REGISTRY

LOSSES = {
    f"{name}-{order}-{alpha:g}": am.AMiD(
        REGISTRY[name](*REGISTRY[name].examples[0]), order=order, alpha=alpha, lam=0.3
    )
    for name, order, alpha in zip(
        sorted(REGISTRY),
        itertools.cycle(("pr", "rp", "qr", "rq")),
        itertools.cycle((-1.0, 0.5, 1.0, 3.0, math.inf)),
        strict=False,
    )
}
NUMPY = {
    "neg": np.negative,
    "abs": np.abs,
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "log1p_near": np.log1p,
    "sqrt": np.sqrt,
    "asin": np.arcsin,
    "lt": np.less,
    "le": np.less_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "select": np.where,
}
"""NumPy's spelling of the elementwise operations."""


class Interpreter:
    """The numbers of one row: arrays over the tokens, and plain numbers."""

    def __init__(self, student: np.ndarray, teacher: np.ndarray) -> None:
        self.inputs = student, teacher
        self.known: dict[Node, Any] = {}

    def __call__(self, node: Node) -> Any:
        for n in reachable([node]):
            if n not in self.known:
                with np.errstate(all="ignore"):
                    self.known[n] = self.computed(n, [self.known[a] for a in n.args])
        return self.known[node]

    def computed(self, node: Node, args: list[Any]) -> Any:
        if node.op == "const":
            return node.value
        if node.op == "input":
            return self.inputs[node.value]
        if node.op == "iota":
            return np.arange(len(self.inputs[0]))
        if node.op == "at":
            return np.broadcast_to(args[1], len(self.inputs[0]))[int(args[0])]
        if node.op in REDUCTIONS:
            return getattr(np, node.op)(args[0])
        return NUMPY[node.op](*args)


def row(seed: int, size: int = 7, zeros: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Student and teacher, with tokens that one of them does not have, or neither."""
    student, teacher = 2.0 * np.random.default_rng(seed).normal(size=(2, size))
    if zeros:
        student[1] = teacher[1] = teacher[2] = student[4] = -np.inf
    return student, teacher


def evaluated(roots: list[Node], rows: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
    interpret = Interpreter(*rows)
    return [np.array(interpret(root), dtype=float) for root in roots]


class EveryOperation:
    """A block whose derivative by the student is the sum of all operations on both logits."""

    def __call__(self, x: Any, y: Any, *, needs: tuple[bool, ...], xp: Any) -> tuple[Any, Any]:
        def number(result: Any) -> Any:
            # What stands alone might be taken into what it is added to, as "not" and "neg" are.
            return (
                xp.where(result & (y < 0.7), 1.0, y) if result.node.type == "bool" else result * y
            )

        results = [
            xp.elementwise(op, *_operands(op, x, y, xp.max(x, axis=-1)))
            for op in sorted(ELEMENTWISE)
        ]
        total = functools.reduce(lambda a, b: a + b, map(number, results))
        return xp.sum(total, axis=-1), (total, None)


def every_operation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The derivative by the student that the block above gives for a row."""
    results = [NUMPY[op](*_operands(op, x, y, np.max(x))) for op in sorted(ELEMENTWISE)]
    return sum(np.where(r & (y < 0.7), 1.0, y) if r.dtype == bool else r * y for r in results)


def _operands(op: str, x: Any, y: Any, largest: Any) -> list[Any]:
    operation = OPERATIONS[op]
    if operation.per_row:
        return [largest]
    given = {"real": iter((x, y)), "any": iter((x, y)), "bool": iter((x < 0.5, y < 0.5))}
    return [next(given[type_]) for type_ in operation.operands]


def near_one_half(rows: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits for which every operation is defined, some of them equal."""
    x, y = np.random.default_rng(1).uniform(0.1, 0.9, size=(2, rows, size))
    return x, np.where(np.arange(size) % 3 == 0, x, y)
