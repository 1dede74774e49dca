"""The order of a row's program: sweeps over the tokens, with numbers of the row between them.

A reduction ends a sweep: what depends on it waits for the next one. What is costly and used in
several sweeps is kept in a buffer of the length of the row, where the target has such buffers.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from amidmath.compiler.graph import Node, reachable
from amidmath.compiler.operations import OPERATIONS, REDUCTIONS, TOKEN

WORTH_KEEPING = {"real": 12, "bool": 3}
"""Instructions a token above which loading a number is better than computing it again.

What costs is what moves between caches: numbers of 4 or 8 bytes, truth values of one bit.
"""


class Buffer(NamedTuple):
    """A row's length of memory in which a token expression is kept, from one sweep on."""

    slot: int
    filled: int


Buffers = dict[Node, Buffer]
"""The buffers of the token expressions that are kept."""


class Extreme(NamedTuple):
    """The largest of the tokens' numbers, where it is, or both.

    Args:
        of: the token expression.
        largest: its maximum, if that is wanted.
        place: the first position of that, if wanted.
    """

    of: Node
    largest: Node | None
    place: Node | None


@dataclass
class Sweep:
    """One pass over the tokens.

    Args:
        reductions: what it reduces to numbers of the row.
        kept: what it writes into buffers.
        outputs: what it writes for the caller: which operand's derivative, and the node.
    """

    reductions: list[Node] = field(default_factory=list)
    kept: list[Node] = field(default_factory=list)
    outputs: list[tuple[int, Node]] = field(default_factory=list)

    @property
    def roots(self) -> list[Node]:
        """The token expressions that it computes."""
        reduced = [r.args[0] for r in self.reductions]
        return [*reduced, *self.kept, *(node for _, node in self.outputs)]

    @property
    def totals(self) -> list[Node]:
        """The sums among the reductions."""
        return [r for r in self.reductions if r.op == "sum"]

    @property
    def extremes(self) -> list[Extreme]:
        """The maxima and positions among the reductions; those of the same numbers are one."""
        largest = {r.args[0]: r for r in self.reductions if r.op == "max"}
        places = {r.args[0]: r for r in self.reductions if r.op == "argmax"}
        return [Extreme(of, largest.get(of), places.get(of)) for of in {**places, **largest}]


@dataclass(frozen=True)
class Program:
    """A row's computation, in order.

    Args:
        sweeps: the passes, in order.
        value: the row's value.
        partials: derivatives by the operands, numbers a token or a row, None if not wanted.
        buffers: the nodes that are kept.
    """

    sweeps: tuple[Sweep, ...]
    value: Node
    partials: tuple[Node | None, ...]
    buffers: Buffers

    @property
    def roots(self) -> list[Node]:
        """The value and the partials that are wanted."""
        return [self.value, *(partial for _, partial in self.wanted)]

    @property
    def wanted(self) -> list[tuple[int, Node]]:
        """The operands that a derivative by is wanted, and the derivatives."""
        return [(j, partial) for j, partial in enumerate(self.partials) if partial is not None]

    @property
    def slots(self) -> int:
        """The number of buffers."""
        return max((buffer.slot + 1 for buffer in self.buffers.values()), default=0)


def scheduled(value: Node, partials: Sequence[Node | None], keeping: bool) -> Program:
    """The sweeps of a row's value and derivatives.

    Args:
        value: one number a row.
        partials: derivatives, None where none is wanted.
        keeping: whether the target has buffers for what several sweeps use.
    """
    roots = [value, *(p for p in partials if p is not None)]
    nodes = reachable(roots)
    level = _levels(nodes)
    outputs = [(j, p) for j, p in enumerate(partials) if p is not None and p.kind == TOKEN]
    reductions = [n for n in nodes if n.op in REDUCTIONS]
    last = max([level[n.args[0]] for n in reductions] + [level[n] for _, n in outputs])
    sweeps = [Sweep() for _ in range(last + 1)]
    for node in reductions:
        sweeps[level[node.args[0]]].reductions.append(node)
    for j, node in outputs:
        sweeps[level[node]].outputs.append((j, node))
    buffers = _kept(sweeps) if keeping else {}
    return Program(tuple(sweeps), value, tuple(partials), buffers)


def _levels(nodes: Sequence[Node]) -> dict[Node, int]:
    """The sweep in which a token's number can be computed, before which a row's is known."""
    level: dict[Node, int] = {}
    for node in nodes:
        highest = max((level[a] for a in node.args), default=0)
        level[node] = highest + 1 if node.op in REDUCTIONS else highest
    return level


def _kept(sweeps: Sequence[Sweep]) -> Buffers:
    """Choose what is written into buffers, going from sweep to sweep."""
    kept: Buffers = {}
    first: dict[Node, int] = {}
    for at, sweep in enumerate(sweeps):
        chosen: list[Node] = []
        prices = _prices(kept)
        stack = [r for r in sweep.roots if r.kind == TOKEN]
        seen: set[Node] = set()
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if node in first and node not in kept and _worth(prices(node), node):
                kept[node] = Buffer(len(kept), first[node])
                chosen.append(node)
            if node not in kept:
                stack.extend(a for a in node.args if a.kind == TOKEN)
        # What is cheap to compute from others that are kept need not be.
        for node in sorted(chosen, key=lambda n: -n.order):
            place = kept.pop(node)
            if _worth(_prices(kept)(node), node):
                kept[node] = place
                sweeps[first[node]].kept.append(node)
        for node in seen:
            first.setdefault(node, at)
    return _shared_buffers(sweeps, kept)


def _worth(price: int, node: Node) -> bool:
    return price > WORTH_KEEPING.get(node.type, math.inf)


def _prices(kept: Collection[Node]) -> Callable[[Node], int]:
    """The instructions that computing a number takes, given what is kept."""
    known: dict[Node, int] = {}

    def price(node: Node) -> int:
        if node.kind != TOKEN:
            return 0
        if node in kept:
            return 1
        if node not in known:
            known[node] = OPERATIONS[node.op].cost + sum(price(a) for a in node.args)
        return known[node]

    return price


def _shared_buffers(sweeps: Sequence[Sweep], kept: Buffers) -> Buffers:
    """Give buffers that are no longer read to what is kept later: fewer of them fit a cache."""
    last: dict[Node, int] = {}
    for at, sweep in enumerate(sweeps):
        for node in sorted(computed(sweep.roots, kept, at)[1], key=lambda n: n.order):
            last[node] = at
    free: list[int] = []
    shared: Buffers = {}
    count = 0
    for at, sweep in enumerate(sweeps):
        free += [shared[n].slot for n, end in last.items() if end == at - 1 and n in shared]
        for node in sweep.kept:
            if free:
                slot = free.pop()
            else:
                slot, count = count, count + 1
            shared[node] = Buffer(slot, at)
    return shared


def computed(roots: Sequence[Node], kept: Buffers, at: int) -> tuple[set[Node], set[Node]]:
    """The token expressions that a sweep computes, and those that it reads from buffers."""
    seen: set[Node] = set()
    read: set[Node] = set()
    stack = [r for r in roots if r.kind == TOKEN]
    while stack:
        node = stack.pop()
        if node in kept and kept[node].filled < at:
            read.add(node)
        elif node not in seen:
            seen.add(node)
            stack.extend(a for a in node.args if a.kind == TOKEN)
    return seen, read
