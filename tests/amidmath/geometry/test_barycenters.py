"""Barycentres, Jensen divergences and α-geodesics against their definitions (docs: geometry)."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest

from amidmath import geometry

ALPHAS = (-math.inf, -5.0, -3.0, -1.0, 0.0, 1 - 1e-9, 1.0, 1 + 1e-12, 3.0, 50.0, math.inf)
WEIGHTS = {2: (0.3, 0.7), 3: None, 5: (0.1, 0.2, 0.0, 0.3, 0.4)}
NINF = -math.inf


def sources(count, dtype="float64", outcomes=4, near=False):
    """Log-probabilities of K distributions, far from each other, or equal to 1e-3."""
    rng = np.random.default_rng(count)
    logits = rng.normal(size=(count, outcomes)) * 2
    if near:
        logits = logits[:1] + 1e-3 * rng.normal(size=(count, outcomes))
    return (logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))).astype(dtype)


def exact_weights(oracle, count):
    weights = oracle.exact(WEIGHTS[count] or (1.0,) * count)
    return tuple(w / sum(weights) for w in weights)


def exact_sources(oracle, logs):
    """Probabilities that sum to 1 exactly, next to those of the rounded logarithms."""
    rows = [[oracle.mp.exp(v) for v in row] for row in oracle.exact(logs)]
    return [tuple(x / sum(row) for x in row) for row in rows]


def mean_of(oracle, points, weights, alpha):
    """The normalised f_α-mean and its total Z."""
    mean = [oracle.mean(column, weights, alpha) for column in zip(*points, strict=True)]
    total = oracle.mp.fsum(mean)
    return tuple(x / total for x in mean), total


def alpha_divergence(oracle, x, y, alpha):
    """D_α as it is defined, for positive distributions."""
    mp = oracle.mp
    if alpha == -1:
        return mp.fsum(a * mp.log(a / b) for a, b in zip(x, y, strict=True))
    if alpha == 1:
        return alpha_divergence(oracle, y, x, -1)
    a = mp.mpf(alpha)
    affinity = mp.fsum(u ** ((1 - a) / 2) * v ** ((1 + a) / 2) for u, v in zip(x, y, strict=True))
    return 4 / (1 - a * a) * (1 - affinity)


def objective(oracle, points, weights, alpha, r):
    return oracle.mp.fsum(
        w * alpha_divergence(oracle, p, r, alpha) for w, p in zip(weights, points, strict=True)
    )


@pytest.mark.parametrize("alpha", [-5.0, -1.0, 0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_normalised_mean_is_the_argmin(oracle, count, alpha):
    """At 60 digits: no slope and a rise in every direction, and the value of I2."""
    mp = oracle.mp
    points, weights = exact_sources(oracle, sources(count)), exact_weights(oracle, count)
    r, total = mean_of(oracle, points, weights, alpha)
    least = objective(oracle, points, weights, alpha, r)
    step = mp.mpf(10) ** -15
    directions = [
        tuple((j == a) - (j == b) for j in range(len(r)))
        for a, b in itertools.combinations(range(len(r)), 2)
    ]
    rng = np.random.default_rng(1)
    for draw in rng.normal(size=(4, len(r))):
        drawn = oracle.exact(draw)
        directions.append(tuple(d - sum(drawn) / len(r) for d in drawn))
    for direction in directions:
        up, down = (
            objective(
                oracle,
                points,
                weights,
                alpha,
                tuple(x + s * d for x, d in zip(r, direction, strict=True)),
            )
            for s in (step, -step)
        )
        assert up > least
        assert down > least
        assert abs(up - down) / (2 * step) < mp.mpf(10) ** -24
    k = (1 - mp.mpf(alpha)) / 2
    if alpha == 1:
        wanted = -mp.log(total)
    elif alpha == -1:  # the generalised Jensen-Shannon divergence

        def entropy(x):
            return -mp.fsum(v * mp.log(v) for v in x)

        mixed = [mp.fdot(weights, column) for column in zip(*points, strict=True)]
        wanted = entropy(mixed) - mp.fdot(weights, [entropy(p) for p in points])
    else:
        wanted = (1 - total**k) / (k * (1 - k))
    assert abs(least - wanted) < mp.mpf(10) ** -50
    # What the library returns is that point: it misses the least value by the square of a rounding.
    got = np.exp(geometry.barycenter(sources(count), alpha=alpha, weights=WEIGHTS[count]))
    got = oracle.exact(got)
    excess = objective(oracle, points, weights, alpha, tuple(x / sum(got) for x in got)) - least
    assert 0 <= excess < 1e-28


@pytest.mark.parametrize("count", [2, 3, 5])
def test_barycenter(library, oracle, count):
    """Within 4 eps·max(1, |log p|)."""
    logs = sources(count, library.dtype)
    rows = [[oracle.mp.exp(v) for v in row] for row in oracle.exact(logs)]
    bound = 4 * library.eps * np.maximum(1.0, np.abs(logs).max(axis=0))
    for alpha in ALPHAS:
        got = geometry.barycenter(library.array(logs), alpha=alpha, weights=WEIGHTS[count])
        r, _ = mean_of(oracle, rows, exact_weights(oracle, count), alpha)
        error = oracle.error(library.numpy(got), [oracle.mp.log(x) for x in r])
        assert np.all(error <= bound), f"α={alpha}: {(error / bound).max():.2f} of the bound"


@pytest.mark.parametrize("near", [False, True], ids=["far", "near"])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_jensen_divergence(library, oracle, count, near):
    """Within 4 eps·(1 + |1-k|·max|log p|) of itself, and the square of the rounding of log r."""
    logs = sources(count, library.dtype, near=near)
    points, weights = exact_sources(oracle, logs), exact_weights(oracle, count)
    span = max(1.0, float(np.abs(logs).max()))
    for alpha in (-5.0, -1.0, -1 + 1e-9, 0.0, 1 - 1e-9, 1.0, 3.0):
        r, _ = mean_of(oracle, points, weights, alpha)
        with oracle.mp.workdps(90):
            wanted = objective(oracle, points, weights, alpha, r)
        got = geometry.jensen_divergence(library.array(logs), alpha=alpha, weights=WEIGHTS[count])
        error = oracle.error(library.numpy(got), wanted)
        bound = 4 * library.eps * (1 + abs(1 + alpha) / 2 * span) * float(wanted)
        assert error <= bound + 4 * (library.eps * span) ** 2, f"α={alpha}: {error / bound}"


def test_any_axes(any_library):
    """Sources and outcomes may lie along any two axes."""
    rng = np.random.default_rng(4)
    logits = rng.normal(size=(2, 3, 4))
    logs = (logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))).astype(any_library.dtype)
    for f in (geometry.barycenter, geometry.jensen_divergence):
        call = any_library.compiled(functools.partial(f, alpha=0.0, axis=1))
        wanted = any_library.numpy(call(any_library.array(logs)))
        assert wanted.shape == ((2, 4) if f is geometry.barycenter else (2,))
        for order in ((1, 0, 2), (2, 1, 0), (0, 2, 1)):
            turned = any_library.array(np.ascontiguousarray(logs.transpose(order)))
            axes = {"axis": order.index(1), "outcomes": order.index(2) - 3}
            call = any_library.compiled(functools.partial(f, alpha=0.0, **axes))
            got = any_library.numpy(call(turned))
            if f is geometry.barycenter and order.index(0) > order.index(2):
                got = got.T
            np.testing.assert_allclose(got, wanted, atol=8 * any_library.eps)


def test_supports_of_barycenters(any_library):
    """The union of the supports for α < 1, the intersection for α >= 1; no weight, no say."""
    half = math.log(0.5)
    logs = any_library.array(
        [[half, half, NINF, NINF], [NINF, half, half, NINF], [NINF, NINF, NINF, 0.0]]
    )
    for alpha in ALPHAS:
        arguments = {"alpha": alpha, "weights": (0.5, 0.5, 0.0)}
        r = np.exp(any_library.numpy(geometry.barycenter(logs, **arguments)))
        assert math.isclose(r.sum(), 1.0, rel_tol=4 * any_library.eps)
        assert r[3] == 0.0
        if alpha >= 1:
            np.testing.assert_array_equal(r, [0.0, 1.0, 0.0, 0.0], str(alpha))
        if math.isfinite(alpha):
            value = any_library.numpy(geometry.jensen_divergence(logs, **arguments))
            assert math.isfinite(value), alpha
    value = any_library.numpy(geometry.jensen_divergence(logs, alpha=-1.0, weights=(0.5, 0.5, 0.0)))
    assert math.isclose(value, 0.5 * math.log(2), rel_tol=8 * any_library.eps)
    value = any_library.numpy(geometry.jensen_divergence(logs, alpha=1.0, weights=(0.5, 0.5, 0.0)))
    assert math.isclose(value, math.log(2), rel_tol=8 * any_library.eps)


def test_disjoint_sources_have_no_barycenter(any_library):
    """At α >= 1: all of log r is -inf and J is +inf."""
    logs = any_library.array([[0.0, NINF], [NINF, 0.0]])
    for alpha in (1.0, 3.0):
        log_r = any_library.numpy(geometry.barycenter(logs, alpha=alpha))
        np.testing.assert_array_equal(log_r, NINF)
        assert any_library.numpy(geometry.jensen_divergence(logs, alpha=alpha)) == math.inf


@pytest.mark.parametrize("alpha", [-5.0, -1.0, 0.0, 1.0, 3.0])
def test_gradients(autodiff, oracle, alpha):
    """Of c·log r and of J, by differences of the definition along directions of the simplex."""
    mp = oracle.mp
    logs = sources(3, autodiff.dtype)
    weights, c = exact_weights(oracle, 3), oracle.exact([0.5, -1.0, 2.0, 0.25])
    direction = oracle.exact(np.random.default_rng(0).normal(size=logs.shape))
    step = mp.mpf(10) ** -20

    def exact_sources_of(rows):
        rows = [[mp.exp(v) for v in row] for row in rows]
        return [tuple(x / sum(row) for x in row) for row in rows]

    def point(s):
        pairs = zip(base, direction, strict=True)
        return exact_sources_of([[v + s * d for v, d in zip(*pair, strict=True)] for pair in pairs])

    base = oracle.exact(logs)
    at = exact_sources_of(base)
    # The logarithms of normalised points move along the direction less its mean.
    tangent = np.array(
        [[float(d - mp.fdot(p, row)) for d in row] for p, row in zip(at, direction, strict=True)]
    )

    def total(s):
        r, _ = mean_of(oracle, point(s), weights, alpha)
        return mp.fdot(c, [mp.log(x) for x in r])

    def jensen(s):
        r, _ = mean_of(oracle, point(s), weights, alpha)
        return objective(oracle, point(s), weights, alpha, r)

    array = autodiff.array(logs)
    _, (grad,) = autodiff.derivatives(
        lambda a: geometry.barycenter(a, alpha=alpha),
        array,
        cotangent=np.array(c, float).astype(autodiff.dtype),
    )
    slope = float((total(step) - total(-step)) / (2 * step))
    assert abs(np.vdot(grad.astype(float), tangent) - slope) <= 64 * autodiff.eps
    _, (grad,) = autodiff.derivatives(lambda a: geometry.jensen_divergence(a, alpha=alpha), array)
    slope = float((jensen(step) - jensen(-step)) / (2 * step))
    assert abs(np.vdot(grad.astype(float), tangent) - slope) <= 64 * autodiff.eps * max(1, slope)


@pytest.mark.parametrize("alpha", [-3.0, -1.0, 1.0, 3.0])
def test_gradients_are_finite_where_sources_are_zero(any_autodiff, alpha):
    half = math.log(0.5)
    for rows in (
        [[half, half, NINF, NINF], [NINF, half, half, NINF]],
        [[0.0, NINF, NINF, NINF], [NINF, 0.0, NINF, NINF]],
    ):
        logs = any_autodiff.array(rows)
        for weights in ((0.5, 0.5), (1.0, 0.0)):
            for f in (geometry.barycenter, geometry.jensen_divergence):
                _, (grad,) = any_autodiff.derivatives(
                    lambda a, f=f, w=weights: f(a, alpha=alpha, weights=w), logs
                )
                assert not np.isnan(grad).any(), (f.__name__, alpha, rows, weights, grad)


def test_weights_may_be_an_array(any_autodiff):
    logs = any_autodiff.array(sources(2, any_autodiff.dtype))
    weights = any_autodiff.array([0.3, 0.7])
    for f in (geometry.barycenter, geometry.jensen_divergence):
        of = any_autodiff.compiled(lambda w, f=f: f(logs, alpha=0.0, weights=w))
        value, (grad,) = any_autodiff.derivatives(of, weights)
        given = any_autodiff.compiled(functools.partial(f, alpha=0.0, weights=(0.3, 0.7)))
        wanted = any_autodiff.numpy(given(logs))
        np.testing.assert_allclose(value, wanted, rtol=16 * any_autodiff.eps)
        assert np.isfinite(grad).all()


# ---------------------------------------------------------------------------------------------
# Geodesics


def test_geodesic(library, oracle):
    """The line in the α-representation, normalised, at its ends and between."""
    log_p, log_q = logs = sources(2, library.dtype)
    bound = 4 * library.eps * np.maximum(1.0, np.abs(logs).max(axis=0))
    rows = oracle.exact(logs)
    for alpha in ALPHAS:
        for t in (0.0, 1e-12, 0.25, 1 - 1e-6, 1.0):
            got = geometry.geodesic(library.array(log_p), library.array(log_q), t, alpha=alpha)
            wanted, _ = oracle.log_assistant(rows[1], rows[0], alpha, t)
            error = oracle.error(library.numpy(got), wanted)
            assert np.all(error <= 1.5 * bound), (alpha, t, (error / bound).max())


@pytest.mark.parametrize("alpha", [-5.0, -1.0, 0.0, 0.5, 1.0, 3.0])
def test_the_line_is_a_geodesic_of_the_alpha_connection(oracle, alpha):
    """∇_γ' γ' = -2k (log Z)' γ' at 60 digits, with the connection as the tests of it define it."""
    mp = oracle.mp
    points = exact_sources(oracle, sources(2))
    log_p, log_q = (tuple(mp.log(x) for x in p) for p in points)
    h, k = mp.mpf(10) ** -14, (1 - mp.mpf(alpha)) / 2

    def at(t):
        return oracle.log_assistant(log_q, log_p, alpha, t)

    for t in (0.125, 0.5, 0.75):
        (before, z_before), (here, _), (after, z_after) = (at(mp.mpf(t) + s) for s in (-h, 0, h))
        r = [mp.exp(v) for v in here]
        velocity = [(b - a) / (2 * h) for a, b in zip(before, after, strict=True)]
        second = [(a - 2 * x + b) / h**2 for a, x, b in zip(before, here, after, strict=True)]
        square = [(1 - mp.mpf(alpha)) / 2 * v * v for v in centred(mp, r, velocity)]
        acceleration = centred(mp, r, [a + b for a, b in zip(second, square, strict=True)])
        velocity = centred(mp, r, velocity)
        factor = -2 * k * (z_after - z_before) / (2 * h)
        off = max(abs(a - factor * v) for a, v in zip(acceleration, velocity, strict=True))
        assert off < mp.mpf(10) ** -20
        assert max(map(abs, velocity)) > 0.1  # else the above would say nothing


def centred(mp, r, u):
    return [x - mp.fdot(r, u) for x in u]


def test_geodesic_at_many_positions(any_library):
    """An array of t moves each row to a position of its own."""
    logs = np.stack([sources(2, any_library.dtype)] * 3, axis=1)
    log_p, log_q = (any_library.array(a) for a in logs)
    positions = (0.0, 0.5, 1.0)
    for alpha in (-1.0, 1.0, 3.0):
        got = geometry.geodesic(log_p, log_q, any_library.array(positions), alpha=alpha)
        for row, t in zip(any_library.numpy(got), positions, strict=True):
            wanted = geometry.geodesic(log_p, log_q, t, alpha=alpha)
            np.testing.assert_allclose(row, any_library.numpy(wanted)[0], atol=8 * any_library.eps)


def test_supports_along_a_geodesic(any_library):
    p, q = (any_library.array(a) for a in ([0.0, NINF], [NINF, 0.0]))
    for alpha in (-1.0, 1.0, 3.0):
        ends = [any_library.numpy(geometry.geodesic(p, q, t, alpha=alpha)) for t in (0.0, 1.0)]
        np.testing.assert_array_equal(ends, [[0.0, NINF], [NINF, 0.0]])
        middle = np.exp(any_library.numpy(geometry.geodesic(p, q, 0.5, alpha=alpha)))
        np.testing.assert_allclose(middle, [0.5] * 2 if alpha < 1 else [0.0] * 2, rtol=1e-6)
