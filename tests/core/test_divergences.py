"""Divergences by themselves: values, partial derivatives, limits, zeros and infinities."""

from __future__ import annotations

import math

import numpy as np
import pytest

import amidmath as am

INF = math.inf
DIVERGENCES = {
    "KL": am.KL(),
    "reverse KL": am.ReverseKL(),
    **{
        f"AB({a:g},{b:g})": am.AlphaBeta(a, b)
        for a, b in (
            *((0.2, 0.7), (0.5, 0.5), (1.0, 1.0), (3.0, 2.0)),
            *((1.0, 0.0), (0.0, 1.0), (0.4, 0.0), (0.0, -0.3), (-2.0, 0.0)),
            *((1.0, -1.0), (-0.5, 0.5), (0.0, 0.0)),
            *((2.0, -0.5), (-0.5, 2.0), (0.5, -2.0), (-2.0, 0.5), (-0.3, -0.4)),
            # next to a limit on either side
            *((1e-9, 0.7), (-1e-9, 0.7), (0.7, 1e-9), (0.7, -1e-9)),
            *((0.5, -0.5 + 1e-9), (1e-9, 1e-9), (1e-9, -1e-9), (1e-9, -3e-9)),
            # where exact zeros begin to stand for what underflows
            *((1e-21, 0.5), (0.5, 1e-19), (1e-200, 1e-210)),
        )
    },
}
by_divergence = pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES)


def name(divergence):
    return (type(divergence).__name__, *divergence.params)


def log_probabilities(dtype, noise=None):
    """Rows of log x and log y, unrelated, or y equal to x but for noise in its logits."""
    rng = np.random.default_rng(11)
    x, y, small = rng.normal(size=(3, 4, 4)) * 2
    y = y if noise is None else x + noise * small / 2
    return [(a - np.log(np.exp(a).sum(axis=-1, keepdims=True))).astype(dtype) for a in (x, y)]


@by_divergence
def test_value_and_partials(library, oracle, divergence):
    """Values to 16 eps, partials to 16 eps of the largest, with logarithms as they are given.

    An exponent a·log x + b·log y of size s is known to eps·s, and so is its power.
    """
    x, y = log_probabilities(library.dtype)
    value, grads = divergence.value_and_grad(library.array(x), library.array(y))
    value, grads = library.numpy(value), [library.numpy(g) for g in grads]
    span = max(1.0, sum(map(abs, divergence.params or (1.0,)))) * max(-x.min(), -y.min())
    for row, (u, v) in enumerate(zip(oracle.exact(x), oracle.exact(y), strict=True)):
        wanted = oracle.divergence(name(divergence), u, v, simplex=False)
        bound = (16 + span) * library.eps
        assert oracle.error(value[row], wanted) <= bound * float(wanted) + library.tiny
        partials = oracle.partials(name(divergence), u, v)
        scale = max(float(abs(p)) for side in partials for p in side)
        for got, side in zip(grads, partials, strict=True):
            assert got.dtype == library.dtype
            assert oracle.error(got[row], side).max() <= bound * scale + library.tiny, divergence


@by_divergence
def test_near_equality(any_library, oracle, divergence):
    """Noise of 1e-2 to 1e-8: as precise as the logarithms given, and never negative.

    In float32 at noise 1e-4 the three-sum form is off by a factor of 370, Σ x log(x/y) by 18.
    """
    x, y = log_probabilities(any_library.dtype, np.array([[1e-2], [1e-4], [1e-6], [1e-8]]))
    value, grads = divergence.value_and_grad(any_library.array(x), any_library.array(y))
    value, grads = any_library.numpy(value), [any_library.numpy(g) for g in grads]
    assert np.all(value >= 0.0)
    bound = (16 + max(-x.min(), 1.0) * max(1.0, sum(map(abs, divergence.params)))) * any_library.eps
    for row, (u, v) in enumerate(zip(oracle.exact(x), oracle.exact(y), strict=True)):
        wanted = oracle.divergence(name(divergence), u, v, simplex=False)
        assert oracle.error(value[row], wanted) <= bound * float(wanted) + any_library.tiny
        partials = oracle.partials(name(divergence), u, v)
        scale = max(float(abs(p)) for side in partials for p in side)
        for got, side in zip(grads, partials, strict=True):
            assert oracle.error(got[row], side).max() <= bound * scale + any_library.tiny


@by_divergence
def test_zero_at_equality(any_library, divergence):
    x = any_library.array([[-0.5, -1.5, -30.0, -INF], [-INF, 0.0, -INF, -INF]] * 2)
    value, grads = divergence.value_and_grad(x, x)
    np.testing.assert_array_equal(any_library.numpy(value), 0.0)
    for grad in grads:
        np.testing.assert_array_equal(any_library.numpy(grad), 0.0)


