"""Long sweeps in stages, for processors that look only so many instructions ahead.

What a token needs is a chain: each number waits for the one before. A processor hides that by
working on several tokens at once, as far as its window of instructions reaches. A tile of tokens
goes through one stage after the other, so that every loop is short enough for that; what a later
stage needs is passed on in memory of the length of a tile.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from amidmath.compiler.graph import Node
from amidmath.compiler.operations import OPERATIONS, TOKEN
from amidmath.compiler.schedule import Buffer, Buffers, Sweep, computed

AT_ONCE = 4
"""Instructions that a processor can start in a cycle."""
WINDOW = 190
"""Instructions that it looks at: a loop of n, its chain d cycles long, takes n·d/WINDOW a turn."""
PASSED = 0.75
"""Cycles for a number that is passed on: a store and a load."""
LEAST = 20
"""Instructions below which a stage is not worth its loop."""
MOST = 150
"""Instructions beyond which no stage is looked at: there are shorter ones that are faster."""
TURN = 3.0
"""Cycles for a turn of a loop."""


@dataclass
class Stage(Sweep):
    """A part of a sweep.

    Args:
        passed: what it passes on to later stages, each with its place in memory.
        given: what earlier stages passed on, likewise.
        there: what earlier stages wrote into buffers.
    """

    passed: dict[Node, int] = field(default_factory=dict)
    given: dict[Node, int] = field(default_factory=dict)
    there: frozenset[Node] = frozenset()

    @classmethod
    def whole(cls, sweep: Sweep) -> "Stage":
        """A sweep that is one stage."""
        return cls(reductions=sweep.reductions, kept=sweep.kept, outputs=sweep.outputs)

    @property
    def roots(self) -> list[Node]:
        """The token expressions that it computes."""
        return [*super().roots, *self.passed]

    def inputs(self, buffers: Buffers, at: int) -> list[Node]:
        """The inputs that it reads, given what is kept in buffers and which sweep it is of."""
        known = buffers | dict.fromkeys((*self.given, *self.there), Buffer(0, at - 1))
        return [node for node in computed(self.roots, known, at)[0] if node.op == "input"]


def staged(sweep: Sweep, buffers: Buffers, at: int) -> list[Stage]:
    """The stages of a sweep.

    Args:
        sweep: what is computed.
        buffers: what is kept, as :class:`~amidmath.compiler.schedule.Program` has it.
        at: which sweep of the program it is.
    """
    here, _ = computed(sweep.roots, buffers, at)
    order = sorted(here, key=lambda node: node.order)
    needed = _Needed(order, sweep.kept)
    cuts = _cuts(order, needed)
    place = {node: j for j, node in enumerate(order)}
    stages = [Stage() for _ in range(len(cuts) + 1)]

    def stage_of(node: Node) -> Stage:
        return stages[sum(cut <= place.get(node, 0) for cut in cuts)]

    for reduction in sweep.reductions:
        stage_of(reduction.args[0]).reductions.append(reduction)
    for node in sweep.kept:
        stage_of(node).kept.append(node)
    stages[-1].outputs = sweep.outputs  # they may lie where inputs are
    places: dict[Node, int] = {}
    for cut in cuts:
        for node in needed.across(cut):
            if node not in places:
                places[node] = stage_of(node).passed[node] = len(places)
    for before, stage in pairwise(stages):
        stage.given = before.given | before.passed
        stage.there = before.there.union(before.kept)
    return stages


def _cuts(order: Sequence[Node], needed: "_Needed") -> list[int]:
    """The places where stages end, for the least time by the figures above."""
    count = len(order)
    between = [0.0] * (count + 1)
    for j in range(1, count):
        between[j] = PASSED * len(needed.across(j)) + TURN
    best = [0.0] + [math.inf] * count
    back = [0] * (count + 1)
    for start in range(count):
        if best[start] == math.inf:
            continue
        work, deepest = 0.0, 0
        depth: dict[Node, int] = {}
        for end in range(start + 1, count + 1):
            node = order[end - 1]
            work += needed.work(node)
            depth[node] = needed.wait(node) + max(
                (depth.get(a, OPERATIONS["input"].latency) for a in node.args), default=0
            )
            deepest = max(deepest, depth[node])
            if work > MOST:
                break
            if work < LEAST and (start > 0 or end < count):
                continue
            time = best[start] + max(work / AT_ONCE, work * deepest / WINDOW) + between[end]
            if time < best[end]:
                best[end], back[end] = time, start
    cuts = []
    end = back[count]
    while end > 0:
        cuts.append(end)
        end = back[end]
    return cuts[::-1]


class _Needed:
    """The needs of a sweep's nodes: work, time, and each other."""

    def __init__(self, order: Sequence[Node], kept: Sequence[Node]) -> None:
        self.order, self.kept = order, set(kept)
        self.here = set(order)
        self.users: dict[Node, list[Node]] = {}
        self.costs: dict[Node, int] = {}
        for node in order:
            for arg in node.args:
                self.users.setdefault(arg, []).append(node)
        self.last = self._last_needed()

    def work(self, node: Node) -> float:
        """Instructions that the node takes."""
        return 0.0 if self.fused(node) else OPERATIONS[node.op].cost

    def fused(self, node: Node) -> bool:
        """Tell a product that is only added to something, which takes it along."""
        users = self.users.get(node, [])
        return node.op == "mul" and len(users) == 1 and users[0].op in ("add", "sub")

    def wait(self, node: Node) -> int:
        """Cycles until the node is there, once its arguments are."""
        return 0 if self.fused(node) else OPERATIONS[node.op].latency

    def again(self, node: Node) -> int:
        """Instructions that it takes to compute the node once more from what is in memory."""
        if node.kind != TOKEN or node not in self.here or node.op == "input":
            return 0
        if node not in self.costs:
            self.costs[node] = OPERATIONS[node.op].cost + sum(self.again(a) for a in node.args)
        return self.costs[node]

    def across(self, cut: int) -> list[Node]:
        """The nodes that are passed on where the order is cut."""
        return [n for n in self.order[:cut] if cut <= self.last.get(n, -1)]

    def _last_needed(self) -> dict[Node, int]:
        """For what may be passed on, the place of the last node that needs it."""
        sources: dict[Node, frozenset[Node]] = {}
        last: dict[Node, int] = {}
        for j, node in enumerate(self.order):
            needed = frozenset[Node]().union(*(sources.get(a, frozenset()) for a in node.args))
            last |= dict.fromkeys(needed, j)
            if node.op in ("input", "iota") or node in self.kept:
                sources[node] = frozenset()
            elif node.type != "real" or self.again(node) <= 2:
                sources[node] = needed  # computed again from these
            else:
                sources[node] = frozenset((node,))
        return last
