"""Expressions over one row: a graph whose nodes are numbers a token, numbers a row, or constants.

A node says what is computed, not where or when: :mod:`amidmath.compiler.schedule` does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


class UnsupportedError(Exception):
    """The computation has no row program, and runs as it is written instead."""


@dataclass(frozen=True, eq=False, slots=True)
class Node:
    """One operation on nodes.

    Args:
        op: its name in :data:`~amidmath.compiler.operations.OPERATIONS`.
        args: the nodes it works on.
        value: the constant; which input, knob or param.
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
