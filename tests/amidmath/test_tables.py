"""Divergences and means whose batch axes broadcast, against a loop over the pairs."""

from __future__ import annotations

import contextlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes
from jax import export
from resident import can_be_measured, taken_by

import amidmath as am
from amidmath import geometry
from amidmath.rows import forms

DIVERGENCES = {
    "KL": am.KL(),
    "Rényi": am.Renyi(2.0),
    "measures": am.AlphaBeta(0.2, 0.7),
    "a function": am.FDivergence(lambda u, xp: u * xp.log(u) - u + 1.0),
    "dual": am.Dual(am.SkewKL(0.1)),
}
by_divergence = pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES)

# Shapes of x and y, and the axis of the outcomes.
PATTERNS = {
    "table": ((4, 1, 3), (1, 5, 3), -1),
    "vector": ((4, 3), (3,), -1),
    "of a vector": ((3,), (2, 4, 3), -1),
    "mixed": ((2, 1, 4, 3), (5, 1, 3), -1),
    "ones alone": ((4, 3), (1, 1, 4, 3), -1),
    "nobody": ((0, 1, 3), (1, 4, 3), -1),
    "first axis": ((3, 4, 1), (3, 5), 0),
    "second from the end": ((4, 3, 1), (3, 5), -2),
}
by_pattern = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)


def log_probs(shape, axis=-1, seed=0):
    logits = np.random.default_rng([seed, *shape]).normal(size=shape)
    return logits - np.log(np.exp(logits).sum(axis=axis, keepdims=True))


def by_pairs(f, x, y, axis):
    """What f gives for each pair of rows, a number or a row, stacked: a loop, no broadcasting."""
    return looped(f, x, y, axis, lambda out, *_: np.asarray(out))


def looped(f, x, y, axis, take):
    x, y = np.moveaxis(x, axis, -1), np.moveaxis(y, axis, -1)
    shape = np.broadcast_shapes(x.shape[:-1], y.shape[:-1])
    places = [
        np.broadcast_to(np.arange(a[..., 0].size).reshape(a.shape[:-1]), shape) for a in (x, y)
    ]
    rows = [a.reshape(-1, a.shape[-1]) for a in (x, y)]
    found = [
        take(f(rows[0][places[0][at]], rows[1][places[1][at]]), places[0][at], places[1][at], at)
        for at in np.ndindex(shape)
    ]
    return np.array(found).reshape((*shape, *np.shape(found[0]))) if found else np.zeros(shape)


