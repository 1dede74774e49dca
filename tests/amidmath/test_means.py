"""f_α-means and α-mixtures against their definition."""

from __future__ import annotations

import math

import array_api_strict
import jax
import numpy as np
import pytest
import torch

import amidmath as am

ALPHAS = (
    *(-math.inf, -1e4, -50.0, -5.0, -3.0, -1.0, 0.0),
    *(1 - 1e-7, 1 - 1e-9, 1 - 1e-12, 1.0, 1 + 1e-12, 1 + 1e-7),
    *(3.0, 12.0, 1e4, math.inf),
)
LAMS = (0.0, 1e-12, 1e-6, 0.1, 0.5, 0.999, 1 - 1e-12, 1.0)
WEIGHTS = {
    "two": (0.1, 0.9),
    "three, equal": None,
    "four, one of zero": (0.2, 0.0, 0.5, 0.3),
    "five, one has all": (0.0, 0.0, 1.0, 0.0, 0.0),
    "five, uneven": (1e-6, 1e-3, 0.1, 0.4, 0.498999),
}


def probabilities(dtype):
    """Log-probabilities of two times four distributions, equal to 1e-3 in places, or far."""
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(2, 4, 4)) * 4
    logits[1, :, ::3] = logits[0, :, ::3] + 1e-3
    logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return logs.astype(dtype)


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_log_falpha_mean(library, oracle, weights):
    """Within 2 eps·max(1, |log x|), for every α."""
    count = 3 if weights is None else len(weights)
    rng = np.random.default_rng(count)
    logs = (-8 * rng.random((count, 4))).astype(library.dtype)
    logs[:, :2] = logs[0, :2] * (1 + 1e-4 * rng.normal(size=(count, 2)))
    array = library.array(logs)
    # Doubles such as (.2, .5, .3) sum to 1 only nearly; a mean is of weights that do.
    exact_weights = oracle.exact(weights or (1.0,) * count)
    exact_weights = tuple(w / sum(exact_weights) for w in exact_weights)
    bound = 2 * library.eps * np.maximum(1.0, np.abs(logs).max(axis=0))
    for alpha in ALPHAS:
        got = library.numpy(am.log_falpha_mean(array, alpha=alpha, weights=weights))
        wanted = [
            oracle.mp.log(oracle.mean(tuple(map(oracle.mp.exp, column)), exact_weights, alpha))
            for column in oracle.exact(logs.T)
        ]
        error = oracle.error(got, wanted)
        assert np.all(error <= bound), (
            f"α={alpha!r}: off by {(error / bound * 2).max():.2f} eps·max(1, |log x|)"
        )


@pytest.mark.parametrize("axis", [0, 1, -1, -2])
def test_log_falpha_mean_along_any_axis(any_library, axis):
    logs = -np.random.default_rng(0).random((4, 4)).astype(any_library.dtype)
    got = any_library.numpy(am.log_falpha_mean(any_library.array(logs), alpha=0.0, axis=axis))
    first = np.ascontiguousarray(np.moveaxis(logs, axis, 0))
    np.testing.assert_array_equal(
        got, any_library.numpy(am.log_falpha_mean(any_library.array(first), alpha=0.0))
    )
    assert got.shape == first.shape[1:]


def test_log_falpha_mean_of_zeros(any_library):
    """-inf is x = 0: it leaves the other source for α < 1, and is the mean for α >= 1."""
    ninf = -math.inf
    logs = any_library.array([[ninf, 0.5, ninf], [-1.0, ninf, ninf]])
    for alpha in ALPHAS:
        got = any_library.numpy(am.log_falpha_mean(logs, alpha=alpha, weights=(0.25, 0.75)))
        if alpha >= 1:
            wanted = [ninf, ninf, ninf]
        elif math.isinf(alpha):
            wanted = [-1.0, 0.5, ninf]
        else:
            k = (1 - alpha) / 2
            wanted = [-1.0 + math.log(0.75) / k, 0.5 + math.log(0.25) / k, ninf]
        np.testing.assert_allclose(got, wanted, rtol=8 * any_library.eps, err_msg=str(alpha))
        # A source of weight zero does not count, zero or not.
        got = any_library.numpy(am.log_falpha_mean(logs, alpha=alpha, weights=(0.0, 1.0)))
        np.testing.assert_array_equal(got, [-1.0, ninf, ninf], str(alpha))


