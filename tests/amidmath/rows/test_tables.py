"""Tables of distances: values and gradients of pairs of rows, against a loop over the pairs."""

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
from pairs_oracle import by_pairs, chunks_of, gradients_by_pairs, log_probs
from resident import can_be_measured, taken_by

import amidmath as am

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


@pytest.fixture
def chunk_of():
    """Make chunks of so many numbers."""
    with contextlib.ExitStack() as stack:
        yield lambda size: stack.enter_context(chunks_of(size))


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
    with chunks_of(size):
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


# ---------------------------------------------------------------------------------------------
# Kernels and memory


@pytest.mark.parametrize(
    "make", [np.asarray, torch.from_numpy, jnp.asarray], ids=["numpy", "torch", "jax"]
)
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
