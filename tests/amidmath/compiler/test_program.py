"""Programs of losses: one for all that differ in their numbers only, and no graph that is kept."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest

import amidmath as am
from amidmath.compiler import program
from amidmath.compiler.graph import UnsupportedError, reachable
from amidmath.compiler.operations import ROW
from amidmath.compiler.program import row_program
from amidmath.divergences import REGISTRY
from amidmath.rows.forms import RowForm

ORDERS = ("pr", "rp", "qr", "rq")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_divergence_has_a_program(name, order):
    divergence = REGISTRY[name](*REGISTRY[name].examples[0])
    loss = am.AMiD(divergence, order=order, alpha=0.5, lam=0.3)
    program = row_program(RowForm(loss.block), (True, True), False)
    value, *partials = program.traced.value, *program.traced.partials
    assert value.kind == ROW
    assert all(p is not None for p in partials)


def unsupported(u, xp):
    return xp.where(u > 0.0, xp.tan(u), 0.0)


def test_a_function_without_a_program_is_unsupported():
    loss = am.AMiD(am.FDivergence(unsupported, smooth=True))
    with pytest.raises(UnsupportedError, match="tan"):
        row_program(RowForm(loss.block), (True, True), False)


def structure(loss, double=False):
    return row_program(RowForm(loss.block), (True, False), double).structure


def test_losses_that_differ_in_numbers_share_their_structure():
    """Unless numbers happen to be equal, which are then one."""
    loss = am.AMiD(am.AlphaBeta(0.21, 0.74), alpha=0.31, lam=0.15, temperature=2.3)
    other = am.AMiD(am.AlphaBeta(0.34, 0.62), alpha=0.43, lam=0.22, temperature=1.7)
    assert structure(loss) == structure(other)
    assert structure(loss) != structure(replace(loss, order="qr"))
    assert structure(loss) != structure(replace(loss, alpha=1.0))


def listed(roots):
    """The graph as it is, whatever its nodes are called."""
    place = {node: j for j, node in enumerate(reachable(roots))}
    return [(n.op, repr(n.value), *(place[a] for a in n.args)) for n in place]


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_programs_of_one_digest_are_one_graph(name):
    """Numbers are told apart from structure before the graph without them is made."""
    divergence = REGISTRY[name](*REGISTRY[name].examples[0])
    seen = {}
    for alpha, lam in ((0.31, 0.15), (0.43, 0.22), (0.31, 0.31), (1.0, 0.15), (-1.0, 0.22)):
        form = RowForm(am.AMiD(divergence, order="qr", alpha=alpha, lam=lam).block, scaled=True)
        program = row_program(form, (True, False, False), False)
        graph = listed(program.traced.roots)
        assert seen.setdefault(program.structure, graph) == graph
        assert program.given == (0,)
    assert len(seen) < 5


def test_graphs_are_not_kept():
    """A program that is known is a digest, numbers, and the loss itself.

    α stays below .54: from there on the anchor is asked whether the assistant has it.
    """
    program.row_program.cache_clear()
    forms = [RowForm(am.AMiD(alpha=0.31 + 0.0051 * j).block) for j in range(40)]
    known = [program.row_program(form, (True, False), double=False) for form in forms]
    gc.collect()
    builders = [o for o in gc.get_objects() if type(o).__name__ == "Builder"]
    assert len(builders) < 20
    assert len({p.structure for p in known}) == 1
    for one in known[::20]:  # the graph is that of the digest
        numbers = {n.value for n in one.traced.builder._known.values() if n.op == "param"}
        assert numbers == set(range(len(one.numbers)))
