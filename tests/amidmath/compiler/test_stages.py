"""Stages: a long sweep is cut where little is passed on, into parts that can be done in order."""

from __future__ import annotations

import pytest
from row_programs import LOSSES

from amidmath.compiler.builder import Builder
from amidmath.compiler.graph import reachable
from amidmath.compiler.program import row_program
from amidmath.compiler.schedule import scheduled
from amidmath.compiler.stages import staged
from amidmath.rows.forms import RowForm


def stages_of(program):
    for at, sweep in enumerate(program.sweeps):
        yield at, sweep, staged(sweep, program.buffers, at)


@pytest.mark.parametrize("loss", list(LOSSES.values())[::3])
def test_stages_do_what_the_sweep_does_in_an_order_in_which_it_can_be_done(loss):
    program = row_program(RowForm(loss.block), (True, True), False).scheduled(True)
    for at, sweep, stages in stages_of(program):
        assert sorted(n.order for s in stages for n in s.reductions) == sorted(
            n.order for n in sweep.reductions
        )
        assert sorted(n.order for s in stages for n in s.kept) == sorted(
            n.order for n in sweep.kept
        )
        # A gradient may be written over the logits, which no stage reads afterwards.
        assert [s.outputs for s in stages] == [[] for _ in stages[1:]] + [sweep.outputs]
        passed, kept = {}, set()
        for stage in stages:
            assert stage.given == passed
            assert stage.there == kept
            assert not set(stage.passed.values()) & set(passed.values())
            assert not passed.keys() & stage.passed.keys()
            assert all(n.type == "real" for n in stage.passed)
            assert set(stage.inputs(program.buffers, at)) <= {
                n for n in reachable(sweep.roots) if n.op == "input"
            }
            passed, kept = passed | stage.passed, kept | set(stage.kept)


def test_a_long_chain_is_cut_and_a_short_one_is_not():
    b = Builder()
    node = b.leaf("input", 0)
    lengths = []
    for _ in range(12):
        node = b.apply("exp", b.apply("neg", node))
        program = scheduled(b.reduce("sum", node), [None, None], True)
        ((_, _, stages),) = stages_of(program)
        lengths.append(len(stages))
        for stage in stages[:-1]:
            assert len(stage.passed) == 1, "a chain passes on its last number only"
    assert lengths == sorted(lengths)
    assert lengths[0] == 1
    assert lengths[-1] > 3


def test_what_is_cheap_is_not_passed_on_but_computed_again():
    b = Builder()
    x = b.leaf("input", 0)
    centred = b.apply("sub", x, b.leaf("scale"))
    inside = b.apply("lt", centred, b.const(0.0))
    node = centred
    for _ in range(6):
        node = b.apply("exp", b.apply("neg", node))
    root = b.apply("select", inside, node, centred)
    program = scheduled(b.reduce("sum", root), [None, None], True)
    ((_, _, stages),) = stages_of(program)
    assert len(stages) > 1
    assert not {x, centred, inside} & {n for s in stages for n in s.passed}
