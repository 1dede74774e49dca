"""Dtypes in JAX: those of logits and of knobs, each of which keeps its own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import jax_kinds
import numpy as np
import pytest
from jax_kinds import LARGE, SMALL

import amidmath as am

WRT = ("student", "parts[0].alpha", "parts[0].lam", "parts[0].weight")
PAIRS = [
    *(("float32", knob) for knob in ("float16", "bfloat16", "float64")),
    *(("float64", knob) for knob in ("bfloat16", "float32")),
    *(("bfloat16", "float16"), ("float16", "float64")),
]
CASES = [
    *((*pair, SMALL, None) for pair in PAIRS),
    *((*pair, SMALL, "reference") for pair in PAIRS[:2]),
    *((*pair, LARGE, None) for pair in PAIRS),
]


def loss(alpha, lam, weight):
    return am.AMiD(order="qr", alpha=alpha, lam=lam) * weight


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(("logits", "knob", "rows", "backend"), CASES)
def test_each_keeps_its_own(logits, knob, rows, backend):
    student, teacher = (jnp.asarray(jax_kinds.normal(seed, rows, 8), logits) for seed in (0, 1))
    # Numbers that every dtype has, and one a row: JAX adds up a scalar's gradient in its dtype.
    by_row = np.arange(rows)
    knobs = [jnp.asarray(a, knob) for a in (by_row % 4 / 2 - 1, by_row % 3 / 4, by_row % 2 + 0.5)]

    def f(student, *knobs):
        return loss(*knobs)(student, teacher, reduction="sum", backend=backend)

    def both(*operands):
        value, grads = jax.value_and_grad(f, argnums=(0, 1, 2, 3))(*operands)
        _, moved = jax.jvp(f, operands, operands)
        return value, grads, moved

    value, grads, moved = jax.jit(both)(student, *knobs)
    computing = "float64" if logits == "float64" else "float32"
    assert value.dtype == moved.dtype == computing
    assert [g.dtype for g in grads] == [logits, knob, knob, knob]
    wide = [np.asarray(a, np.float64) for a in (student, teacher, *knobs)]
    wanted, by = loss(*wide[2:]).value_and_grad(
        *wide[:2], reduction="sum", wrt=WRT, backend="reference"
    )
    eps = float(jnp.finfo(computing).eps)
    np.testing.assert_allclose(value, wanted, rtol=64 * eps)
    for grad, exact in zip(grads, by, strict=True):
        bound = (256 * eps + float(jnp.finfo(grad.dtype).eps)) * np.abs(exact).max()
        np.testing.assert_allclose(np.asarray(grad, np.float64), exact, rtol=0, atol=bound)
    along = [g * a for g, a in zip(by, (wide[0], *wide[2:]), strict=True)]
    bound = 64 * eps + max(float(jnp.finfo(d).eps) for d in (logits, knob))
    np.testing.assert_allclose(
        moved, sum(a.sum() for a in along), atol=bound * sum(np.abs(a).sum() for a in along)
    )
