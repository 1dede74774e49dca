"""What row programs move through the memory, and gradients in place of the student's logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import amidmath as am
from amidmath.compiler.graph import ROW, TOKEN, Builder
from amidmath.compiler.memory import overwritable, traffic
from amidmath.compiler.program import row_program
from amidmath.compiler.schedule import scheduled
from amidmath.divergences import REGISTRY
from amidmath.rows.forms import RowForm

BFLOAT16 = 2
ORDERS = ("pr", "rp", "qr", "rq")


def program(loss, *needs, keeping=False):
    form = RowForm(loss.block, knobs=len(needs) - 2)
    return row_program(form, needs, double=False).scheduled(keeping)


# ---------------------------------------------------------------------------------------------
# Bytes


@pytest.mark.parametrize("alpha", [-1.0, 0.5])
def test_bytes_of_the_loss_and_its_gradient(alpha):
    """Both rows once a sweep and the gradient once; docs/executors.md has the table."""
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
    student, teacher = (builder.leaf("input", j, TOKEN) for j in (0, 1))
    total = builder.reduce("sum", teacher)
    gradient = builder.apply("mul", student, total)
    moved = traffic(scheduled(total, [gradient, builder.const(0.0)], keeping=False))
    assert moved.sweeps == (((1,), ()), ((0,), (0,)), ((), (1,)))
    assert moved.uncached(4, 8) == 8 + (4 + 4) + 8


# ---------------------------------------------------------------------------------------------
# In place


@pytest.mark.parametrize("name", sorted(REGISTRY))
@pytest.mark.parametrize("keeping", [True, False])
def test_losses_can_write_over_the_student(name, keeping):
    divergence = REGISTRY[name](*REGISTRY[name].examples[0])
    for order in ORDERS:
        loss = am.AMiD(divergence, order=order, alpha=0.3)
        assert overwritable(program(loss, True, False, keeping=keeping), 0)


def test_what_cannot_be_written_over():
    builder = Builder()
    student, teacher = (builder.leaf("input", j, TOKEN) for j in (0, 1))
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
    assert not may(total, builder.leaf("knob", 0, ROW), None)


@pytest.fixture
def logits():
    rng = np.random.default_rng(0)
    teacher = rng.normal(0, 3, (4, 301))
    student = teacher + rng.normal(size=teacher.shape)
    return student.astype(np.float32), teacher.astype(np.float32)


LOSSES = [am.AMiD(), am.AMiD(am.FisherRao(), order="qr", alpha=0.5), am.AMiD(am.Renyi(2.0))]
OVER = {"backend": "compiled", "overwrite_student": True}


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_numpy(loss, logits):
    pytest.importorskip("llvmlite")
    student, teacher = logits
    value, wanted = loss.value_and_grad(student, teacher, backend="compiled")
    again, grad = loss.value_and_grad(student, teacher, **OVER)
    assert np.shares_memory(grad, student)
    np.testing.assert_array_equal(grad, wanted)
    assert again == value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch(logits, dtype):
    pytest.importorskip("llvmlite")
    student, teacher = (torch.from_numpy(a).to(dtype) for a in logits)
    mask = torch.tensor([True, False, True, True])
    _, wanted = am.AMiD().value_and_grad(student, teacher, mask, backend="compiled")
    place, version = student.data_ptr(), student._version
    _, grad = am.AMiD().value_and_grad(student, teacher, mask, **OVER)
    assert grad.data_ptr() == place
    assert student._version > version  # autograd finds out if it has saved the logits
    assert torch.equal(grad, wanted)


@pytest.mark.parametrize("kind", ["read-only", "columns", "broadcast", "reference"])
def test_logits_stay_where_they_cannot_be_written_over(logits, kind):
    pytest.importorskip("llvmlite")
    student, teacher = logits
    given = OVER | ({"backend": "reference"} if kind == "reference" else {})
    if kind == "columns":
        student = np.asfortranarray(student)
    if kind == "broadcast":
        student = np.broadcast_to(student[:1], student.shape)
    if kind == "read-only":
        student.flags.writeable = False
    before = student.copy()
    _, wanted = am.AMiD().value_and_grad(student, teacher, backend=given["backend"])
    _, grad = am.AMiD().value_and_grad(student, teacher, **given)
    np.testing.assert_array_equal(student, before)
    np.testing.assert_array_equal(grad, wanted)
