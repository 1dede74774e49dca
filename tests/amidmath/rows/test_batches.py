"""Batch axes that broadcast, in means and geometry, and shapes that do not go together."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from pairs_oracle import by_pairs, log_probs

import amidmath as am
from amidmath import geometry


def close(library, got, wanted):
    got = library.numpy(got)
    assert got.shape == wanted.shape
    scale = np.abs(wanted).max(initial=1.0)
    np.testing.assert_allclose(got, wanted, rtol=64 * library.eps, atol=16 * library.eps * scale)


# ---------------------------------------------------------------------------------------------
# Means and geometry

P, Q = log_probs((4, 1, 3)), log_probs((5, 3), seed=1)
U = np.random.default_rng(5).normal(size=(5, 3))
ELEMENTWISE = {
    "alpha_mixture": (partial(am.alpha_mixture, alpha=3.0, lam=0.3), (P, Q)),
    "not normalised": (partial(am.alpha_mixture, alpha=1.0, lam=0.3, normalize=False), (P, Q)),
    "geodesic": (partial(geometry.geodesic, t=0.25, alpha=-1.0), (P, Q)),
    "overlap": (geometry.overlap, (P, Q)),
    "covering": (lambda p, q: geometry.mode_report(p, q, alpha=0.5, lam=0.3).covering, (P, Q)),
    "student_weight": (
        lambda p, q: geometry.mode_report(p, q, alpha=0.5, lam=0.3).student_weight,
        (P, Q),
    ),
    "fisher_metric": (lambda p, u: geometry.fisher_metric(p, u, u), (P, U)),
    "amari_chentsov": (lambda p, u: geometry.amari_chentsov(p, u, u, u), (P, U)),
    "connection": (lambda p, u: geometry.connection(p, u, u, alpha=-1.0), (P, U)),
    "natural_gradient": (partial(geometry.natural_gradient, damping=0.1), (P, U)),
}


@pytest.mark.parametrize(("f", "arrays"), ELEMENTWISE.values(), ids=ELEMENTWISE)
def test_means_and_geometry(any_library, f, arrays):
    close(any_library, f(*(any_library.array(a) for a in arrays)), by_pairs(f, *arrays, -1))


@pytest.mark.parametrize(("f", "arrays"), ELEMENTWISE.values(), ids=ELEMENTWISE)
def test_gradients_of_means_and_geometry(any_autodiff, f, arrays):
    """Those of the loop: each pair's by torch in float64, summed."""
    shape = by_pairs(f, *arrays, -1).shape
    counts = np.random.default_rng(6).normal(size=shape)
    totals = [np.zeros(a.shape) for a in arrays]
    for i, j in np.ndindex(4, 5):
        rows = [torch.from_numpy(arrays[0][i, 0]), torch.from_numpy(arrays[1][j])]
        leaves = [a.clone().requires_grad_() for a in rows]
        grads = torch.autograd.grad(f(*leaves), leaves, torch.as_tensor(counts[i, j]))
        totals[0][i, 0] += grads[0].numpy()
        totals[1][j] += grads[1].numpy()
    here = [any_autodiff.array(a) for a in arrays]
    _, given = any_autodiff.derivatives(f, *here, cotangent=counts)
    for got, wanted in zip(given, totals, strict=True):
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=200 * any_autodiff.eps)


def test_knobs_broadcast_with_the_positions_that_result(any_library):
    alphas, lams = np.array([-1.0, 1.0, 3.0, 0.5])[:, None], np.linspace(0.1, 0.9, 5)
    wanted = np.empty((4, 5, 3))
    for i, j in np.ndindex(4, 5):
        knobs = {"alpha": float(alphas[i, 0]), "lam": float(lams[j])}
        wanted[i, j] = am.alpha_mixture(P[i, 0], Q[j], **knobs)
    arrays = [any_library.array(a) for a in (P, Q, alphas, lams)]
    got = am.alpha_mixture(*arrays[:2], alpha=arrays[2], lam=arrays[3])
    close(any_library, got, wanted)
    got = geometry.geodesic(arrays[1], arrays[0], arrays[3], alpha=arrays[2])  # λ weighs the end
    close(any_library, got, wanted)


# ---------------------------------------------------------------------------------------------
# Refusals

TWO = {
    "divergence": am.KL(),
    "value_and_grad": am.KL().value_and_grad,
    "alpha_mixture": partial(am.alpha_mixture, alpha=1.0, lam=0.5),
    "geodesic": partial(geometry.geodesic, t=0.5, alpha=1.0),
    "overlap": geometry.overlap,
    "mode_report": partial(geometry.mode_report, alpha=1.0, lam=0.5),
    "natural_gradient": geometry.natural_gradient,
}


@pytest.mark.parametrize("call", TWO.values(), ids=TWO)
@pytest.mark.parametrize(
    ("shapes", "axis", "words"),
    [
        (((2, 3), (2, 1)), -1, ["same number of outcomes", "axis -1", "(2, 3)", "(2, 1)"]),
        (((1,), (2, 3)), -1, ["same number of outcomes", "(1,)", "(2, 3)"]),
        (((4, 2), (4, 3)), -1, ["same number of outcomes", "(4, 2)", "(4, 3)"]),
        (((4, 3), (2, 3)), -1, ["batch axes that broadcast", "axis -1", "(4, 3)", "(2, 3)"]),
        (((3, 4), (3, 2)), 0, ["batch axes that broadcast", "axis 0", "(3, 4)", "(3, 2)"]),
        (((2, 2, 3), (3, 3)), -1, ["batch axes that broadcast", "(2, 2, 3)", "(3, 3)"]),
        (((2, 3), (3,)), 1, ["axis", "[-1, 0]", "1"]),
        (((2, 0), (0,)), -1, ["an outcome", "(2, 0)"]),
    ],
    ids=str,
)
def test_shapes_that_do_not_go_together(eager, call, shapes, axis, words):
    arrays = [eager(np.full(s, -np.log(max(1, s[axis if axis < len(s) else 0])))) for s in shapes]
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        call(*arrays, axis=axis)
    for word in words:
        assert word in str(raised.value), str(raised.value)
