"""Sweeps: nothing is used before it is known, and what is kept is worth it."""

from __future__ import annotations

import pytest
from row_programs import LOSSES

import amidmath as am
from amidmath.compiler.builder import Builder
from amidmath.compiler.graph import reachable
from amidmath.compiler.operations import REDUCTIONS, TOKEN
from amidmath.compiler.program import row_program
from amidmath.compiler.schedule import scheduled
from amidmath.rows.forms import RowForm


@pytest.mark.parametrize("keeping", [False, True], ids=["no buffers", "buffers"])
@pytest.mark.parametrize("loss", list(LOSSES.values())[::3])
def test_nothing_is_used_before_it_is_known(loss, keeping):
    program = row_program(RowForm(loss.block), (True, True), False).scheduled(keeping)
    known = set()
    for at, sweep in enumerate(program.sweeps):
        kept = {n for n, (_, filled) in program.buffers.items() if filled < at}
        needed, stack = set(), list(sweep.roots)
        while stack:
            node = stack.pop()
            if node in needed or node in kept:
                continue
            needed.add(node)
            if node.op in REDUCTIONS:
                assert node in known, f"{node.op} is used in sweep {at}, which does not know it"
            else:
                stack.extend(node.args)
        known |= set(sweep.reductions)
    for node in reachable([program.value]):
        assert node.op not in REDUCTIONS or node in known
    outputs = [j for sweep in program.sweeps for j, _ in sweep.outputs]
    assert sorted(outputs) == [0, 1]
    assert keeping or not program.buffers


def test_buffers_are_filled_once_and_read_later():
    program = row_program(RowForm(am.AMiD(alpha=0.5).block), (True, False), False).scheduled(True)
    assert program.buffers
    for node, (_, filled) in program.buffers.items():
        assert node.kind == TOKEN
        assert [at for at, s in enumerate(program.sweeps) if node in s.kept] == [filled]


def test_a_reduction_of_reductions_takes_as_many_sweeps():
    b = Builder()
    x = b.leaf("input", 0)
    node = x
    for _ in range(3):
        node = b.apply("sub", x, b.reduce("max", b.apply("exp", node)))
    value = b.reduce("sum", node)
    assert len(scheduled(value, [None, None], False).sweeps) == 4


def test_a_maximum_and_its_position_are_looked_for_together():
    b = Builder()
    x, y = b.leaf("input", 0), b.leaf("input", 1)
    largest, place, other = b.reduce("max", x), b.reduce("argmax", x), b.reduce("max", y)
    value = b.apply("add", b.apply("add", largest, other), b.at(place, y))
    (sweep,) = scheduled(value, [None, None], False).sweeps
    assert sweep.extremes == [(x, largest, place), (y, other, None)]
    assert sweep.totals == []


def test_truth_values_and_numbers_are_kept_where_computing_them_again_costs_more():
    b = Builder()
    x = b.leaf("input", 0)
    total = b.reduce("sum", b.apply("select", (odd := _condition(b, x)), x, b.const(0.0)))
    later = b.apply("select", odd, b.apply("mul", x, total), b.const(1.0))
    program = scheduled(b.reduce("sum", later), [None, None], True)
    assert set(program.buffers) == {odd}


def _condition(b, x):
    size = b.apply("abs", x)
    inside = b.apply("lt", size, b.const(2.0))
    return b.apply("and", inside, b.apply("ne", b.apply("mul", size, size), b.const(1.0)))