@pytest.mark.parametrize("alpha", [-math.inf, -5.0, -1.0, 0.0, 1 - 1e-9, 1.0, 3.0, math.inf])
def test_log_falpha_mean_gradient_is_the_share_of_each_source(autodiff, oracle, alpha):
    """By differences of the definition; at a tie of the maximum, λ_j over the ties."""
    logs = np.random.default_rng(2).normal(size=(3, 4)).astype(autodiff.dtype)
    weights = (0.5, 0.2, 0.3)

    def log_mean(column):
        return oracle.mp.log(oracle.mean(tuple(map(oracle.mp.exp, column)), weights, alpha))

    wanted = np.empty((3, 4), dtype=object)
    step = oracle.mp.mpf(10) ** -20
    for i in range(4):
        column = oracle.exact(logs[:, i])
        for j in range(3):
            up, down = list(column), list(column)
            up[j], down[j] = up[j] + step, down[j] - step
            wanted[j, i] = (log_mean(up) - log_mean(down)) / (2 * step)
    _, (grad,) = autodiff.derivatives(
        lambda a: am.log_falpha_mean(a, alpha=alpha, weights=weights), autodiff.array(logs)
    )
    assert grad.dtype == logs.dtype
    assert oracle.error(grad, wanted).max() <= 16 * autodiff.eps


def test_log_falpha_mean_gradient_at_ties(autodiff):
    logs = autodiff.array([[1.0] * 4, [1.0] * 4, [0.0] * 4])
    _, (grad,) = autodiff.derivatives(
        lambda a: am.log_falpha_mean(a, alpha=-math.inf, weights=(0.1, 0.3, 0.6)), logs
    )
    np.testing.assert_allclose(grad[:, 0], [0.25, 0.75, 0.0], rtol=4 * autodiff.eps)


def test_alpha_mixture_gradient_at_ties(autodiff):
    """Where p = q the maximum and the minimum have a corner; λ is what all other α tend to."""
    p = autodiff.array([[-1.0, -1.0, -2.0, -3.0]] * 4)
    q = autodiff.array([[-1.0, -1.0, -3.0, -2.0]] * 4)
    for alpha, wanted in ((-math.inf, [0.25, 0.25, 1.0, 0.0]), (math.inf, [0.25, 0.25, 0.0, 1.0])):
        _, (over_p, over_q) = autodiff.derivatives(
            lambda p, q, a=alpha: am.alpha_mixture(p, q, alpha=a, lam=0.25, normalize=False), p, q
        )
        np.testing.assert_array_equal(over_p[0], wanted)
        np.testing.assert_array_equal(over_q[0], 1.0 - np.array(wanted))


@pytest.mark.parametrize("normalize", [False, True], ids=["unnormalised", "normalised"])
@pytest.mark.parametrize("lam", LAMS)
def test_alpha_mixture(library, oracle, lam, normalize):
    """Within 2.5 eps·max(1, |log p|, |log q|), and that of log Z where it is subtracted.

    5 eps in JAX, whose expm1 is off by up to 2.7 ulp on the CPU.
    """
    units = 5 if library.name == "jax" else 2.5
    logs = probabilities(library.dtype)
    log_p, log_q = (library.array(a) for a in logs)
    rows = list(zip(oracle.exact(logs[0]), oracle.exact(logs[1]), strict=True))
    size = np.maximum(1.0, np.abs(logs).max(axis=0))
    for alpha in ALPHAS:
        mixed = [oracle.log_assistant(*row, alpha, lam) for row in rows]
        wanted = [[v + (0 if normalize else log_z) for v in log_r] for log_r, log_z in mixed]
        size_z = np.array([[max(1.0, abs(float(log_z)))] for _, log_z in mixed])
        bound = library.eps * (size + (size_z if normalize else 0.0))
        got = am.alpha_mixture(log_p, log_q, alpha=alpha, lam=lam, normalize=normalize)
        error = oracle.error(library.numpy(got), wanted)
        assert np.all(error <= units * bound), (
            f"α={alpha!r}: off by {(error / bound).max():.2f} eps·max(1, |log p|, |log q|)"
        )


def test_alpha_mixture_along_any_axis(any_library):
    logs = probabilities(any_library.dtype)
    log_p, log_q = (any_library.array(a) for a in logs)
    whole = any_library.numpy(am.alpha_mixture(log_p, log_q, alpha=3.0, lam=0.3))
    turned = am.alpha_mixture(
        *(any_library.array(np.ascontiguousarray(a.T)) for a in logs), alpha=3.0, lam=0.3, axis=0
    )
    np.testing.assert_allclose(any_library.numpy(turned).T, whole, atol=32 * any_library.eps)


def test_alpha_mixture_supports(any_library):
    """λ in (0, 1): the union of the supports for α < 1, the intersection for α >= 1."""
    ninf = -math.inf
    log_p = any_library.array([[math.log(0.5), math.log(0.5), ninf, ninf]] * 4)
    log_q = any_library.array([[ninf, math.log(0.5), math.log(0.5), ninf]] * 4)
    for alpha in ALPHAS:
        r = np.exp(any_library.numpy(am.alpha_mixture(log_p, log_q, alpha=alpha, lam=0.5)))[0]
        if alpha >= 1:
            np.testing.assert_array_equal(r, [0.0, 1.0, 0.0, 0.0], str(alpha))
        else:
            assert math.isclose(r.sum(), 1.0, rel_tol=4 * any_library.eps), alpha
            assert r[3] == 0.0, alpha
            assert (r[0] > 0.0 and r[2] > 0.0) or alpha > 1 - 1e-6, alpha