def gradients_by_pairs(divergence, x, y, axis, counts):
    """The gradients of the sum of the pairs' values, each of which counts as much as that."""
    sums = [np.zeros((a.size // a.shape[axis], a.shape[axis])) for a in (x, y)]

    def take(out, i, j, at):
        for total, row, grad in zip(sums, (i, j), out[1], strict=True):
            total[row] += counts[at] * grad
        return 0.0

    looped(divergence.value_and_grad, x, y, axis, take)
    shapes = [np.moveaxis(a, axis, -1).shape for a in (x, y)]
    return [np.moveaxis(s.reshape(n), -1, axis) for s, n in zip(sums, shapes, strict=True)]


@pytest.fixture
def chunk_of(monkeypatch):
    """Make chunks of so many numbers, and none of what was compiled for others."""

    def patch(size):
        monkeypatch.setattr(forms, "CPU_CHUNK", size)
        jax.clear_caches()

    yield patch
    jax.clear_caches()


def close(library, got, wanted):
    got = library.numpy(got)
    assert got.shape == wanted.shape
    scale = np.abs(wanted).max(initial=1.0)
    np.testing.assert_allclose(got, wanted, rtol=64 * library.eps, atol=16 * library.eps * scale)


# ---------------------------------------------------------------------------------------------
# Every pattern, whole and in chunks, on every library


@pytest.mark.parametrize("size", [2**20, 12], ids=["laid out", "in chunks"])
@by_pattern
def test_values_and_gradients_of_every_pattern(any_library, chunk_of, pattern, size):
    chunk_of(size)
    *shapes, axis = pattern
    divergence = am.AlphaBeta(0.2, 0.7)
    x, y = (log_probs(shape, axis, j) for j, shape in enumerate(shapes))
    wanted = by_pairs(divergence, x, y, axis)
    grads = gradients_by_pairs(divergence, x, y, axis, np.ones(wanted.shape))
    here = [any_library.array(a) for a in (x, y)]
    close(any_library, divergence(*here, axis), wanted)
    values, given = any_library.compiled(partial(divergence.value_and_grad, axis=axis))(*here)
    close(any_library, values, wanted)
    for got, grad in zip(given, grads, strict=True):
        close(any_library, got, grad)
    kept = divergence(*here, axis, keepdims=True)
    assert kept.ndim == wanted.ndim + 1
    assert kept.shape[axis] == 1
    close(any_library, kept, np.expand_dims(wanted, axis))


@by_divergence
def test_every_divergence(any_library, chunk_of, divergence):
    chunk_of(12)
    x, y = log_probs((4, 1, 3)), log_probs((5, 3), seed=1)
    wanted = by_pairs(divergence, x, y, -1)
    grads = gradients_by_pairs(divergence, x, y, -1, np.ones(wanted.shape))
    values, given = divergence.value_and_grad(*(any_library.array(a) for a in (x, y)))
    close(any_library, values, wanted)
    for got, grad in zip(given, grads, strict=True):
        close(any_library, got, grad)


BATCHES = mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=4, min_side=1)


@settings(max_examples=150, deadline=None)
@given(BATCHES, st.integers(1, 60), st.integers(-2, 1), st.sampled_from(["numpy", "torch"]))
def test_any_shapes_in_any_chunks(batches, size, axis, kind):
    shapes = []
    for batch in batches.input_shapes:
        if len(batch) + 1 < (axis + 1 if axis >= 0 else -axis):
            axis = -1
    for batch in batches.input_shapes:
        place = axis if axis >= 0 else len(batch) + 1 + axis
        shapes.append((*batch[:place], 3, *batch[place:]))
    x, y = (log_probs(shape, axis, j) for j, shape in enumerate(shapes))
    divergence = am.JensenShannon()
    wanted = by_pairs(divergence, x, y, axis)
    counts = np.random.default_rng(2).normal(size=wanted.shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forms, "CPU_CHUNK", size)
        if kind == "numpy":
            counts = np.ones(wanted.shape)
            values, grads = divergence.value_and_grad(x, y, axis)
        else:
            leaves = [torch.from_numpy(a.copy()).requires_grad_() for a in (x, y)]
            values = divergence(*leaves, axis)
            grads = torch.autograd.grad(values, leaves, torch.from_numpy(counts))
            values = values.detach()
    np.testing.assert_allclose(values, wanted, rtol=1e-12, atol=1e-14)
    for got, grad in zip(grads, gradients_by_pairs(divergence, x, y, axis, counts), strict=True):
        np.testing.assert_allclose(got, grad, rtol=1e-11, atol=1e-13)


# ---------------------------------------------------------------------------------------------
# Differentiation


def torch_backward(f, arrays, counts, along):
    leaves = [a.clone().requires_grad_() for a in arrays]
    return torch.autograd.grad(f(*leaves), leaves, counts)


def torch_one_by_one(f, arrays, counts, along):
    x, y = arrays
    (by_x,) = torch_backward(lambda x: f(x, y), [x], counts, along)
    (by_y,) = torch_backward(lambda y: f(x, y), [y], counts, along)
    return by_x, by_y


def torch_again(f, arrays, counts, along):
    """A second pass through a graph that was retained."""
    leaves = [a.clone().requires_grad_() for a in arrays]
    value = f(*leaves)
    torch.autograd.grad(value, leaves, counts, retain_graph=True)
    return torch.autograd.grad(value, leaves, counts)


def torch_compiled(f, arrays, counts, along):
    torch._dynamo.reset()
    return torch_backward(
        torch.compile(f, fullgraph=True, backend="aot_eager"), arrays, counts, along
    )


def torch_func(f, arrays, counts, along):
    return torch.func.grad(lambda *a: (f(*a) * counts).sum(), argnums=(0, 1))(*arrays)


def torch_vmap(f, arrays, counts, along):
    x, y = arrays
    (by_x,) = torch_backward(lambda x: torch.vmap(f, (0, None))(x, y), [x], counts, along)
    (by_y,) = torch_backward(lambda y: torch.vmap(f, (0, None))(x, y), [y], counts, along)
    return by_x, by_y


def torch_by_cotangents(f, arrays, counts, along):
    """The tangent, as the derivative of the gradients by what they are linear in."""
    leaves = [a.clone().requires_grad_() for a in arrays]
    value = f(*leaves)
    counts = torch.zeros_like(value, requires_grad=True)
    grads = torch.autograd.grad(value, leaves, counts, create_graph=True)
    return torch.autograd.grad(grads, counts, along)[0]


def torch_forward(f, arrays, counts, along):
    return torch.func.jvp(f, tuple(arrays), tuple(along))[1]


def jax_backward(f, arrays, counts, along):
    return jax.vjp(f, *arrays)[1](counts)


def jax_jitted(f, arrays, counts, along):
    return jax.jit(lambda *a: jax.vjp(f, *a)[1](counts))(*arrays)


def jax_vmap(f, arrays, counts, along):
    return jax_backward(jax.vmap(f, (0, None)), arrays, counts, along)


def jax_forward(f, arrays, counts, along):
    return jax.jit(lambda a, d: jax.jvp(f, a, d))(tuple(arrays), tuple(along))[1]


def jax_linearized(f, arrays, counts, along):
    return jax.linearize(f, *arrays)[1](*along)


def jax_by_cotangents(f, arrays, counts, along):
    def pulled(counts):
        return jax.vjp(f, *arrays)[1](counts)

    return jax.vjp(pulled, counts)[1](tuple(along))[0]


WAYS = {
    f.__name__: f
    for f in (
        *(torch_backward, torch_one_by_one, torch_again, torch_compiled, torch_func, torch_vmap),
        *(torch_by_cotangents, torch_forward, jax_backward, jax_jitted, jax_vmap, jax_forward),
        *(jax_linearized, jax_by_cotangents),
    )
}


@pytest.mark.parametrize("size", [2**20, 50], ids=["laid out", "in chunks"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_differentiation(chunk_of, way, size):
    """In chunks of 2, 2 and 1 along an axis of 5 that both have, with repeated ones around it."""
    chunk_of(size)
    divergence = am.AlphaBeta(0.2, 0.7)
    x, y = log_probs((2, 5, 1, 4, 3)), log_probs((5, 2, 1, 3), seed=1)
    rng = np.random.default_rng(3)
    along = [rng.normal(size=a.shape) for a in (x, y)]
    counts = rng.normal(size=(2, 5, 2, 4))
    if "forward" in way.__name__ or "linear" in way.__name__ or "cotangents" in way.__name__:
        _, grads = divergence.value_and_grad(
            *(np.broadcast_to(a, (2, 5, 2, 4, 3)).copy() for a in (x, y))
        )
        wanted = [sum((g * d).sum(axis=-1) for g, d in zip(grads, along, strict=True))]
    else:
        wanted = gradients_by_pairs(divergence, x, y, -1, counts)
    of_torch = way.__name__.startswith("torch")
    make = torch.from_numpy if of_torch else jnp.asarray
    with contextlib.nullcontext() if of_torch else jax.enable_x64(True):
        got = way(divergence, [make(a) for a in (x, y)], make(counts), [make(d) for d in along])
        got = [np.asarray(g) for g in (got if isinstance(got, tuple) else (got,))]
    assert len(got) == len(wanted)
    for here, there in zip(got, wanted, strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-10, atol=1e-12)


def test_second_derivatives_by_reference_and_refused_elsewhere(chunk_of):
    chunk_of(12)
    divergence, (x, y) = am.Renyi(2.0), (log_probs((4, 1, 3)), log_probs((2, 3), seed=1))

    def total(x, **kwargs):
        return divergence(x, make(y), **kwargs).sum()

    def pair(x, y):
        return torch.func.hessian(lambda x: divergence(x, y, backend="reference"))(x)

    wanted = np.zeros((4, 3, 3))
    for i, j in np.ndindex(4, 2):
        wanted[i] += pair(torch.from_numpy(x[i, 0]), torch.from_numpy(y[j])).numpy()
    make = torch.from_numpy
    got = torch.autograd.functional.hessian(partial(total, backend="reference"), make(x)).numpy()
    own = [got[i, 0, :, i, 0] for i in range(4)]
    np.testing.assert_allclose(own, wanted, rtol=1e-9)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        torch.autograd.functional.hessian(total, make(x))
    make = jnp.asarray
    with jax.enable_x64(True):
        got = jax.hessian(partial(total, backend="reference"))(make(x))
        np.testing.assert_allclose([got[i, 0, :, i, 0] for i in range(4)], wanted, rtol=1e-9)
        with pytest.raises(RuntimeError, match="first derivatives only"):
            jax.hessian(total)(make(x))


HALVES = {
    "a divergence": (am.GeneralizedKL(), (512,)),  # rows in half precision do not sum to 1
    "a mixture": (partial(am.alpha_mixture, alpha=0.0, lam=0.5, normalize=False), (512, 1)),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [2**20, 60], ids=["laid out", "in chunks"])
@pytest.mark.parametrize(("f", "shape"), HALVES.values(), ids=HALVES)
def test_gradients_in_half_precision_are_rounded_once(chunk_of, f, shape, dtype, size):
    """512 partial derivatives that nearly cancel in pairs, which rounded each they would not."""
    chunk_of(size)
    x = torch.from_numpy(log_probs((256, 1, 3)))
    x = torch.cat([x, x + 2.0**-6], dim=1).reshape(512, 3).to(dtype)
    y = torch.from_numpy(log_probs((3,), seed=1)).to(dtype)
    signs = torch.tensor([1.0, -1.0]).repeat(256).reshape(shape)
    wide = y.double().requires_grad_()
    (f(x.double(), wide) * signs).sum().backward()
    leaf = y.clone().requires_grad_()
    (f(x, leaf) * signs).sum().backward()
    assert leaf.grad.dtype == dtype
    error = (leaf.grad.double() - wide.grad).abs()
    assert (error <= 0.51 * torch.finfo(dtype).eps * wide.grad.abs() + 1e-5).all()


def test_the_closed_form_gives_gradients_in_the_dtypes_of_the_arguments(chunk_of):
    x, y = log_probs((512, 3)), log_probs((3,), seed=1)
    x, y = x.astype(np.float16), y.astype(np.float32)
    _, wanted = am.GeneralizedKL().value_and_grad(x.astype(float), y.astype(float))
    for size in (2**20, 60):
        chunk_of(size)
        values, grads = am.GeneralizedKL().value_and_grad(x, y)
        assert (values.dtype, *(g.dtype for g in grads)) == (np.float32, x.dtype, y.dtype)
        for got, exact in zip(grads, wanted, strict=True):
            np.testing.assert_allclose(got, exact, rtol=0.0, atol=np.finfo(got.dtype).eps * 512)


def test_shapes_that_jax_does_not_know():
    (rows,) = export.symbolic_shape("rows")
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((rows, 1, 3), (4, 3))]
    program = export.export(jax.jit(am.KL().value_and_grad))(*shapes)
    x, y = log_probs((5, 1, 3)).astype("f4"), log_probs((4, 3), seed=1).astype("f4")
    values, (by_x, by_y) = program.call(x, y)
    wanted, (of_x, of_y) = am.KL().value_and_grad(x, y)
    for got, there in ((values, wanted), (by_x, of_x), (by_y, of_y)):
        np.testing.assert_allclose(got, there, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------
# Kernels and memory


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy, jnp.asarray], ids=str)
def test_kernels_compute_the_chunks(chunk_of, make):
    pytest.importorskip("llvmlite")
    x, y = log_probs((6, 1, 40)).astype("f4"), log_probs((7, 40), seed=1).astype("f4")
    wanted = am.KL().value_and_grad(x, y, backend="reference")
    for size in (2**20, 400):
        chunk_of(size)
        got = am.KL().value_and_grad(make(x), make(y), backend="compiled")
        for here, there in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(here, there, rtol=1e-4, atol=1e-5)


def _torch_step(f):
    def step(x, y):
        leaves = [torch.from_numpy(a).requires_grad_() for a in (x, y)]
        f(*leaves).mean().backward()
        return [leaf.grad for leaf in leaves]

    return step


def _jax_step(x, y):
    step = jax.jit(jax.grad(lambda x, y: am.KL()(x, y).mean(), argnums=(0, 1)))
    return jax.block_until_ready(step(x, y))


MEMORY = {
    "NumPy": am.KL(),
    "NumPy, gradients": am.KL().value_and_grad,
    "torch": _torch_step(am.KL()),
    "torch, compiled": _torch_step(torch.compile(am.KL(), backend="aot_eager", dynamic=False)),
    "JAX": _jax_step,
}


@pytest.mark.skipif(not can_be_measured(), reason="the peak of memory is Linux's")
@pytest.mark.parametrize("call", MEMORY.values(), ids=MEMORY)
def test_a_table_takes_the_memory_of_its_chunks(call):
    """Pairs laid out would take 670 MB for each argument, and as much for each derivative."""
    x, y = log_probs((200, 1, 4096)).astype("f4"), log_probs((1, 205, 4096), seed=1).astype("f4")
    call(x[:7], y[:, :150])  # what is compiled on first use
    assert taken_by(lambda: call(x, y)) < 150e6


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
