"""Compiled rows as a foreign function of XLA, against the array core in double precision."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import amidmath as am
from amidmath.backends.llvm_kernels import kernels as llvm_kernels

EPS = float(np.finfo(np.float32).eps)
ROWS, VOCABULARY = 3, 1003
LOSSES = {
    "KL pr": am.AMiD(),
    "AB rq": am.AMiD(am.AlphaBeta(0.2, 0.7), order="rq", alpha=3.0),
    "sum": 0.5 * am.AMiD(order="qr", lam=0.5) + 0.5 * am.AMiD(am.Renyi(2.0), alpha=0.0),
}

pytestmark = pytest.mark.skipif(
    jax.device_count() != 1 or jax.default_backend() != "cpu",
    reason="needs one CPU device",
)


@pytest.fixture
def logits():
    rng = np.random.default_rng(0)
    teacher = rng.normal(0, 3, (ROWS, VOCABULARY))
    student = teacher + rng.normal(size=teacher.shape)
    return student.astype(np.float32), teacher.astype(np.float32)


def truth(loss, student, teacher, *args, **kwargs):
    wide = (np.asarray(a, dtype=np.float64) for a in (student, teacher))
    return loss.value_and_grad(*wide, *args, backend="reference", **kwargs)


def assert_near(value, grad, wanted, wanted_grad, bound=16.0):
    np.testing.assert_allclose(value, wanted, rtol=bound * EPS)
    scale = np.abs(wanted_grad).max(axis=-1, keepdims=True)
    error = np.abs(np.asarray(grad, dtype=np.float64) - wanted_grad)
    assert (error <= bound * EPS * scale).all()


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_value_and_gradient_under_jit(loss, logits, calls):
    compiled = partial(loss, backend="compiled")
    value, grad = jax.jit(jax.value_and_grad(compiled))(*logits)
    assert_near(value, grad, *truth(loss, *logits))
    assert len(calls) == 1


def test_outside_jit_and_by_value_and_grad(logits, calls):
    loss = LOSSES["KL pr"]
    arrays = [jnp.asarray(a) for a in logits]
    value, grad = loss.value_and_grad(*arrays, backend="compiled")
    assert_near(value, grad, *truth(loss, *logits))
    assert_near(loss(*arrays, backend="compiled"), grad, *truth(loss, *logits))
    assert len(calls) == 2


def test_large_inputs_need_not_ask(calls):
    student = jnp.zeros((2, 40_000))
    am.AMiD()(student, student).block_until_ready()
    assert len(calls) == 1
    am.AMiD()(student, student, backend="reference").block_until_ready()
    am.AMiD()(student[:, :1000], student[:, :1000]).block_until_ready()
    assert len(calls) == 1


def test_vmap_over_batches(logits):
    loss = LOSSES["AB rq"]
    student, teacher = (jnp.stack([a, a[::-1], 0.5 * a]) for a in map(jnp.asarray, logits))
    grads = jax.vmap(jax.grad(partial(loss, backend="compiled")))(student, teacher)
    for j in range(3):
        _, wanted = truth(loss, student[j], teacher[j])
        assert_near(0.0, grads[j], 0.0, wanted)


def test_forward_mode_is_the_gradient_times_the_tangent(logits):
    loss = partial(LOSSES["KL pr"], backend="compiled")
    student, teacher = (jnp.asarray(a) for a in logits)
    tangent = jnp.asarray(np.random.default_rng(1).normal(size=student.shape), dtype=jnp.float32)
    value, moved = jax.jvp(lambda s: loss(s, teacher), (student,), (tangent,))
    _, wanted = truth(LOSSES["KL pr"], *logits)
    assert float(moved) == pytest.approx(float((wanted * np.asarray(tangent)).sum()), rel=1e-5)
    assert float(value) > 0.0


def test_masked_rows_are_never_read(logits):
    student, teacher = (a.copy() for a in logits)
    mask = np.array([True, False, True])
    student[1], teacher[1] = np.nan, np.nan
    loss = LOSSES["KL pr"]
    value, grad = jax.value_and_grad(partial(loss, backend="compiled"))(
        jnp.asarray(student), jnp.asarray(teacher), jnp.asarray(mask)
    )
    wanted, wanted_grad = truth(loss, *(a[mask] for a in logits))
    assert_near(value, grad[mask], wanted, wanted_grad)
    assert (grad[1] == 0.0).all()


def test_knobs_and_teacher(logits):
    alpha = np.array([-1.0, 0.5, 3.0], dtype=np.float32)
    wrt = ("student", "teacher", "alpha")
    loss = am.AMiD(alpha=jnp.asarray(alpha), lam=0.3)
    got = loss.value_and_grad(*map(jnp.asarray, logits), wrt=wrt, backend="compiled")
    wanted = truth(am.AMiD(alpha=alpha.astype(np.float64), lam=0.3), *logits, wrt=wrt)
    for grad, expected in zip(got[1], wanted[1], strict=True):
        assert_near(got[0], grad, wanted[0], expected, bound=64.0)


def test_bfloat16(logits):
    arrays = [jnp.asarray(a, dtype=jnp.bfloat16) for a in logits]
    value, grad = jax.value_and_grad(partial(am.AMiD(), backend="compiled"))(*arrays)
    assert (value.dtype, grad.dtype) == (jnp.float32, jnp.bfloat16)
    wanted, wanted_grad = truth(am.AMiD(), *arrays)
    np.testing.assert_allclose(value, wanted, rtol=16 * EPS)
    scale = np.abs(wanted_grad).max(axis=-1, keepdims=True)
    assert (np.abs(np.asarray(grad, dtype=np.float64) - wanted_grad) <= 2.0**-8 * scale).all()


def test_an_error_inside_is_told(logits, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("the kernel is out of order")

    monkeypatch.setattr(llvm_kernels, "run", broken)
    with pytest.raises(Exception, match="RuntimeError: the kernel is out of order"):
        am.AMiD()(*map(jnp.asarray, logits), backend="compiled").block_until_ready()


def test_other_numbers_are_another_call(logits):
    """A compiled program names what it calls by a digest of its numbers, too."""
    values = [
        float(jax.jit(partial(am.AMiD(lam=lam), backend="compiled"))(*logits)) for lam in (0.1, 0.2)
    ]
    wanted = [float(truth(am.AMiD(lam=lam), *logits)[0]) for lam in (0.1, 0.2)]
    assert values == pytest.approx(wanted, rel=1e-5)
