"""The compiled rows of the CPU held against the array core in double precision."""

from __future__ import annotations

import numpy as np

import amidmath as am

ROWS, VOCABULARY = 5, 1003
KL = am.AMiD()
WHOLE = am.AMiD(am.AlphaBeta(0.2, 0.7), order="qr", alpha=3.0, lam=0.3, temperature=2.0)
BOTH = ("student", "teacher")


def logits(rows=ROWS, vocabulary=VOCABULARY, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    teacher = rng.normal(0, 3, (rows, vocabulary))
    student = teacher + rng.normal(size=teacher.shape)
    return student.astype(dtype), teacher.astype(dtype)


def truth(loss, student, teacher, **given):
    """The core's, in double precision."""
    wide = (np.asarray(a, dtype=np.float64) for a in (student, teacher))
    return loss.value_and_grad(*wide, backend="reference", **given)


def assert_near(got, wanted, dtype=np.float32, bound=16.0):
    """Values within eps of themselves, gradients within eps of the largest of their row."""
    (value, grads), (wanted_value, wanted_grads) = got, wanted
    computing = np.finfo(np.float64 if dtype == np.float64 else np.float32)
    eps = float(computing.eps)
    np.testing.assert_allclose(value, wanted_value, rtol=bound * eps, atol=bound * eps * 1e-3)
    if not isinstance(grads, tuple):
        grads, wanted_grads = (grads,), (wanted_grads,)
    for grad, truth in zip(grads, wanted_grads, strict=True):
        returned = float(np.finfo(grad.dtype).eps)
        scale = np.abs(truth).max(axis=-1, keepdims=truth.ndim > 1)
        error = np.abs(np.asarray(grad, dtype=np.float64) - truth)
        smallest = float(np.finfo(grad.dtype).smallest_subnormal)
        assert (error <= bound * eps * scale + returned * np.abs(truth) + smallest).all()


def compare(loss, student, teacher, bound=16.0, **given):
    got = loss.value_and_grad(student, teacher, backend="compiled", **given)
    assert_near(got, truth(loss, student, teacher, **given), student.dtype, bound)
    return got
