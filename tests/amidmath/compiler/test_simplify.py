"""Simplifying keeps what is computed and saves work."""

from __future__ import annotations

import numpy as np
import pytest
from row_programs import LOSSES, evaluated, row

import amidmath as am
from amidmath.compiler.builder import Builder
from amidmath.compiler.graph import reachable
from amidmath.compiler.simplify import cost, simplified
from amidmath.compiler.trace import FLOAT64, trace


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("zeros", [False, True], ids=["positive", "zeros"])
def test_simplifying_keeps_values_and_saves_work(loss, zeros):
    traced = trace(loss.block, (True, True), FLOAT64)
    before = traced.roots
    after = simplified(traced.builder, before)
    assert cost(reachable(after)) <= cost(reachable(before))
    rows = row(2, zeros=zeros)
    for old, new in zip(evaluated(before, rows), evaluated(after, rows), strict=True):
        size = np.abs(old).max()
        if np.isfinite(size):
            np.testing.assert_allclose(new, old, rtol=0, atol=1e-13 * size)
        else:
            np.testing.assert_array_equal(np.isinf(new), np.isinf(old))


def test_no_factor_of_a_shared_exponential_overflows():
    """Σ√(xy) is e^-800 here, far below what a float32 holds."""
    x = np.array([[0.0, -1600.0, -1700.0]], np.float32)
    y = np.array([[-1600.0, 0.0, -1e4]], np.float32)
    (by_x, by_y) = am.Renyi(0.5).value_and_grad(x, y, backend="compiled")[1]
    assert np.isfinite(by_x).all()
    assert np.isfinite(by_y).all()


def test_guards_are_dropped_where_the_condition_holds():
    b = Builder()
    x = b.leaf("input", 0)
    near = b.apply("lt", x, b.const(1.0))
    guarded = b.apply("exp", b.apply("select", near, x, b.const(0.0)))
    root = b.reduce("sum", b.apply("select", near, guarded, b.const(2.0)))
    (simpler,) = simplified(b, [root])
    assert simpler.args[0].args[1] is b.apply("exp", x)
