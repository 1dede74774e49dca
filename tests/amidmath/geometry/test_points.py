"""What amidmath.geometry accepts and refuses, and how libraries transform it."""

from __future__ import annotations

import inspect

import array_api_strict
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import amidmath as am
from amidmath import geometry

RNG = np.random.default_rng(9)
LOGITS = RNG.normal(size=(2, 3, 4))
LOG_P, LOG_Q = LOGITS - np.log(np.exp(LOGITS).sum(axis=-1, keepdims=True))
U, V, W = RNG.normal(size=(3, 3, 4))

# Every function as a function of arrays of one shape, with NumPy arrays to call it on.
CALLS = {
    "barycenter": (lambda p, q: geometry.barycenter(_stack(p, q), alpha=0.0), (LOG_P, LOG_Q)),
    "jensen_divergence": (
        lambda p, q: geometry.jensen_divergence(_stack(p, q), alpha=-1.0),
        (LOG_P, LOG_Q),
    ),
    "geodesic": (lambda p, q: geometry.geodesic(p, q, 0.25, alpha=3.0), (LOG_P, LOG_Q)),
    "fisher_metric": (geometry.fisher_metric, (LOG_P, U, V)),
    "fisher_information": (geometry.fisher_information, (LOG_P,)),
    "amari_chentsov": (geometry.amari_chentsov, (LOG_P, U, V, W)),
    "connection": (lambda p, u, v: geometry.connection(p, u, v, alpha=-1.0), (LOG_P, U, V)),
    "natural_gradient": (geometry.natural_gradient, (LOG_P, U)),
    "natural_gradient, damped": (
        lambda q, g: geometry.natural_gradient(q, g, damping=0.1),
        (LOG_P, U),
    ),
    "overlap": (geometry.overlap, (LOG_P, LOG_Q)),
    "mode_report": (
        lambda p, q: geometry.mode_report(p, q, alpha=0.0, lam=0.3).covering,
        (LOG_P, LOG_Q),
    ),
}
every_call = pytest.mark.parametrize(("f", "arrays"), CALLS.values(), ids=CALLS)


def _stack(p, q):
    if isinstance(p, torch.Tensor):
        return torch.stack([p, q])
    if isinstance(p, jax.Array):
        return jnp.stack([p, q])
    return (array_api_strict if not isinstance(p, np.ndarray) else np).stack([p, q])


def test_public_names():
    assert {n.split(",")[0] for n in CALLS} | {"ModeReport"} == set(geometry.__all__)
    public = {n for n, v in vars(geometry).items() if n[0] != "_" and not inspect.ismodule(v)}
    assert public == set(geometry.__all__)


