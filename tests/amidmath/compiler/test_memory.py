"""What row programs move through the memory, and what they may write over."""

from __future__ import annotations

import pytest
from row_programs import LOSSES

import amidmath as am
from amidmath.compiler.builder import Builder
from amidmath.compiler.memory import overwritable, traffic
from amidmath.compiler.program import row_program
from amidmath.compiler.schedule import scheduled
from amidmath.rows.forms import RowForm

BFLOAT16 = 2


def program(loss, *needs, keeping=False):
    form = RowForm(loss.block, knobs=len(needs) - 2)
    return row_program(form, needs, double=False).scheduled(keeping)


@pytest.mark.parametrize("alpha", [-1.0, 0.5])
def test_bytes_of_the_loss_and_its_gradient(alpha):
    """Both rows once a sweep and the gradient once; docs/backends.md has the table."""
    moved = traffic(program(am.AMiD(alpha=alpha), True, False))
    assert moved.compulsory(BFLOAT16, BFLOAT16) == 6
    *earlier, last = moved.sweeps
    assert all(written == () for _, written in earlier)
    assert last == ((0, 1), (0,))
    assert len(moved.sweeps) <= 8
    assert moved.uncached(BFLOAT16, BFLOAT16) == 4 * len(moved.sweeps) + 2


def test_bytes_of_values_alone():
    moved = traffic(program(am.AMiD(), False, False))
    assert moved.outputs == ()
    assert moved.compulsory(4, BFLOAT16) == 6


def test_bytes_of_a_sweep_that_needs_one_input():
    builder = Builder()
    student, teacher = (builder.leaf("input", j) for j in (0, 1))
    total = builder.reduce("sum", teacher)
    gradient = builder.apply("mul", student, total)
    moved = traffic(scheduled(total, [gradient, builder.const(0.0)], keeping=False))
    assert moved.sweeps == (((1,), ()), ((0,), (0,)), ((), (1,)))
    assert moved.uncached(4, 8) == 8 + (4 + 4) + 8


@pytest.mark.parametrize("keeping", [True, False])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_losses_can_write_over_the_student(loss, keeping):
    assert overwritable(program(loss, True, False, keeping=keeping), 0)


def test_what_cannot_be_written_over():
    builder = Builder()
    student, teacher = (builder.leaf("input", j) for j in (0, 1))
    total = builder.reduce("sum", student)
    first = builder.apply("add", student, teacher)

    def may(value, *partials):
        return overwritable(scheduled(value, partials, keeping=False), 0)

    assert may(total, first, None)
    # A number of the row takes another look at the student after the gradient is written,
    later = builder.reduce("sum", builder.apply("mul", student, total))
    assert not may(later, first, None)
    # or one of its logits alone is looked up then,
    top = builder.at(builder.reduce("argmax", teacher), student)
    assert not may(builder.apply("add", total, top), first, None)
    # or there is no gradient.
    assert not may(total, None, None)
    assert not may(total, builder.leaf("knob", 0), None)