@by_divergence
def test_zeros(any_library, oracle, divergence):
    """-inf on one side, the other, or both: what the definition tends to, +inf where it does."""
    full, teacher = (-0.7, -1.2, -2.0, -INF), (-0.9, -1.1, -INF, -INF)
    student = (-INF, -0.4, -1.2, -INF)
    xs = np.array([full, teacher, teacher, student], any_library.dtype)
    ys = np.array([student, full, student, teacher], any_library.dtype)
    values, partials = divergence.value_and_grad(any_library.array(xs), any_library.array(ys))
    values, partials = any_library.numpy(values), [any_library.numpy(g) for g in partials]
    for row, (x, y) in enumerate(zip(xs, ys, strict=True)):
        rows, value = (oracle.exact(x), oracle.exact(y)), values[row]
        wanted = oracle.divergence(name(divergence), *rows, simplex=False)
        assert value >= 0.0, (divergence, x, y)
        # Above 1e20: the exponents that count as zero.
        if wanted > 1e20:
            assert value == INF, (divergence, x, y)
            continue
        assert oracle.error(value, wanted) <= 16 * any_library.eps * float(wanted)
        for got, side in zip(partials, oracle.partials(name(divergence), *rows), strict=True):
            scale = max(float(abs(p)) for p in side)
            bound = 16 * any_library.eps * scale + any_library.tiny
            assert oracle.error(got[row], side).max() <= bound


@by_divergence
def test_overflow_is_infinite_and_not_nan(any_library, divergence):
    """Logarithms so far apart, or so low, that powers of them overflow."""
    far = 2000.0
    same = (-far, 0, 1, -1)
    x = [(0, -far, -far, 0), (0, -far, 0, 0), (-1, -2, 0, -far), same]
    y = [(-far, 0, -far, 0), (-far, -far, 0, 0), (0, -far, -far, 0), same]
    value = any_library.numpy(divergence(any_library.array(x), any_library.array(y)))
    assert np.all(value >= 0.0), divergence
    assert value[-1] == 0.0, divergence


@pytest.mark.parametrize(
    ("special", "general"),
    [
        (am.KL(), am.AlphaBeta(1.0, 0.0)),
        (am.ReverseKL(), am.AlphaBeta(0.0, 1.0)),
    ],
    ids=["KL", "reverse KL"],
)
def test_members_of_the_family(any_library, special, general):
    x, y = (any_library.array(a) for a in log_probabilities(any_library.dtype))
    (value, grads), (wanted, wanted_grads) = (
        special.value_and_grad(x, y),
        general.value_and_grad(x, y),
    )
    for a, b in zip((value, *grads), (wanted, *wanted_grads), strict=True):
        np.testing.assert_allclose(
            any_library.numpy(a), any_library.numpy(b), rtol=8 * any_library.eps
        )


@pytest.mark.parametrize(("a", "b"), [(0.2, 0.7), (2.0, -0.5), (1.0, 0.0), (0.3, -0.3)])
def test_duality(a, b):
    """D_AB(x‖y) with (a, b) is D_AB(y‖x) with (b, a)."""
    x, y = log_probabilities("float64")
    np.testing.assert_allclose(am.AlphaBeta(a, b)(x, y), am.AlphaBeta(b, a)(y, x), rtol=1e-14)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_axis(any_library, axis):
    rng = np.random.default_rng(0)
    x, y = -rng.random((2, 2, 2, 2)).astype(any_library.dtype)
    divergence = am.AlphaBeta(0.2, 0.7)
    value, grads = divergence.value_and_grad(any_library.array(x), any_library.array(y), axis=axis)
    last = [np.ascontiguousarray(np.moveaxis(a, axis, -1)) for a in (x, y)]
    wanted, wanted_grads = divergence.value_and_grad(*(any_library.array(a) for a in last))
    np.testing.assert_array_equal(any_library.numpy(value), any_library.numpy(wanted))
    for got, grad in zip(grads, wanted_grads, strict=True):
        np.testing.assert_array_equal(
            any_library.numpy(got), np.moveaxis(any_library.numpy(grad), -1, axis)
        )
    called = divergence(any_library.array(x), any_library.array(y), axis=axis)
    np.testing.assert_array_equal(any_library.numpy(called), any_library.numpy(value))


@pytest.mark.parametrize(
    "divergence", [am.KL(), am.ReverseKL(), am.AlphaBeta(0.2, 0.7), am.AlphaBeta(1.0, -1.0)]
)
def test_differentiation_gives_the_partials(autodiff, divergence):
    """And scales them by what is done with the value afterwards."""
    x, y = (autodiff.array(a) for a in log_probabilities(autodiff.dtype))
    cotangent = np.array([1.0, -2.0, 0.5, 3.0])
    value, grads = autodiff.derivatives(divergence, x, y, cotangent=cotangent)
    wanted, partials = divergence.value_and_grad(x, y)
    np.testing.assert_allclose(value, autodiff.numpy(wanted), rtol=4 * autodiff.eps)
    for grad, partial in zip(grads, partials, strict=True):
        np.testing.assert_allclose(
            grad, autodiff.numpy(partial) * cotangent[:, None], rtol=8 * autodiff.eps
        )


def test_immutable_hashable_and_equal_by_value():
    assert am.KL() == am.KL()
    assert am.AlphaBeta(0.2, 0.7) == am.AlphaBeta(0.2, np.float64(0.7)) != am.AlphaBeta(0.7, 0.2)
    assert len({am.AlphaBeta(1, 0), am.AlphaBeta(1.0, 0.0), am.KL()}) == 2
    with pytest.raises(AttributeError):
        am.AlphaBeta(0.2, 0.7).alpha = 1.0