def test_alpha_mixture_of_disjoint_distributions(any_library):
    """At α >= 1 there is none: all of log r is -inf, never NaN."""
    ninf = -math.inf
    log_p, log_q = (
        any_library.array([[0.0, 0.0, ninf, ninf]] * 4),
        any_library.array([[ninf, ninf, 0.0, 0.0]] * 4),
    )
    for alpha in (1.0, 1 + 1e-7, 3.0, math.inf):
        log_r = any_library.numpy(am.alpha_mixture(log_p, log_q, alpha=alpha, lam=0.5))
        np.testing.assert_array_equal(log_r, ninf)


@pytest.mark.parametrize("normalize", [False, True], ids=["unnormalised", "normalised"])
@pytest.mark.parametrize("alpha", [-5.0, -1.0, 1 - 1e-9, 1.0, 3.0])
def test_alpha_mixture_gradients(autodiff, oracle, alpha, normalize):
    """Of Σ c log r with respect to log p and log q, by differences of the definition."""
    logs, lam = probabilities(autodiff.dtype), 0.3
    weight = np.array([0.5, -1.0, 2.0, 0.25]).astype(autodiff.dtype)

    def total(point):
        log_r, log_z = oracle.log_assistant(point[:4], point[4:], alpha, lam)
        return sum(
            oracle.exact(c) * (v if normalize else v + log_z)
            for c, v in zip(weight, log_r, strict=True)
        )

    point = (*oracle.exact(logs[0, 0]), *oracle.exact(logs[1, 0]))
    step = oracle.mp.mpf(10) ** -20
    wanted = []
    for i, v in enumerate(point):
        up, down = (total((*point[:i], v + h, *point[i + 1 :])) for h in (step, -step))
        wanted.append((up - down) / (2 * step))
    _, grads = autodiff.derivatives(
        lambda p, q: am.alpha_mixture(p, q, alpha=alpha, lam=lam, normalize=normalize),
        *(autodiff.array(a) for a in logs),
        cotangent=np.stack([weight] * 4),
    )
    assert oracle.error(np.concatenate([g[0] for g in grads]), wanted).max() <= 32 * autodiff.eps


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(dtype):
    p, q = torch.log_softmax(
        torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0)), -1
    ).to(getattr(torch, dtype))
    for narrow in (
        (p.clone().requires_grad_(), q.clone().requires_grad_()),
        tuple(jax.numpy.asarray(a.float().numpy(), dtype=dtype) for a in (p, q)),
    ):
        mixed = am.alpha_mixture(*narrow, alpha=0.0, lam=0.3)
        wide = am.alpha_mixture(p.float(), q.float(), alpha=0.0, lam=0.3)
        assert "float32" in str(mixed.dtype)
        np.testing.assert_allclose(
            np.asarray(mixed.detach() if isinstance(mixed, torch.Tensor) else mixed),
            wide.numpy(),
            rtol=1e-6,
        )
    leaf = p.clone().requires_grad_()
    am.alpha_mixture(leaf, q, alpha=0.0, lam=0.3).sum().backward()
    assert leaf.grad.dtype == p.dtype


def test_strict_arrays_stay_strict():
    logs = array_api_strict.asarray([[-1.0, -2.0], [-2.0, -1.0]])
    assert type(am.log_falpha_mean(logs, alpha=0.0)) is type(logs)


def test_transforms_of_the_mixture():
    """jit, vmap and forward mode of the means, whose rules are elementwise or along an axis."""
    logs = jax.numpy.asarray(probabilities("float32"))

    def f(p, q):
        return am.alpha_mixture(p, q, alpha=3.0, lam=0.3)

    plain = f(*logs)
    np.testing.assert_allclose(jax.jit(f)(*logs), plain, rtol=1e-6, atol=1e-6)
    pairs = (jax.numpy.stack([a, a]) for a in logs)
    np.testing.assert_allclose(jax.vmap(f)(*pairs)[1], plain, rtol=1e-6, atol=1e-6)
    direction = jax.numpy.ones_like(logs[0])
    _, forward = jax.jvp(lambda p: f(p, logs[1]), (logs[0],), (direction,))
    jacobian = jax.jit(jax.jacrev(lambda p: f(p, logs[1])))(logs[0])
    np.testing.assert_allclose(forward, jax.numpy.tensordot(jacobian, direction, axes=2), atol=2e-6)