@every_call
def test_dtypes(any_library, f, arrays):
    """float32 stays, float64 stays, and float32 with float64 is float64."""
    for dtype in ("float32", "float64"):
        if any_library.name == "jax" and dtype == "float64":
            continue
        got = any_library.numpy(f(*(any_library.array(a, dtype) for a in arrays)))
        assert got.dtype == dtype
        np.testing.assert_allclose(got, f(*arrays), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_call
def test_half_precision_is_computed_in_float32(f, arrays, dtype):
    narrow = [torch.from_numpy(a).to(dtype) for a in arrays]
    got = f(*narrow)
    assert got.dtype == torch.float32
    wide = f(*(a.double() for a in narrow))
    torch.testing.assert_close(got.double(), wide, rtol=1e-4, atol=1e-4)
    leaves = [a.clone().requires_grad_() for a in narrow]
    for grad, leaf in zip(torch.autograd.grad(f(*leaves).sum(), leaves), leaves, strict=True):
        assert grad.dtype == leaf.dtype


@every_call
def test_gradcheck(f, arrays):
    assert torch.autograd.gradcheck(f, [torch.from_numpy(a).requires_grad_() for a in arrays])


def test_compile_without_a_graph_break():
    """Of the others this is a part of test_capabilities.py."""
    tensors = [torch.from_numpy(a) for a in (LOG_P, U)]
    f = geometry.natural_gradient
    got = torch.compile(f, fullgraph=True, backend="aot_eager")(*tensors)
    torch.testing.assert_close(got, f(*tensors))


def test_jit_grad_and_vmap():
    """Of the others this is a part of test_capabilities.py."""
    f, arrays = geometry.natural_gradient, (LOG_P, U)
    tracers = [jnp.asarray(a, jnp.float32) for a in arrays]
    wanted = f(*tracers)
    np.testing.assert_allclose(jax.jit(f)(*tracers), wanted, rtol=1e-4, atol=1e-5)

    def total(*a):
        return jnp.sum(f(*a))

    grads = jax.jit(jax.grad(total, argnums=(0, 1)))(*tracers)
    leaves = [torch.from_numpy(a).requires_grad_() for a in arrays]
    for got, same in zip(grads, torch.autograd.grad(f(*leaves).sum(), leaves), strict=True):
        np.testing.assert_allclose(got, same, rtol=2e-3, atol=1e-4)
    each = jax.jit(jax.vmap(f))(*tracers)
    np.testing.assert_allclose(each, wanted, rtol=1e-4, atol=1e-5)


@every_call
def test_no_gradient_is_nan_where_probabilities_are_zero(any_autodiff, f, arrays):
    """An outcome that no point has, and one that only the first lacks."""
    f = any_autodiff.compiled(f)
    points = [a for a in arrays if a is LOG_P or a is LOG_Q]
    for lacking in ({0}, set(range(len(points)))):
        given = []
        for j, a in enumerate(arrays):
            extra = -np.inf if j in lacking else (-30.0 if j < len(points) else 1.0)
            column = np.full((3, 1), extra)
            given.append(any_autodiff.array(np.concatenate([a, column], axis=-1)))
        _, grads = any_autodiff.derivatives(f, *given)
        for grad in grads:
            assert not np.isnan(grad).any()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: geometry.barycenter([[0.0]], alpha=1.0), TypeError, ["logs", "array", "list"]),
        (lambda: geometry.barycenter(LOG_P, alpha="x"), TypeError, ["alpha", "number", "'x'"]),
        (lambda: geometry.barycenter(LOG_P, alpha=np.nan), ValueError, ["alpha", "nan"]),
        (lambda: geometry.barycenter(LOG_P, alpha=LOG_P), TypeError, ["alpha", "number"]),
        (lambda: geometry.barycenter(LOG_P, alpha=1.0, axis=5), ValueError, ["axis", "5"]),
        (
            lambda: geometry.barycenter(LOG_P, alpha=1.0, outcomes=2),
            ValueError,
            ["outcomes", "2", "[-2, 1]"],
        ),
        (
            lambda: geometry.barycenter(LOG_P, alpha=1.0, axis=1),
            ValueError,
            ["axis=1", "outcomes=-1", "(3, 4)"],
        ),
        (
            lambda: geometry.barycenter(np.zeros((0, 3)), alpha=1.0),
            ValueError,
            ["logs", "source", "(0, 3)"],
        ),
        (
            lambda: geometry.barycenter(LOG_P, alpha=1.0, weights=(0.5, 0.5)),
            ValueError,
            ["weights", "3", "2"],
        ),
        (
            lambda: geometry.barycenter(LOG_P, alpha=1.0, weights=np.ones((3, 1)) / 3),
            ValueError,
            ["weights", "one number a source", "(3, 1)"],
        ),
        (lambda: geometry.barycenter(LOGITS[0], alpha=1.0), ValueError, ["logs", "log_softmax"]),
        (
            lambda: geometry.jensen_divergence(LOG_P, alpha=np.inf),
            ValueError,
            ["alpha", "finite", "inf"],
        ),
        (
            lambda: geometry.geodesic(LOG_P, LOG_Q, 1.5, alpha=0.0),
            ValueError,
            ["t ", "1.5", "[0, 1]"],
        ),
        (
            lambda: geometry.geodesic(LOG_P, LOG_Q, "a", alpha=0.0),
            TypeError,
            ["t ", "number", "'a'"],
        ),
        (
            lambda: geometry.geodesic(LOG_P, LOG_Q, np.ones(4), alpha=0.0),
            ValueError,
            ["t ", "(3,)", "(4,)"],
        ),
        (
            lambda: geometry.geodesic(LOG_P, LOG_Q[:2], 0.5, alpha=0.0),
            ValueError,
            ["log_p", "log_q", "broadcast", "(3, 4)", "(2, 4)"],
        ),
        (
            lambda: geometry.geodesic(LOG_P, torch.zeros(3, 4), 0.5, alpha=0.0),
            TypeError,
            ["log_p", "log_q", "torch"],
        ),
        (
            lambda: geometry.geodesic(LOG_P, LOGITS[0], 0.5, alpha=0.0),
            ValueError,
            ["log_q", "sum 1"],
        ),
        (lambda: geometry.fisher_metric(LOG_P, U[0, :1], V), ValueError, ["u", "(3, 4)", "(1,)"]),
        (lambda: geometry.fisher_metric(LOG_P, U > 0, V), TypeError, ["u", "bool"]),
        (lambda: geometry.fisher_metric(LOG_P, U, V, axis=3), ValueError, ["axis", "3", "log_p"]),
        (lambda: geometry.fisher_metric(U, U, V), ValueError, ["log_p", "log_softmax", "sum 1"]),
        (lambda: geometry.fisher_information(np.zeros(())), ValueError, ["axis", "log_p"]),
        (lambda: geometry.fisher_information(np.zeros((2, 0))), ValueError, ["log_p", "(2, 0)"]),
        (lambda: geometry.amari_chentsov(LOG_P, U, V, None), TypeError, ["w", "NoneType"]),
        (lambda: geometry.connection(LOG_P, U, V, alpha=np.inf), ValueError, ["alpha", "finite"]),
        (
            lambda: geometry.natural_gradient(LOG_P, U, damping=-1.0),
            ValueError,
            ["damping", "-1.0"],
        ),
        (
            lambda: geometry.natural_gradient(LOG_P, U, damping=np.inf),
            ValueError,
            ["damping", "finite", "inf"],
        ),
        (lambda: geometry.natural_gradient(LOG_P, U, damping="1"), TypeError, ["damping", "'1'"]),
        (lambda: geometry.overlap(LOG_P, LOG_Q.astype(int)), TypeError, ["log_q", "int64"]),
        (
            lambda: geometry.mode_report(LOG_P, LOG_Q, alpha=0.0, lam=1.2),
            ValueError,
            ["lam", "1.2", "[0, 1]"],
        ),
        (
            lambda: geometry.mode_report(LOG_P, LOG_Q, alpha=np.zeros(4), lam=0.5),
            ValueError,
            ["alpha", "(3,)", "(4,)"],
        ),
    ],
    ids=lambda value: None,
)
def test_errors(call, error, words):
    with pytest.raises(error) as raised:
        call()
    for word in words:
        assert word in str(raised.value), str(raised.value)


def test_barycenter_of_two_is_the_mixture():
    """Up to rounding, with λ as the first weight; and the middle of the geodesic."""
    for alpha in (-3.0, -1.0, 0.0, 1.0, 3.0):
        mixed = am.alpha_mixture(LOG_P, LOG_Q, alpha=alpha, lam=0.25)
        both = geometry.barycenter(np.stack([LOG_P, LOG_Q]), alpha=alpha, weights=(0.25, 0.75))
        np.testing.assert_allclose(both, mixed, atol=1e-14)
        np.testing.assert_allclose(
            geometry.geodesic(LOG_P, LOG_Q, 0.75, alpha=alpha), mixed, atol=1e-14
        )
