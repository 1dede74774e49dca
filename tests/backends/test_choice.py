"""Whether rows are computed by a compiled kernel or by the array core."""

from __future__ import annotations

import array_api_strict
import numpy as np
import pytest
from compiled_rows import KL, logits

import amidmath as am
from amidmath.backends import choice

pytest.importorskip("llvmlite")


@pytest.mark.parametrize(
    ("rows", "backend", "compiled"),
    [(65, None, True), (1, None, False), (1, "compiled", True), (65, "reference", False)],
)
def test_choice(calls, rows, backend, compiled):
    student, teacher = logits(rows, 1024)
    assert choice.CPU.worth == 64 * 1024
    KL.value_and_grad(student, teacher, backend=backend)
    KL(student, teacher, backend=backend)
    assert len(calls) == 2 * compiled


def tangent(u, xp):
    return (u - 1.0) * xp.tan(0.1 * (u - 1.0))


def test_what_has_no_program_runs_in_the_core():
    loss = am.AMiD(am.FDivergence(tangent, smooth=True), order="rp", alpha=1.0)
    student, teacher = logits(70, 1024)
    value, grad = loss.value_and_grad(student, teacher)
    wanted = loss.value_and_grad(student, teacher, backend="reference")
    assert value == wanted[0]
    np.testing.assert_array_equal(grad, wanted[1])
    with pytest.raises(ValueError, match="'compiled' cannot compute the function tan"):
        loss(student, teacher, backend="compiled")


def test_without_a_compiler(monkeypatch):
    monkeypatch.setattr(choice, "_found", lambda package: False)
    student, teacher = logits(70, 1024)
    with pytest.raises(ModuleNotFoundError, match=r"needs llvmlite: install amidmath\[cpu\]"):
        KL(student, teacher, backend="compiled")
    value = KL(student, teacher)
    assert value == KL(student, teacher, backend="reference")


@pytest.mark.parametrize("call", [KL, KL.value_and_grad], ids=["value", "gradient"])
def test_backends_that_cannot(call):
    student, teacher = logits()
    with pytest.raises(ValueError, match="backend must be one of 'reference', 'compiled', got"):
        call(student, teacher, backend="numba")
    strict = (array_api_strict.asarray(a) for a in (student, teacher))
    with pytest.raises(ValueError, match=r"'compiled' is for arrays of .*array_api_strict"):
        call(*strict, backend="compiled")


def test_unknown_backend_of_a_divergence():
    log_x = np.log([0.5, 0.5])
    for call in (am.KL(), am.KL().value_and_grad):
        with pytest.raises(ValueError, match="backend must be one of 'reference', 'compiled'"):
            call(log_x, log_x, backend="fast")
