"""Less work for the same row: exponentials that differ by a factor, and guards that guard nothing.

Blocks are written for arrays, where an operation sees all tokens and none may give a NaN that a
later ``where`` would leave in a derivative. A program over one token needs no such guard, and it
knows that exp(x - c) is exp(x - d) times a number of the row.
"""

from collections.abc import Callable, Sequence

from amidmath.compiler.builder import Builder
from amidmath.compiler.graph import Node, reachable
from amidmath.compiler.operations import OPERATIONS, REDUCTIONS, TOKEN


def simplified(builder: Builder, roots: Sequence[Node]) -> list[Node]:
    """The same roots for less work."""
    shared = _share_exponentials(builder, roots)
    return _drop_guards(builder, shared)


def cost(nodes: Sequence[Node]) -> int:
    """Work a token."""
    return sum(
        OPERATIONS[node.op].cost for node in nodes if node.kind == TOKEN or node.op in REDUCTIONS
    )


def rebuilt(
    builder: Builder, roots: Sequence[Node], change: Callable[[Node, tuple[Node, ...]], Node | None]
) -> list[Node]:
    """The roots with every node rebuilt on its rebuilt arguments, or replaced by ``change``."""
    new: dict[Node, Node] = {}
    for node in reachable(roots):
        args = tuple(new[a] for a in node.args)
        new[node] = change(node, args) or remade(builder, node, args)
    return [new[root] for root in roots]


def remade(builder: Builder, node: Node, args: tuple[Node, ...]) -> Node:
    """The node on other arguments."""
    return node if args == node.args else built(builder, node, args)


def built(builder: Builder, node: Node, args: tuple[Node, ...]) -> Node:
    """The node's operation on arguments of the builder's."""
    if node.op in REDUCTIONS:
        return builder.reduce(node.op, *args)
    if node.op == "at":
        return builder.at(*args)
    return builder.apply(node.op, *args)


Terms = tuple[tuple[bool, Node], ...]
"""Numbers of the row, innermost first, added to a token's number (True) or taken from it."""


def _peeled(node: Node) -> tuple[Node, Terms]:
    """The node as one that varies over the tokens, and numbers of the row added to it."""
    terms: list[tuple[bool, Node]] = []
    while True:
        if node.op in ("add", "sub") and node.args[1].kind != TOKEN:
            terms.append((node.op == "add", node.args[1]))
            node = node.args[0]
        elif node.op == "add" and node.args[0].kind != TOKEN:
            terms.append((True, node.args[0]))
            node = node.args[1]
        else:
            return node, tuple(reversed(terms))


def _share_exponentials(builder: Builder, roots: Sequence[Node]) -> list[Node]:
    """One exponential for all that differ by a number of the row.

    The one kept is relative to the row's largest, which neither overflows nor loses what counts;
    any other may be 0 where the factor is infinite.
    """

    def distributed(node: Node, args: tuple[Node, ...]) -> Node | None:
        if node.op != "exp" or node.kind != TOKEN:
            return None
        return _exp(builder, args[0])

    roots = rebuilt(builder, roots, distributed)
    families: dict[Node, list[Terms]] = {}
    for node in reachable(roots):
        if node.op == "exp" and node.kind == TOKEN:
            base, terms = _peeled(node.args[0])
            families.setdefault(base, []).append(terms)
    kept = {}
    for base, members in families.items():
        relative = [terms for terms in members if _takes_maximum(terms, base)]
        if relative and len(members) > 1:
            kept[base] = relative[0]

    def shared(node: Node, args: tuple[Node, ...]) -> Node | None:
        if node.op != "exp" or node.kind != TOKEN:
            return None
        base, terms = _peeled(node.args[0])
        if base not in kept or terms == kept[base]:
            return None
        new_base, new_terms = _peeled(args[0])
        reference = kept[base]
        prefix = 0
        while prefix < min(len(reference), len(terms)) and reference[prefix] == terms[prefix]:
            prefix += 1
        return _relative(builder, new_base, new_terms, reference, prefix, translated)

    # Arguments of the reference are nodes of the old graph; their new selves are looked up here.
    new: dict[Node, Node] = {}

    def translated(node: Node) -> Node:
        if node not in new:
            args = tuple(translated(a) for a in node.args)
            new[node] = shared(node, args) or remade(builder, node, args)
        return new[node]

    return [translated(root) for root in roots]


def _exp(builder: Builder, arg: Node) -> Node:
    """The exponential, of each arm where one arm of a select is a number."""
    if arg.op == "select" and any(a.op == "const" for a in arg.args[1:]):
        condition, a, b = arg.args
        return builder.apply("select", condition, _exp(builder, a), _exp(builder, b))
    return builder.apply("exp", arg)


def _takes_maximum(terms: Terms, base: Node) -> bool:
    return any(
        not added and any(n.op == "max" and n.args[0] is base for n in reachable([term]))
        for added, term in terms
    )


def _relative(
    builder: Builder,
    base: Node,
    terms: Terms,
    reference: Terms,
    prefix: int,
    translated: Callable[[Node], Node],
) -> Node:
    """exp(base + terms) by way of exp(base + reference)."""
    kept = base
    for added, term in reference:
        kept = builder.apply("add" if added else "sub", kept, translated(term))
    offset = builder.const(0.0)
    for added, term in reference[prefix:]:
        offset = builder.apply("sub" if added else "add", offset, translated(term))
    for added, term in terms[prefix:]:
        offset = builder.apply("add" if added else "sub", offset, term)
    return builder.apply("mul", builder.apply("exp", kept), builder.apply("exp", offset))


def _drop_guards(builder: Builder, roots: Sequence[Node]) -> list[Node]:
    """Within each arm of a select, what its condition decides, wherever that makes less work."""
    best = list(roots)
    least = cost(reachable(best))
    for node in reversed(reachable(best)):
        if node.op != "select":
            continue
        condition, a, b = node.args
        held = _assumed(builder, a, _consequences(condition, True))
        failed = _assumed(builder, b, _consequences(condition, False))
        if (held, failed) == (a, b):
            continue
        simpler = builder.apply("select", condition, held, failed)

        def change(
            other: Node, args: tuple[Node, ...], node: Node = node, simpler: Node = simpler
        ) -> Node | None:
            return simpler if other is node else None

        candidate = rebuilt(builder, best, change)
        work = cost(reachable(candidate))
        if work < least:
            best, least = candidate, work
    return best


def _consequences(condition: Node, holds: bool) -> dict[Node, bool]:
    """The truth of other conditions, as far as it is known where this one holds, or fails."""
    known = {condition: holds}
    if condition.op == "not":
        known |= _consequences(condition.args[0], not holds)
    if condition.op == ("and" if holds else "or"):
        for part in condition.args:
            known |= _consequences(part, holds)
    return known


def _assumed(builder: Builder, node: Node, known: dict[Node, bool]) -> Node:
    """The node where the truth of some conditions is known."""
    done: dict[Node, Node] = {}

    def visit(node: Node) -> Node:
        if node in known:
            return builder.const(known[node])
        if node.kind != TOKEN or node.op in REDUCTIONS or not node.args:
            return node
        if node not in done:
            done[node] = remade(builder, node, tuple(visit(a) for a in node.args))
        return done[node]

    return visit(node)
