"""What JAX differentiates operation by operation."""

from __future__ import annotations

import jax
import numpy as np

import amidmath as am

AB = am.AMiD(am.AlphaBeta(0.2, 0.7), order="qr", alpha=3.0, lam=0.3)


def test_hessian():
    rng = np.random.default_rng(0)
    student, teacher = (2.0 * rng.normal(size=(1, 4)) for _ in "st")
    with jax.enable_x64(True):
        target = jax.numpy.asarray(teacher)
        of = jax.hessian(lambda s: AB(s, target, backend="reference"))
        got = of(jax.numpy.asarray(student))
    step = 1e-5
    wanted = np.zeros((4, 4))
    for i in range(4):
        shift = step * np.eye(4)[i]
        up, down = (AB.value_and_grad(student + d, teacher)[1][0] for d in (shift, -shift))
        wanted[i] = (up - down) / (2 * step)
    np.testing.assert_allclose(np.reshape(got, (4, 4)), wanted, rtol=1e-6, atol=1e-9)
