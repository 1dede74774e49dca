"""Metric, cubic tensor, connections and natural gradient against their definitions.

The definitions are derivatives of the log-likelihood and of the log-partition function ψ of logits,
taken by differences at 60 digits; no moment of the code's formulas is in them.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from amidmath import geometry

ALPHAS = (-3.0, -1.0, 0.0, 0.5, 1.0, 3.0)
NINF = -np.inf
# What the fourth decimal of a mean is worth: vectors with a constant a thousand times their spread.
OFFSETS = {"small": 0.0, "on a large constant": 1000.0}

by_offset = pytest.mark.parametrize("offset", OFFSETS.values(), ids=OFFSETS)


def point(dtype, seed=0, outcomes=4):
    logits = np.random.default_rng(seed).normal(size=outcomes) * 2
    return (logits - np.log(np.exp(logits).sum())).astype(dtype)


def vectors(dtype, count, offset=0.0, outcomes=4):
    rng = np.random.default_rng(count)
    return (rng.normal(size=(count, outcomes)) + offset).astype(dtype)


def log_partition(oracle, theta):
    return oracle.mp.log(oracle.mp.fsum(oracle.mp.exp(v) for v in theta))


def moved(theta, *steps):
    for size, u in steps:
        theta = tuple(v + size * d for v, d in zip(theta, u, strict=True))
    return theta


def derivative_of_psi(oracle, theta, *directions):
    """The mixed derivative of ψ along the directions, by central differences."""
    h = oracle.mp.mpf(10) ** -12
    total = 0
    for signs in itertools.product((1, -1), repeat=len(directions)):
        steps = [(s * h, u) for s, u in zip(signs, directions, strict=True)]
        total += np.prod(signs) * log_partition(oracle, moved(theta, *steps))
    return total / (2 * h) ** len(directions)


def size_of(oracle, theta, *directions):
    """Σ p |ũ||ṽ|…, what the terms of a central moment add up to."""
    mp = oracle.mp
    total = log_partition(oracle, theta)
    p = [mp.exp(v - total) for v in theta]
    means = [mp.fdot(p, u) for u in directions]
    return float(
        mp.fsum(
            x * mp.fprod(abs(u[i] - m) for u, m in zip(directions, means, strict=True))
            for i, x in enumerate(p)
        )
    )


def christoffel(oracle, theta, u, v, alpha):
    """∇⁽ᵅ⁾_u v from Γ_{ij,k} = E[(∂ᵢ∂ⱼℓ + (1-α)/2 ∂ᵢℓ ∂ⱼℓ) ∂ₖℓ], the last logit held at its value.

    Amari & Nagaoka (2000), section 2.3. The first n-1 logits are coordinates; a vector's part
    along constants is taken out by subtracting its last entry.
    """
    mp = oracle.mp
    n = len(theta)
    h = mp.mpf(10) ** -15
    basis = [tuple(mp.mpf(i == j) for j in range(n)) for i in range(n - 1)]
    p = [mp.exp(x) for x in oracle.log_softmax(theta)]
    first, second = [], {}
    for e in basis:
        up, down = (oracle.log_softmax(moved(theta, (s, e))) for s in (h, -h))
        first.append([(a - b) / (2 * h) for a, b in zip(up, down, strict=True)])
    for i, j in itertools.product(range(n - 1), repeat=2):
        corners = [
            oracle.log_softmax(moved(theta, (s * h, basis[i]), (t * h, basis[j])))
            for s, t in ((1, 1), (1, -1), (-1, 1), (-1, -1))
        ]
        second[i, j] = [(a - b - c + d) / (4 * h * h) for a, b, c, d in zip(*corners, strict=True)]
    u, v = ([x - w[-1] for x in w[:-1]] for w in (u, v))
    gamma = mp.matrix(n - 1, 1)
    metric = mp.matrix(n - 1, n - 1)
    half = (1 - mp.mpf(alpha)) / 2
    for k in range(n - 1):
        for i, j in itertools.product(range(n - 1), repeat=2):
            terms = (
                x * (s + half * a * b) * c
                for x, s, a, b, c in zip(p, second[i, j], first[i], first[j], first[k], strict=True)
            )
            gamma[k] += u[i] * v[j] * mp.fsum(terms)
        for j in range(n - 1):
            metric[k, j] = mp.fsum(x * a * b for x, a, b in zip(p, first[k], first[j], strict=True))
    raised = [*mp.lu_solve(metric, gamma), mp.mpf(0)]
    return [x - mp.fdot(p, raised) for x in raised]


@by_offset
def test_fisher_metric_and_cubic_tensor(library, oracle, offset):
    """The second and third derivatives of ψ, within 16 eps of the sum of |terms|."""
    log_p, vs = point(library.dtype), vectors(library.dtype, 3, offset)
    theta, exact = oracle.exact(log_p), oracle.exact(vs)
    array, arrays = library.array(log_p), [library.array(v) for v in vs]
    for f, order in ((geometry.fisher_metric, 2), (geometry.amari_chentsov, 3)):
        for chosen in itertools.product(range(3), repeat=order):
            got = library.numpy(f(array, *(arrays[j] for j in chosen)))
            directions = [exact[j] for j in chosen]
            error = oracle.error(got, derivative_of_psi(oracle, theta, *directions))
            size = size_of(oracle, theta, *directions)
            assert error <= 16 * library.eps * size, f"{error / library.eps / size} eps"


def test_fisher_information(library, oracle):
    """Entries to 4 eps·max(1, |log p|) of their own size, also where one outcome has nearly all."""
    mp = oracle.mp
    logits = np.array([30.0, 1.0, 0.0, -2.0])
    for log_p in (point(library.dtype), np.log(np.exp(logits) / np.exp(logits).sum())):
        log_p = log_p.astype(library.dtype)
        log_p[0] = np.log1p(-np.exp(log_p[1:].astype(float)).sum())  # sums to 1, to rounding
        got = library.numpy(geometry.fisher_information(library.array(log_p)))
        p = [mp.exp(v) for v in oracle.exact(log_p)]
        p[0] = 1 - sum(p[1:])
        for i, j in itertools.product(range(4), repeat=2):
            wanted = p[i] * (sum(x for m, x in enumerate(p) if m != i) if i == j else -p[j])
            error = float(abs(mp.mpf(float(got[i, j])) - wanted))
            bound = library.eps * max(1.0, float(np.abs(log_p).max())) * float(abs(wanted))
            assert error <= 4 * bound, (i, j, error / bound)
        np.testing.assert_array_less(np.abs(got.sum(axis=-1)), 4 * library.eps)


def test_fisher_information_is_the_metric(any_library):
    log_p, (u, v) = point(any_library.dtype), vectors(any_library.dtype, 2)
    information = any_library.numpy(geometry.fisher_information(any_library.array(log_p)))
    metric = geometry.fisher_metric(*(any_library.array(a) for a in (log_p, u, v)))
    np.testing.assert_allclose(
        u @ information @ v, any_library.numpy(metric), rtol=64 * any_library.eps
    )


@by_offset
def test_connection(library, oracle, offset):
    """Against the Christoffel symbols, within 16 eps of what its terms are made of."""
    log_p, (u, v) = point(library.dtype), vectors(library.dtype, 2, offset)
    theta, exact = oracle.exact(log_p), oracle.exact(np.stack([u, v]))
    p = np.exp(log_p.astype(float))
    spreads = [w.astype(float) - p @ w.astype(float) for w in (u, v)]
    size = np.abs(spreads[0]).max() * np.abs(spreads[1]).max()
    for alpha in ALPHAS:
        got = geometry.connection(*(library.array(a) for a in (log_p, u, v)), alpha=alpha)
        wanted = christoffel(oracle, theta, *exact, alpha)
        error = oracle.error(library.numpy(got), wanted).max()
        bound = 16 * library.eps * abs(1 - alpha) / 2 * size
        assert error <= bound + 1e-20, f"α={alpha}: {error / bound} of the bound"


def test_connections_are_dual(oracle):
    """X g(Y, Z) = g(∇⁽ᵅ⁾_X Y, Z) + g(Y, ∇⁽⁻ᵅ⁾_X Z): the left side by differences of the metric."""
    log_p, (x, y, z) = point("float64"), vectors("float64", 3)
    theta, (dx, dy, dz) = oracle.exact(log_p), oracle.exact(np.stack([x, y, z]))
    h = oracle.mp.mpf(10) ** -10
    up, down = (derivative_of_psi(oracle, moved(theta, (s, dx)), dy, dz) for s in (h, -h))
    wanted = float((up - down) / (2 * h))
    for alpha in ALPHAS:
        one = geometry.connection(log_p, x, y, alpha=alpha)
        other = geometry.connection(log_p, x, z, alpha=-alpha)
        got = geometry.fisher_metric(log_p, one, z) + geometry.fisher_metric(log_p, y, other)
        assert abs(got - wanted) <= 1e-14, alpha


def test_connection_of_exponential_families_is_flat(any_library):
    arrays = [
        any_library.array(a) for a in (point(any_library.dtype), *vectors(any_library.dtype, 2))
    ]
    np.testing.assert_array_equal(any_library.numpy(geometry.connection(*arrays, alpha=1.0)), 0.0)


def exact_system(oracle, log_q, damping):
    """(F + δI), and q, for probabilities that sum to 1 exactly."""
    mp = oracle.mp
    q = [mp.exp(v) for v in oracle.exact(log_q)]
    q = [x / sum(q) for x in q]
    matrix = mp.matrix(len(q), len(q))
    for i, j in itertools.product(range(len(q)), repeat=2):
        matrix[i, j] = (q[i] + mp.mpf(damping) if i == j else 0) - q[i] * q[j]
    return matrix, q


@pytest.mark.parametrize("damping", [1e-3, 0.1, 10.0])
def test_damped_natural_gradient(library, oracle, damping):
    """(F + δI) x = g to 16 eps of g for any g; x to 16 eps of max|g|/δ."""
    mp = oracle.mp
    log_q, (grad,) = point(library.dtype), vectors(library.dtype, 1)
    got = library.numpy(
        geometry.natural_gradient(library.array(log_q), library.array(grad), damping=damping)
    )
    matrix, _ = exact_system(oracle, log_q, damping)
    wanted = list(mp.lu_solve(matrix, mp.matrix(oracle.exact(grad))))
    largest = float(np.abs(grad).max())
    error = oracle.error(got, wanted).max()
    assert error <= 16 * library.eps * largest / damping, error * damping / library.eps / largest
    left = matrix * mp.matrix(oracle.exact(got)) - mp.matrix(oracle.exact(grad))
    size = largest + (1 + damping) * float(np.abs(got).max())
    assert max(map(abs, left)) <= 16 * library.eps * size


def test_natural_gradient(library, oracle):
    """At δ = 0: F x = g - q Σg with Σ q x = 0, to 8 eps·max|log q| of |g|/q and of Σ|g|."""
    mp = oracle.mp
    log_q, (grad,) = point(library.dtype), vectors(library.dtype, 1)
    matrix, q = exact_system(oracle, log_q, 0.0)
    for g in (grad, (grad - np.exp(log_q) * grad.sum()).astype(library.dtype)):
        got = library.numpy(geometry.natural_gradient(library.array(log_q), library.array(g)))
        exact = oracle.exact(g)
        wanted = [x / y - mp.fsum(exact) for x, y in zip(exact, q, strict=True)]
        image = matrix * mp.matrix(wanted)
        for a, b, c in zip(image, exact, q, strict=True):
            assert abs(a - (b - c * mp.fsum(exact))) < 1e-50
        assert abs(mp.fdot(q, wanted)) < 1e-50
        size = np.abs(g) / np.exp(log_q) + np.abs(g).sum()
        error = oracle.error(got, wanted) / library.eps / size
        assert np.all(error <= 8 * max(1.0, np.abs(log_q).max())), error


def test_natural_gradient_of_kl(any_library):
    """KL(p‖q) by the logits of q: x = 1 - p/q, whatever multiple of q is added to q - p."""
    log_q, log_p = point(any_library.dtype), point(any_library.dtype, seed=1)
    q, p = np.exp(log_q), np.exp(log_p)
    for multiple in (0.0, 3.0):
        grad = any_library.array(q - p + multiple * q)
        got = any_library.numpy(geometry.natural_gradient(any_library.array(log_q), grad))
        np.testing.assert_allclose(got, 1 - p / q, rtol=0, atol=256 * any_library.eps)


def test_outcomes_of_probability_zero_take_no_part(any_library):
    """Whatever a vector has there, infinities included."""
    dtype = any_library.dtype
    log_p, vs = point(dtype), vectors(dtype, 3)
    short = [any_library.array(a) for a in (log_p, *vs)]
    for outside in (0.0, np.inf, np.nan):
        more = [any_library.array(np.append(log_p, NINF).astype(dtype))]
        more += [any_library.array(np.append(v, outside).astype(dtype)) for v in vs]
        close = {"rtol": 16 * any_library.eps, "atol": 16 * any_library.eps}
        for f, count in ((geometry.fisher_metric, 3), (geometry.amari_chentsov, 4)):
            np.testing.assert_allclose(
                any_library.numpy(f(*more[:count])), any_library.numpy(f(*short[:count])), **close
            )
        got = any_library.numpy(geometry.connection(*more[:3], alpha=-1.0))
        wanted = any_library.numpy(geometry.connection(*short[:3], alpha=-1.0))
        np.testing.assert_allclose(got, np.append(wanted, 0.0), **close)
        got = any_library.numpy(geometry.natural_gradient(*more[:2]))
        wanted = any_library.numpy(geometry.natural_gradient(*short[:2]))
        np.testing.assert_allclose(got, np.append(wanted, 0.0), rtol=1e-4, atol=1e-4)
    grad = any_library.array(np.append(vs[0], 2.0).astype(dtype))
    got = any_library.numpy(geometry.natural_gradient(more[0], grad, damping=0.5))
    assert got[-1] == 4.0
    information = any_library.numpy(geometry.fisher_information(more[0]))
    np.testing.assert_array_equal(information[-1], 0.0)


def test_any_axis(any_library):
    dtype = any_library.dtype
    log_p = np.stack([point(dtype), point(dtype, 1), point(dtype, 2)])
    us = np.random.default_rng(0).normal(size=(3, 3, 4)).astype(dtype)
    rows = [any_library.array(a) for a in (log_p, *us)]
    columns = [any_library.array(np.ascontiguousarray(a.T)) for a in (log_p, *us)]
    for f, count in ((geometry.fisher_metric, 3), (geometry.amari_chentsov, 4)):
        across, along = f(*columns[:count], axis=0), f(*rows[:count])
        assert along.shape == (3,)
        np.testing.assert_allclose(
            any_library.numpy(across), any_library.numpy(along), atol=16 * any_library.eps
        )
    across = any_library.numpy(geometry.connection(*columns[:3], alpha=0.0, axis=0))
    along = any_library.numpy(geometry.connection(*rows[:3], alpha=0.0))
    np.testing.assert_allclose(across.T, along, atol=16 * any_library.eps)
    for damping in (0.0, 0.1):
        across = geometry.natural_gradient(*columns[:2], damping=damping, axis=0)
        along = geometry.natural_gradient(*rows[:2], damping=damping)
        np.testing.assert_allclose(
            any_library.numpy(across).T, any_library.numpy(along), rtol=1e-4, atol=1e-4
        )
    assert geometry.fisher_information(rows[0]).shape == (3, 4, 4)
