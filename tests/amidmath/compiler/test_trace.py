"""Tracing: every block leaves a graph that computes what the block does, or says why not."""

from __future__ import annotations

import numpy as np
import pytest
from row_programs import LOSSES, evaluated, row

from amidmath.compiler.graph import UnsupportedError
from amidmath.compiler.trace import FLOAT64, trace


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("zeros", [False, True], ids=["positive", "zeros"])
def test_trace_computes_what_the_block_does(loss, zeros):
    student, teacher = row(1, zeros=zeros)
    traced = trace(loss.block, (True, True), FLOAT64)
    value, *partials = evaluated(traced.roots, (student, teacher))
    wanted, grads = loss.value_and_grad(
        student, teacher, wrt=("student", "teacher"), backend="reference"
    )
    np.testing.assert_allclose(value, wanted, rtol=1e-13)
    if np.isfinite(wanted):
        for got, grad in zip(partials, grads, strict=True):
            scale = np.abs(grad).max()
            np.testing.assert_allclose(np.broadcast_to(got, 7), grad, rtol=0, atol=1e-13 * scale)


@pytest.mark.parametrize(
    "block",
    [
        lambda x, y, needs, xp: (xp.sum(x, axis=0), (None, None)),
        lambda x, y, needs, xp: (xp.sum(x * np.ones(3), axis=-1), (None, None)),
        lambda x, y, needs, xp: (xp.sum(x**0.3, axis=-1), (None, None)),
        lambda x, y, needs, xp: (xp.sum(x if x > 0 else y, axis=-1), (None, None)),
        lambda x, y, needs, xp: (xp.sum(x[..., :2], axis=-1), (None, None)),
        lambda x, y, needs, xp: (xp.sum(xp.zeros_like(x) + 1.0, axis=-1), (None, None)),
    ],
    ids=["axis", "another array", "power", "decision", "index", "sum of a constant"],
)
def test_what_cannot_be_traced_says_so(block):
    with pytest.raises(UnsupportedError):
        trace(block, (False, False), FLOAT64)
