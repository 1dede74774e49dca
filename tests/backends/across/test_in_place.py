"""Gradients in place of the student's logits, in NumPy and torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import amidmath as am

pytest.importorskip("llvmlite")

LOSSES = [am.AMiD(), am.AMiD(am.FisherRao(), order="qr", alpha=0.5), am.AMiD(am.Renyi(2.0))]
OVER = {"backend": "compiled", "overwrite_student": True}


@pytest.fixture
def logits():
    rng = np.random.default_rng(0)
    teacher = rng.normal(0, 3, (4, 301))
    student = teacher + rng.normal(size=teacher.shape)
    return student.astype(np.float32), teacher.astype(np.float32)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_numpy(loss, logits):
    student, teacher = logits
    value, wanted = loss.value_and_grad(student, teacher, backend="compiled")
    again, grad = loss.value_and_grad(student, teacher, **OVER)
    assert np.shares_memory(grad, student)
    np.testing.assert_array_equal(grad, wanted)
    assert again == value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch(logits, dtype):
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
